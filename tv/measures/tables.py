"""Weight-space tables of a pair: one pass over the modules, one module of each side in memory at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pandas as pd

from tv.architecture.anatomy import Module
from tv.checkpoints.opening import Source
from tv.checkpoints.pairing import WeightPair, open_pair
from tv.errors import InputError
from tv.measures.declared import TABLES
from tv.measures.forms import form_of
from tv.measures.nulls import NULLS
from tv.measures.one_module import Rows, Wanted, measure_module
from tv.measures.ssa import EPSILONS, SHARES, Rule, cuts_by
from tv.runtime.compute import Compute
from tv.runtime.options import validated
from tv.runtime.scheduler import ordered


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
    """Subspace alignment (SSA): how much of T lies in the directions that W uses most, compared with chance.

    SSA = ‖Π_k T‖/‖T‖ of every matrix of every block, left (output side), right (input side) and two-sided. It is the
    table `alignment` of a run.

    Args:
        base: Whatever `tv.open_checkpoint` opens.
        tuned: Likewise; it is taken over `base`.
        epsilons: Levels of the tail rule, where there are no `levels`.
        k_rule: How k follows from a level. "tail": the fewest directions that leave a relative error of W of at most ε.
            "energy": the fewest that hold a share τ of Σσ². "fixed": a share of the dimension.
        levels: ε, τ or shares, as `k_rule` says, each between 0 and 1; the rules energy and fixed need them. 10 % of
            the dimension always comes along.
        null: What `ssa_null` assumes: one of `tv.NULLS`.
        draws: Orders that the null "shuffle" draws.
        swap: Add `ssa_swap` and its null: T against the basis of another layer, which shows how much alignment is
            common to the residual stream.
        heads: Measure each head's slice too: the right side for q, k, v, the left for o.
        seed: Of the orders.
        compute: Where and how: its workers share the modules, its cache keeps the base's decompositions, and the
            table is the same.

    Returns:
        A row per matrix or head, side and level: `layer module head expert side k_rule level epsilon k dim ssa ssa_null
        kappa ssa_z at_ceiling null`. `kappa` = (SSA² − null²)/(1 − null²): 0 at the null, 1 inside the subspace.

    Raises:
        InputError: A level outside (0, 1), no levels for a rule that needs them, an unknown rule or null, or fewer than
            two draws for the null "shuffle".
        CheckpointError: The two do not belong together.

    Source: arXiv 2510.09359 (SSA of tuning vectors), arXiv 2502.04959 eq. 5–6 (the ratio and its ε).

    Examples:
        >>> table = tv.ssa("data/models/base", "data/models/medical", heads=False)
        >>> down = table[(table.module == "down") & (table.epsilon == 0.05) & (table.side == "left")]
        >>> down[["ssa", "ssa_null"]].mean().round(3).to_dict()
        {'ssa': 0.992, 'ssa_null': 0.991}
    """
    options = _alignment(epsilons, k_rule, levels, null, draws) | {"swap": swap}
    return _tables(base, tuned, {"alignment": options}, heads, seed, compute, "alignment")["alignment"]


def curve(
    base: Source,
    tuned: Source,
    *,
    heads: bool = False,
    compute: Compute = Compute(),
) -> pd.DataFrame:
    """SSA(k) of every matrix of every block, for k up to its rank (thinned to 200 points), beside √p(k).

    Args:
        base: Whatever `tv.open_checkpoint` opens.
        tuned: Likewise; it is taken over `base`.
        heads: Measure each head's slice too, on its long side.
        compute: Where and how, as in `tv.ssa`.

    Returns:
        A row per matrix or head, side and k: `layer module head expert side dim area k ssa ssa_null`. `area` is the
        integral of SSA − null over k/dim: 0 at the null.

    Raises:
        CheckpointError: The two do not belong together.

    Source: arXiv 2510.09359 (SSA of tuning vectors).

    Examples:
        >>> table = tv.curve("data/models/base", "data/models/medical")
        >>> one = table[(table.layer == 0) & (table.module == "down") & (table.side == "right")]
        >>> bool(one.ssa.is_monotonic_increasing), bool((one.area > 0).all())
        (True, True)
    """
    return _tables(base, tuned, {"curve": {}}, heads, 0, compute, "curve")["curve"]


def geometry(
    base: Source,
    tuned: Source,
    *,
    heads: bool = True,
    seed: int = 0,
    compute: Compute = Compute(),
) -> pd.DataFrame:
    """Norms, cosine, ranks, spectrum and noise share of every module, gains, biases and embeddings among them.

    It is the table `weights` of a run, and `tv.weights` is the same function. How subspaces change (`spectral_shift`,
    `kept_left`, `intruders_left`, … see `tv.measures.subspaces.Change`) is measured of whole matrices, and is NaN for
    heads.

    Args:
        base: Whatever `tv.open_checkpoint` opens.
        tuned: Likewise; it is taken over `base`.
        heads: Measure each head's slice too.
        seed: Of the intruders' null.
        compute: Where and how, as in `tv.ssa`.

    Returns:
        A row per module or head: `layer module head expert kind rows cols tied weight_norm delta_norm relative_norm
        cosine …`; docs/reference/tables.md explains every column of `weights`.

    Raises:
        CheckpointError: The two do not belong together.

    Source: arXiv 2410.21228 (intruder dimensions).

    Examples:
        >>> table = tv.geometry("data/models/base", "data/models/medical", heads=False)
        >>> table.sort_values("relative_norm", ascending=False)[["layer", "module"]].head(1).values.tolist()
        [[6, 'unembed']]
    """
    return _tables(base, tuned, {"weights": {}}, heads, seed, compute, "geometry")["weights"]


#: The same by the table's name.
weights = geometry


def spectra(
    base: Source,
    tuned: Source,
    *,
    compute: Compute = Compute(),
) -> pd.DataFrame:
    """Singular values of W and of T side by side, and T's energy gathered along W's directions.

    Args:
        base: Whatever `tv.open_checkpoint` opens.
        tuned: Likewise; it is taken over `base`.
        compute: Where and how, as in `tv.ssa`.

    Returns:
        A row per matrix of a block and rank, up to 64 ranks, evenly spaced by their logarithm: `layer module expert
        rank sigma sigma_delta share_left share_null_left share_right share_null_right`. A share is that of ‖T‖² in
        W's leading `rank` directions, beside rank/dimension, which a T of no preferred direction has there.

    Raises:
        CheckpointError: The two do not belong together.

    Examples:
        >>> table = tv.spectra("data/models/base", "data/models/medical")
        >>> first = table[table["rank"] == 1]
        >>> len(first), bool((first.sigma > first.sigma_delta).all())
        (42, True)
    """
    return _tables(base, tuned, {"spectra": {}}, False, 0, compute, "spectra")["spectra"]


def measured(
    base: Source,
    tuned: Source,
    tables: Sequence[str] | Mapping[str, Mapping[str, Any]],
    epsilons: Sequence[float] = EPSILONS,
    *,
    heads: bool = True,
    seed: int = 0,
    compute: Compute = Compute(),
    kept: MutableMapping[str, Rows] | None = None,
    layers: Collection[int] | None = None,
) -> dict[str, pd.DataFrame]:
    """Several weight tables by name, every matrix decomposed once.

    Args:
        base: Whatever `tv.open_checkpoint` opens.
        tuned: Likewise; it is taken over `base`.
        tables: Names of registered tables (`weights`, `alignment`, `spectra`, `curve`, …), or their options by name.
        epsilons: The levels of `alignment`, where it is named without options.
        heads: Measure every head's slice, too.
        seed: Of everything drawn.
        compute: Where and how.
        kept: The rows of modules that an interrupted call of the same arguments has measured: they are not measured
            again, and those of the others are put there one by one.
        layers: Only modules of these; `n_layers` and −1 are behind and before the blocks. Default: all.

    Returns:
        DataFrames by name, with the columns of their forms.

    Raises:
        InputError: An unknown table or option.
        CheckpointError: The two do not belong together.

    Examples:
        >>> tables = tv.measured("data/models/base", "data/models/medical", ("spectra", "curve"), heads=False)
        >>> {name: "sigma" in table for name, table in tables.items()}
        {'spectra': True, 'curve': False}
    """
    options = dict(tables) if isinstance(tables, Mapping) else {name: {} for name in tables}
    if "alignment" in options and not options["alignment"]:
        options["alignment"] = _alignment(epsilons)
    return _tables(base, tuned, options, heads, seed, compute, "weights", kept, layers)


def _alignment(
    epsilons: Sequence[float],
    k_rule: Rule = "tail",
    levels: Sequence[float] | None = None,
    null: str = "rotation",
    draws: int = 20,
) -> dict[str, Any]:
    """The options of `alignment`. Raises InputError for invalid ones."""
    if k_rule in SHARES and levels is None:
        raise InputError(f"k rule {k_rule!r}: it needs levels: shares of the {SHARES[k_rule]}, such as 0.9")
    chosen = tuple(epsilons if levels is None else levels)
    cuts_by(k_rule, chosen)
    NULLS.one(null)
    if null == "shuffle" and draws < 2:
        raise InputError(f"{draws} draws: a deviation needs at least two")
    return {"k_rule": k_rule, "levels": chosen, "null": null, "draws": draws}


def _tables(
    base: Source,
    tuned: Source,
    tables: Mapping[str, Mapping[str, Any]],
    heads: bool,
    seed: int,
    compute: Compute,
    stage: str,
    kept: MutableMapping[str, Rows] | None = None,
    layers: Collection[int] | None = None,
) -> dict[str, pd.DataFrame]:
    options = {name: validated(TABLES.one(name).function, given, f"table {name!r}") for name, given in tables.items()}
    wanted = Wanted(options, heads, seed, compute.tensor_device, _directory(compute))
    pair = open_pair(base, tuned)
    rows: Rows = {name: [] for name in tables}
    kept = {} if kept is None else kept
    modules = [module for module in pair.rows if layers is None or module.layer in layers]
    named = {f"{i} {_said(module)}": module for i, module in enumerate(modules)}
    left = [module for name, module in named.items() if name not in kept]
    done = len(named) - len(left)
    if done:
        compute.tell(stage, done, len(named))
    found = _measured(pair, left, base, tuned, wanted, compute)
    for key, module in named.items():
        if key not in kept:
            kept[key] = next(found)
            done += 1
            compute.tell(stage, done, len(named), _said(module))
        for name, more in kept[key].items():
            rows[name] += more
    fingerprints = {"base": pair.base.fingerprint()["content"], "tuned": pair.tuned.fingerprint()["content"]}
    frames = {name: _frame(name, of_table) for name, of_table in rows.items()}
    for frame in frames.values():
        frame.attrs |= {"fingerprints": fingerprints, "notes": list(pair.facts.notes)}
    return frames


def _frame(name: str, rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows as a table: the columns of its form, then what an option added."""
    frame = pd.DataFrame(rows)
    names = [column for column in form_of(name).names if column != "tuned"]
    return frame.reindex(columns=[*names, *(column for column in frame if column not in names)])


def _directory(compute: Compute) -> Path | None:
    return None if compute.cache is None else Path(compute.cache)


def _measured(
    pair: WeightPair, modules: Sequence[Module], base: Source, tuned: Source, wanted: Wanted, compute: Compute
) -> Iterator[Rows]:
    if not compute.elsewhere:
        return ordered(modules, lambda device: partial(_measure, pair, wanted), compute, name=_said)
    for source in (base, tuned):
        if not isinstance(source, str | Path):
            raise InputError(
                f"{pair.base.source}: a live model or an open checkpoint cannot be sent to other processes; pass its "
                "path, or leave workers at 1"
            )

    def work_on(device: str) -> _Elsewhere:
        return _Elsewhere(str(base), str(tuned), replace(wanted, device=replace(compute, device=device).tensor_device))

    return ordered(modules, work_on, compute, name=_said)


def _said(module: Module) -> str:
    return f"{module.name} {module.layer}"


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
