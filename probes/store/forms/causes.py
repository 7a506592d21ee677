"""The tables of attribution: effects and their checks."""

from __future__ import annotations

from dataclasses import replace

from probes.store.forms.declare import table
from tv.columns import Column, keys

_UNIT = "granularity layer component module head expert neuron"
_INTERVAL = (
    Column("lo", "the lower end of its 95 % interval over prompts"),
    Column("hi", "the upper end"),
)
_N = Column("n", "units moved", "int32", unit="units")

table(
    "effects",
    "unit, method, direction, control, metric and domain",
    (
        *keys(f"tuned {_UNIT} domain method direction control metric"),
        Column("effect", "the mean effect towards the tuned model, in the metric's unit", null=0.0, centre=0.0),
        *_INTERVAL,
        Column("p", "of the mean being 0"),
        Column("q", "the false-discovery rate within its family", words="q"),
        Column("n", "prompts, or clusters of them, that it is a mean over", "int32", unit="prompts", since=5),
        Column("lo_all", "the lower end of the interval that holds for all units and methods at once", since=5),
        Column("hi_all", "the upper end", since=5),
        Column("held_out", "what its rank is worth on prompts that did not choose it", since=5),
        Column("within_noise", "whether rounding alone can make an effect of this size", "bool", since=5),
        Column(
            "chosen",
            "`all`: every unit was measured; else `leading`: path leads with it, or `sampled`: it was drawn",
            "name",
            since=8,
        ),
    ),
)
table(
    "control_draws",
    "draw of a control vector, grafted whole in T's place, and domain",
    (
        *keys("tuned control"),
        Column("draw", "which of the draws", "int16"),
        *keys("domain metric"),
        Column("effect", "the mean effect towards the tuned model, in the metric's unit", null=0.0, centre=0.0),
    ),
    since=5,
)
table(
    "prompt_effects",
    "unit, method, direction, control, metric and prompt",
    (
        *keys(f"tuned {_UNIT} method direction control metric prompt_id"),
        Column("effect", "the effect on this prompt, in the metric's unit", null=0.0, centre=0.0),
    ),
)
table(
    "token_effects",
    "token of a prompt and component: what `path` gives it",
    (
        *keys("tuned prompt_id pos layer component method metric"),
        Column("effect", "its share of the change, in the metric's unit", null=0.0, centre=0.0),
    ),
)
table(
    "neuron_effects",
    "neuron and domain: what `path` gives it",
    (
        *keys("tuned domain layer expert neuron method metric"),
        Column("n", "prompts", "int32", unit="prompts"),
        Column("effect", "the mean effect, in the metric's unit", null=0.0, centre=0.0),
        Column("se", "its standard error over prompts"),
    ),
)
table(
    "depth",
    "cut between layers and domain",
    (
        *keys("tuned"),
        Column("cut", "layers below it are the `upstream` model's, the rest the `late` model's", "int16"),
        Column("upstream", "the model below the cut", "name"),
        Column("late", "the model from the cut on", "name"),
        *keys("domain metric"),
        Column("value", "the metric's mean"),
        *_INTERVAL,
    ),
)
table(
    "curves",
    "ranking, draw, direction, number of units moved and domain",
    (
        *keys("tuned"),
        Column("ranking", "by what the units are ranked; `random` is drawn", "name"),
        Column("draw", "which of the random orders", "int16"),
        *keys("direction"),
        _N,
        *keys("domain metric"),
        Column("value", "the metric's mean with the first n units moved"),
        *_INTERVAL,
    ),
)
table(
    "areas",
    "ranking, draw and direction",
    (
        *keys("tuned"),
        Column("ranking", "by what the units are ranked; `random` is drawn", "name"),
        Column("draw", "which of the random orders", "int16"),
        *keys("direction metric"),
        Column("area", "under the curve, as a share of the whole change"),
        Column("n_enough", "the smallest n that moves 80 % of it", unit="units"),
        *(replace(end, since=5) for end in _INTERVAL),
    ),
)
table(
    "agreement",
    "two methods over the same units, and domain",
    (
        *keys("tuned granularity method direction"),
        Column("reference", "the exact method that it is compared with", "name"),
        *keys("domain metric"),
        Column("rho", "Spearman's rank correlation over units", words="ρ", null=0.0, centre=0.0),
        *_INTERVAL,
        Column("n", "units", "int32", unit="units"),
        Column("split_half", "ρ between two halves of the prompts"),
        Column("chosen_here", "the mean effect of the leaders chosen by this half, on this half"),
        Column("chosen_there", "the same leaders on the other half"),
    ),
)
table(
    "sampled",
    "exact method and domain, where it moved only some units",
    (
        *keys("tuned granularity method direction domain metric"),
        Column(
            "rho", "Spearman's ρ between `path` and it over the units that were drawn", words="ρ", null=0.0, centre=0.0
        ),
        *_INTERVAL,
        Column("n", "units that were drawn", "int32", unit="units"),
        Column("n_leading", "units that path leads with, all of which were moved", "int32", unit="units"),
        Column("left_out", "units that were not moved", "int32", unit="units"),
        Column("largest_sampled", "the largest |mean effect| among the drawn, in the metric's unit"),
        Column("smallest_leading", "the smallest |mean effect| among the leading"),
    ),
    since=8,
)
table(
    "checks",
    "check, method and domain",
    (
        *keys("tuned"),
        Column("check", "what must hold", "name"),
        *keys("method domain metric"),
        Column("value", "what was measured"),
        Column("bound", "what it may be at most"),
        Column("holds", "whether it does", "bool"),
    ),
)
