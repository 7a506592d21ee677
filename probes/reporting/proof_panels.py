"""What proves the causes: the sum that closes, sets against random orders, controls, agreement of methods, checks."""

from __future__ import annotations

import pandas as pd

from probes.reporting import cause_charts, figures
from probes.reporting.causes import domains_in
from probes.reporting.evidence import Evidence, one_metric, rows_of
from probes.reporting.panels import Figure, Panel, Table
from probes.reporting.words import effect_metric_name, interval, metric_name, number, prompts_of
from probes.store.run import Run
from probes.store.schemas import ALL_DOMAINS

_MAPS = {"module": "module", "head": "head", "kv_head": "head", "expert": "expert"}


def proof_panels(key: str, evidence: Evidence, run: Run) -> list[Panel]:
    """Every proof that the run holds for one tuned model."""
    own = [("tuned", "==", evidence.tuned)]
    effects = one_metric(rows_of(run, "effects", "", own))
    panels = [
        _waterfall(key, evidence, effects),
        _finer(key, evidence, effects),
        _controls(key, evidence, effects),
        _curves(key, evidence, one_metric(rows_of(run, "curves", "", own)), one_metric(rows_of(run, "areas", "", own))),
        _depth(key, evidence, one_metric(rows_of(run, "depth", "", own))),
        _agreement(key, one_metric(rows_of(run, "agreement", "", own))),
        _checks(key, rows_of(run, "checks", "", own)),
    ]
    return [panel for panel in panels if panel is not None]


def _waterfall(key: str, evidence: Evidence, effects: pd.DataFrame) -> Panel | None:
    rows = effects[(effects.method == "path") & (effects.granularity == "component") & (effects.control == "")]
    plots, told = [], []
    for domain in domains_in(rows, evidence.effects, evidence.behaviour):
        ends = _ends(evidence.behaviour, str(rows.metric.iloc[0]), domain)
        if ends is not None:
            own = rows[rows.domain == domain]
            plots.append(cause_charts.waterfall(own, *ends, metric_name(str(rows.metric.iloc[0]))))
            told.append(domain)
    if not plots:
        return None
    note = (
        "Path effects in the order in which the network computes. They sum to the whole change; “not covered” is what "
        "the quadrature along the path misses, and should be next to nothing."
    )
    figure = Figure(f"{key}-waterfall", "From base to tuned, component by component", plots)
    return Panel("Does it add up?", note, [figure], list(map(prompts_of, told)), "prompts", wide=True)


def _ends(behaviour: pd.DataFrame, metric: str, domain: str) -> tuple[float, float] | None:
    """Both models' mean of a metric over a domain's prompts."""
    rows = behaviour[(behaviour.metric == metric) & behaviour.base.notna()]
    rows = rows if domain == ALL_DOMAINS else rows[rows.domain == domain]
    if rows.empty:
        return None
    base, tuned = ((rows[name] * rows.n).sum() / rows.n.sum() for name in ("base", "tuned"))
    return float(base), float(tuned)


def _finer(key: str, evidence: Evidence, effects: pd.DataFrame) -> Panel | None:
    """Layer × module, head or expert maps of the finest-grained method that the run has."""
    rows = effects[effects.granularity.isin(list(_MAPS)) & (effects.control == "")]
    rows = rows[rows.method.isin(["path", "graft", "revert"])]
    if rows.empty:
        return None
    domains, figures_ = domains_in(rows, evidence.effects, evidence.behaviour), []
    for (granularity, method), family in rows.groupby(["granularity", "method"], sort=False):
        column = _MAPS[str(granularity)]
        prefix = {"kv_head": "kv ", "expert": "expert "}.get(str(granularity), "")
        family = family.assign(place=prefix + family[column].astype(str))
        order = list(dict.fromkeys(family.sort_values(column).place)) if column != "module" else []
        order = order or list(dict.fromkeys(family.place))
        plots = [
            figures.heatmap(
                family[family.domain == domain],
                "effect",
                "place",
                order,
                evidence.n_layers,
                centre=0,
                hover=["lo", "hi", "q"],
            )
            for domain in domains
        ]
        title = f"{str(method).capitalize()}, layer × {str(granularity).replace('kv_head', 'key-value head')}"
        figures_.append(Figure(f"{key}-{method}-{granularity}", title, plots))
    note = "The same effects, cut finer. What a component's map says of “attn” or “mlp” is spread over these."
    return Panel(
        "Finer: modules, heads, experts",
        note,
        figures_,
        list(map(prompts_of, domains)),
        "prompts",
        wide=True,
    )


def _controls(key: str, evidence: Evidence, effects: pd.DataFrame) -> Panel | None:
    rows = effects[effects.granularity == "component"]
    controls = rows[rows.control != ""]
    if controls.empty:
        return None
    domains = domains_in(controls, evidence.effects, evidence.behaviour)
    found = []
    for (method, direction), own in controls.groupby(["method", "direction"], sort=False):
        real = rows[(rows.control == "") & (rows.method == method) & (rows.direction == direction)]
        plots = [
            cause_charts.beside_control(real[real.domain == domain], own[own.domain == domain]) for domain in domains
        ]
        found.append(Figure(f"{key}-{method}-controls", f"{str(method).capitalize()}, largest effects", plots))
    note = (
        "The same experiment with a vector of the same norms in every matrix and no other likeness to T. An effect "
        "that its control shows too is what any disturbance of that size does. Bars are 95 % intervals over prompts."
    )
    return Panel("Effects beside their controls", note, found, list(map(prompts_of, domains)), "prompts")


def _curves(key: str, evidence: Evidence, curves: pd.DataFrame, areas: pd.DataFrame) -> Panel | None:
    if curves.empty:
        return None
    metric = effect_metric_name(str(curves.metric.iloc[0]))
    domains = domains_in(curves, evidence.effects, evidence.behaviour)
    found = []
    for direction, own in curves.groupby("direction", sort=False):
        forth = str(direction).startswith("base")
        title = "components of the tuned model given to the base" if forth else "components taken back to the base"
        plots = [cause_charts.growing(own[own.domain == domain], metric, title) for domain in domains]
        name = "graft" if forth else "revert"
        found.append(Figure(f"{key}-curve-{name}", f"{name.capitalize()} curve", plots))
    if len(areas):
        found.append(Figure(f"{key}-areas", "Area of each curve, all prompts", [cause_charts.areas(areas)]))
    note = (
        "Components are moved together, the first n of each ranking. A ranking that knows the causes leaves the grey "
        "band of random orders early; one inside it knows no more than chance. Area: the share of the whole change "
        "that is there on the way, over all n (1: at once, 0: only at the end)."
    )
    return Panel("Which ranking finds the causes?", note, found, list(map(prompts_of, domains)), "prompts", wide=True)


def _depth(key: str, evidence: Evidence, depth: pd.DataFrame) -> Panel | None:
    if depth.empty:
        return None
    domains = domains_in(depth, evidence.effects, evidence.behaviour)
    metric = effect_metric_name(str(depth.metric.iloc[0]))
    plots = [cause_charts.by_cut(depth[depth.domain == domain], metric) for domain in domains]
    note = (
        "The layers below the cut come from one model, the others from the other. Where the tuned model below "
        "is enough, the base already reads what it writes; where it must be above, late layers read differently."
    )
    return Panel(
        "At which depth?",
        note,
        [Figure(f"{key}-depth", "", plots)],
        list(map(prompts_of, domains)),
        "prompts",
        wide=True,
    )


def _agreement(key: str, agreement: pd.DataFrame) -> Panel | None:
    rows = agreement[agreement.domain == ALL_DOMAINS]
    if rows.empty:
        return None
    columns = ("granularity", "method", "against", "ρ", "95 % interval", "units", "split-half ρ")
    cells = [
        (
            row["granularity"],
            row["method"],
            row["reference"],
            number(row["rho"], 2),
            interval(row["lo"], row["hi"]),
            str(row["n"]),
            number(row["split_half"], 2),
        )
        for row in rows.to_dict("records")
    ]
    note = (
        "Spearman's ρ between two methods' effects over the same units, all prompts. Split-half: one method against "
        "itself on the other half of the prompts, which no agreement can be expected to exceed by much."
    )
    return Panel(
        "Do the methods agree?", note, [], tables=[Table(f"{key}-agreement", "Agreement of methods", columns, cells)]
    )


def _checks(key: str, checks: pd.DataFrame) -> Panel | None:
    if checks.empty:
        return None
    columns = ("check", "method", "prompts", "value", "bound", "verdict")
    cells = [
        (
            str(row["check"]).replace("_", " "),
            row["method"] or "–",
            row["domain"],
            number(row["value"]),
            number(row["bound"]),
            "holds" if row["holds"] else "DOES NOT HOLD",
        )
        for row in checks.to_dict("records")
    ]
    note = (
        "Endpoint: moving everything gives the other model. No-op: patching a model with itself changes nothing. "
        "Completeness: shares sum to the change. Weights restored: the models are bit for bit as they were."
    )
    return Panel(
        "Checks", note, [], tables=[Table(f"{key}-checks", "What was checked, and how it came out", columns, cells)]
    )
