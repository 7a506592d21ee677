"""Figures of a run for notebooks and papers: Plotly figures, written as files where `save` names one.

probes.plot.heatmap(run, "ssa_excess", side="right")
probes.plot.effects(run, "revert", save="fig.pdf")

A name that ends in .pdf, .svg or .png is drawn by matplotlib (the extra `plot`), .html is a page that needs no network,
and .json is Plotly's format. `tuned` may be left out of a run that has one tuned model.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from probes.attribution.effects import focus
from probes.errors import RunError
from probes.linking import ACTIVATION_MEASURES, CAUSAL_MEASURES, WEIGHT_MEASURES
from probes.reporting import cause_charts, charts, figures, weight_charts
from probes.reporting.evidence import Evidence, gather, one_metric, rows_of
from probes.reporting.figures import Plot
from probes.reporting.words import MEASURES, effect_metric_name, metric_name
from probes.store.run import Run
from probes.store.schemas import ALL_DOMAINS, SCHEMAS, form_of
from tv.architecture.anatomy import MODULES, in_order
from tv.errors import choices, meant
from tv.runtime.atomic import replacing

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

#: Tables that a heat map reads, in the order in which a measure is looked up, and the horizontal axis of each map.
MAPPED = {"weights": "module", "alignment": "module", "changes": "component", "ledger": "module", "gates": "domain"}
#: Measures computed from two columns, and the centre of their colours.
_DERIVED = {"ssa_excess": 0.0, "dla_change": 0.0}
_WHOLE = [("head", "==", -1), ("expert", "==", -1)]


def heatmap(
    run: Run,
    measure: str,
    *,
    tuned: str | None = None,
    side: str = "left",
    epsilon: float | None = 0.05,
    domain: str = ALL_DOMAINS,
    save: str | Path | None = None,
) -> Figure:
    """Layer × module (or component, or domain) map of a measure.

    `measure` is a column of `weights`, `alignment`, `changes`, `ledger` or `gates` ("changes.cosine" where two have
    it), a method whose effects the run has (path, graft, revert, … of components), `ssa_excess` = ssa − ssa_null, or
    `dla_change`. Alignment is that of `side` (left, right, two_sided) at `epsilon`, None for the fixed 10 % of
    directions; effects are those over a `domain`'s prompts. Means over places come first, then those over prompts.
    Raises RunError for a measure that the run does not have.
    """
    name = _tuned(run, tuned)
    rows, column, across = _mapped(run, name, measure, side, epsilon, domain)
    if rows.empty or rows[column].isna().all():
        raise RunError(f"{run.path}: {measure} was not measured of {name}")
    order = MODULES if across == "module" else in_order(rows[across])
    plot = figures.heatmap(rows, column, across, order, _layers(run), centre=_centre(column))
    return _figure(plot, f"{measure}, {name}", save)


def _centre(measure: str) -> float | None:
    """The centre of a measure's colours, as its column declares it."""
    declared = (form_of(table) for table in (*MAPPED, "effects"))
    return _DERIVED.get(measure, next((form[measure].centre for form in declared if measure in form.names), None))


def flips(run: Run, *, tuned: str | None = None, save: str | Path | None = None) -> Figure:
    """Gate flips by layer and domain, beside chance and the noise floor."""
    evidence = _gathered(run, tuned, "gates")
    plot = charts.flips_by_layer(evidence.flips, "flip_rate", "chance_flip_rate", evidence.noise_floor)
    return _figure(plot, f"gate flips, {evidence.tuned}", save)


def ledger(run: Run, *, tuned: str | None = None, save: str | Path | None = None) -> Figure:
    """Direct, inherited and interaction term of every module's output change, as shares of their squared norms."""
    evidence = _gathered(run, tuned, "ledger")
    return _figure(charts.ledger_bars(evidence.ledger, evidence.n_layers), f"ledger, {evidence.tuned}", save)


def effects(
    run: Run,
    method: str = "revert",
    *,
    tuned: str | None = None,
    domain: str | None = None,
    save: str | Path | None = None,
) -> Figure:
    """The components with the largest effects by one method, with 95 % intervals over prompts.

    `domain` defaults to the one in which effects are largest.
    """
    name = _tuned(run, tuned)
    rows = _effects(run, name, method, None)
    chosen = domain or focus(rows)
    plot = charts.ranked_effects(_of_domain(rows, chosen))
    return _figure(plot, f"{method}, {name}, {chosen} prompts", save)


def waterfall(
    run: Run, *, tuned: str | None = None, domain: str = ALL_DOMAINS, save: str | Path | None = None
) -> Figure:
    """Path effects from the base's metric to the tuned model's, component by component."""
    name = _tuned(run, tuned)
    rows = _of_domain(_effects(run, name, "path", None), domain)
    metric = str(rows.metric.iloc[0])
    where = [("metric", "==", metric), ("model", "in", ["base", name])]
    values = rows_of(run, "behaviour", "prompt_id model value", where)
    if domain != ALL_DOMAINS:
        of = run.df("prompts", columns=["prompt_id"], where=[("domain", "==", domain)]).prompt_id
        values = values[values.prompt_id.isin(of)]
    wide = values.pivot(index="prompt_id", columns="model", values="value").reindex(columns=["base", name]).dropna()
    if wide.empty:
        raise RunError(f"{run.path}: {metric} of both models is not in its table behaviour; measure behaviour too")
    plot = cause_charts.waterfall(rows, float(wide["base"].mean()), float(wide[name].mean()), metric_name(metric))
    return _figure(plot, f"{metric_name(metric)}, base to {name}", save)


def curves(
    run: Run,
    direction: str = "revert",
    *,
    tuned: str | None = None,
    domain: str = ALL_DOMAINS,
    save: str | Path | None = None,
) -> Figure:
    """The metric as each ranking's first n components are moved together: graft into the base, or revert to it."""
    if direction not in ("graft", "revert"):
        raise RunError(f"direction {direction!r}: graft or revert")
    name = _tuned(run, tuned)
    rows = one_metric(rows_of(run, "curves", "", [("tuned", "==", name)]))
    rows = _of_domain(rows[rows.direction.astype(str).str.startswith("base") == (direction == "graft")], domain)
    if rows.empty:
        raise RunError(f"{run.path}: no {direction} curves of {name}; attribute with curves: true")
    plot = cause_charts.growing(rows, effect_metric_name(str(rows.metric.iloc[0])), "components moved")
    return _figure(plot, f"{direction} curves, {name}", save)


def spectrum(run: Run, layer: int, module: str, *, tuned: str | None = None, save: str | Path | None = None) -> Figure:
    """The singular values of one matrix and of its T."""
    name = _tuned(run, tuned)
    where = [("tuned", "==", name), ("layer", "==", layer), ("module", "==", module), ("expert", "==", -1)]
    rows = rows_of(run, "spectra", "", where)
    if rows.empty:
        raise RunError(f"{run.path}: no spectrum of {module} in layer {layer}")
    return _figure(weight_charts.singular_values(rows), f"{module} of layer {layer}, {name}", save)


def scatter(
    run: Run, x: str, y: str, *, kind: str = "module", tuned: str | None = None, save: str | Path | None = None
) -> Figure:
    """A weight measure against an activation measure or effect, one dot per module or component, from `link`."""
    name = _tuned(run, tuned)
    for measure in (x, y):
        if measure not in SCHEMAS["link"].names:
            known = (*WEIGHT_MEASURES, *ACTIVATION_MEASURES, *CAUSAL_MEASURES)
            raise RunError(f"no measure {measure!r} in the link{choices(measure, known)}")
    rows = rows_of(run, "link", "", [("tuned", "==", name), ("kind", "==", kind)]).dropna(subset=[x, y])
    if rows.empty:
        raise RunError(f"{run.path}: no {kind} of {name} has both {x} and {y}")
    plot = charts.scatter(rows, x, y, MEASURES.get(x, x), MEASURES.get(y, y))
    return _figure(plot, f"{y} against {x}, {name}", save)


def _mapped(
    run: Run, name: str, measure: str, side: str, epsilon: float | None, domain: str
) -> tuple[pd.DataFrame, str, str]:
    """(a row per layer × horizontal key, the measure's column, the horizontal key)."""
    if "effects" in run.tables and measure in set(run.df("effects", columns=["method"]).method):
        return _of_domain(_effects(run, name, measure, "component"), domain), "effect", "component"
    table, column = measure.split(".", 1) if "." in measure else ("", measure)
    asked = {"ssa_excess": ["ssa", "ssa_null"], "dla_change": ["dla_base", "dla_tuned"]}.get(column, [column])
    holds = [at for at in MAPPED if at in run.tables and table in ("", at) and set(asked) <= set(SCHEMAS[at].names)]
    if not holds:
        known = [name for at in MAPPED if at in run.tables for name in SCHEMAS[at].names]
        raise RunError(
            f"{run.path}: no table of {', '.join(MAPPED)} has a measure {measure!r}, and no method has that name"
            f"{meant(measure, known)}"
        )
    source, across = holds[0], MAPPED[holds[0]]
    where = [("tuned", "==", name), *(clause for clause in _WHOLE if clause[0] in SCHEMAS[source].names)]
    if source == "gates":
        rows = run.df(source, columns=["prompt_id", "layer", *asked], where=where)
        rows = rows.merge(run.df("prompts", columns=["prompt_id", "domain"]), on="prompt_id")
    elif source == "alignment":
        rows = run.df(source, columns=["layer", across, "epsilon", *asked], where=[*where, ("side", "==", side)])
        rows = rows[rows.epsilon.isna() if epsilon is None else (rows.epsilon - epsilon).abs() < 1e-9]
    else:
        by = ["prompt_id"] * ("prompt_id" in SCHEMAS[source].names)
        where += [("kind", "not in", ["vector", "group"])] * (source == "weights")  # they have no place in a block
        rows = run.df(source, columns=[*by, "layer", across, *asked], where=where)
    if "prompt_id" in rows:
        rows = (
            rows.groupby(["prompt_id", "layer", across])[asked].mean().groupby(["layer", across]).mean().reset_index()
        )
    if len(asked) == 2:
        first, second = asked
        rows[column] = rows[first] - rows[second] if column == "ssa_excess" else rows[second] - rows[first]
    return rows, column, across


def _effects(run: Run, name: str, method: str, granularity: str | None) -> pd.DataFrame:
    where = [("tuned", "==", name), ("method", "==", method), ("control", "==", "")]
    rows = one_metric(rows_of(run, "effects", "", where))
    rows = rows[rows.granularity == (granularity or "component")]
    if rows.empty:
        raise RunError(f"{run.path}: no effects by {method} of the components of {name}")
    return rows[rows.direction == rows.direction.iloc[0]]  # patch and gradient have two; the one from the base is first


def _of_domain(rows: pd.DataFrame, domain: str) -> pd.DataFrame:
    matches = rows[rows.domain == domain]
    if matches.empty and len(rows):
        raise RunError(f"no domain {domain!r}{choices(domain, rows.domain.unique())}")
    return matches


def _gathered(run: Run, tuned: str | None, table: str) -> Evidence:
    name = _tuned(run, tuned)
    if table not in run.tables:
        raise RunError(f"{run.path}: no table {table!r}{choices(table, run.tables)}")
    return gather(run, name)


def _tuned(run: Run, tuned: str | None) -> str:
    names = list(run.manifest["suite"]["tuned"])
    if tuned is None and len(names) > 1:
        raise RunError(f"{run.path}: it has several tuned models; say tuned= one of {', '.join(names)}")
    if tuned is not None and tuned not in names:
        raise RunError(f"{run.path}: no tuned model {tuned!r}{choices(tuned, names)}")
    return tuned or names[0]


def _layers(run: Run) -> int:
    return int(run.manifest["architecture"]["n_layers"])


def _figure(plot: Plot, title: str, save: str | Path | None) -> Figure:
    """The plot as a Plotly figure under a title, written where `save` says."""
    import plotly.graph_objects as go

    figure = go.Figure(plot)
    height = plot["layout"]["height"] + 40
    figure.update_layout(title=html.escape(title), height=height, template="plotly_white", margin={"t": 70})
    if save is not None:
        path = Path(save)
        writers: dict[str, Callable[[Path], Any]] = {
            ".html": lambda to: figure.write_html(to, include_plotlyjs=True),
            ".json": lambda to: figure.write_json(to),
            **dict.fromkeys((".pdf", ".svg", ".png"), lambda to: _drawn(plot, title, to, path.suffix[1:])),
        }
        if path.suffix not in writers:
            raise RunError(f"{path}: its name ends in none of {', '.join(writers)}, the formats that it can have")
        with replacing(path, RunError) as temporary:
            writers[path.suffix](temporary)
    return figure


def _drawn(plot: Plot, title: str, path: Path, form: str) -> None:
    try:
        from probes.reporting.paper import draw
    except ImportError:
        raise RunError("matplotlib is not installed: pip install 'tuning-probes[plot]', or save as .html") from None
    draw(plot, title, path, form)
