"""Layer × component maps of every prompt that is shown, chosen by its row in the table of prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from probes.reporting import figures
from probes.reporting.chapter import Chapter, panel
from probes.reporting.evidence import rows_of
from probes.reporting.panel import Figure, Panel
from probes.reporting.prompts import scale_top
from tv.architecture.anatomy import in_order


@panel("prompts", order=10, needs=["prompts", "tokens"])
def prompt_maps(chapter: Chapter) -> Iterator[Panel]:
    """Every map, in one version per prompt."""
    prompts = [prompt.id for prompt in chapter.prompts]
    if not prompts:
        return
    maps = []
    for column, title, rows, centre in _maps(chapter, [("prompt_id", "in", prompts)]):
        by_prompt = dict(list(rows.groupby("prompt_id")))
        top = scale_top(rows[column].abs())
        order = in_order(rows.component)
        plots = [
            figures.heatmap(
                by_prompt.get(prompt, rows.head(0)),
                column,
                "component",
                order,
                chapter.evidence.n_layers,
                centre=centre,
                reach=top,
            )
            for prompt in prompts
        ]
        maps.append(Figure(f"prompt-{column}", title, plots))
    if not maps:
        return
    note = (
        "Of one prompt: how much each component's contribution changed, how many of its gates flipped, and how much "
        "it moved the logit of the target over that of the foil where the answer is due. Colours are the same for "
        "all prompts, so that they can be compared."
    )
    yield Panel("Where in the network, prompt by prompt", note, maps, prompts, "prompt")


def _maps(chapter: Chapter, where: Sequence[Any]) -> Iterator[tuple[str, str, pd.DataFrame, float | None]]:
    """(column, title, a row per prompt × layer × component, centre of its colours) of what the run has."""
    unit = ["prompt_id", "layer", "component"]
    whole = [*where, ("head", "==", -1), ("expert", "==", -1)]
    changes = chapter.rows("changes", "prompt_id pos layer component relative_change dla_base dla_tuned", whole)
    if len(changes):
        means = changes.groupby(unit, as_index=False).relative_change.mean()
        yield "relative_change", "Relative contribution change, mean over tokens", means, None
        due = changes.merge(rows_of(chapter.run, "prompts", "prompt_id answer_pos", []), on="prompt_id")
        due = due[due.pos == due.answer_pos].assign(dla=due.dla_tuned - due.dla_base).dropna(subset="dla")
        if len(due):
            yield "dla", "DLA change where the answer is due", due, 0.0
    gates = chapter.rows("gates", "prompt_id layer flip_rate", where)
    if len(gates):
        means = gates.groupby(["prompt_id", "layer"], as_index=False).flip_rate.mean()
        yield "flip_rate", "Gate flips, mean over tokens", means.assign(component="mlp"), None
