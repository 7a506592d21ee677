"""A sentence of a verdict, and the one figure or table that has its numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup, escape

#: Where a sentence without chosen words has its link: what stands before the first of these.
_END = re.compile(r"[:;,?(]| \d")


@dataclass(frozen=True)
class Claim:
    """A sentence, or a clause of one.

    Attributes:
        text: What it says.
        place: The id, on the page, of the figure, table or section that has its numbers.
        at: Which words of it lead there; without them, those up to its first number or punctuation.
    """

    text: str
    place: str
    at: str = ""


def sentence(claims: Sequence[Claim]) -> str:
    """Clauses as one sentence; nothing without any."""
    return f"{'; '.join(claim.text for claim in _begun(claims))}." if claims else ""


def clauses(claims: Sequence[Claim], prefix: str = "") -> Markup:
    """The same sentence with a link in each clause."""
    return Markup("; ").join(linked(claim, prefix) for claim in _begun(claims)) + "."


def _begun(claims: Sequence[Claim]) -> list[Claim]:
    """The clauses, the first with a capital."""
    first, *rest = claims
    at = _capital(first.at) if first.text.startswith(first.at) else first.at
    return [replace(first, text=_capital(first.text), at=at), *rest]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def linked(claim: Claim, prefix: str = "") -> Markup:
    """A claim with its one link, to an id of the page that begins with `prefix`; all else in it is escaped."""
    at = claim.at or _END.split(claim.text, maxsplit=1)[0]
    before, words, after = claim.text.partition(at)
    return escape(before) + Markup('<a href="#{}">{}</a>').format(f"{prefix}{claim.place}", words) + escape(after)
