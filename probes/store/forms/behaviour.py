"""The tables of what the models answer."""

from __future__ import annotations

from probes.store.forms.declare import table
from tv.columns import Column, keys

table(
    "behaviour",
    "prompt, model and metric",
    (*keys("prompt_id model metric"), Column("value", "the metric's value, in the metric's unit")),
)
table(
    "behaviour_floor",
    "precision, domain and metric: the base against itself",
    (
        Column("precision", "the other precision in which the base ran", "name"),
        *keys("domain metric"),
        Column("n", "prompts that it is a mean over", "int32", unit="prompts"),
        Column("floor", "the size of a mean change that rounding alone can make, in the metric's unit"),
    ),
    since=5,
)
table(
    "answers",
    "prompt and model: what it writes after the text by greedy decoding, of the prompts that the report shows",
    (
        *keys("tuned prompt_id model"),
        Column("answer", "what it writes", "text"),
        Column("n_tokens", "how many tokens it wrote, an end-of-text token among them", "int32", unit="tokens"),
        Column(
            "end",
            "where the answer ends: at an end-of-text token (`text`), after one line where the target is one line "
            "(`line`), or at the limit of tokens (`length`)",
            "name",
        ),
    ),
    since=11,
)
