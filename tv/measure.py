"""Weight-space tables of a pair: one pass over the modules, one module of each side in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import pandas as pd
import torch

from tv.architecture import Module
from tv.checkpoint import Source
from tv.engine import Engine, ordered
from tv.errors import InputError, first_line
from tv.modules import Rows, Wanted, measure_module
from tv.pairing import WeightPair, open_pair

Progress = Callable[[int, int, str], None]

EPSILONS = (0.01, 0.05, 0.1)


def ssa(
    base: Source,
    tuned: Source,
    epsilons: Sequence[float] = EPSILONS,
    *,
    heads: bool = True,
    device: str = "cpu",
    workers: int = 1,
    engine: Engine = "local",
    progress: Progress | None = None,
) -> pd.DataFrame:
    """`alignment`: SSA of every matrix of every block, left, right and two-sided, at each ε and at the fixed fraction.

    With `heads`, also of each head's own slice: the right side for q, k, v, the left for o. Sources are whatever
    `open_checkpoint` opens. `workers` processes (or Ray) share the modules; the tables are the same. Raises
    CheckpointError where the two do not belong together, InputError for an ε outside (0, 1).
    """
    wanted = Wanted(tuple(epsilons), weights=False, heads=heads, device=device)
    return _tables(base, tuned, wanted, workers, engine, progress)["alignment"]


def geometry(
    base: Source,
    tuned: Source,
    *,
    heads: bool = True,
    device: str = "cpu",
    workers: int = 1,
    engine: Engine = "local",
    progress: Progress | None = None,
) -> pd.DataFrame:
    """`weights`: norms, cosine, ranks and noise share of every module; norm gains, biases and embeddings by `kind`."""
    wanted = Wanted(alignment=False, heads=heads, device=device)
    return _tables(base, tuned, wanted, workers, engine, progress)["weights"]


def weights(
    base: Source,
    tuned: Source,
    epsilons: Sequence[float] = EPSILONS,
    *,
    heads: bool = True,
    device: str = "cpu",
    workers: int = 1,
    engine: Engine = "local",
    progress: Progress | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(`weights`, `alignment`) of a pair, every matrix decomposed once; see `geometry` and `ssa`."""
    tables = _tables(base, tuned, Wanted(tuple(epsilons), heads=heads, device=device), workers, engine, progress)
    return tables["weights"], tables["alignment"]


def _tables(
    base: Source, tuned: Source, wanted: Wanted, workers: int, engine: Engine, progress: Progress | None
) -> dict[str, pd.DataFrame]:
    _check(wanted)
    pair = open_pair(base, tuned)
    found = Rows()
    for i, rows in enumerate(_measured(pair, base, tuned, wanted, workers, engine)):
        found.extend(rows)
        if progress:
            module = pair.modules[i]
            progress(i + 1, len(pair.modules), f"{module.name} {module.layer}")
    fingerprints = {"base": pair.base.fingerprint()["content"], "tuned": pair.tuned.fingerprint()["content"]}
    tables = {name: pd.DataFrame(rows) for name, rows in vars(found).items()}
    for table in tables.values():
        table.attrs["fingerprints"] = fingerprints
    return tables


def _measured(
    pair: WeightPair, base: Source, tuned: Source, wanted: Wanted, workers: int, engine: Engine
) -> Iterator[Rows]:
    if workers == 1 and engine == "local":
        return ordered(partial(_measure, pair, wanted), pair.modules)
    for source in (base, tuned):
        if not isinstance(source, str | Path):
            raise InputError(
                f"{pair.base.source}: a live model or an open checkpoint cannot be sent to other processes; pass its "
                "path, or leave workers at 1"
            )
    return ordered(_Elsewhere(str(base), str(tuned), wanted), pair.modules, workers=workers, engine=engine)


def _measure(pair: WeightPair, wanted: Wanted, module: Module) -> Rows:
    return measure_module(pair, module, wanted)


@dataclass(frozen=True)
class _Elsewhere:
    """The work of another process: it opens the pair itself, once."""

    base: str
    tuned: str
    wanted: Wanted

    def __call__(self, module: Module) -> Rows:
        return measure_module(_opened(self.base, self.tuned), module, self.wanted)


@cache
def _opened(base: str, tuned: str) -> WeightPair:
    return open_pair(base, tuned)


def _check(wanted: Wanted) -> None:
    for epsilon in wanted.epsilons:
        if not 0 < epsilon < 1:
            raise InputError(f"epsilon {epsilon}: ε is the share of ‖W‖ left out, a number between 0 and 1")
    try:
        torch.empty(0, device=wanted.device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {wanted.device!r}: {first_line(error)}") from error
