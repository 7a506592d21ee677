"""Weight-space tables of a pair: one pass over the modules, one module of each side in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import pandas as pd

from tv.architecture.anatomy import Module
from tv.checkpoints.opening import Source
from tv.checkpoints.pairing import WeightPair, open_pair
from tv.errors import InputError
from tv.measures.decomposition import FIXED_FRACTION
from tv.measures.nulls import NULLS, Draws
from tv.measures.one_module import Rows, Wanted, measure_module
from tv.measures.ssa import RULES, Cut, Rule
from tv.runtime.compute import Compute
from tv.runtime.workers import ordered

EPSILONS = (0.01, 0.05, 0.1)


def ssa(
    base: Source,
    tuned: Source,
    epsilons: Sequence[float] = EPSILONS,
    *,
    k_rule: Rule = "tail",
    levels: Sequence[float] | None = None,
    null: str = "rotation",
    draws: int = 20,
    swap: bool = False,
    heads: bool = True,
    seed: int = 0,
    compute: Compute = Compute(),
) -> pd.DataFrame:
    """`alignment`: SSA of every matrix of every block, left, right and two-sided, at each ε and at the fixed fraction.

    With `heads`, also of each head's own slice: the right side for q, k, v, the left for o. `k_rule` says what `levels`
    are: ε of the tail rule (without `levels`, `epsilons`), shares τ of the energy, or fixed shares of the dimension;
    10 % of the dimension always comes along. `null` is one of rotation, gaussian, row_scale and shuffle (`draws`
    orders, seeded). `swap` adds `ssa_swap` and its null: T against the basis of another layer, which shows how much
    alignment is common to the residual stream.

    Sources are whatever `open_checkpoint` opens. `compute` says where and how: its workers share the modules, its cache
    keeps the base's decompositions, and the tables are the same. Raises CheckpointError where the two do not belong
    together, InputError for a level outside (0, 1) or an unknown name.
    """
    wanted = Wanted(
        frozenset({"alignment"}),
        cuts=_cuts(epsilons, k_rule, levels),
        null=null,
        draws=Draws(draws, seed),
        swap=swap,
        heads=heads,
        device=compute.tensor_device,
        cache=_directory(compute),
    )
    return _tables(base, tuned, wanted, compute, "alignment")["alignment"]


def curve(
    base: Source,
    tuned: Source,
    *,
    heads: bool = False,
    compute: Compute = Compute(),
) -> pd.DataFrame:
    """SSA(k) of every matrix of every block, for k up to its rank (thinned to 200 points), beside √p(k).

    `area` is the integral of SSA − null over k/dim: 0 at the null. Other arguments as in `ssa`.
    """
    wanted = Wanted(frozenset({"curve"}), heads=heads, device=compute.tensor_device, cache=_directory(compute))
    return _tables(base, tuned, wanted, compute, "curve")["curve"]


def geometry(
    base: Source,
    tuned: Source,
    *,
    heads: bool = True,
    seed: int = 0,
    compute: Compute = Compute(),
) -> pd.DataFrame:
    """`weights`: norms, cosine, ranks, spectrum and noise share of every module; gains, biases, embeddings by `kind`.

    How subspaces change (`spectral_shift`, `kept_left`, `intruders_left`, … see `tv.subspaces.Change`) is measured of
    whole matrices and NaN for heads. `seed` draws the intruders' null. Other arguments as in `ssa`.
    """
    wanted = Wanted(
        frozenset({"weights"}),
        draws=Draws(seed=seed),
        heads=heads,
        device=compute.tensor_device,
        cache=_directory(compute),
    )
    return _tables(base, tuned, wanted, compute, "geometry")["weights"]


def weights(
    base: Source,
    tuned: Source,
    epsilons: Sequence[float] = EPSILONS,
    *,
    heads: bool = True,
    seed: int = 0,
    compute: Compute = Compute(),
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(`weights`, `alignment`) of a pair, every matrix decomposed once; see `geometry` and `ssa`."""
    tables = measured(
        base,
        tuned,
        ("weights", "alignment"),
        epsilons,
        heads=heads,
        seed=seed,
        compute=compute,
    )
    return tables["weights"], tables["alignment"]


def spectra(
    base: Source,
    tuned: Source,
    *,
    compute: Compute = Compute(),
) -> pd.DataFrame:
    """`spectra`: singular values of W and of T, and T's energy gathered along W's directions; see `tv.spectra.Spectra`.

    Of every matrix of every block, at up to 64 ranks. Other arguments as in `ssa`.
    """
    wanted = Wanted(frozenset({"spectra"}), heads=False, device=compute.tensor_device, cache=_directory(compute))
    return _tables(base, tuned, wanted, compute, "spectra")["spectra"]


def measured(
    base: Source,
    tuned: Source,
    tables: Sequence[str],
    epsilons: Sequence[float] = EPSILONS,
    *,
    heads: bool = True,
    seed: int = 0,
    compute: Compute = Compute(),
) -> dict[str, pd.DataFrame]:
    """Several of the tables `weights`, `alignment`, `spectra` and `curve` by name, every matrix decomposed once."""
    wanted = Wanted(
        frozenset(tables),
        cuts=_cuts(epsilons),
        draws=Draws(seed=seed),
        heads=heads,
        device=compute.tensor_device,
        cache=_directory(compute),
    )
    return _tables(base, tuned, wanted, compute, "weights")


def _cuts(epsilons: Sequence[float], rule: Rule = "tail", levels: Sequence[float] | None = None) -> tuple[Cut, ...]:
    """The levels of a rule, and the fixed fraction. Raises InputError for what is no level."""
    if rule not in RULES:
        raise InputError(f"k rule {rule!r}: there is no such rule; use {', '.join(RULES)}")
    if rule != "tail" and levels is None:
        raise InputError(f"k rule {rule!r}: it needs levels: shares of the {_SHARES[rule]}, such as 0.9")
    chosen = tuple(epsilons if levels is None else levels)
    for level in chosen:
        if not 0 < level < 1:
            what = f"a share of the {_SHARES[rule]}" if rule in _SHARES else "ε is the share of ‖W‖ left out"
            raise InputError(f"{_NAMES[rule]} {level}: {what}, a number between 0 and 1")
    cuts = [Cut(rule, level) for level in chosen]
    fixed = Cut("fixed", FIXED_FRACTION)
    return (*cuts, *([] if fixed in cuts else [fixed]))


_NAMES = {"tail": "epsilon", "energy": "energy", "fixed": "fraction"}
_SHARES = {"energy": "energy", "fixed": "dimension"}


def _tables(base: Source, tuned: Source, wanted: Wanted, compute: Compute, stage: str) -> dict[str, pd.DataFrame]:
    _check(wanted)
    pair = open_pair(base, tuned)
    found = Rows()
    for i, rows in enumerate(_measured(pair, base, tuned, wanted, compute)):
        found.extend(rows)
        module = pair.modules[i]
        compute.tell(stage, i + 1, len(pair.modules), f"{module.name} {module.layer}")
    fingerprints = {"base": pair.base.fingerprint()["content"], "tuned": pair.tuned.fingerprint()["content"]}
    tables = {name: pd.DataFrame(rows) for name, rows in vars(found).items()}
    for table in tables.values():
        table.attrs |= {"fingerprints": fingerprints, "notes": list(pair.facts.notes)}
    return tables


def _directory(compute: Compute) -> Path | None:
    return None if compute.cache is None else Path(compute.cache)


def _measured(pair: WeightPair, base: Source, tuned: Source, wanted: Wanted, compute: Compute) -> Iterator[Rows]:
    if not compute.elsewhere:
        return ordered(partial(_measure, pair, wanted), pair.modules)
    for source in (base, tuned):
        if not isinstance(source, str | Path):
            raise InputError(
                f"{pair.base.source}: a live model or an open checkpoint cannot be sent to other processes; pass its "
                "path, or leave workers at 1"
            )
    return ordered(
        _Elsewhere(str(base), str(tuned), wanted), pair.modules, workers=compute.workers, engine=compute.engine
    )


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
    if wanted.null not in NULLS:
        raise InputError(f"null {wanted.null!r}: there is no such null; use {', '.join(NULLS)}")
    if wanted.null == "shuffle" and wanted.draws.n < 2:
        raise InputError(f"{wanted.draws.n} draws: a deviation needs at least two")
