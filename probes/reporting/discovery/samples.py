"""What both models write after the same beginnings, side by side, with where they part."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from probes.reporting.discovery.found import Found, part_in_words
from probes.reporting.words import estimate, number

#: Beginnings shown of every reading; the first of them without unfolding anything.
SHOWN, OPEN = 24, 6
#: By part: what it amplifies, and how often.
_AMPLIFIES = {"spoken": "Logits are base + {:g} × (tuned − base).", "amplified": "Weights are base + {:g} × T."}
#: By part: what writes beside the base, where it is not the tuned model.
_WRITERS = {"amplified": "amplified", "steered": "steered base"}


@dataclass(frozen=True)
class Written:
    """A continuation in three: what both models wrote, the first word that only this one wrote, and the rest."""

    alike: str
    first: str
    rest: str
    end: str  # what ended it, in words; empty in runs that do not know it


@dataclass(frozen=True)
class Sample:
    """A beginning, and what both models wrote after it; `same` where they wrote the same."""

    text: str
    prompt: str
    base: Written
    tuned: Written
    same: bool


@dataclass(frozen=True)
class Samples:
    """A reading's samples, and what amplifying costs there."""

    title: str
    writer: str  # what writes beside the base
    note: str
    open: list[Sample]
    folded: list[Sample]
    n: int  # different beginnings in the run, shown or not


def samples_of(found: Found) -> list[Samples]:
    """Every reading that writes, in the order of the table."""
    rows = found.rows("samples")
    if rows.empty:
        return []
    damage, read = found.rows("amplified"), _tokens(found)
    groups = []
    for (part, reading), own in rows.groupby(["part", "reading"], sort=False):
        by_text: dict[str, Sample] = {}
        for sample in _paired(own, found, read):
            by_text.setdefault(sample.text, sample)
        shown = list(by_text.values())[:SHOWN]
        words = part_in_words(str(part)).removeprefix("words that the tuned model writes ").removeprefix("words that ")
        note = _cost(str(part), str(reading), damage)
        writer = _WRITERS.get(str(part), "amplified" if str(reading).startswith("amplified") else "tuned")
        groups.append(Samples(f"{words}: {reading}", writer, note, shown[:OPEN], shown[OPEN:], len(by_text)))
    return groups


def _tokens(found: Found) -> dict[str, list[str]]:
    """By text: its tokens, where the run kept them."""
    rows = found.rows("token_divergences", "prompt_id pos token").sort_values("pos")
    return {str(prompt): own.token.astype(str).tolist() for prompt, own in rows.groupby("prompt_id", sort=False)}


def _paired(rows: pd.DataFrame, found: Found, read: dict[str, list[str]]) -> Iterator[Sample]:
    """The first draw of every beginning."""
    first = rows[rows.draw == rows.draw.min()]
    for prompt, own in first.groupby("prompt_id", sort=False):
        by_model = own.set_index("model")
        base, tuned = (by_model.loc[name] for name in ("base", "tuned"))
        prompt, pos = str(prompt), int(base.pos)
        whole = found.texts.get(prompt, "")
        text = "".join(read[prompt][: pos + 1]) if prompt in read else whole
        written = [str(side.continuation) for side in (base, tuned)]
        alike = str(tuned.alike)
        if not all(one.startswith(alike) for one in written):  # a token that is only a part of a letter
            alike = _shared(*written)
        before, after = (_split(one, alike, _end(side)) for one, side in zip(written, (base, tuned), strict=True))
        yield Sample(text.strip(), prompt, before, after, written[0] == written[1])


def _shared(one: str, other: str) -> str:
    return one[
        : next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    ]


def _end(side: pd.Series) -> str:
    if pd.isna(side.get("ended")):
        return ""
    return "end of text" if side.ended else f"cut after {side.n_tokens} tokens"


def _split(written: str, alike: str, end: str) -> Written:
    rest = written[len(alike) :]
    first = re.match(r"\s*\S+", rest)
    at = first.end() if first else 0
    return Written(alike, rest[:at], rest[at:], end)


def _cost(part: str, reading: str, damage: pd.DataFrame) -> str:
    """How far the predictions on the texts are from the base's where this much is amplified."""
    row = damage[damage.reading == reading]
    if row.empty or part not in _AMPLIFIES:
        return ""
    one = row.iloc[0]
    how = _AMPLIFIES[part].format(1 + one.alpha) if one.alpha else "The tuned model itself."
    sham = f"; shams{' amplified alike' * bool(one.alpha)} are at most {number(one.sham)} away" * pd.notna(one.sham)
    return f"{how} On the texts it is {estimate(one.kl, one.lo, one.hi)} nats of KL from the base{sham}."
