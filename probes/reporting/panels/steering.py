"""Steering: what one vector carries of the change, beside placebos, and what it makes the models say."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from probes.reporting import direction_charts
from probes.reporting.causes import domains_in
from probes.reporting.chapter import Chapter, panel
from probes.reporting.panel import Figure, Panel, Table
from probes.reporting.words import chosen_by_halves, effect_metric_name, estimate, p_value, prompts_of

#: Steering is shown by this many characters of a continuation.
_SHOWN = 160
_WAYS = {"base→tuned": "added to the base", "tuned→base": "taken from the tuned model"}


@panel("directions", order=10, needs=["direction_effects", "one_vector"])
def steering(chapter: Chapter) -> Iterator[Panel]:
    """Shares by layer and dose, the vector among its placebos, and the answer in every domain."""
    rows, answers = chapter.rows("direction_effects"), chapter.rows("one_vector")
    if rows.empty:
        return
    domains = domains_in(rows, chapter.evidence.effects, chapter.evidence.behaviour)
    cuts = [rows[rows.domain == domain] for domain in domains]
    real = [cut[cut.control == ""] for cut in cuts]
    layers = [direction_charts.by_layer(cut[cut.layer >= 0]) for cut in real]
    doses = [direction_charts.by_dose(cut[(cut.layer < 0) & cut.dose.notna()]) for cut in real]
    placebos = [direction_charts.among_placebos(cut[(cut.layer < 0) & cut.dose.isna()]) for cut in cuts]
    metric = effect_metric_name(str(rows.metric.iloc[0]))
    first = rows.iloc[0]
    note = (
        f"One vector ({first.source}, {first.op}) at {first.site}, at the positions “{first.positions}”. It is made on "
        f"half of the prompts, which choose its layer and dose too, and read on the other half. Share: of the whole "
        f"change of the {metric}; bars are 95 % intervals over prompts. Placebos have the vector's length and dose: "
        "random ones, and means of each prompt's deviation from mean Δh, with shuffled signs. A large dose moves any "
        "model: a share that placebos reach too says nothing, and of a larger one only what lies beyond them counts. "
        "“Most” compares the share with one half, not with placebos. No share is shown where behaviour did not change."
    )
    figures = [
        Figure("steer-layer", "Share at every layer, dose 1", layers),
        Figure("steer-dose", "Share by dose, at the chosen layer", doses),
        Figure("steer-placebos", "The chosen vector among its placebos", placebos),
    ]
    tables = [_answers(answers), *_samples(chapter)]
    yield Panel("Is the change one vector?", note, figures, list(map(prompts_of, domains)), "prompts", tables=tables)


def _answers(rows: pd.DataFrame) -> Table:
    shown = []
    for row in rows.to_dict("records"):
        share = estimate(row["share"], row["share_lo"], row["share_hi"]) if pd.notna(row["share"]) else "–"
        shown.append(
            [
                prompts_of(str(row["domain"])),
                _WAYS.get(str(row["direction"]), str(row["direction"])),
                str(row["answer"]),
                share,
                p_value(row["random_p"]),
                p_value(row["shuffled_p"]),
                estimate(row["kl"], row["kl_lo"], row["kl_hi"]),
                chosen_by_halves(row),
                f"{row['n']:.0f}",
            ]
        )
    columns = [
        "prompts",
        "steered",
        "one vector",
        "share of the change",
        "p, random",
        "p, shuffled",
        "KL, nats a token",
    ]
    return Table(
        "one-vector", "The vectors that each half of the prompts chose", [*columns, "layer × dose", "n"], shown
    )


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… (cut here)"


def _samples(chapter: Chapter) -> Iterator[Table]:
    rows = chapter.rows("direction_samples")
    if rows.empty:
        return
    texts = chapter.run["prompts"].set_index("prompt_id").text
    shown = []
    for prompt, own in rows.groupby("prompt_id", sort=False):
        said = {(row.model, bool(row.steered)): _cut(str(row.continuation)) for row in own.itertuples()}
        keys = [("base", False), ("base", True), ("tuned", True), ("tuned", False)]
        shown.append([str(texts.get(prompt, prompt))[-_SHOWN:], *(said.get(key, "–") for key in keys)])
    columns = ["prompt", "base", "base, steered", "tuned, steered back", "tuned"]
    yield Table("steered-samples", "What the models go on with (greedily)", columns, shown)
