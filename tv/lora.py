"""A tuning vector as a LoRA adapter in peft's format: T itself at a rank, or a start that knows where T points.

T ≈ B·A, the truncated SVD; scaling α/r is 1 throughout. A matrix of a linear layer is held as factors, its bias as it
is (`bias="all"`), every other parameter with the whole module that owns it (`modules_to_save`). peft is not imported.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd
import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn

from tv.architecture import skeleton
from tv.atomic import replacing_directory
from tv.checkpoint import Checkpoint, Source, open_checkpoint
from tv.compose.spectral import svd
from tv.errors import CheckpointError, InputError
from tv.merging import Brought, bring
from tv.saving import Progress

Mode = Literal["warm", "subspace", "orthogonal"]
#: ‖row‖ of A as peft starts it, uniform in ±1/√in: with it a learning rate means the same here and there.
_ROW_NORM = 3**-0.5
_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Adapter:
    """What was written, and how much of T it holds."""

    path: Path
    modules: pd.DataFrame  # layer, module, rank, retained (share of the module's ‖T‖²), share (of the whole ‖T‖²)
    others: pd.DataFrame  # parameter, share (of the whole ‖T‖²), held (in modules_to_save or as a bias; else lost)
    retained: float  # share of the whole ‖T‖² that the adapter holds
    notes: tuple[str, ...]


def lora_export(
    base: Source,
    vector: Source,
    *,
    out: str | Path,
    rank: int | None = None,
    energy: float | None = None,
    save_others: bool = True,
    origin: Source | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Adapter:
    """Write T as an adapter of `rank`, or of the smallest rank a module that keeps the share `energy` of its ‖T‖².

    Without `save_others` what LoRA cannot hold is left out; `Adapter.others` says what and how much. Raises InputError
    where neither or both of rank and energy are given, and as `tv.apply` does.
    """
    if (rank is None) == (energy is None):
        raise InputError("give either a rank or an energy: how much of T the adapter keeps")
    if energy is not None and not 0 < energy <= 1:
        raise InputError(f"energy {energy}: a share of ‖T‖², above 0 and at most 1")
    if rank is not None:
        _require_rank(rank)
    source = _Source(base, vector, origin)
    factors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    rows, saved = [], []
    for part in source.parts(progress):
        if part.kind == "matrix":
            u, sigma, v = svd(part.matrix, min(part.matrix.shape))
            k = min(rank, len(sigma)) if rank is not None else _rank_for(sigma, energy or 1.0)
            scale = sigma[:k].sqrt()
            factors |= _factors(part.path, (scale[:, None] * v[:, :k].T).float(), (u[:, :k] * scale).float())
            ranks[part.path] = k
            kept = float(sigma[:k].pow(2).sum() / part.matrix.double().pow(2).sum())
            rows.append((part.layer, part.path, k, min(1.0, kept), part.energy))
        elif save_others:
            factors |= source.whole(part)
            saved.append(part)
    return source.write(Path(out), factors, ranks, rows, saved, force, trainable=False)


def lora_init(
    base: Source,
    vector: Source,
    *,
    out: str | Path,
    rank: int,
    mode: Mode,
    origin: Source | None = None,
    seed: int = 0,
    force: bool = False,
    progress: Progress | None = None,
) -> Adapter:
    """Write an adapter of `rank` to train on from, on every matrix that T moves.

    - warm: B·A is T cut to its `rank` leading directions, so training starts at θ + T_r; nothing holds it there
    - subspace: B = 0 and A's rows are T's leading right (input) directions. With A frozen (`freeze_inputs`) every
      update reads only what T mostly reads: LoRA-FA, arXiv 2308.03303, with A from T
    - orthogonal: B = 0 and A's rows are random, orthonormal, and orthogonal to the `rank` leading right directions of
      T. With A frozen no update reads any of them: the idea of O-LoRA, arXiv 2310.14152, exact rather than a penalty

    The last two start at θ. A's rows have the norm that peft's own start gives them. Raises InputError where `rank` is
    too large for that.
    """
    if mode not in get_args(Mode):
        raise InputError(f"mode {mode!r}: one of {', '.join(get_args(Mode))}")
    _require_rank(rank)
    source = _Source(base, vector, origin)
    factors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    rows = []
    for part in source.parts(progress):
        if part.kind != "matrix":
            continue
        m, n = part.matrix.shape
        u, sigma, v = svd(part.matrix, rank)
        k = min(rank, len(sigma))
        if mode == "warm":
            scale = sigma.sqrt()
            down, up = scale[:, None] * v.T, u * scale
        elif mode == "subspace":
            down, up = v.T * _ROW_NORM, torch.zeros(m, k)
        else:
            if 2 * rank > n:
                raise InputError(f"rank {rank}: {part.path} reads {n} numbers, and {2 * rank} directions are asked for")
            k = rank
            down, up = _outside(v, rank, f"{seed} {part.path}") * _ROW_NORM, torch.zeros(m, k)
        factors |= _factors(part.path, down.float(), up.float())
        ranks[part.path] = k
        kept = float(sigma.pow(2).sum() / part.matrix.double().pow(2).sum()) if mode == "warm" else 0.0
        rows.append((part.layer, part.path, k, min(1.0, kept), part.energy))
    return source.write(Path(out), factors, ranks, rows, [], force, trainable=True, mode=mode)


def freeze_inputs(model: nn.Module) -> int:
    """Freeze every LoRA A of a peft model, so that training stays where `lora_init` put it. Returns how many."""
    frozen = [parameter for name, parameter in model.named_parameters() if ".lora_A." in name]
    for parameter in frozen:
        parameter.requires_grad_(False)
    return len(frozen)


@dataclass(frozen=True)
class _Part:
    """One parameter that T moves."""

    name: str
    path: str  # of the module that owns it
    layer: int
    kind: Literal["matrix", "bias", "other"]
    delta: Tensor  # as stored
    transposed: bool = False

    @property
    def matrix(self) -> Float[Tensor, "out in"]:
        return self.delta.T if self.transposed else self.delta

    @property
    def energy(self) -> float:
        return float(self.delta.double().pow(2).sum())


class _Source:
    """A base, a vector that fits it, and peft's names for both."""

    def __init__(self, base: Source, vector: Source, origin: Source | None) -> None:
        self._checkpoint: Checkpoint = open_checkpoint(base)
        self._brought: Brought = bring(vector, self._checkpoint, origin)
        self._model = skeleton(self._checkpoint.config)
        named = list(self._model.named_parameters(remove_duplicate=False))
        first = {id(parameter): name for name, parameter in reversed(named)}
        self._aliases: dict[str, list[str]] = {}
        for name, parameter in named:
            self._aliases.setdefault(first[id(parameter)], []).append(name)
        self._energies: dict[str, float] = {}

    def parts(self, progress: Progress | None) -> Iterator[_Part]:
        """Every parameter that T moves, one at a time."""
        names = [name for name in self._checkpoint.names if name in self._brought.vector.shapes]
        embedding = self._checkpoint.architecture.embed, self._checkpoint.architecture.unembed
        for i, name in enumerate(names):
            path, _, leaf = name.rpartition(".")
            shape = self._checkpoint.info(name).shape
            delta = self._brought.delta(name, -1, shape, path in embedding)
            owner = self._model.get_submodule(path)
            is_linear = isinstance(owner, nn.Linear) or type(owner).__name__ == "Conv1D"
            is_linear &= len(self._aliases.get(name, [name])) == 1  # a tied one is moved with the other
            kind: Literal["matrix", "bias", "other"] = "other"
            if is_linear:
                kind = "matrix" if leaf == "weight" else "bias"
            layer = self._checkpoint.architecture.component_of(name)[0]
            part = _Part(name, path, layer, kind, delta, not isinstance(owner, nn.Linear))
            if bool(delta.any()):
                self._energies[name] = part.energy
                yield part
            if progress:
                progress(i + 1, len(names), name)

    def whole(self, part: _Part) -> dict[str, Tensor]:
        """W + T under the names that peft gives it: with all of its module, and under each name of a tied tensor."""
        if part.kind == "bias":
            value = self._checkpoint.read(part.name).float() + part.delta
            return {f"{_PREFIX}{part.path}.base_layer.bias": value}
        found = {}
        for alias in self._aliases.get(part.name, [part.name]):
            path = alias.rpartition(".")[0]
            for leaf, _ in self._model.get_submodule(path).named_parameters(recurse=False):
                own = f"{path}.{leaf}"
                if own == alias:
                    found[f"{_PREFIX}{own}"] = self._checkpoint.read(part.name).float() + part.delta
                elif f"{_PREFIX}{own}" not in found and own in self._checkpoint.names:
                    found.setdefault(f"{_PREFIX}{own}", self._moved(own))
        return found

    def write(
        self,
        out: Path,
        factors: dict[str, Tensor],
        ranks: dict[str, int],
        rows: list[tuple[int, str, int, float, float]],
        saved: list[_Part],
        force: bool,
        *,
        trainable: bool,
        mode: str | None = None,
    ) -> Adapter:
        """Write the adapter's directory, whole or not at all."""
        if not rows:
            raise CheckpointError(f"{self._brought.label}: moves no matrix of a linear layer; LoRA has nothing to hold")
        modules = [
            alias.rpartition(".")[0]
            for part in saved
            if part.kind == "other"
            for alias in self._aliases.get(part.name, [part.name])
        ]
        default = max(ranks.values())
        config: dict[str, Any] = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self._checkpoint.source,
            "r": default,
            "lora_alpha": default,
            "lora_dropout": 0.0,
            "rank_pattern": {path: rank for path, rank in ranks.items() if rank != default},
            "alpha_pattern": {path: rank for path, rank in ranks.items() if rank != default},
            "target_modules": sorted(ranks),
            "modules_to_save": sorted(set(modules)) or None,
            "bias": "all" if any(part.kind == "bias" for part in saved) else "none",
            "fan_in_fan_out": any(type(module).__name__ == "Conv1D" for module in self._model.modules()),
            "init_lora_weights": True,
            "use_rslora": False,
            "inference_mode": not trainable,
        }
        _check_out(out, force)
        with replacing_directory(out, CheckpointError) as temporary:
            text = json.dumps(config, indent=2) + "\n"
            (temporary / "adapter_config.json").write_text(text, encoding="utf-8")
            tensors = {name: value.contiguous().clone() for name, value in factors.items()}
            save_file(tensors, temporary / "adapter_model.safetensors", {"format": "pt"})
        total = sum(self._energies.values())
        frame = pd.DataFrame(rows, columns=["layer", "module", "rank", "retained", "share"])
        frame["share"] /= total
        held = {part.name for part in saved}
        matrices = {f"{row[1]}.weight" for row in rows}
        others = pd.DataFrame(
            [(name, size / total, name in held) for name, size in self._energies.items() if name not in matrices],
            columns=["parameter", "share", "held"],
        ).sort_values("share", ascending=False, ignore_index=True)
        retained = float((frame.retained * frame.share).sum() + others.share[others.held.astype(bool)].sum())
        return Adapter(out, frame, others, min(1.0, retained), self._brought.notes)

    def _moved(self, name: str) -> Tensor:
        value = self._checkpoint.read(name).float()
        if name in self._brought.vector.shapes:
            value = value + self._brought.delta(name, -1, value.shape, False)
        return value


def _factors(path: str, down: Float[Tensor, "r cols"], up: Float[Tensor, "rows r"]) -> dict[str, Tensor]:
    return {f"{_PREFIX}{path}.lora_A.weight": down, f"{_PREFIX}{path}.lora_B.weight": up}


def _rank_for(sigma: Float[Tensor, " r"], energy: float) -> int:
    """The smallest rank that keeps this share of Σσ²."""
    kept = sigma.pow(2).cumsum(0) / sigma.pow(2).sum()
    return min(len(sigma), int((kept < energy * (1 - 1e-12)).sum()) + 1)


def _outside(right: Float[Tensor, "n k"], rank: int, key: str) -> Float[Tensor, "rank n"]:
    """Random orthonormal rows, orthogonal to the columns of `right`."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little", signed=True)
    draws = torch.randn(len(right), rank, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for _ in range(2):  # once more for what rounding left
        draws = torch.linalg.qr(draws - right @ (right.T @ draws)).Q
    return draws.T


def _require_rank(rank: int) -> None:
    if rank < 1:
        raise InputError(f"rank {rank}: an adapter has at least rank 1")


def _check_out(out: Path, force: bool) -> None:
    if not out.resolve().parent.is_dir():
        raise CheckpointError(f"{out}: its directory does not exist; make it first")
    if out.exists() and not force:
        raise CheckpointError(f"{out}: is there already; name another directory, or replace it with --force")
    if out.exists() and not (out / "adapter_config.json").is_file():
        raise CheckpointError(f"{out}: is no adapter and is not replaced; remove it, or name another directory")
