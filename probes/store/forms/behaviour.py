"""The table of what the models answer."""

from __future__ import annotations

from probes.store.forms.declare import table
from tv.columns import Column, keys

table(
    "behaviour",
    "prompt, model and metric",
    (*keys("prompt_id model metric"), Column("value", "the metric's value, in the metric's unit")),
)
