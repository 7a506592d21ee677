"""A tuning vector as a LoRA adapter in peft's format: T itself at a rank, or a start that knows where T points.

T ≈ B·A, the truncated SVD; scaling α/r is 1 throughout. A matrix of a linear layer is held as factors, its bias as it
is (`bias="all"`), every other parameter with the whole module that owns it (`modules_to_save`). peft is not imported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tv.arithmetic.adapter_writer import Adapter, AdapterWriter
from tv.arithmetic.methods.spectral import svd
from tv.checkpoints.opening import Source
from tv.errors import InputError
from tv.runtime.compute import Progress
from tv.runtime.seeds import seed_of

Mode = Literal["warm", "subspace", "orthogonal"]
#: ‖row‖ of A as peft starts it, uniform in ±1/√in: with it a learning rate means the same here and there.
_ROW_NORM = 3**-0.5


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
    writer = AdapterWriter(base, vector, origin, out, force)
    for part in writer.parts(progress):
        if part.kind == "matrix":
            u, sigma, v = svd(part.matrix, min(part.matrix.shape))
            k = min(rank, len(sigma)) if rank is not None else _rank_for(sigma, energy or 1.0)
            scale = sigma[:k].sqrt()
            writer.add_factors(part, scale[:, None] * v[:, :k].T, u[:, :k] * scale)
        elif save_others:
            writer.add_whole(part)
    return writer.write(trainable=False)


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
    writer = AdapterWriter(base, vector, origin, out, force)
    for part in writer.parts(progress):
        if part.kind != "matrix":
            continue
        u, sigma, v = svd(part.matrix, rank)
        if mode == "warm":
            scale = sigma.sqrt()
            down, up = scale[:, None] * v.T, u * scale
        else:
            down = (v.T if mode == "subspace" else _outside(v, rank, part.path, seed)) * _ROW_NORM
            up = torch.zeros(len(part.matrix), len(down))
        writer.add_factors(part, down, up)
    return writer.write(trainable=True)


def freeze_inputs(model: nn.Module) -> int:
    """Freeze every LoRA A of a peft model, so that training stays where `lora_init` put it. Returns how many."""
    frozen = [parameter for name, parameter in model.named_parameters() if ".lora_A." in name]
    for parameter in frozen:
        parameter.requires_grad_(False)
    return len(frozen)


def _rank_for(sigma: Float[Tensor, " r"], energy: float) -> int:
    """The smallest rank that keeps this share of Σσ²."""
    kept = sigma.pow(2).cumsum(0) / sigma.pow(2).sum()
    return min(len(sigma), int((kept < energy * (1 - 1e-12)).sum()) + 1)


def _outside(right: Float[Tensor, "n k"], rank: int, path: str, seed: int) -> Float[Tensor, "rank n"]:
    """Random orthonormal rows, orthogonal to the columns of `right`; the same for one place and seed."""
    n, taken = right.shape
    if rank + taken > n:
        raise InputError(f"rank {rank}: {path} reads {n} numbers, and {rank + taken} directions are asked for")
    seed = seed_of(f"{seed} {path}")
    draws = torch.randn(n, rank, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for _ in range(2):  # once more for what rounding left
        draws = torch.linalg.qr(draws - right @ (right.T @ draws)).Q
    return draws.T


def _require_rank(rank: int) -> None:
    if rank < 1:
        raise InputError(f"rank {rank}: an adapter has at least rank 1")
