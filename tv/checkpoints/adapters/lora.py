"""Plain LoRA: T = scaling · B · A, formed on demand from the factors. Neither peft nor a difference is needed.

Source: arXiv 2106.09685 §4.1 (scaling α/r) and arXiv 2312.03732 eq. 8 (rsLoRA, α/√r).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from tv.checkpoints.noise import ROUNDING, Noise, coarsest
from tv.checkpoints.tensors import Stored
from tv.checkpoints.transformers_names import ModelNames
from tv.errors import CheckpointError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    pass

_PART = re.compile(r"^(?P<path>.*)\.(?P<part>lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_embedding_[AB])$")


@dataclass
class Factors:
    """The factors of one parameter, or of a bias the output bias of its B."""

    source: str
    rank: int  # from the configuration
    scaling: float
    transposed: bool = False  # the parameter is stored (in, out), as Conv1D's and an embedding's are
    down: Stored | None = None  # A (r, in)
    up: Stored | None = None  # B (out, r)
    output_bias: Stored | None = None

    @property
    def dtype(self) -> str:
        return coarsest(stored.dtype for stored in self._stored)

    @property
    def noise(self) -> Noise:
        return Noise(of_delta=math.hypot(*(ROUNDING[stored.dtype] for stored in self._stored)))

    def step(self, weight: Callable[[], Tensor], expert: int = -1) -> Float[Tensor, "..."]:
        if self.output_bias is not None:
            return self.output_bias.load().float() * self.scaling
        assert self.down is not None and self.up is not None
        up, down = self.up.load().float(), self.down.load().float()
        product = torch.mm(down.T, up.T) if self.transposed else torch.mm(up, down)
        return product.mul_(self.scaling)  # last, as peft does: its merge is then T's to the bit

    def sample(self) -> bytes:
        return repr(self.scaling).encode() + b"".join(stored.sample() for stored in self._stored)

    def require(self, name: str, expected: tuple[int, ...], of: str) -> None:
        """Raise CheckpointError where the factors are not of a parameter of this shape, in the checkpoint `of`."""
        odd = next((stored for stored in self._stored if stored.dtype not in ROUNDING), None)
        if odd is not None:
            raise CheckpointError(f"{self.source}: tensor {odd.name!r} is stored as {odd.dtype}; save it as float32")
        if self.output_bias is None and (self.down is None or self.up is None):
            raise CheckpointError(
                f"{self.source}: of the factors of {name!r} only one is there; save the adapter again"
            )
        shape = expected if self.output_bias is None else self.output_bias.shape
        if self.down is not None and self.up is not None:
            if self.down.shape[0] != self.rank or self.up.shape[1:] != (self.rank,):
                raise CheckpointError(
                    f"{self.source}: the factors of {name!r} have shapes {list(self.down.shape)} and "
                    f"{list(self.up.shape)}, but adapter_config.json says rank {self.rank}; the two do not belong "
                    "together"
                )
            out, into = self.up.shape[0], self.down.shape[1]
            shape = (into, out) if self.transposed else (out, into)
        if shape != expected:
            raise CheckpointError(
                f"{self.source}: its change of {name!r} has shape {list(shape)}, the parameter of {of} "
                f"{list(expected)}; pass the base it was trained on"
            )

    @property
    def _stored(self) -> list[Stored]:
        return [stored for stored in (self.down, self.up, self.output_bias) if stored is not None]


def factors_of(
    source: str, config: Mapping[str, Any], parts: Iterable[Stored], model: PreTrainedModel
) -> dict[str, Factors]:
    """The factors of a plain LoRA by the name of the parameter in `model`. Raises CheckpointError for other tensors."""
    names = ModelNames(model)
    found: dict[str, Factors] = {}
    for stored in parts:
        match = _PART.match(stored.name.removeprefix("base_model.model."))
        if match is None:
            raise CheckpointError(
                f"{source}: tensor {stored.name!r} is neither a parameter of the base nor part of the LoRA that "
                "adapter_config.json describes; the two do not belong together, or the base is another"
            )
        path, part = match["path"], match["part"]
        name, _ = names.of(f"{path}.{'bias' if part == 'lora_B.bias' else 'weight'}")
        rank, scaling = _scaling(source, config, path)
        factors = found.setdefault(name, Factors(source, rank, scaling))
        factors.transposed = part.startswith("lora_embedding") or _is_conv1d(model, name)
        if part == "lora_B.bias":
            factors.output_bias = stored
        elif part in ("lora_A.weight", "lora_embedding_A"):
            factors.down = stored
        else:
            factors.up = stored
    return found


def of_single_experts(parts: Iterable[Stored], model: PreTrainedModel) -> bool:
    """Whether factors belong to experts one by one, in a model that has them in one tensor."""
    names = ModelNames(model)
    matches = (_PART.match(stored.name.removeprefix("base_model.model.")) for stored in parts)
    return any(names.of(f"{match['path']}.weight")[1] is not None for match in matches if match)


def _scaling(source: str, config: Mapping[str, Any], path: str) -> tuple[int, float]:
    """(rank, scaling) of a module: a pattern is a regular expression for the end of its path, the first wins."""
    try:
        rank = int(_matching(config.get("rank_pattern"), path, config.get("r", 8)))
        alpha = float(_matching(config.get("alpha_pattern"), path, config.get("lora_alpha", 8)))
        return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    except (re.error, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise CheckpointError(
            f"{source}: adapter_config.json: no rank and alpha can be read of {path!r}: {first_line(error)}"
        ) from error


def _matching(patterns: Mapping[str, Any] | None, path: str, default: Any) -> Any:
    found = (value for key, value in (patterns or {}).items() if re.fullmatch(rf"(.*\.)?({key})", path))
    return next(found, default)


def _is_conv1d(model: PreTrainedModel, name: str) -> bool:
    try:
        module = model.get_submodule(name.rpartition(".")[0])
    except AttributeError:
        return False  # whoever opens the adapter reports that the base lacks it
    return type(module).__name__ == "Conv1D"
