"""Which prompts are behind the cells of a map: the values of those that the page shows, one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from probes.reporting.chapter import Chapter


def behind(
    chapter: Chapter,
    table: str,
    columns: str,
    values: Mapping[str, str],
    by: str,
    where: Sequence[tuple[str, str, Any]] = (),
) -> pd.DataFrame:
    """Means over the places of every shown prompt.

    Args:
        chapter: The tuned model.
        table: A table with `prompt_id` and `layer`.
        columns: Its columns besides these, that are read, separated by spaces.
        values: What is computed of these, as `DataFrame.eval` writes it, by name.
        by: Columns that name a cell besides the layer, separated by spaces.
        where: Which rows are read.

    Returns:
        A row per layer, `by` and prompt: `prompt` (its place among those shown), `domain`, and `values`. Empty where
        the page shows no prompts, or the run lacks the table.
    """
    at = {prompt.id: i for i, prompt in enumerate(chapter.prompts)}
    names = ["layer", *by.split()]
    if not at or table not in chapter.run.tables:
        return pd.DataFrame(columns=[*names, "prompt", "domain", *values])
    rows = chapter.rows(table, f"prompt_id layer {columns}", [*where, ("prompt_id", "in", list(at))])
    made = rows.assign(**{name: rows.eval(formula).astype(float) for name, formula in values.items()})
    means = made.groupby(["prompt_id", *names], as_index=False, observed=True)[list(values)].mean()
    prompt = means.prompt_id.map(at)
    return means.assign(prompt=prompt, domain=[chapter.prompts[i].domain for i in prompt])
