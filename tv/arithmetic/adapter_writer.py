"""The directory of a LoRA adapter in peft's format: which of a vector's parameters go where in it, and what is left.

peft is not imported: its format is two files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import pandas as pd
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn

from tv.architecture.resolve import skeleton
from tv.arithmetic.merging import Brought, bring, of_one_form
from tv.checkpoints.checkpoint import Checkpoint
from tv.checkpoints.opening import Source, open_checkpoint
from tv.errors import CheckpointError
from tv.runtime.atomic import replacing_directory
from tv.runtime.progress import ProgressOption, reporting

Kind: TypeAlias = Literal["matrix", "bias", "other"]
_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Adapter:
    """What was written, and how much of T it holds."""

    path: Path
    modules: pd.DataFrame  # layer, module, rank, retained (share of the module's ‖T‖²), share (of the whole ‖T‖²)
    others: pd.DataFrame  # parameter, share (of the whole ‖T‖²), held (in modules_to_save or as a bias; else lost)
    retained: float  # share of the whole ‖T‖² that the adapter holds
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """One parameter that T moves."""

    name: str
    path: str  # of the module that owns it
    layer: int
    kind: Kind
    delta: Tensor  # as stored
    transposed: bool = False

    @property
    def matrix(self) -> Float[Tensor, "out in"]:
        return self.delta.T if self.transposed else self.delta

    @property
    def energy(self) -> float:
        return float(self.delta.double().pow(2).sum())


class AdapterWriter:
    """A base, a vector that fits it, peft's names for both, and what the adapter is to hold of T."""

    def __init__(self, base: Source, vector: Source, origin: Source | None, out: str | Path, force: bool) -> None:
        """Raises CheckpointError where nothing may be written to `out`, or the vector does not fit."""
        self._out = Path(out)
        check_out(self._out, force)
        opened = open_checkpoint(base)
        self._checkpoint: Checkpoint
        self._brought: Brought
        self._checkpoint, (self._brought,) = of_one_form(opened, [bring(vector, opened, origin)])
        self._model = skeleton(self._checkpoint.config)
        named = list(self._model.named_parameters(remove_duplicate=False))
        first = {id(parameter): name for name, parameter in reversed(named)}
        self._aliases: dict[str, list[str]] = {}
        for name, parameter in named:
            self._aliases.setdefault(first[id(parameter)], []).append(name)
        self._own = {alias for group in self._aliases.values() for alias in group} | {*self._checkpoint.values}
        self._tensors: dict[str, Tensor] = {}
        self._rows: dict[str, tuple[int, str, int, float]] = {}
        self._biases: dict[str, Tensor] = {}
        self._modules: set[str] = set()
        self._energies: dict[str, float] = {}

    def parts(self, progress: ProgressOption) -> Iterator[Part]:
        """Every parameter and buffer that T moves, one at a time."""
        names = [name for name in self._checkpoint.values if name in self._brought.vector.shapes]
        ends = self._checkpoint.architecture.embed, self._checkpoint.architecture.unembed
        for i, name in enumerate(names):
            path, _, leaf = name.rpartition(".")
            delta = self._brought.delta(name, -1, self._checkpoint.info(name).shape, path in ends)
            owner = self._model.get_submodule(path)
            kind: Kind = "other"
            is_tied = len(self._aliases.get(name, ())) > 1  # moved with its other name, which is no linear layer's
            if not is_tied and (isinstance(owner, nn.Linear) or type(owner).__name__ == "Conv1D"):
                kind = "matrix" if leaf == "weight" else "bias"
            layer = self._checkpoint.architecture.component_of(name)[0]
            if bool(delta.any()):
                self._energies[name] = float(delta.double().pow(2).sum())
                yield Part(name, path, layer, kind, delta, not isinstance(owner, nn.Linear))
            reporting(progress)("adapter", i + 1, len(names), name)

    def add_factors(self, part: Part, down: Float[Tensor, "r cols"], up: Float[Tensor, "rows r"]) -> None:
        """Hold a matrix as B·A."""
        self._tensors[f"{_PREFIX}{part.path}.lora_A.weight"] = down.float().contiguous()
        self._tensors[f"{_PREFIX}{part.path}.lora_B.weight"] = up.float().contiguous()
        left = part.matrix.double() - up.double() @ down.double()
        retained = max(0.0, 1 - float(left.pow(2).sum()) / self._energies[part.name])
        self._rows[part.name] = (part.layer, part.path, len(down), retained)

    def add_whole(self, part: Part) -> None:
        """Hold W + T: a bias by itself, anything else with all of its module, a tied tensor under each name.

        What lies beside other modules in its own, as A_log beside projections, is left out: peft would take them all.
        """
        if part.kind == "bias":
            self._biases[part.path] = self._checkpoint.read(part.name).float() + part.delta
            return
        for alias in self._aliases.get(part.name, [part.name]):
            path = alias.rpartition(".")[0]
            held = [f"{path}.{leaf}" for leaf in self._model.get_submodule(path).state_dict()]  # its buffers too
            if any(name.rpartition(".")[0] != path or name not in self._own for name in held):
                continue
            self._modules.add(path)
            for name in held:
                if name == alias:
                    self._tensors[f"{_PREFIX}{name}"] = self._checkpoint.read(part.name).float() + part.delta
                else:  # where it moves too, its own call adds T
                    self._tensors.setdefault(f"{_PREFIX}{name}", self._checkpoint.read(name).float())

    def write(self, *, trainable: bool) -> Adapter:
        """Write the directory, whole or not at all. Raises CheckpointError where T moves no linear layer."""
        if not self._rows:
            raise CheckpointError(f"{self._brought.label}: moves no matrix of a linear layer; LoRA has nothing to hold")
        ranks = {path: rank for _, path, rank, _ in self._rows.values()}
        for path, bias in self._biases.items():
            self._tensors[f"{_PREFIX}{path}.{'base_layer.' if path in ranks else ''}bias"] = bias
        with replacing_directory(self._out, CheckpointError) as temporary:
            text = json.dumps(self._config(ranks, trainable), indent=2) + "\n"
            (temporary / "adapter_config.json").write_text(text, encoding="utf-8")
            save_file(self._tensors, temporary / "adapter_model.safetensors", {"format": "pt"})
        return self._adapter()

    def _config(self, ranks: dict[str, int], trainable: bool) -> dict[str, Any]:
        default = max(ranks.values())
        pattern = {path: rank for path, rank in ranks.items() if rank != default}
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self._checkpoint.source,
            "r": default,
            "lora_alpha": default,
            "lora_dropout": 0.0,
            "rank_pattern": pattern,
            "alpha_pattern": pattern,
            "target_modules": sorted(ranks),
            "modules_to_save": sorted(self._modules) or None,
            "bias": "all" if self._biases else "none",
            "fan_in_fan_out": any(type(module).__name__ == "Conv1D" for module in self._model.modules()),
            "init_lora_weights": True,
            "use_rslora": False,
            "inference_mode": not trainable,
        }

    def _adapter(self) -> Adapter:
        total = sum(self._energies.values())
        modules = pd.DataFrame(
            [(*row, self._energies[name] / total) for name, row in self._rows.items()],
            columns=["layer", "module", "rank", "retained", "share"],
        )
        held = {f"{path}.bias" for path in self._biases} | {name.removeprefix(_PREFIX) for name in self._tensors}
        others = pd.DataFrame(
            [(name, size / total, name in held) for name, size in self._energies.items() if name not in self._rows],
            columns=["parameter", "share", "held"],
        ).sort_values("share", ascending=False, ignore_index=True)
        retained = float((modules.retained * modules.share).sum() + others.share[others.held.astype(bool)].sum())
        return Adapter(self._out, modules, others, min(1.0, retained), self._brought.notes)


def check_out(out: Path, force: bool) -> None:
    """Raise CheckpointError where no adapter may be written to `out`."""
    if not out.resolve().parent.is_dir():
        raise CheckpointError(f"{out}: its directory does not exist; create it first")
    if out.exists() and not force:
        raise CheckpointError(f"{out}: already exists; name another directory, or use --force to replace it")
    if out.exists() and not (out / "adapter_config.json").is_file():
        raise CheckpointError(f"{out}: is not an adapter, so it is not replaced; remove it, or name another directory")
