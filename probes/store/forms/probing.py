"""The tables of linear probes."""

from __future__ import annotations

from probes.store.forms.declare import table
from tv.columns import Column, keys

_OF = (
    *keys("tuned"),
    Column("label", "what is read: `domain`, `correct`, or the column of a file", "name"),
    *keys("site layer"),
    Column("positions", "the places that are read, averaged over a prompt", "name"),
)
_N = (Column("n", "prompts", "int32", unit="prompts"), Column("clusters", "clusters of them", "int32", unit="clusters"))

table(
    "probe_accuracy",
    "label, layer, model that is read and model whose states the probe was fitted on",
    (
        *_OF,
        *keys("model"),
        Column("fitted_on", "the model whose states the probe was fitted on: another one is transfer", "name"),
        Column("classes", "classes of the label; 0 of a number, whose `accuracy` is R²", "int16"),
        *_N,
        Column("penalty", "λ of λ/2·‖w‖², which most folds chose among their training prompts"),
        Column("accuracy", "share of held-out prompts that are read right", null="control", interval=True),
        Column("balanced", "the mean of it over classes"),
        Column("auroc", "of two classes; null of more", null=0.5),
        Column("majority", "the share of the largest class: what is reached without looking"),
        Column("control", "the mean accuracy where labels were moved among clusters"),
        Column("control_largest", "the largest of these draws"),
        Column("selectivity", "accuracy − control", null=0.0),
        Column("p", "the share of draws, this label among them, that are read as well"),
        Column("readable", "p < 0.05, and the interval lies above `majority`", "bool"),
    ),
    since=10,
)
table(
    "probe_directions",
    "label and layer: the probes of both models side by side",
    (
        *_OF,
        *_N,
        Column("accuracy_base", "of the base's own probe"),
        Column("accuracy_tuned", "of the tuned model's own probe"),
        Column("readable_base", "whether the base's states tell the label", "bool"),
        Column("readable_tuned", "whether the tuned model's do", "bool"),
        Column("change", "accuracy_tuned − accuracy_base on the same prompts", null=0.0, centre=0.0, interval=True),
        Column("p", "McNemar's, the prompts of a cluster turning together"),
        Column("q", "the false-discovery rate over layers", words="q"),
        Column("change_rounded", "the change in the base in another precision"),
        Column("change_random", "the largest change in size of draws of base + random T"),
        Column("changed", "q < 0.05, and farther from 0 than both of these", "bool"),
        Column("lost_to_tuned", "what the base's probe reads worse than the tuned model's own, there", interval=True),
        Column("lost_to_base", "the same the other way round", interval=True),
        Column("cosine", "of both probes' weights, all prompts; the mean over classes", null=1.0, interval=True),
        Column("cosine_rounded", "of the base and itself in another precision"),
        Column("cosine_random", "the smallest of draws of base + random T"),
        Column("halves_base", "of two probes of the base, on a half of the clusters each"),
        Column("halves_tuned", "of two probes of the tuned model"),
        Column("across", "of the base's on one half, and the tuned model's on the other"),
        Column("corrected", "across/√(halves_base·halves_tuned); null below 0.1", null=1.0, interval=True),
        Column("corrected_rounded", "the same of the base in another precision"),
        Column("corrected_random", "the smallest of draws of base + random T"),
        Column("verdict", "`same direction`, `moved` or `cannot tell`", "name"),
    ),
    since=10,
)
table(
    "probe_weights",
    "label, layer, model and class: what a probe, fitted on all prompts, adds up; `probe_weight` reads it",
    (
        *_OF,
        *keys("model"),
        Column("class", "the class that the sum speaks for; of two the second, empty of a number", "name"),
        Column("penalty", "λ of λ/2·‖w‖²"),
        Column("weight", "d_model numbers, float32, for states as they are", "bytes"),
        Column("intercept", "what is added to the sum"),
    ),
    since=10,
)
