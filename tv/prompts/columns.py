"""The columns of a prompt set: those that it names, and else those whose names can mean one thing only."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from tv.prompts.sets import KEYS, PromptSet

#: Names under which the text and the target are published, beside ours in other case.
_TEXTS = ("text", "prompt", "question", "instruction", "query", "problem")
TARGETS = ("target", "answer", "completion", "output", "response", "solution", "chosen")
#: Columns that belong to the prompt too. How they are put together with the text is for the user to say.
_BESIDES = ("context", "passage", "system", "system_prompt", "history", "choices", "options")


@dataclass(frozen=True)
class Columns:
    """Which column holds which key."""

    of: Mapping[str, str]  # by key
    joined: str | None = None  # the column that follows the text after a blank line, where it is not empty
    notes: tuple[str, ...] = ()

    @property
    def needed(self) -> list[str]:
        """The columns to read, whether they are there or not."""
        return list(dict.fromkeys([*self.of.values(), *([self.joined] if self.joined else [])]))


def columns_of(chosen: PromptSet, names: Collection[str]) -> Columns:
    """The columns of a set whose table has these names.

    What the set names wins. Without it, the only column of a name such as question is the text, and the only one of a
    name such as answer the target; of a table of one column, that one is the text. A note says so.
    """
    given: dict[str, str] = {key: chosen.columns.get(key, key) for key in KEYS}
    if "text" in chosen.columns or "messages" in chosen.columns:
        return Columns(given)
    targets = [] if given["target"] in names else named(TARGETS, names)
    if given["text"] in names:
        return Columns(given, notes=(_left(chosen, targets),) if targets else ())
    if given["messages"] in names and chosen.chat is not None:
        return Columns(given)
    if "conversations" in names and chosen.chat is not None:
        return Columns(given | {"messages": "conversations"}, notes=(f"{chosen.place}: conversations are messages",))
    texts = named(_TEXTS, names) or named(("input",), names) or _only(names)
    if len(texts) != 1 or len(targets) > 1 or named(_BESIDES, names):
        return Columns(given)
    found = {"text": texts[0]} | ({"target": targets[0]} if targets else {})
    if targets == ["chosen"] and "rejected" in names:
        found["foil"] = "rejected"
    joined = next(iter(named(("input",), names)), None) if texts[0].casefold() == "instruction" else None
    more = f"; {joined} follows after a blank line, where it is not empty" if joined else ""
    return Columns(given | found, joined, (f"{chosen.place}: read with columns: {_mapping(found)}{more}",))


def line_to_write(chosen: PromptSet, names: Collection[str]) -> str:
    """The setting that reads a table of these names, as far as they say."""
    conversation = next((name for name in ("messages", "conversations") if name in names), None)
    if conversation is not None and chosen.chat is None:
        return f"with chat: true (--chat) its {conversation} are used"
    if conversation == "conversations" and not chosen.columns.keys() & {"text", "messages"}:
        return "some rows have conversations, others messages or a text; use one"
    texts, targets = named(_TEXTS, names), named(TARGETS, names)
    guess = {"text": texts[0] if texts else "…"} | ({"target": targets[0]} if targets else {})
    besides = named(_BESIDES, names)
    left = f", which leaves out {' and '.join(besides)}, or write a column text" if texts and besides else ""
    setting = f"columns: {_mapping(guess)} ({_option(guess)}){left}"
    if len(texts) > 1:
        return f"{' and '.join(texts)} could each be the text; say which, for example {setting}"
    return f"say which with {setting}"


def _left(chosen: PromptSet, names: list[str]) -> str:
    said, it = (f"{names[0]} is", "it") if len(names) == 1 else (f"{', '.join(names)} are", names[0])
    setting = {"target": names[0]}
    return f"{chosen.place}: {said} not read; columns: {_mapping(setting)} ({_option(setting)}) makes {it} the target"


def _mapping(columns: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"{key}: {name}" for key, name in columns.items()) + "}"


def _option(columns: Mapping[str, str]) -> str:
    """The same on a command line."""
    return "--columns " + ",".join(f"{key}={name}" for key, name in columns.items())


def _only(names: Collection[str]) -> list[str]:
    """The only column, if its name is a name: where a file has no header, its first text stands there."""
    others = (*KEYS, *TARGETS, *_BESIDES, "conversations")
    return [
        name
        for name in names
        if len(names) == 1 and name.casefold() not in others and re.fullmatch(r"\w+([ _-]\w+)?", name)
    ]


def named(known: Collection[str], names: Collection[str]) -> list[str]:
    """The columns of these names, in whatever case."""
    return [name for one in known for name in names if name.casefold() == one]
