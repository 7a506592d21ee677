"""One item of a log, whichever evaluation wrote it, and a log of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_LARGEST = 1e100  # the squares of larger scores are no numbers


@dataclass(frozen=True)
class Item:
    """One question that a model was asked, and what its answer scored."""

    task: str
    id: str  # of the question, in its task
    draw: int  # how often it was asked before, from 1: an epoch
    key: str  # the same in two logs where the question is the same
    given: str  # all that the model was given, to compare
    text: str | None  # the same as a prompt; None where it is no text
    target: str | None  # as it follows the text, without the space between them
    foil: str | None
    response: str | None
    scores: Mapping[str, float]  # by metric
    fields: Mapping[str, str]  # what else the log says of the question, by name
    messages: tuple[Mapping[str, str], ...] = ()  # the turns, where it was a conversation
    spaced: bool = False  # whether target and foil are whole as they are, their space before them included

    @property
    def prompt_id(self) -> str:
        """Its name as a prompt: of all draws the same."""
        return f"{self.task}-{self.id}"

    def answer(self, text: str | None, *, plain: bool) -> str | None:
        """A target or foil as it follows the text: after a plain text with the space that the log leaves out."""
        joined = self.spaced or not text or not self.text or self.text[-1].isspace() or text[0].isspace()
        return text if joined or not plain else f" {text}"


@dataclass(frozen=True)
class Log:
    """The items of one evaluation of one model."""

    place: str  # the file
    model: str  # "" where the log does not say
    task: str
    made: str  # when, in a form that sorts
    items: Sequence[Item]
    notes: tuple[str, ...] = ()


def fields_of(doc: Any) -> dict[str, str]:
    """The plain values of a document, as text."""
    return {name: str(value) for name, value in mapping(doc).items() if isinstance(value, str | int | float)}


def mapping(value: Any) -> Mapping[str, Any]:
    """A mapping that a log has at a place; empty where it has something else."""
    return value if isinstance(value, dict) else {}


def sequence(value: Any) -> list[Any]:
    """A list that a log has at a place; empty where it has something else."""
    return value if isinstance(value, list) else []


def number(value: Any) -> float | None:
    """A score as a number: true and false, and numbers as text too. None for all else, NaN, and beyond 1e100."""
    if isinstance(value, str):
        value = {"true": 1.0, "false": 0.0, "yes": 1.0, "no": 0.0}.get(value.strip().casefold(), value)
    if not isinstance(value, bool | int | float | str):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if abs(found) <= _LARGEST else None  # not of NaN either
