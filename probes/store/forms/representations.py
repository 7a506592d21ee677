"""The tables of representations: of which directions Δh is made, what they do, and how far the models are apart."""

from __future__ import annotations

from probes.store.forms.declare import table
from tv.columns import Column, keys

_PLACE = (
    *keys("tuned site layer"),
    Column("positions", "the places that are read, averaged over a prompt", "name"),
    Column("n", "prompts", "int32", unit="prompts"),
)
_RANK = Column("rank", "directions of the subspace", "int32", unit="directions")
_ENDS = (Column("lo", "the lower end of its 95 % interval over clusters"), Column("hi", "the upper end"))

table(
    "delta_spectrum",
    "layer and component of Δh, made of one half of the prompts and measured on the other",
    (
        *_PLACE,
        Column("component", "0 is mean Δh; from 1 on the principal components around the mean", "int16"),
        Column("share", "of ‖Δh‖² for the mean, of the variance around it for the others, held out", null="random"),
        *_ENDS,
        Column("fitted", "the same on the prompts that made it: too large"),
        Column("states", "the held-out share of this component among those of the base's own states"),
        Column("rounded", "of Δh of the base in another precision"),
        Column("random", "the largest of draws of base + random T"),
        Column("beyond", "`lo` is above both", "bool"),
    ),
    since=10,
)
table(
    "delta_angles",
    "layer, subspace that the leading one of Δh is compared with, and rank",
    (
        *_PLACE,
        Column("against", "`o`, `down` of the layer, `T of …` of them, or the `other half` of the prompts", "name"),
        _RANK,
        Column("overlap", "mean squared cosine of the principal angles", null="null"),
        *_ENDS,
        Column("smallest", "the smallest principal angle", unit="degrees"),
        Column("largest", "the largest", unit="degrees"),
        Column("null", "of random directions drawn with the covariance of the base's states, mean"),
        Column("null_hi", "their 95th percentile"),
        Column("rounded", "the overlap of Δh of the base in another precision"),
        Column("random", "the largest overlap of draws of base + random T"),
        Column("beyond", "`lo` is above all three", "bool"),
    ),
    since=10,
)
table(
    "delta_curve",
    "layer, kind of directions, rank and domain: what their part of Δh does in the base, patched at every position",
    (
        *keys("tuned site layer"),
        Column("basis", "`delta`: the leading r of Δh; `complement`: all but them; `states`, `random`: others", "name"),
        _RANK,
        *keys("domain metric"),
        Column("n", "prompts", "int32", unit="prompts"),
        Column("effect", "the mean change of the metric, in its unit", null=0.0, centre=0.0),
        *_ENDS,
        Column("whole", "the mean change from base to tuned", null=0.0, centre=0.0),
        Column("share", "effect/whole; null where the interval of the whole holds 0", null=0.0, interval=True),
    ),
    since=10,
)
table(
    "distances",
    "layer and measure of how alike both models' states are",
    (
        *_PLACE,
        Column("measure", "`cka` without bias, `procrustes` (a distance), or `neighbours` that agree", "name"),
        Column("k", "neighbours; null for the other measures", unit="prompts"),
        Column("value", "1 (`procrustes`: 0) where nothing but rotation and scale changed", null="shuffled"),
        *_ENDS,
        Column("shuffled", "of the states of other prompts: what unrelated models show, mean"),
        Column("shuffled_end", "the most alike of these draws"),
        Column("rounded", "of the base and itself in another precision"),
        Column("random", "of base + random T: the least alike of its draws"),
        Column("beyond", "the whole interval is less alike than both", "bool"),
    ),
    since=10,
)
