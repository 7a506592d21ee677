"""The neurons whose gate differs on most tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from probes.reporting.chapter import Chapter, panel
from probes.reporting.panel import Panel, Table
from probes.reporting.words import percent

#: Neurons in the list.
NEURONS = 20


@panel("activations", order=70, needs=["neurons"])
def neurons(chapter: Chapter) -> Iterator[Panel]:
    """The neurons that flip most, and how often they are open in both models."""
    rows = chapter.rows("neurons", "domain layer expert neuron n n_flips n_active_base n_active_tuned")
    if rows.empty or not rows.n_flips.any():
        return
    top = rows.assign(rate=rows.n_flips / rows.n).nlargest(NEURONS, "rate")
    cells = [
        (
            neuron_name(row),
            str(row["domain"]),
            percent(row["rate"]),
            percent(row["n_active_base"] / row["n"]),
            percent(row["n_active_tuned"] / row["n"]),
            f"{row['n']:.0f}",
        )
        for row in top.to_dict("records")
    ]
    columns = ("neuron", "prompts", "flipped", "open in base", "open in tuned", "tokens")
    note = (
        f"The {NEURONS} neurons whose gate differs on most tokens of a domain. One that went from mostly shut to "
        "mostly open was repurposed; one that flips half the time around 0 may carry nothing."
    )
    yield Panel("Neurons that changed sides", note, [], tables=[Table("neurons", "", columns, cells)])


def neuron_name(row: Mapping[Any, Any]) -> str:
    """The name of a neuron by the row's `layer`, `expert` and `neuron`.

    Examples:
        >>> neuron_name({"layer": 3, "expert": -1, "neuron": 46})
        'layer 3 neuron 46'
    """
    expert = f" expert {row['expert']}" if row["expert"] >= 0 else ""
    return f"layer {row['layer']}{expert} neuron {row['neuron']}"
