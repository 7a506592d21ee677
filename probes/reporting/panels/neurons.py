"""The neurons whose gate differs on most tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from probes.reporting.chapter import Chapter, panel
from probes.reporting.page import part
from probes.reporting.panel import Panel, Table
from probes.reporting.words import number, percent
from probes.store.neurons import LISTED, flipped_most


@panel("activations", order=70, needs=["neurons"])
def neurons(chapter: Chapter) -> Iterator[Panel]:
    """The neurons that flip most, and how often they are open in both models."""
    rows = chapter.rows("neurons", "domain layer expert neuron n n_flips n_active_base n_active_tuned")
    top = flipped_most(rows)
    if top.empty:
        return
    tokens = _tokens(chapter, top)
    cells = [
        (
            name,
            str(row["domain"]),
            percent(row["rate"]),
            percent(row["n_active_base"] / row["n"]),
            percent(row["n_active_tuned"] / row["n"]),
            f"{row['n']:.0f}",
            *(tokens[name].first if name in tokens else ("–", "–") if tokens else ()),
        )
        for name, row in zip(map(neuron_name, top.to_dict("records")), top.to_dict("records"), strict=True)
    ]
    columns = ["neuron", "prompts", "flipped", "open in base", "open in tuned", "tokens"]
    columns += ["most open in base at", "in tuned at"] if tokens else []
    note = (
        f"The {LISTED} neurons whose gate differs on most tokens of a domain. One that went from mostly shut to "
        "mostly open may have a new use; one whose gate stays near 0 flips often and may mean nothing."
    )
    listed = Table("neurons", "", columns, cells)
    key, tuned = chapter.key, chapter.evidence.tuned
    below = part("neurons.html", key=key, neurons=tokens.values(), tuned=tuned)
    yield Panel("Neurons whose gate flips most", note, [], tables=[listed], below=below)


@dataclass(frozen=True)
class _Open:
    """Where a neuron is most open: by model the rows that the page shows, and the first token of each."""

    name: str
    first: tuple[str, str]
    sides: Mapping[str, Sequence[Mapping[str, str]]]


def _tokens(chapter: Chapter, listed: pd.DataFrame) -> dict[str, _Open]:
    """By the name of a listed neuron, where it is most open; empty where that was not read."""
    rows = chapter.rows("neuron_tokens")
    if rows.empty:
        return {}
    rows = rows.assign(name=[neuron_name(row) for row in rows.to_dict("records")])
    by_name = dict(list(rows.groupby("name")))
    places = {prompt.id: f"{chapter.key}-prompt-{i}" for i, prompt in enumerate(chapter.prompts)}
    names = dict.fromkeys(map(neuron_name, listed.to_dict("records")))
    return {name: _open(name, by_name[name], places, chapter.evidence.tuned) for name in names if name in by_name}


def _open(name: str, rows: pd.DataFrame, places: Mapping[str, str], tuned: str) -> _Open:
    sides = {}
    for model, own, other in (("base", "value_base", "value_tuned"), (tuned, "value_tuned", "value_base")):
        sides[model] = [
            {
                "value": number(row[own]),
                "other": number(row[other]),
                **{part: str(row[part]) for part in ("before", "token", "after", "prompt_id")},
                "place": places.get(str(row["prompt_id"]), ""),
            }
            for row in rows[rows.model == model].sort_values("rank").to_dict("records")
        ]
    base, last = (f"“{of[0]['token'].strip() or repr(of[0]['token'])}” {of[0]['value']}" for of in sides.values())
    return _Open(name, (base, last), sides)


def neuron_name(row: Mapping[Any, Any]) -> str:
    """The name of a neuron by the row's `layer`, `expert` and `neuron`.

    Examples:
        >>> neuron_name({"layer": 3, "expert": -1, "neuron": 46})
        'layer 3 neuron 46'
    """
    expert = f" expert {row['expert']}" if row["expert"] >= 0 else ""
    return f"layer {row['layer']}{expert} neuron {row['neuron']}"
