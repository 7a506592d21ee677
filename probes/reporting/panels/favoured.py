"""The tokens that the tuned model chooses more often than the base, and those that it chooses less often."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from probes.reporting.chapter import Chapter, panel
from probes.reporting.evidence import rows_of
from probes.reporting.panel import Panel, Table
from probes.reporting.words import estimate, signed
from tv.stats.means import mean_interval

#: Tokens of each sign.
SHOWN = 10


@panel("behaviour", order=10, needs=["tokens", "prompts"])
def favoured(chapter: Chapter) -> Iterator[Panel]:
    """First choices of the next token at all places that were read, counted by token."""
    tokens = chapter.rows("tokens", "prompt_id greedy_token_base greedy_token_tuned")
    differ = tokens[tokens.greedy_token_base != tokens.greedy_token_tuned]
    if differ.empty:
        return
    counts = _counts(differ)
    total = counts.groupby("token")[["base", "tuned"]].sum()
    change = (total.tuned - total.base).sort_values(ascending=False, kind="stable")
    shown = [*change[change > 0].head(SHOWN).index, *change[change < 0].tail(SHOWN).index]
    every = [_counted(tokens[f"greedy_token_{side}"]) for side in ("base", "tuned")]
    prompts = rows_of(chapter.run, "prompts", "prompt_id cluster", []).set_index("prompt_id")
    read = pd.Index(tokens.prompt_id.unique())
    clusters = prompts.cluster.reindex(read).fillna(pd.Series(read, read)).astype(str)
    cells = []
    for token in shown:
        per_prompt = counts[counts.token == token].set_index("prompt_id").change.reindex(read, fill_value=0)
        mean = mean_interval(per_prompt.to_numpy(float), list(clusters))
        size = estimate(float(mean.mean), float(mean.lo), float(mean.hi), signed)
        cells.append(
            (
                f"“{token}”",
                f"{change[token]:+.0f}".replace("-", "−"),
                *(str(side.get(token, 0)) for side in every),
                size,
            )
        )
    note = (
        f"How often each token is a model's first choice for the next token, over all {len(tokens):,} places that were "
        "read: + the tuned model favours it, − it avoids it. Only places count where the two differ; at most "
        f"{SHOWN} tokens of each sign. Intervals are 95 % over prompts or their clusters, for each token by itself."
    )
    columns = ("token", "change", "first choice of the base", "of the tuned model", "change per prompt")
    yield Panel("Which tokens does the tuned model favour?", note, [], tables=[Table("favoured", "", columns, cells)])


def _counts(differ: pd.DataFrame) -> pd.DataFrame:
    """`prompt_id token base tuned change`: how often a token is chosen at places where the choices differ."""
    sides = [
        differ.groupby(["prompt_id", f"greedy_token_{side}"], observed=True).size().rename_axis(["prompt_id", "token"])
        for side in ("base", "tuned")
    ]
    both = pd.concat(sides, axis=1, keys=["base", "tuned"]).fillna(0).reset_index()
    return both.assign(change=both.tuned - both.base)


def _counted(choices: pd.Series) -> dict[str, int]:
    return dict(choices.value_counts())
