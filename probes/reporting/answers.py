"""What both models write after a prompt, side by side: where the two first differ, and what ended each."""

from __future__ import annotations

import re
from dataclasses import dataclass

from probes.store.run import Run

#: What a model writes, and what ended it.
Written = tuple[str, str]
_ENDS = {"text": "end of text", "line": "end of the line"}


@dataclass(frozen=True)
class Said:
    """What a model writes after a prompt, in three parts."""

    before: str
    differs: str  # where it first differs; empty where nothing does
    after: str
    end: str  # what ended it, in words


def answers_of(run: Run, tuned: str) -> dict[str, tuple[Written, Written]]:
    """By prompt, what base and tuned write; nothing in a run that does not know it.

    Args:
        run: A run.
        tuned: One of its tuned models.

    Returns:
        Two texts by the prompt's id, each with what ended it, in words.
    """
    if "answers" not in run.tables:
        return {}
    sides: tuple[dict[str, Written], dict[str, Written]] = {}, {}
    for row in run.df("answers", where=[("tuned", "==", tuned)]).to_dict("records"):
        end = _ENDS.get(row["end"], f"cut after {row['n_tokens']} tokens")
        sides[row["model"] != "base"][str(row["prompt_id"])] = str(row["answer"]).strip(), end
    base, own = sides
    return {prompt: (base[prompt], own[prompt]) for prompt in base if prompt in own}


def compared(base: Written, tuned: Written, target: str = "") -> tuple[Said, Said]:
    """Both models' answers, each parted where it first differs from the target, or without one from the other.

    Args:
        base: What the base writes, and what ended it.
        tuned: The same of the tuned model.
        target: The text that counts as right; what follows it is not compared.

    Returns:
        Both, as texts that join to what each wrote.

    Examples:
        >>> said, _ = compared(("It is red.", "end of text"), ("It is blue.", "end of text"))
        >>> said.before, said.differs, said.after
        ('It is', ' red', '.')
    """
    if target:
        return _parted(base, target, all_of_it=True), _parted(tuned, target, all_of_it=True)
    return _parted(base, tuned[0]), _parted(tuned, base[0])


def _parted(answer: Written, other: str, all_of_it: bool = False) -> Said:
    """Where an answer leaves `other`; nowhere, where it begins with `all_of_it`."""
    own, against = _words(answer[0]), _words(other)
    at = 0
    while at < min(len(own), len(against)) and own[at].strip() == against[at].strip():
        at += 1
    first = own[at] if at < len(own) and not (all_of_it and at == len(against)) else ""
    return Said("".join(own[:at]), first, "".join(own[at + bool(first) :]), answer[1])


def _words(text: str) -> list[str]:
    """Words and signs with the space before them, which join to the text; long runs in pieces."""
    return re.findall(r"\s*\w{1,24}|\s*[^\w\s]|\s+", text)
