"""Whether the two models compute the same function, written differently, in a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def sameness_sentences(found: Mapping[str, Any]) -> list[str]:
    """What undoing the reparametrisations explained of T; nothing of a run that was not aligned.

    Args:
        found: The finding as a run's manifest holds it, empty where there is none.

    Returns:
        Sentences.

    Examples:
        >>> sameness_sentences({"sentence": "the two hold the same weights: T is zero", "changes": {}})
        ['The two hold the same weights: T is zero.']
    """
    if not found:
        return []
    text = str(found["sentence"])
    sentences = [f"{text[0].upper()}{text[1:]}."]
    if found["changes"]:
        sentences.append("Everything below is of the tuned model written as the base is.")
    return sentences
