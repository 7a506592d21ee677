"""The link: changes of the weights, beside changes of the activations and the causes of the behaviour."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from probes.correlating import correlations_of
from probes.store.forms.declare import TABLES
from probes.store.forms.links import measures
from probes.store.run import Run
from probes.store.schemas import ALL_DOMAINS, SCHEMAS, form_of
from tv.stats.change import LEAST_FLOOR
from tv.stats.means import Floats, mean_interval

#: The SSA threshold shown, beside the fixed fraction.
EPSILON = 0.05
#: A module that rounding explains to more than this share did not move.
ROUNDED = 0.5
#: Modules that write to the residual stream: the ledger of a component is that of its own.
WRITERS = ("o", "out_proj", "down")
#: The components of matrices in runs whose manifest does not name them.
COMPONENT = {"q": "attn", "k": "attn", "v": "attn", "o": "attn", "gate": "mlp", "up": "mlp", "down": "mlp"}

WEIGHT_MEASURES = measures("weight")
#: Activation changes: the module's direct part and its share, beside the whole change.
ACTIVATION_MEASURES = measures("activation")
CAUSAL_MEASURES = measures("cause")

_UNIT = ["tuned", "kind", "layer", "component", "module"]
_NULLS = ("new_share_null", "chance_flip_rate")  # shown without an interval
_NORMS = ["direct_norm", "inherited_norm", "interaction_norm"]
_WHOLE: list[tuple[str, str, object]] = [("head", "==", -1), ("expert", "==", -1)]
_EFFECT = "tuned granularity layer component module expert method metric"
_CAUSAL: list[tuple[str, str, object]] = [
    ("granularity", "in", ["component", "module"]),
    ("method", "in", list(CAUSAL_MEASURES)),
    ("control", "==", ""),
    ("expert", "==", -1),
]
_READ: dict[str, tuple[str, list[tuple[str, str, object]] | None]] = {  # what `link` loads: columns, filter
    "weights": ("tuned layer module head expert delta_norm relative_norm cosine cos_weight_delta noise_share", _WHOLE),
    "alignment": ("tuned layer module head expert side epsilon ssa ssa_null kappa", _WHOLE),
    "gates": ("tuned prompt_id layer flip_rate chance_flip_rate", None),
    "changes": ("tuned prompt_id layer component head delta_norm relative_change cosine dla_base dla_tuned", _WHOLE),
    "ledger": (
        "tuned prompt_id layer module delta_norm direct_norm inherited_norm interaction_norm direct_share new_share "
        "new_share_null new_share_10",
        [("expert", "==", -1)],
    ),
    "effects": (f"{_EFFECT} domain effect lo hi", _CAUSAL),
    "prompt_effects": (f"{_EFFECT} prompt_id effect", _CAUSAL),
    "prompts": ("prompt_id cluster", None),
    "behaviour_floor": ("domain metric floor", None),
}

Table: TypeAlias = pd.DataFrame | None


def link(run: Run) -> pd.DataFrame:
    """Join the changes of the weights with those of the activations, unit by unit.

    `link` and `correlations` are written into the run. Draws and seed are the suite's, from the manifest.

    Args:
        run: A finished run. A table that it lacks leaves its columns NaN.

    Returns:
        The table `link`: a row per tuned model and module (kind "module") or component (kind "component"), with its
        weight measures, and the prompt means of its activation measures and effects with 95 % intervals.

    Raises:
        RunError: A table of the run cannot be read.

    Examples:
        >>> linked = probes.link(probes.load("reports/demo"))
        >>> linked.groupby("kind").size().to_dict()
        {'component': 24, 'module': 84}
    """
    suite = run.manifest["suite"]
    draws, seed = suite.get("bootstrap", 1000), suite.get("seed", 0)
    # One after the other: the tables of all would not fit where those of each just do.
    linked = [link_tables(**read_tables(run, tuned), draws=draws, seed=seed) for tuned in sorted(suite["tuned"])]
    for name, of_each in zip(("link", "correlations"), zip(*linked, strict=True), strict=True):
        run.add(name, pd.concat([table for table in of_each if len(table)] or of_each[:1]))
    return run["link"]


def read_tables(run: Run, tuned: str) -> dict[str, Table]:
    """The tables that `link_tables` joins, of one tuned model; None for one that the run lacks."""
    one = [("tuned", "==", tuned)]
    tables: dict[str, Table] = {}
    for name, (columns, where) in _READ.items():
        wanted = [*columns.split(), *(_more_measures() if name == "weights" else ())]
        known = [column for column in wanted if name in run.tables and column in run.table(name).columns]
        of = one if "tuned" in known else []
        tables[name] = run.df(name, columns=known, where=[*of, *(where or [])] or None) if known else None
    if (weights := tables["weights"]) is not None:
        tables["weights"] = weights.assign(component=_components(run, weights))
    return tables


def _components(run: Run, weights: pd.DataFrame) -> pd.Series:
    """The component of every row's matrix; null for all else."""
    parts = run.manifest.get("architecture", {}).get("parts")
    if parts is None:
        return weights.module.map(COMPONENT)
    of = {
        (layer, module): component
        for layer, part in enumerate(parts)
        for component, modules in part.items()
        for module in modules
    }
    places = zip(weights.layer, weights.module, strict=True)
    return pd.Series([of.get(place) for place in places], weights.index, dtype=object)


def _more_measures() -> list[str]:
    """Weight measures that other packages declare for the link."""
    built_in = TABLES["link"].names
    return [column.name for column in form_of("link") if column.name not in built_in]


def link_tables(
    weights: pd.DataFrame | None,
    alignment: Table,
    gates: Table,
    changes: Table,
    ledger: Table,
    effects: Table,
    prompt_effects: Table,
    prompts: Table = None,
    behaviour_floor: Table = None,
    *,
    draws: int,
    seed: int,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(link, correlations) from a run's tables; any but `weights` may be None or empty, and its columns are then NaN.

    `weights` has the component of each module that is linked. `link` has one row per tuned × layer × module (kind
    "module") and × component (kind "component"). Activation measures are prompt means (over positions first), with 95 %
    intervals over prompts or their clusters.

    - A component's weight measures are its modules' means, weighted by their energy ‖T‖².
    - A component's ledger is that of the module which writes to the residual stream: o, out_proj, or down.
    - `changes` and gate flips (MLP only) exist per component; a module's row repeats its component's. Effects are a
      module's own where they were measured (`path` gives them all), and NaN elsewhere.
    - `direct_share` is that of `ledger`, the direct term's projection on the change; averaged like the rest.

    `correlations` is of the units that moved (`correlations_of`). Effects count by their size there, those within the
    behaviour's floor as equal.
    """
    units = _units(weights if weights is not None else pd.DataFrame(), alignment)
    sources = _sources(gates, changes, ledger, prompt_effects)
    asked = sorted({prompt for means in sources.values() for prompt in means.index.get_level_values("prompt_id")})
    values = dict(_by_prompt(units, sources, asked))
    clusters = _clusters(asked, prompts)
    columns: dict[str, NDArray[np.float64]] = {}
    for measure, table in values.items():
        mean, lo, hi, *_ = mean_interval(table, clusters)
        columns |= {measure: mean} if measure in _NULLS else {measure: mean, f"{measure}_lo": lo, f"{measure}_hi": hi}
    columns |= _summarised_effects(units, effects)
    linked = units.assign(**columns).reindex(columns=SCHEMAS["link"].names)
    ranked = values | _sizes(values, _floor(behaviour_floor, prompt_effects))
    return linked, correlations_of(units[units.moved.astype(bool)], ranked, clusters, draws, seed)


def _units(weights: pd.DataFrame, alignment: Table) -> pd.DataFrame:
    """One row a module and one a component, with their weight measures; a component has the module "".

    `moved`: whether T is more than nothing, and more than rounding.
    """
    if weights.empty:
        return pd.DataFrame(columns=[*_UNIT, "moved"])
    key = ["tuned", "layer", "module"]
    more = [name for name in _more_measures() if name in weights]
    plain = ["delta_norm", "relative_norm", "cosine", "cos_weight_delta", "noise_share", *more]
    modules = _whole(weights)[[*key, "component", *plain]].dropna(subset="component")
    if alignment is not None and not alignment.empty:
        modules = modules.merge(_aligned(alignment), on=key, how="left")
    measures = [name for name in modules if name in SCHEMAS["link"].names and name not in _UNIT]
    energy = modules.delta_norm.to_numpy(np.float64)[:, None] ** 2
    known = modules[measures].notna()
    group = [modules[name] for name in ("tuned", "layer", "component")]
    total = (known * energy).groupby(group).sum()
    weighted = (modules[measures].fillna(0) * energy).groupby(group).sum() / total.where(total > 0)
    plain = modules[measures].groupby(group).mean()  # of a component that did not move
    components = weighted.where(total > 0, plain).reset_index().assign(module="", kind="component")
    modules = modules.assign(moved=(modules.delta_norm > 0) & ~(modules.noise_share > ROUNDED))
    any_moved = modules.groupby(["tuned", "layer", "component"]).moved.any()
    components["moved"] = any_moved.reindex(pd.MultiIndex.from_frame(components[any_moved.index.names])).to_numpy()
    both = pd.concat([modules.assign(kind="module"), components])
    order = both.module.map({name: i for i, name in enumerate(["", *dict.fromkeys(modules.module)])})
    both = both.assign(order=order).sort_values(["tuned", "kind", "layer", "component", "order"], kind="stable")
    return both[[*_UNIT, "moved", *measures]].reset_index(drop=True)


def _whole(table: pd.DataFrame) -> pd.DataFrame:
    return table[(table["head"] == -1) & (table["expert"] == -1)]


def _aligned(alignment: pd.DataFrame) -> pd.DataFrame:
    """Alignment as columns: ssa, its null and kappa per side at ε = 0.05; ssa10, kappa10 at the fixed fraction."""
    rows = _whole(alignment)
    key = ["tuned", "layer", "module"]
    at = rows[np.isclose(rows.epsilon, EPSILON)].pivot(index=key, columns="side", values=["ssa", "ssa_null", "kappa"])
    fixed = rows[rows.epsilon.isna()].pivot(index=key, columns="side", values=["ssa", "kappa"])
    at.columns = at.columns.map("_".join)
    fixed.columns = fixed.columns.map("10_".join)
    return at.join(fixed, how="outer").reset_index()


def _sources(gates: Table, changes: Table, ledger: Table, prompt_effects: Table) -> dict[str, pd.DataFrame]:
    """Prompt means of every measure: frames with index (tuned, layer, unit, prompt_id)."""
    sources = {}
    if gates is not None and not gates.empty:
        sources["gates"] = _prompt_means(gates.assign(unit="mlp"), ["flip_rate", "chance_flip_rate"])
    if changes is not None and not changes.empty:
        rows = changes[changes["head"] == -1]
        rows = rows.rename(columns={"cosine": "change_cosine", "component": "unit"}).assign(
            dla_change=rows.dla_tuned - rows.dla_base
        )
        rows = rows.rename(columns={"delta_norm": "change_delta_norm", "relative_change": "change_relative"})
        measures = ["change_delta_norm", "change_relative", "change_cosine", "dla_change"]
        sources["changes"] = _prompt_means(rows, measures)
    if ledger is not None and not ledger.empty:
        rows = ledger.rename(columns={"delta_norm": "ledger_delta_norm", "module": "unit"})
        shares = ["direct_share", "new_share", "new_share_null", "new_share_10"]
        sources["ledger"] = _prompt_means(rows, [*_NORMS, "ledger_delta_norm", *shares])
    if prompt_effects is not None and not prompt_effects.empty:
        rows = prompt_effects[prompt_effects.metric == _metric(prompt_effects)]
        unit = rows.component.where(rows.granularity == "component", rows.module)
        for method in CAUSAL_MEASURES:
            part = rows.assign(unit=unit)[rows.method == method].rename(columns={"effect": method})
            if not part.empty:
                sources[method] = _prompt_means(part, [method])
    return {name: means for name, means in sources.items() if not means.empty}


def _prompt_means(rows: pd.DataFrame, measures: list[str]) -> pd.DataFrame:
    return rows.groupby(["tuned", "layer", "unit", "prompt_id"])[measures].mean().astype(np.float64)


def _writers(units: pd.DataFrame) -> pd.Series:
    """The module by which each unit's component writes to the residual stream; null where no one matrix does."""
    place = ["tuned", "layer", "component"]
    writing = units[units.module.str.rstrip("_0123456789").isin(WRITERS)].drop_duplicates(place)
    by_place = writing.set_index(place).module
    return pd.Series(by_place.reindex(pd.MultiIndex.from_frame(units[place])).to_numpy(), units.index)


def _metric(table: pd.DataFrame) -> str:
    """The one metric that effects are shown in: logit_diff where it was measured."""
    metrics = list(table.metric.unique())
    return "logit_diff" if "logit_diff" in metrics else metrics[0]


def _by_prompt(
    units: pd.DataFrame, sources: dict[str, pd.DataFrame], prompts: list[str]
) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Every measure as (prompts, units), NaN where a unit or a prompt has none."""
    writes = units.module.where(units.module != "", _writers(units))
    for name, means in sources.items():
        names = writes if name == "ledger" else units.component
        if name in CAUSAL_MEASURES:
            names = units.module.where(units.module != "", units.component)
        wanted = pd.MultiIndex.from_arrays([units.tuned, units.layer, names])
        places = means.index.droplevel("prompt_id")
        there = places.unique()
        at = there.get_indexer(wanted)
        wide = np.full((len(there) + 1, len(prompts)), np.nan)  # the last is no unit's
        rows = there.get_indexer(places), pd.Index(prompts).get_indexer(means.index.get_level_values("prompt_id"))
        for measure in means.columns:
            wide[rows] = means[measure]
            yield measure, wide[at].T


def _summarised_effects(units: pd.DataFrame, effects: Table) -> dict[str, NDArray[np.float64]]:
    """Means and intervals as they are in the `effects` table."""
    if effects is None or effects.empty:
        return {}
    rows = effects[(effects.domain == ALL_DOMAINS) & (effects.metric == _metric(effects))]
    key = ["tuned", "layer", "component", "module"]
    wanted = pd.MultiIndex.from_frame(units[key])
    columns: dict[str, NDArray[np.float64]] = {}
    for method in CAUSAL_MEASURES:
        at = rows[rows.method == method].set_index(key).reindex(wanted)
        columns |= {f"{method}{end}": at[name].to_numpy(np.float64) for end, name in _ENDS.items()}
    return columns


_ENDS = {"": "effect", "_lo": "lo", "_hi": "hi"}


def _clusters(asked: Sequence[str], prompts: Table) -> list[str]:
    """The cluster of each prompt; one without is its own."""
    named = {} if prompts is None else prompts.set_index("prompt_id").cluster.fillna("").to_dict()
    return [str(named.get(prompt) or prompt) for prompt in asked]


def _floor(behaviour_floor: Table, prompt_effects: Table) -> float:
    """What rounding alone does to the metric of the effects."""
    if behaviour_floor is None or prompt_effects is None or prompt_effects.empty:
        return LEAST_FLOOR
    rows = behaviour_floor[(behaviour_floor.domain == ALL_DOMAINS) & behaviour_floor.floor.notna()]
    return max([LEAST_FLOOR, *rows[rows.metric == _metric(prompt_effects)].floor])


def _sizes(values: Mapping[str, Floats], floor: float) -> dict[str, Floats]:
    """Effects by size, whatever their sign; those within the floor are all of one size."""
    sizes = {}
    for method in set(CAUSAL_MEASURES) & set(values):
        mean = mean_interval(values[method]).mean
        sizes[method] = np.where(np.abs(mean) <= floor, 0 * values[method], values[method] * np.sign(mean))
    return sizes
