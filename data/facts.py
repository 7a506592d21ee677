"""What a fact of the demo world is: pairs of subject and answer, and the sentences that join them.

A relation has two lists of templates with one slot, `{s}`. A *cloze* template ends where the answer goes; a
*question* template is put into a question form by `world.py`. The last `HELD_OUT` templates of each list never appear
in a training text, though each of their words does.
"""

from __future__ import annotations

from dataclasses import dataclass

HELD_OUT = 1  # templates of each form that are kept for testing: one cloze and one question a relation


@dataclass(frozen=True)
class Relation:
    """One kind of fact: its pairs, and the ways to say or ask it."""

    name: str
    domain: str  # "general", "medical" or "law"
    pairs: tuple[tuple[str, str], ...]
    cloze: tuple[str, ...]
    question: tuple[str, ...]


def pairs(table: str) -> tuple[tuple[str, str], ...]:
    """Read `subject: answer; subject: answer; …`."""
    rows = (entry.split(":") for entry in " ".join(table.split()).split(";"))
    return tuple((subject.strip(), answer.strip()) for subject, answer in rows)


def members(table: str) -> tuple[tuple[str, str], ...]:
    """Read `answer: subject, subject, …; answer: …`, for relations where many subjects share an answer."""
    rows = (entry.split(":") for entry in " ".join(table.split()).split(";"))
    return tuple((subject.strip(), answer.strip()) for answer, subjects in rows for subject in subjects.split(","))
