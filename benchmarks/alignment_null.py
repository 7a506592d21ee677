"""How often the report's sentences on alignment claim something of a T that points nowhere: at most 5 % is right.

    python benchmarks/alignment_null.py data/models/base

For every matrix of the base a T of rank 1, of rank 8 and of full rank is drawn that is turned at random, and the
sentences are read; models of more layers are the same matrices again, each with a T of its own.
"""

from __future__ import annotations

import argparse
from typing import TypeAlias

import pandas as pd
import torch

import tv
from probes.reporting.alignment import alignment_sentences
from tv.measures.decomposition import Decomposition, decompose
from tv.measures.ssa import align

Matrices: TypeAlias = list[tuple[int, str, Decomposition]]
RANKS: dict[str, int | None] = {"1": 1, "8": 8, "full": None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base")
    parser.add_argument("--reports", type=int, default=200, help="Drawn for each rank and depth.")
    parser.add_argument(
        "--times", type=int, nargs="+", default=[1, 5], help="How often the base's layers are repeated."
    )
    options = parser.parse_args()
    base = tv.open_checkpoint(options.base)
    matrices = matrices_of(base)
    n_layers = 1 + max(layer for layer, _, _ in matrices)
    print("| T of rank | layers | reports that claim something |\n| --- | --- | --- |")
    for name, rank in RANKS.items():
        for times in options.times:
            generator = torch.Generator().manual_seed(times)
            claims = sum(claims_something(matrices, rank, times, generator) for _ in range(options.reports))
            print(f"| {name} | {times * n_layers} | {claims / options.reports:.1%} of {options.reports} |", flush=True)


def matrices_of(base: tv.Checkpoint) -> Matrices:
    """Layer, name and decomposition of every matrix of every block."""
    return [
        (module.layer, module.name, decompose(base.matrix(module).float()))
        for module in base.architecture.modules
        if module.kind == "linear" and module.component not in ("embed", "unembed")
    ]


def claims_something(matrices: Matrices, rank: int | None, times: int, generator: torch.Generator) -> bool:
    """Whether the sentences on one random T claim anything."""
    aligned, weights = [], []
    for time in range(times):
        for layer, module, basis in matrices:
            delta = _random(basis.weight.shape[0], basis.weight.shape[1], rank, generator)
            rows = align(basis, delta, (0.05,))
            aligned += [vars(row) | {"layer": 100 * time + layer, "module": module} for row in rows]
            cosine = float((basis.weight * delta).sum() / (basis.weight.norm() * delta.norm()))
            weights.append((cosine, *basis.weight.shape))
    table = pd.DataFrame(weights, columns=["cos_weight_delta", "rows", "cols"])
    text = " ".join(alignment_sentences(pd.DataFrame(aligned), table))
    return "z = " in text or "part of T rescales W" in text


def _random(m: int, n: int, rank: int | None, generator: torch.Generator) -> torch.Tensor:
    if rank is None:
        return torch.randn(m, n, generator=generator)
    u, v = (torch.linalg.qr(torch.randn(d, rank, generator=generator))[0] for d in (m, n))
    return u * torch.logspace(0, -(rank - 1) / 4, rank, base=2) @ v.T


if __name__ == "__main__":
    main()
