"""The tables of discovery: what a tuned model says and represents differently, where nobody said what to look for."""

from __future__ import annotations

from probes.store.forms.declare import table
from tv.columns import Column, keys

_DEPTH = Column("depth", "of the residual stream: 0 enters the first block, n_layers leaves the last", "int16", since=7)
_PLACE = Column(
    "place", "`first`: the first five tokens behind a BOS; `bos`: it alone; `far`: from the ninth on", "name", since=7
)
_READER = Column("reader", "whose norm, unembedding or blocks read it: `base` or `tuned`", "name", since=7)
_DRAWS = (
    ("sham", "the largest of the shams"),
    ("random", "the largest of the random T"),
    ("floor", "of the rounded base"),
)


def _beside(name: str) -> tuple[Column, ...]:
    """The same measure of the controls and of rounding."""
    return tuple(Column(f"{name}_{of}", f"`{name}` {means}", since=7) for of, means in _DRAWS)


_TOKEN = (
    Column("token_id", "the token's id in the vocabulary", "int32", since=7),
    Column("token", "the token as text", "name", since=7),
)

table(
    "discovered_words",
    "reading and word that the tuned model favours",
    (
        *keys("tuned"),
        Column("part", "the part of the discovery", "name", since=7),
        Column("reading", "how the part reads words", "name", since=7),
        Column("rank", "in the order of their values on the half of the texts that measures", "int16", since=7),
        *_TOKEN,
        Column("chosen", "its score on the half of the texts that chose it", since=7),
        Column("value", "its score on the other half; docs/discovery.md has every reading's unit", since=7),
        Column("lo", "the lower end of the 95 % interval over texts, where the part has one", since=7),
        Column("hi", "the upper end", since=7),
        Column("noise", "the largest that random and shuffled vectors of T's norms reach at this rank", since=7),
        Column("sham", "the largest that shams reach, vectors of gradients that teach nothing", since=7),
        Column("floor", "what the base in another precision reaches", since=7),
        Column("rank_p", "the share of draws that reach the value, the larger of both nulls'", since=7),
        Column("p", "of one more draw reaching it", since=7),
        Column("q", "the false-discovery rate over all words of the part", words="q", since=7),
        Column(
            "stands_out",
            "whether q is below 0.05, lo above 0, the value above all draws and the floor",
            "bool",
            since=7,
        ),
    ),
    since=7,
)
table(
    "discovered_texts",
    "text that was read",
    (
        *keys("tuned prompt_id"),
        Column("tokens", "how many of its tokens were read", "int32", since=7),
        Column("half", "the half of the texts that it belongs to: 0 chooses, 1 measures", "int16", since=7),
        Column("in_null", "whether the draws of the nulls were read on it too", "bool", since=7),
    ),
    since=7,
)
table(
    "samples",
    "continuation of a text, by base and tuned with the same random numbers",
    (
        *keys("tuned"),
        Column("part", "the part of the discovery", "name", since=7),
        Column("reading", "from where, and how far amplified", "name", since=7),
        *keys("prompt_id"),
        Column("pos", "the text's last token that was read", "int32", since=7),
        *keys("model"),
        Column("draw", "which of the continuations", "int16", since=7),
        Column("continuation", "what the model wrote", "text", since=7),
        Column("alike", "of it, what the base wrote too", "text", since=7),
        Column("n_tokens", "how many tokens it wrote", "int32", unit="tokens", since=11),
        Column("ended", "whether an end-of-text token ended it; else it was cut after `n_tokens`", "bool", since=11),
    ),
    since=7,
)
table(
    "divergences",
    "text: how far the predictions of base and tuned lie apart, and where most",
    (
        *keys("tuned prompt_id"),
        Column("half", "the half of the texts that it belongs to: 0 chooses, 1 measures", "int16", since=7),
        *keys("pos"),
        *_TOKEN,
        Column("kl_largest", "KL(base ‖ tuned) there", unit="nats", since=7),
        Column("kl", "its mean over the text", unit="nats", null=0.0, since=7),
        Column("changed", "the share of its places where the likeliest next token changed", null=0.0, since=7),
    ),
    since=7,
)
table(
    "token_divergences",
    "token of the texts with the largest KL: how far the predictions behind it lie apart",
    (
        *keys("tuned prompt_id"),
        Column("half", "the half of the texts that it belongs to: 0 chooses, 1 measures", "int16", since=7),
        *keys("pos"),
        *_TOKEN,
        Column("kl", "KL(base ‖ tuned) of the next token", unit="nats", null=0.0, since=7),
        Column("sham", "the largest of the shams at this place; null in a text that they do not read", since=7),
        Column("next_base", "the base's likeliest next token", "name", since=7),
        Column("next_tuned", "the tuned model's", "name", since=7),
    ),
    since=7,
)
table(
    "amplified",
    "way of amplifying, base + (1 + α)(tuned − base) or θ + (1 + α)T: what it costs on the texts",
    (
        *keys("tuned"),
        Column("reading", "that of the words and samples: logits, or which parameters", "name", since=7),
        Column("alpha", "how far beyond the tuned model; 0 is the tuned model", since=7),
        Column("kl", "mean KL from the base", unit="nats", null=0.0, since=7),
        Column("lo", "the lower end of its 95 % interval over texts", since=7),
        Column("hi", "the upper end", since=7),
        Column("sham", "the largest of the shams'", unit="nats", since=7),
    ),
    since=7,
)
table(
    "direction_words",
    "leading singular direction of a matrix's T, and word along it",
    (
        *keys("tuned layer module expert"),
        Column("use", "whether the direction is written to the residual stream or read from it", "name", since=7),
        Column("singular", "the direction's number, from the largest singular value", "int16", since=7),
        Column("share", "its share of the energy of T", since=7),
        Column("rank", "of the word along it", "int16", since=7),
        *_TOKEN,
        Column("z", "standard deviations over the vocabulary", since=7),
    ),
    since=7,
)
table(
    "direction_excitation",
    "leading singular direction of a matrix's T: how much more own texts excite it than others",
    (
        *keys("tuned layer module expert"),
        Column("singular", "the direction's number, from the largest singular value", "int16", since=9),
        Column("share", "its share of the energy of T", since=9),
        Column("own", "which texts are own: a domain, or those with a KL above the median", "name", since=9),
        Column("n_own", "own texts that measure", "int32", since=9),
        Column("n_other", "other texts that do", "int32", since=9),
        Column(
            "auroc",
            "how often an own text has a larger mean |v·x| than another, x the base's input and v the direction",
            null=0.5,
            since=9,
        ),
        Column("control", "the mean AUROC of random directions of the same matrix", null=0.5, since=9),
        Column("excess", "`auroc` less `control`", null=0.0, since=9),
        Column("lo", "the lower end of its 95 % interval over texts", since=9),
        Column("hi", "the upper end", since=9),
        Column("random", "what 95 % of the random directions stay below", since=9),
        Column("sham", "the largest of the shams' directions of this matrix, each with its own texts", since=9),
        Column("p", "of one more draw reaching the excess, the larger of both nulls'", since=9),
        Column("q", "the false-discovery rate over all directions", words="q", since=9),
        Column("stands_out", "whether q is below 0.05, lo above 0 and the excess above every sham's", "bool", since=9),
    ),
    since=9,
)
table(
    "lens_words",
    "depth, kind of place, variant, reader and rank: the tokens that mean Δh reads as",
    (
        *keys("tuned"),
        _DEPTH,
        _PLACE,
        Column("variant", "`plain`, `demeaned` or `whitened`", "name", since=7),
        _READER,
        Column("rank", "from 0", "int16", since=7),
        *_TOKEN,
        Column("z", "how far the lens puts it above the vocabulary", unit="sd", null=0.0, centre=0.0, since=7),
    ),
    since=7,
)
table(
    "difference_norms",
    "depth and kind of place: how long mean Δh is",
    (
        *keys("tuned"),
        _DEPTH,
        _PLACE,
        Column("constant", "‖mean Δh‖ over the mean ‖Δh‖; 1: Δh is the same vector everywhere", since=7),
        *_beside("constant"),
        Column("size", "‖mean Δh‖ over the base's mean ‖h‖", since=7),
        *_beside("size"),
    ),
    since=7,
)
table(
    "difference_growth",
    "kind of place and α: mean Δh at θ + αT, a mean over depths",
    (
        *keys("tuned"),
        _PLACE,
        Column("alpha", "how far along T", since=7),
        Column("size", "‖mean Δh‖ over the base's mean ‖h‖", since=7),
        Column("size_sham", "the largest of the shams, each along itself", since=7),
        Column("cosine", "of mean Δh with that at α = 1", since=7),
        Column("cosine_sham", "the largest of the shams", since=7),
        Column("score", "of the words that the lens reads at α = 1, a mean", unit="sd", since=7),
        Column("score_sham", "the largest of the shams, each of its own words", since=7),
    ),
    since=7,
)
table(
    "difference_rank",
    "depth, seed and number of components: how many directions Δh has over texts",
    (
        *keys("tuned"),
        _DEPTH,
        Column("seed", "of the token that is drawn of each text", "int16", since=7),
        Column("components", "how many first components of one half of the texts", "int16", since=7),
        Column("share", "the share of the other half's variance along them", since=7),
        *_beside("share"),
    ),
    since=7,
)
table(
    "patchscope_scales",
    "kind of place, reader, depth and scale: how a patched token-identity prompt continues",
    (
        *keys("tuned"),
        _PLACE,
        _READER,
        _DEPTH,
        Column("scale", "the vector's length, in the base's mean ‖h‖ at that depth", since=7),
        Column("entropy", "of the next token, on the half that chooses", unit="nats", since=7),
        Column("counts", "whether it is the depth's lowest, so that words are read here", "bool", since=7),
        Column("token", "the likeliest next token", "text", since=7),
        Column("copies", "the share of tokens that the base names from their own embeddings in this prompt", since=7),
    ),
    since=7,
)
table(
    "claims",
    "sentence about the tuned model that half of the texts suggested, tested on the other half",
    (
        *keys("tuned"),
        Column("part", "the part of the discovery", "name", since=7),
        Column("claim", "what the tuned model does that the base does not, in words", "text", since=7),
        Column("n", "continuations or texts that measure it", "int32", since=7),
        Column("value_base", "the base's value; docs/discovery.md has the units", since=7),
        Column("value_tuned", "the tuned model's", since=7),
        Column("difference", "between them, in the direction that the claim says", null=0.0, since=7),
        Column("lo", "the lower end of its 95 % interval", since=7),
        Column("hi", "the upper end", since=7),
        Column("sham", "the largest difference of the shams, each of its own claim", since=7),
        Column("p", "the larger of the paired test's and of one more sham reaching it", since=7),
        Column("q", "the false-discovery rate over all claims of the part", words="q", since=7),
        Column("holds", "whether q is below 0.05, lo above 0 and the difference above every sham's", "bool", since=7),
    ),
    since=7,
)
table(
    "tuning_kind",
    "number by which kinds of tuning are distinguished",
    (
        *keys("tuned"),
        Column("evidence", "what was measured", "name", since=7),
        Column("value", "its value; null where it cannot be known", since=7),
        Column("lo", "the lower end of its 95 % interval over matrices, where it is a mean over them", since=7),
        Column("hi", "the upper end", since=7),
        Column("reference", "what it is compared with", since=7),
        Column("compared", "what is measured and, behind the semicolon, what the reference is", "text", since=7),
        Column("speaks_for", "what the literature says of such a value; empty where it cannot tell", "text", since=7),
        Column("cannot_tell", "why it cannot tell; empty where it speaks for something", "text", since=7),
        Column("source", "where the literature says so; empty without one", "text", since=7),
    ),
    since=7,
)
_COMPONENT = (
    _DEPTH,
    Column("method", "`pca` or `nmf` of Δh, or `topics` of what the logits of the last depth rise by", "name", since=7),
    Column("component", "from the largest on the half of the texts that chooses, 0", "int16", since=7),
)
table(
    "activation_components",
    "depth, method and component of Δh over texts: how much of the half of the texts that measures lies in it",
    (
        *keys("tuned"),
        *_COMPONENT,
        Column("share", "of the variance around the other half's mean (`pca`), or of ΣΔh² (`nmf`)", since=7),
        Column("lo", "the lower end of its 95 % interval over texts", since=7),
        Column("hi", "the upper end", since=7),
        *_beside("share"),
    ),
    since=7,
)
table(
    "component_words",
    "component of Δh and rank: what the base's lens reads of it",
    (
        *keys("tuned"),
        *_COMPONENT,
        Column("rank", "from 0", "int16", since=7),
        *_TOKEN,
        Column("z", "how far the lens puts it above the vocabulary", unit="sd", null=0.0, centre=0.0, since=7),
    ),
    since=7,
)
table(
    "component_places",
    "component and rank: the places of the texts where it is largest",
    (
        *keys("tuned"),
        *_COMPONENT,
        Column("rank", "from 0", "int16", since=7),
        *keys("prompt_id pos"),
        *_TOKEN,
        Column("value", "its loading: in the base's mean ‖h‖ at that depth; of a topic, logits", null=0.0, since=7),
    ),
    since=7,
)


def _alike(name: str, means: str) -> tuple[Column, ...]:
    """How alike base and tuned are, with the interval, and the least of controls."""
    return (
        Column(name, means, null=1.0, since=7),
        Column(f"{name}_lo", "the lower end of its 95 % interval over texts", since=7),
        Column(f"{name}_hi", "the upper end", since=7),
        *(
            Column(f"{name}_{of}", f"`{name}` {of_which}", since=7)
            for of, of_which in (
                ("sham", "of the sham that is least alike"),
                ("random", "of the random T that is least alike"),
                ("floor", "of the rounded base"),
            )
        ),
    )


table(
    "activation_cka",
    "depth: how alike the states of base and tuned are; null where T moves none",
    (
        *keys("tuned"),
        _DEPTH,
        *_alike("cka", "linear CKA of both models' states, without bias: one token of each text, a mean over choices"),
        Column("cka_shuffled", "what 95 % of draws stay below that hold one text against another", since=7),
        *_alike("cosine", "of a token's state in base and in tuned, a mean"),
    ),
    since=7,
)
table(
    "activation_map",
    "token of the texts on which controls are read, and depth: how far its state moved",
    (
        *keys("tuned prompt_id pos"),
        *_TOKEN,
        _DEPTH,
        Column("size", "‖Δh‖/‖h‖ of the base", null=0.0, since=7),
        *(Column(f"size_{of}", f"`size` there {means}", since=7) for of, means in _DRAWS),
    ),
    since=7,
)
table(
    "topics",
    "topic: words whose logits rise together",
    (
        *keys("tuned"),
        Column("topic", "from the largest on the half of the texts that chooses, 0", "int16", since=7),
        Column("words", "the words that it raises most, in one text", "text", since=7),
        Column("share", "of the other half's sum of squares of all rises, that lies in it", since=7),
        Column(
            "weight",
            "the rise that it gives all its words there: root of the sum over words, rms over places",
            unit="logits",
            null=0.0,
            since=7,
        ),
        Column("lo", "the lower end of its 95 % interval over texts", since=7),
        Column("hi", "the upper end", since=7),
        *_beside("weight"),
        Column("p", "of one more draw's topic of this rank weighing as much", since=7),
        Column("q", "the false-discovery rate over the topics", words="q", since=7),
    ),
    since=7,
)
table(
    "steering",
    "kind of place: how long its mean Δh is made to steer the base, and what that does",
    (
        *keys("tuned"),
        _PLACE,
        Column("depth", "where it is added: to what enters this block", "int16", since=7),
        Column("length", "of the vector, in the base's mean ‖h‖ there", since=7),
        Column("length_sham", "the longest of the shams'", since=7),
        Column("length_floor", "that of the rounded base's", since=7),
        Column("kl", "mean KL that it does on texts of the half that measures", unit="nats", since=7),
        Column("lo", "the lower end of its 95 % interval over texts", since=7),
        Column("hi", "the upper end", since=7),
        Column("kl_sham", "the largest of the shams'", unit="nats", since=7),
        Column("kl_floor", "that of the rounded base's", unit="nats", since=7),
    ),
    since=7,
)
