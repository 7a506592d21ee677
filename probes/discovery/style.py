"""What can be counted in any continuation, whatever it is about: the features of a style, in one list."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Feature:
    """One number of a continuation, from its tokens and its text."""

    of: Callable[[Sequence[int], str], float]
    more: str  # "writes … than the base" with its verb, where there is more of it
    less: str
    same: str = ""  # where the ratio, which the others name, rounds to 1


def _share(counts: Callable[[str], bool]) -> Callable[[Sequence[int], str], float]:
    """Of the characters that are no blanks, the share that counts."""

    def of(_: Sequence[int], text: str) -> float:
        own = [character for character in text if not character.isspace()]
        return sum(map(counts, own)) / len(own) if own else 0.0

    return of


def _is_mark(character: str) -> bool:
    return unicodedata.category(character)[0] in "PS"


def _is_other_script(character: str) -> bool:
    return character.isalpha() and not unicodedata.name(character, "").startswith("LATIN")


#: By name.
FEATURES: dict[str, Feature] = {
    "length": Feature(
        lambda ids, _: float(len(ids)),
        "writes {ratio} times as many tokens",
        "writes {ratio} times as many tokens",
        "writes as many tokens",
    ),
    "marks": Feature(_share(_is_mark), "writes more punctuation", "writes less punctuation"),
    "digits": Feature(_share(str.isdigit), "writes more digits", "writes fewer digits"),
    "capitals": Feature(_share(str.isupper), "writes more capitals", "writes fewer capitals"),
    "other script": Feature(
        _share(_is_other_script),
        "writes more in a script that is not Latin",
        "writes less in a script that is not Latin",
    ),
    "lines": Feature(
        lambda ids, text: text.count("\n") / max(len(ids), 1), "breaks lines more often", "breaks lines less often"
    ),
    "repetition": Feature(
        lambda ids, _: 1 - len(set(ids)) / max(len(ids), 1), "repeats tokens more", "repeats tokens less"
    ),
}
