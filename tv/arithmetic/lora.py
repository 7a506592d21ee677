"""A tuning vector as a LoRA adapter in peft's format: T itself at a rank, or a start built from T's directions.

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
from tv.errors import InputError, choices
from tv.runtime.progress import ProgressOption
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
    progress: ProgressOption = None,
) -> Adapter:
    """Write T as a LoRA adapter in peft's format: of every matrix the truncated SVD, T ≈ B·A.

    Args:
        base: The model that the adapter will lie over: whatever `tv.open_checkpoint` opens.
        vector: T: a `TuningVector`, a file of `tv extract`, or whatever `tv.open_checkpoint` opens: then it is that
            minus `origin`.
        out: The directory, written whole or not at all; its parent directory must exist.
        rank: How many directions of every matrix are kept.
        energy: In place of a rank: the share of a module's ‖T‖² that is kept, above 0 and at most 1. Each module then
            has the smallest rank that does.
        save_others: Write what LoRA cannot hold (biases, gains, embeddings) as whole tensors; otherwise it is left out.
        origin: What the model in `vector` was tuned from; without it, `base`.
        force: Replace the adapter at `out`.
        progress: Called after every parameter; see `Compute.progress`.

    Returns:
        The directory as `path`; `modules`, with each one's rank and the share of its ‖T‖² that is `retained`; `others`,
        the parameters that LoRA cannot hold, and whether they are `held`; `retained`, the share of the whole ‖T‖².

    Raises:
        InputError: Neither or both of rank and energy, or one that is out of range.
        CheckpointError: A vector that does not fit or moves no matrix of a linear layer, or an `out` that exists.

    Examples:
        >>> adapter = tv.lora_export("data/models/base", "data/models/medical", out="adapter", rank=8)
        >>> round(adapter.retained, 2), bool(adapter.others.held.all())
        (0.63, True)
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
    progress: ProgressOption = None,
) -> Adapter:
    """Write a LoRA adapter to start training from, built from T's directions, on every matrix that T moves.

    - warm: B·A is T cut to its `rank` leading directions, so training starts at θ + T_r; nothing holds it there
    - subspace: B = 0 and A's rows are T's leading right (input) directions. With A frozen (`freeze_inputs`) every
      update reads only what T mostly reads: LoRA-FA, with A from T
    - orthogonal: B = 0 and A's rows are random, orthonormal, and orthogonal to the `rank` leading right directions of
      T. With A frozen no update reads any of them: the idea of O-LoRA, exact rather than a penalty

    The last two start at θ, and A's rows have the norm that peft's own start gives them.

    Args:
        base: The model that will be trained: whatever `tv.open_checkpoint` opens.
        vector: T: a `TuningVector`, a file of `tv extract`, or whatever `tv.open_checkpoint` opens: then it is that
            minus `origin`.
        out: The directory, written whole or not at all; its parent directory must exist.
        rank: Directions of every matrix; fewer where T has fewer (not in the mode orthogonal).
        mode: "warm", "subspace" or "orthogonal".
        origin: What the model in `vector` was tuned from; without it, `base`.
        seed: Of the random directions.
        force: Replace the adapter at `out`.
        progress: Called after every parameter; see `Compute.progress`.

    Returns:
        The directory as `path`; `modules`, with each one's rank and the share of its ‖T‖² that is `retained` at the
        start; `others`, the parameters that LoRA cannot hold; `retained`, the share of the whole ‖T‖².

    Raises:
        InputError: An unknown mode, a rank below 1, or one that leaves no orthogonal directions.
        CheckpointError: A vector that does not fit or moves no matrix of a linear layer, or an `out` that exists.

    Source: arXiv 2308.03303 (LoRA-FA), arXiv 2310.14152 (O-LoRA).

    Examples:
        >>> base, tuned = "data/models/base", "data/models/medical"
        >>> start = tv.lora_init(base, tuned, out="start", rank=2, mode="subspace")
        >>> start.modules["rank"].unique().tolist(), start.retained
        ([2], 0.0)
    """
    if mode not in get_args(Mode):
        raise InputError(f"no mode {mode!r}{choices(mode, get_args(Mode))}")
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
    """Freeze every LoRA A of a peft model, so that training stays where `lora_init` put it.

    Args:
        model: The peft model, with the adapter on it. It is changed in place.

    Returns:
        How many matrices were frozen.

    Examples:
        >>> from peft import PeftModel
        >>> from transformers import AutoModelForCausalLM
        >>> base = "data/models/base"
        >>> start = tv.lora_init(base, "data/models/medical", out="start", rank=2, mode="subspace")
        >>> model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), "start", is_trainable=True)
        >>> tv.freeze_inputs(model) == len(start.modules)
        True
    """
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
        raise InputError(f"rank {rank}: {path} reads {n} numbers, and {rank + taken} directions are requested")
    seed = seed_of(f"{seed} {path}")
    draws = torch.randn(n, rank, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for _ in range(2):  # once more for what rounding left
        draws = torch.linalg.qr(draws - right @ (right.T @ draws)).Q
    return draws.T


def _require_rank(rank: int) -> None:
    if rank < 1:
        raise InputError(f"rank {rank}: an adapter has at least rank 1")
