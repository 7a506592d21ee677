"""The tables of discovery: what a tuned model says and represents differently, where nobody said what to look for."""

from __future__ import annotations

from probes.store.forms.declare import table
from tv.columns import Column, keys

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
        Column("null", "the largest that random and shuffled vectors of T's norms reach at this rank", since=7),
        Column("sham", "the largest that shams reach, vectors of gradients that teach nothing", since=7),
        Column("floor", "what the base in another precision reaches", since=7),
        Column("rank_p", "the share of draws that reach the value, the larger of both nulls'", since=7),
        Column("p", "of one more draw reaching it", since=7),
        Column("q", "the false-discovery rate over all words of the part", words="q", since=7),
        Column("stands_out", "whether q is below 0.05 and the value above every draw and the floor", "bool", since=7),
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
    "amplified",
    "α of base + (1 + α)(tuned − base): what amplifying costs on the texts",
    (
        *keys("tuned"),
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
