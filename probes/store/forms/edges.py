"""The tables of edges between components."""

from __future__ import annotations

from probes.store.forms.declare import table
from tv.columns import Column, keys

_SINCE = 10
_METRIC = "in the metric's unit"

table(
    "edges",
    "sender, receiver and domain",
    (
        *keys("tuned"),
        Column("sender_layer", "the layer of what writes; −1 is the embedding", "int16"),
        Column("sender", "the component that writes", "name"),
        *keys("head"),
        Column("receiver_layer", "the layer of what reads; `n_layers` are the logits", "int16"),
        Column("receiver", "the component that reads; joined by + where several share what reads for them", "name"),
        *keys("domain metric"),
        Column("n", "prompts, or clusters of them, that it is a mean over", "int32", unit="prompts"),
        Column("effect", f"what the sender's change does through this reader, {_METRIC}", null=0.0, centre=0.0),
        Column("lo", "the lower end of its 95 % interval over prompts"),
        Column("hi", "the upper end"),
        Column("p", "of the mean being 0"),
        Column("random_p", "of one more random T of T's norms giving this edge such a size"),
        Column("q", "the false-discovery rate of both p, over edges of components, or over those of heads", words="q"),
        Column("share", "of the whole change of the metric; null where that is within noise"),
        Column("random_most", "the largest size that a draw of random T gives this edge"),
        Column("draws", "draws of random T", "int16"),
        Column("floor", "what rounding alone does to the metric's mean"),
        Column("stands_out", "whether q is below 0.05, and its size above random T and rounding", "bool"),
    ),
    since=_SINCE,
)
table(
    "edge_nodes",
    "component and domain",
    (
        *keys("tuned layer component domain metric"),
        Column("n", "prompts", "int32", unit="prompts"),
        Column("received", f"the sum of the edges into it, {_METRIC}; null where it shares its reader", null=0.0),
        Column("own", f"what its own weights add, {_METRIC}: the share that `path` gives it", null=0.0),
        Column("sent", f"the sum of the edges out of it, {_METRIC}", null=0.0),
        Column("node_effect", "the same from the gradient at its output; of the logits, the change of the metric"),
        Column("gap", "mean |sent − node effect| over prompts, as a part of the mean |change|; at most 0.01 is wanted"),
        Column("steps", "steps of the integral, at most", "int16"),
    ),
    since=_SINCE,
)
table(
    "edge_curves",
    "ranking, draw and number of edges left",
    (
        *keys("tuned"),
        Column("ranking", "`edges`: by the size of their effect on other prompts; `random` is drawn", "name"),
        Column("draw", "which of the random orders", "int16"),
        Column("n", "edges that are left in the tuned model", "int32", unit="edges"),
        *keys("domain metric"),
        Column("value", "the metric's mean with these edges alone"),
        Column("lo", "the lower end of its 95 % interval over prompts"),
        Column("hi", "the upper end"),
        Column("faithfulness", "the part of the way from no edge to all edges"),
        Column("area", "under faithfulness over log2(n + 1), the same for the whole curve"),
    ),
    since=_SINCE,
)
