"""Edges between components: which change of one matters through which other one, and whether it does alone."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from probes.reporting.chapter import Chapter, panel
from probes.reporting.charts import COLOURS
from probes.reporting.figures import Plot, layout, plains
from probes.reporting.panel import Figure, Panel, Table
from probes.reporting.words import effect_metric_name, estimate, number, percent, prompts_of, q_value, signed

#: Edges in the list.
EDGES = 30


@panel("directions", order=55, needs=["edges", "edge_nodes"])
def edges(chapter: Chapter) -> Iterator[Panel]:
    """The largest edges, what flows through every component, and the curve of the edges left alone."""
    rows, nodes = chapter.rows("edges"), chapter.rows("edge_nodes")
    if rows.empty:
        return
    metric = effect_metric_name(str(rows.metric.iloc[0]))
    ends = nodes[nodes.component == "logits"].set_index("domain")
    apart = ends.node_effect.drop("all", errors="ignore").abs()
    domain = str(apart.idxmax()) if len(apart) else "all"
    of_domain = rows[rows.domain == domain]
    gap = float(nodes[nodes.domain == domain].gap.max())
    note = (
        f"An edge: what the change of a component's output between the two checkpoints does to the {metric} as one "
        "reader of the residual stream reads it, integrated along base + αT. Edges of a component, with that to the "
        f"logits, sum to its node effect, and those to the logits, with what final norm and unembedding add, to the "
        f"whole change: {signed(float(ends.node_effect.get(domain, float('nan'))))} on {prompts_of(domain)}, of which "
        f"at most {percent(gap)} is missed anywhere (1 % is allowed). It misleads as every flow does: the same effect "
        "passes through all edges of a path, so shares of edges sum to more than 1. A star stands out of random T and "
        "of rounding."
    )
    curves = chapter.rows("edge_curves")
    figures = (
        [Figure("edge-curve", f"Edges left in the tuned model, {metric}", [_curve(curves)])] if len(curves) else []
    )
    between = of_domain[of_domain.receiver != "logits"]
    direct = of_domain[(of_domain.receiver == "logits") & (of_domain["head"] < 0)]
    tables = [
        _listed("edges", f"Edges between components, {prompts_of(domain)}", between),
        _listed("edges-direct", "Edges to the logits", direct),
        _flows(nodes[nodes.domain == domain]),
    ]
    yield Panel("Which component's change is read by which?", note, figures, wide=True, tables=tables)


def _listed(id: str, title: str, rows: pd.DataFrame) -> Table:
    rows = rows.loc[rows.effect.abs().nlargest(EDGES).index]
    cells = [
        (
            _sender(row),
            "the logits" if row["receiver"] == "logits" else f"layer {row['receiver_layer']} {row['receiver']}",
            estimate(row["effect"], row["lo"], row["hi"], signed),
            percent(row["share"]),
            number(row["random_most"]),
            number(row["floor"]),
            q_value(row["q"]),
            "∗" if row["stands_out"] else "",
        )
        for row in rows.to_dict("records")
    ]
    return Table(id, title, ("sender", "reader", "effect", "share", "random T", "rounding", "q", ""), cells)


def _flows(nodes: pd.DataFrame) -> Table:
    cells = [
        (
            "embed" if row["component"] == "embed" else f"layer {row['layer']} {row['component']}",
            signed(row["received"]),
            signed(row["own"]),
            signed(row["sent"]),
            percent(row["gap"]),
        )
        for row in nodes.to_dict("records")
    ]
    columns = ("component", "received", "own weights", "sent", "missed")
    return Table("edge-nodes", "What flows through every component", columns, cells)


def _sender(row: dict[str, object]) -> str:
    if row["sender"] == "embed":
        return "embed"
    head = "" if int(str(row["head"])) < 0 else f" head {row['head']}"
    return f"layer {row['sender_layer']} {row['sender']}{head}"


def _curve(rows: pd.DataFrame) -> Plot:
    """Faithfulness as more edges are left, the ranking's before random orders'."""
    traces = []
    for (ranking, draw), part in rows.groupby(["ranking", "draw"], sort=False):
        own = ranking == "edges"
        look = {"color": COLOURS[0], "width": 3} if own else {"color": "rgba(128,128,128,.5)", "width": 1}
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": [int(n) + 1 for n in part.n],
                "y": plains(part.faithfulness),
                "name": "largest edges first" if own else "random orders",
                "showlegend": bool(own or draw == 0),
                "line": look,
                "customdata": [int(n) for n in part.n],
                "hovertemplate": "%{customdata} edges: %{y:.0%}<extra></extra>",
            }
        )
    axis = {"type": "log", "title": {"text": "edges left, + 1"}}
    return {"data": traces, "layout": layout(y="share of the way", height=320, legend=True, xaxis=axis)}
