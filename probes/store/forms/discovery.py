"""The tables of discovery: what differs on any texts, beside its nulls."""

from __future__ import annotations

from probes.store.forms.declare import table
from tv.columns import Column, keys

_DEPTH = Column("depth", "of the residual stream: 0 enters the first block, n_layers leaves the last", "int16")
_PLACE = Column(
    "place", "`first`: the first five tokens behind a BOS; `bos`: it alone; `far`: from the ninth on", "name"
)
_READER = Column("reader", "whose norm, unembedding or blocks read it: `base` or `tuned`", "name")
_DRAWS = (
    ("sham", "the largest of the shams"),
    ("random", "the largest of the random T"),
    ("floor", "of the rounded base"),
)


def _beside(name: str) -> tuple[Column, ...]:
    """The same measure of the controls and of rounding."""
    return tuple(Column(f"{name}_{of}", f"`{name}` {means}") for of, means in _DRAWS)


table(
    "lens_words",
    "depth, kind of place, variant, reader and rank: the tokens that mean Δh reads as",
    (
        *keys("tuned"),
        _DEPTH,
        _PLACE,
        Column("variant", "`plain`, `demeaned` or `whitened`", "name"),
        _READER,
        Column("rank", "from 0", "int16"),
        Column("token_id", "the token", "int32"),
        Column("token", "its text", "text"),
        Column("z", "how far the lens puts it above the vocabulary", unit="sd", null=0.0, centre=0.0),
    ),
)
table(
    "difference_norms",
    "depth and kind of place: how long mean Δh is",
    (
        *keys("tuned"),
        _DEPTH,
        _PLACE,
        Column("constant", "‖mean Δh‖ over the mean ‖Δh‖; 1: Δh is the same vector everywhere"),
        *_beside("constant"),
        Column("size", "‖mean Δh‖ over the base's mean ‖h‖"),
        *_beside("size"),
    ),
)
table(
    "difference_growth",
    "kind of place and α: mean Δh at θ + αT, a mean over depths",
    (
        *keys("tuned"),
        _PLACE,
        Column("alpha", "how far along T"),
        Column("size", "‖mean Δh‖ over the base's mean ‖h‖"),
        Column("size_sham", "the largest of the shams, each along itself"),
        Column("cosine", "of mean Δh with that at α = 1"),
        Column("cosine_sham", "the largest of the shams"),
        Column("score", "of the words that the lens reads at α = 1, a mean", unit="sd"),
        Column("score_sham", "the largest of the shams, each of its own words"),
    ),
)
table(
    "difference_rank",
    "depth, seed and number of components: how many directions Δh has over texts",
    (
        *keys("tuned"),
        _DEPTH,
        Column("seed", "of the token that is drawn of each text", "int16"),
        Column("components", "how many first components of one half of the texts", "int16"),
        Column("share", "the share of the other half's variance along them"),
        *_beside("share"),
    ),
)
table(
    "patchscope_scales",
    "kind of place, reader, depth and scale: what a patched token-identity prompt goes on with",
    (
        *keys("tuned"),
        _PLACE,
        _READER,
        _DEPTH,
        Column("scale", "the vector's length, in the base's mean ‖h‖ at that depth"),
        Column("entropy", "of the next token, on the half that chooses", unit="nats"),
        Column("counts", "whether it is the depth's lowest, so that words are read here", "bool"),
        Column("token", "the likeliest next token", "text"),
        Column("copies", "the share of tokens that the base names from their own embeddings in this prompt"),
    ),
)
