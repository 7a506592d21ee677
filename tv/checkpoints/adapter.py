"""A LoRA adapter directory in peft's format as the tuned side: T = scaling · B · A, formed on demand.

Source: arXiv 2106.09685 §4.1 (scaling α/r) and arXiv 2312.03732 eq. 8 (rsLoRA, α/√r). Nothing is merged on disk, and
T is never taken from a difference. An adapter whose T is more than B · A is refused.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from tv.architecture.resolve import skeleton
from tv.checkpoints.location import place_of
from tv.checkpoints.moved import MovedTensors
from tv.checkpoints.noise import ROUNDING, Noise
from tv.checkpoints.parameters import TensorInfo
from tv.checkpoints.tensors import Stored, difference, header
from tv.checkpoints.transformers_names import ModelNames
from tv.errors import CheckpointError, first_line

if TYPE_CHECKING:
    from tv.checkpoints.checkpoint import Checkpoint

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
#: Settings under which T is not scaling · B · A.
_OTHER_FORMS = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "kasa_config": "KaSA",
    "arrow_config": "Arrow routing",
    "monteclora_config": "MonteCLoRA",
    "alora_invocation_tokens": "an activated LoRA, which depends on the tokens",
    "target_parameters": "LoRA on parameters (target_parameters)",
    "trainable_token_indices": "trainable tokens",
    "layer_replication": "replicated layers",
}
#: Initialisations that leave the base's weights unchanged. The others move part of them into A and B.
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
_MERGE = "merge it into its base with peft and pass the merged checkpoint"
_KEY = re.compile(r"^(?P<path>.*)\.(?P<part>lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_embedding_[AB])$")


def adapter_base(directory: Path) -> tuple[str, str | None]:
    """(source, revision) of the base that an adapter names. Raises CheckpointError where it names none."""
    config = _config(directory)
    name = config.get("base_model_name_or_path")
    if not name:
        raise CheckpointError(f"{directory / _CONFIG}: names no base model; pass the base")
    return str(name), config.get("revision")


class AdapterTensors(MovedTensors):
    """The parameters of `base` under a LoRA adapter.

    Raises CheckpointError in one line: an adapter of another kind, damaged, or trained on another base.
    """

    def __init__(self, directory: Path, base: Checkpoint) -> None:
        self._directory = directory
        config = _config(directory)
        _require_plain(directory, config)
        model = skeleton(base.config)
        parts = _Sorter(directory, config, model).parts()
        self._parts: dict[str, _Part] = {}
        for name, part in parts.items():
            if name not in base.names:
                raise CheckpointError(
                    f"{directory}: it moves {name!r}, which {base.source} has not; pass the base it was trained on"
                )
            part.require(directory, name, base)
            self._parts[name] = part
        if not self._parts:
            raise CheckpointError(f"{directory / _WEIGHTS}: holds no tensor of a LoRA adapter")
        moved = {
            name: TensorInfo(name, part.shape(base.info(name).shape), part.dtype) for name, part in self._parts.items()
        }
        super().__init__(base, moved, tuple(self._notes(config, base, model)))

    def step(self, name: str, expert: int = -1) -> Float[Tensor, "..."]:
        part = self._parts[name]
        delta = None if part.full is None else difference(part.full.load(expert), self.base.read(name, expert))
        if part.down is not None and part.up is not None:
            low_rank = _product(part.down.load(), part.up.load(), part.scaling, part.transposed)
            delta = low_rank if delta is None else delta.add_(low_rank[: len(delta)])
        if part.output_bias is not None:
            bias = part.output_bias.load().float() * part.scaling
            delta = bias if delta is None else delta.add_(bias)
        assert delta is not None
        return delta

    def read(self, name: str, expert: int = -1) -> Float[Tensor, "..."]:
        part = self._parts.get(name)
        if part is not None and part.full is not None and part.down is None and part.output_bias is None:
            return part.full.load(expert)  # with the rows that it adds
        return super().read(name, expert)

    def rounding(self, name: str) -> Noise:
        part = self._parts[name]
        of_weight = ROUNDING[part.full.dtype] if part.full is not None else 0.0
        factors = [stored for stored in (part.down, part.up, part.output_bias) if stored is not None]
        return Noise(of_weight, math.hypot(*(ROUNDING[stored.dtype] for stored in factors)))

    def sample_step(self, name: str) -> bytes:
        part = self._parts[name]
        return repr(part.scaling).encode() + b"".join(stored.sample() for stored in part.stored)

    def _notes(self, config: Mapping[str, Any], base: Checkpoint, model: PreTrainedModel) -> list[str]:
        notes = [
            f"{self._directory}: a LoRA adapter, which moves {len(self._parts)} of {len(base.names)} tensors; T is "
            "formed from its factors, and the others do not move"
        ]
        named = str(config.get("base_model_name_or_path") or "")
        if named and Path(named).name != Path(place_of(base.source).name).name:
            notes.append(f"{self._directory}: says that its base is {named}; T is applied to {base.source}")
        tied = {alias for alias, name in _tied(model).items() if name in self._parts}
        if tied:
            notes.append(
                f"{self._directory}: moves {', '.join(sorted(tied))} by way of the embedding that it is tied to, as a "
                "merged checkpoint would; the adapter itself moves one of the two"
            )
        return notes


@dataclass
class _Part:
    """What an adapter holds for one parameter."""

    full: Stored | None = None
    down: Stored | None = None  # A (r, in)
    up: Stored | None = None  # B (out, r)
    output_bias: Stored | None = None  # of B, for a bias
    scaling: float = 1.0
    transposed: bool = False  # the parameter is stored (in, out), as Conv1D's and an embedding's are
    rank: int = 0  # from the configuration

    @property
    def stored(self) -> list[Stored]:
        return [stored for stored in (self.full, self.down, self.up, self.output_bias) if stored is not None]

    @property
    def dtype(self) -> str:
        return max((stored.dtype for stored in self.stored), key=lambda dtype: ROUNDING.get(dtype, 0.0))

    def shape(self, base: tuple[int, ...]) -> tuple[int, ...]:
        return base if self.full is None else self.full.shape

    def require(self, directory: Path, name: str, base: Checkpoint) -> None:
        """Raise CheckpointError where the factors are not of this parameter's shape."""
        expected = base.info(name).shape
        odd = next((stored for stored in self.stored if stored.dtype not in ROUNDING), None)
        if odd is not None:
            raise CheckpointError(f"{directory}: tensor {odd.name!r} is stored as {odd.dtype}; save it as float32")
        if (self.down is None) != (self.up is None):
            raise CheckpointError(f"{directory}: of the factors of {name!r} only one is there; save the adapter again")
        shape = self.shape(expected)
        if self.down is not None and self.up is not None:
            if self.down.shape[0] != self.rank or self.up.shape[1:] != (self.rank,):
                raise CheckpointError(
                    f"{directory}: the factors of {name!r} have shapes {list(self.down.shape)} and "
                    f"{list(self.up.shape)}, but {_CONFIG} says rank {self.rank}; the two do not belong together"
                )
            out, into = self.up.shape[0], self.down.shape[1]
            shape = (into, out) if self.transposed else (out, into)
        if self.output_bias is not None:
            shape = self.output_bias.shape
        embedding = base.architecture.embed, base.architecture.unembed
        grown = name.rpartition(".")[0] in embedding and shape[1:] == expected[1:]
        if shape != expected and not (grown and self.full is not None and self.full.shape == shape):
            raise CheckpointError(
                f"{directory}: its change of {name!r} has shape {list(shape)}, the parameter of {base.source} "
                f"{list(expected)}; pass the base it was trained on"
            )


class _Sorter:
    """Sorts an adapter's tensors by the parameter that they move."""

    def __init__(self, directory: Path, config: Mapping[str, Any], model: PreTrainedModel) -> None:
        self._directory, self._config, self._model = directory, config, model
        self._names, self._tied = ModelNames(model), _tied(model)

    def parts(self) -> dict[str, _Part]:
        parts: dict[str, dict[str, _Part]] = defaultdict(lambda: defaultdict(_Part))
        for stored in header(_weights(self._directory)):
            if ".original_module." in stored.name:
                continue  # the base's, kept beside the trained one
            path, kind = self._split(stored.name)
            leaf = "bias" if kind == "lora_B.bias" else "weight"
            name = self._parameter(path if kind == "full" else f"{path}.{leaf}", stored.name)
            part = parts[self._tied.get(name, name)][name]
            if kind == "full":
                if part.full is None or ".modules_to_save." in stored.name:
                    part.full = stored
                continue
            part.rank, part.scaling = self._scaling(path)
            part.transposed = kind.startswith("lora_embedding") or self._is_conv1d(name)
            if kind == "lora_B.bias":
                part.output_bias = stored
            elif kind.removeprefix("lora_embedding_").removeprefix("lora_")[0] == "A":
                part.down = stored
            else:
                part.up = stored
        return {name: self._one(name, aliases) for name, aliases in parts.items()}

    def _split(self, key: str) -> tuple[str, str]:
        """(module path in peft, which of its tensors), or (parameter, "full")."""
        path = key.removeprefix("base_model.model.")
        match = _KEY.match(path)
        if match:
            return match["path"], match["part"]
        if "lora_" in path or "token_adapter" in path:
            raise CheckpointError(f"{self._directory}: tensor {key!r} is of a kind that is not read here; {_MERGE}")
        return re.sub(r"\.(modules_to_save(\.default)?|base_layer)\.", ".", path), "full"

    def _parameter(self, stored: str, key: str) -> str:
        name, pattern = self._names.of(stored)
        if pattern is not None:
            raise CheckpointError(f"{self._directory}: tensor {key!r} moves a single expert; {_MERGE}")
        return name

    def _scaling(self, path: str) -> tuple[int, float]:
        """(rank, scaling) of a module: a pattern is a regular expression for the end of its path, the first wins."""
        try:
            rank = int(self._matching("rank_pattern", path, self._config.get("r", 8)))
            alpha = float(self._matching("alpha_pattern", path, self._config.get("lora_alpha", 8)))
            return rank, alpha / (math.sqrt(rank) if self._config.get("use_rslora") else rank)
        except (re.error, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            raise CheckpointError(
                f"{self._directory / _CONFIG}: no rank and alpha can be read of {path!r}: {first_line(error)}"
            ) from error

    def _matching(self, setting: str, path: str, default: Any) -> Any:
        patterns = self._config.get(setting) or {}
        return next((value for key, value in patterns.items() if re.fullmatch(rf"(.*\.)?({key})", path)), default)

    def _is_conv1d(self, name: str) -> bool:
        try:
            module = self._model.get_submodule(name.rpartition(".")[0])
        except AttributeError:
            return False  # `AdapterTensors` reports that the base lacks it
        return type(module).__name__ == "Conv1D"

    def _one(self, name: str, aliases: Mapping[str, _Part]) -> _Part:
        """The change of a parameter that tied modules share."""
        part = aliases.get(name) or next(iter(aliases.values()))
        alike = {tuple(stored.sample() for stored in other.stored) for other in aliases.values()}
        if len(alike) > 1 and not self._config.get("ensure_weight_tying"):
            raise CheckpointError(
                f"{self._directory}: moves {' and '.join(sorted(aliases))} apart, which are one tensor in the base; "
                "untie them in the base first"
            )
        return part


def _product(
    down: Float[Tensor, "r cols"], up: Float[Tensor, "rows r"], scaling: float, transposed: bool
) -> Float[Tensor, "..."]:
    """scaling · B · A as the parameter is stored, float32."""
    up, down = up.float() * scaling, down.float()
    return torch.mm(down.T, up.T) if transposed else torch.mm(up, down)


def _tied(model: PreTrainedModel) -> dict[str, str]:
    """Other names of parameters that have several."""
    first: dict[int, str] = {}
    aliases = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner = first.setdefault(id(parameter), name)
        if owner != name:
            aliases[name] = owner
    return aliases


def _require_plain(directory: Path, config: Mapping[str, Any]) -> None:
    kind = str(config.get("peft_type")).rpartition(".")[2]
    if kind != "LORA":
        raise CheckpointError(f"{directory}: an adapter of type {kind}, and only LoRA is read here; {_MERGE}")
    form = next((form for setting, form in _OTHER_FORMS.items() if config.get(setting)), None)
    if form is not None:
        raise CheckpointError(f"{directory}: the adapter is {form}, whose T is more than B · A; {_MERGE}")
    start = config.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        raise CheckpointError(
            f"{directory}: the adapter began from {start}, which took part of the base's weights into A and B; convert "
            "it to plain LoRA with peft (path_initial_model_for_weight_conversion)"
        )


def _config(directory: Path) -> dict[str, Any]:
    try:
        config = json.loads((directory / _CONFIG).read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("not a mapping")
        return config
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{directory / _CONFIG}: cannot be read: {first_line(error)}") from error


def _weights(directory: Path) -> Path:
    if (directory / _WEIGHTS).is_file():
        return directory / _WEIGHTS
    pickled = any(directory.glob("*.bin"))
    hint = "it holds pickled weights only; convert them" if pickled else "download it again"
    raise CheckpointError(f"{directory}: {_WEIGHTS} is missing: weights load from safetensors alone; {hint}")
