"""A discovery in three sentences: what was found, what was looked for and not found, how far to trust it."""

from __future__ import annotations

import pandas as pd

from probes.discovery.null import FEW
from probes.discovery.part import PARTS, parts_of
from probes.discovery.sides import SHAM
from probes.discovery.word_lists import LEVEL
from probes.reporting.discovery.found import Found, part_in_words, unit_of
from probes.reporting.verdict import Statement
from probes.reporting.words import listing, number, q_value
from probes.suite import Discovery
from tv.errors import printable

#: Words that a sentence names of one part.
_NAMED = 6


def three_sentences(found: Found) -> list[Statement]:
    """What a reader who reads nothing else takes away."""
    return [
        Statement("Found", [*_found(found), *_claims(found)]),
        Statement("Not found", _not_found(found)),
        Statement("How far to trust it", _trust(found), "limits"),
    ]


def _found(found: Found) -> list[str]:
    words, standing = found.words, found.standing
    readings = _readings(words)
    if words.empty:
        return ["No part of this run reads words."]
    if standing.empty:
        return [
            f"Nothing stands out: in none of {readings} lists of words is one beyond what vectors that have "
            "learnt nothing reach. So looks a model that learnt nothing, or nothing that these texts show."
        ]
    distinct = standing.token_id.nunique()
    by_part = [
        f"{part_in_words(str(part))}: {_named(own)}"
        for part, own in sorted(standing.groupby("part", sort=False), key=lambda item: float(item[1].q.min()))
    ]
    return [
        f"{distinct} {'token stands' if distinct == 1 else 'tokens stand'} out of what vectors that have learnt "
        f"nothing reach, in {_readings(standing)} of {readings} lists of words.",
        *(f"{text[0].upper()}{text[1:]}." for text in by_part),
    ]


def _named(own: pd.DataFrame) -> str:
    """The part's first words, and how far the first is beyond the nulls."""
    reading = own.loc[own.q.idxmin(), "reading"]
    first = own[own.reading == reading].sort_values("rank").iloc[0]
    tokens = list(dict.fromkeys(own.sort_values(["q", "rank"]).token.astype(str)))
    more = len(tokens) - _NAMED
    quoted = listing([f"“{printable(token.strip()) or printable(token)}”" for token in tokens[:_NAMED]])
    named = f"{quoted} and {more} more" if more > 0 else quoted
    unit = unit_of(str(first.part), str(first.reading))
    nulls = [("random vectors", first.noise), ("shams", first.sham)]
    reach = "".join(f", {name} at most {number(value)}" for name, value in nulls if pd.notna(value))
    return f"{named} (the first reaches {number(first.value)}{f' {unit}' * bool(unit)}{reach}; {q_value(first.q)})"


def _claims(found: Found) -> list[str]:
    claims = found.claims
    if claims.empty:
        return []
    held = claims[claims.holds.astype(bool)]
    said = f": {listing([str(claim) for claim in held.claim[:3]])}" if len(held) else ""
    return [f"{len(held)} of {len(claims)} claims hold on texts that did not suggest them{said}."]


def _not_found(found: Found) -> list[str]:
    few, standing = found.few_draws, set(found.standing.part)
    parts = [str(part) for part in dict.fromkeys(found.words.part)]
    nothing = [part_in_words(part) for part in parts if part not in standing and part not in few]
    sentences = [f"No word stands out among {listing(nothing)}."] if nothing else []
    unclear = [f"{part_in_words(part)} ({n} draws)" for part, n in few.items() if part not in standing]
    if unclear:
        sentences.append(
            f"Cannot tell: some {listing(unclear)} are above every draw of the controls, and so few draws leave no q "
            f"below {LEVEL:g}."
        )
    if not sentences and parts:
        sentences.append("Every part that reads words found some.")
    asked = [name for name in parts_of(found.settings) if name in PARTS]
    left = [part_in_words(name) for name in PARTS if name not in asked and name != "difference_growth"]
    if left:
        sentences.append(f"Not looked for: {listing(left)}.")
    return sentences


def _trust(found: Found) -> list[str]:
    settings, texts = found.settings, found.rows("discovered_texts", "half in_null")
    halves = texts.half if len(texts) else pd.Series(dtype=int)
    n, n_null = len(halves) or int(found.run.manifest["n_prompts"]), int(texts.in_null.sum()) if len(texts) else 0
    on = f", on {n_null} of the texts" if 0 < n_null < n else ""
    split = f"{int((halves == 0).sum())} of them chose" if len(halves) else "half of them chose"
    measured = f"the other {int((halves == 1).sum())}" if len(halves) else "the other half"
    sentences = [
        f"{n} texts, of each at most {settings.longest} tokens: {split} the words and {measured} measured them, beside "
        f"{_beside(settings)}, and the base in another precision{on}."
    ]
    if settings.draws < FEW:
        sentences.append(
            f"With {settings.draws} draws no q can be below {LEVEL:g}, so that nothing can stand out: it takes "
            f"{FEW} or more."
        )
    rows = len(found.standing)
    if rows:
        sentences.append(
            f"A word stands out where q is below {LEVEL:g} over all words of its part: of the {rows} entries that do "
            f"at most {100 * LEVEL:g} % are expected to be false alarms. Words of one list rise together: they are one "
            "piece of evidence rather than many."
        )
    sentences.append("Other texts may show other words; what no text calls up stays unseen.")
    return sentences


def _beside(settings: Discovery) -> str:
    noise = [control for control in settings.controls if control != SHAM]
    shams = [f"{settings.draws} shams"] if SHAM in settings.controls else []
    return listing([*shams, *([f"{settings.draws} {' or '.join(noise)} vectors"] if noise else [])])


def _readings(words: pd.DataFrame) -> int:
    return len(words[["part", "reading"]].drop_duplicates())
