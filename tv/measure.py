"""Weight-space tables of a pair: one pass over the modules, one module of each side in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from tv.alignment import align_energies, decompose, energies_along
from tv.architecture import Module
from tv.checkpoint import Source
from tv.errors import InputError
from tv.geometry import entries_of, noise_share, ranks_of
from tv.pairing import open_pair

Progress = Callable[[int, int, str], None]

EPSILONS = (0.01, 0.05, 0.1)


def ssa(
    base: Source,
    tuned: Source,
    epsilons: Sequence[float] = EPSILONS,
    *,
    heads: bool = True,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """`alignment`: SSA of every matrix of every block, left, right and two-sided, at each ε and at the fixed fraction.

    With `heads`, also of each head's own slice: the right side for q, k, v, the left for o. Sources are directories,
    hub ids, live models or open checkpoints. Raises CheckpointError where the two do not belong together.
    """
    return weights(base, tuned, epsilons, heads=heads, progress=progress)[1]


def geometry(base: Source, tuned: Source, *, heads: bool = True, progress: Progress | None = None) -> pd.DataFrame:
    """`weights`: norms, cosine, ranks and noise share of every module, norm gains and embeddings included."""
    return weights(base, tuned, (), heads=heads, progress=progress)[0]


def weights(
    base: Source,
    tuned: Source,
    epsilons: Sequence[float] = EPSILONS,
    *,
    heads: bool = True,
    progress: Progress | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(`weights`, `alignment`) of a pair, every matrix decomposed once. Raises InputError for an ε outside (0, 1)."""
    for epsilon in epsilons:
        if not 0 < epsilon < 1:
            raise InputError(f"epsilon {epsilon}: ε is the share of ‖W‖ left out, a number between 0 and 1")
    pair = open_pair(base, tuned)
    geometry_rows: list[dict[str, Any]] = []
    alignment_rows: list[dict[str, Any]] = []
    for i, module in enumerate(pair.modules):
        dtype = pair.dtype(module)
        weight = pair.weight(module)
        for head, before, after in _slices(module, weight, weight + pair.delta(module), heads):
            where = {"layer": module.layer, "module": module.name, "head": head, "expert": module.expert}
            delta = after - before
            measured = asdict(entries_of(before, delta, dtype))
            measured["noise_share"] = noise_share(measured["weight_norm"], measured["delta_norm"], dtype)
            if before.ndim == 2:
                decomposition = decompose(before)
                energies = energies_along(decomposition, delta)
                measured |= asdict(ranks_of(energies.spectrum.sqrt()))
                measured |= {f"weight_{name}": value for name, value in asdict(ranks_of(decomposition.sigma)).items()}
                measured["diagonal_energy"] = float(energies.both.diagonal().sum())
                measured["diagonal_energy_null"] = min(before.shape) / before.numel()
                if module.component in ("attn", "mlp"):
                    found = align_energies(decomposition, energies, epsilons)
                    sides = {"left", "right", "two_sided"} if head < 0 else {"left" if module.name == "o" else "right"}
                    alignment_rows += [where | asdict(row) for row in found if row.side in sides]
            geometry_rows.append(where | {"tied": module.tied} | measured)
        if progress:
            progress(i + 1, len(pair.modules), f"{module.name} {module.layer}")
    return pd.DataFrame(geometry_rows), pd.DataFrame(alignment_rows)


def _slices(
    module: Module, weight: Float[Tensor, "..."], tuned: Float[Tensor, "..."], heads: bool
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(head, W, W_tuned): the whole module as head −1, then its heads."""
    yield -1, weight, tuned
    if heads and module.kind == "linear":
        with torch.no_grad():
            for head, parts in enumerate(zip(module.heads(weight), module.heads(tuned), strict=True)):
                yield head, *parts
