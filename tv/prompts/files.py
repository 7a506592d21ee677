"""Prompt sets read row by row into prompts, with what there is to know of how they were read."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import chain, count
from typing import Any

from tv.errors import PromptError
from tv.prompts.columns import line_to_write
from tv.prompts.conversation import last_text, read_conversation
from tv.prompts.row import read_row
from tv.prompts.sets import CHAT_KEYS, KEYS, Chat, Prompt, PromptSet
from tv.prompts.tables import RawRow, Table, read_table

__all__ = ["KEYS", "Chat", "Prompt", "PromptSet", "Prompts", "read_prompts"]


class Prompts(list[Prompt]):
    """Prompts in order, and notes of how they were read."""

    def __init__(self, prompts: Iterable[Prompt], notes: Iterable[str] = ()) -> None:
        super().__init__(prompts)
        self.notes = tuple(notes)


def read_prompts(sets: Sequence[PromptSet], taken: Collection[str] = ()) -> Prompts:
    """All rows of prompt sets, in order.

    Keys are those of `KEYS`, of which text is needed; other columns are ignored. Where no row of a set has an id, ids
    are the set's name and the row's number, with a number more where these are `taken` or another set's. A row without
    a domain has that of the PromptSet, else the set's name. With `chat`, a row may have messages instead of a text.

    Raises PromptError naming the file and line, or row, of the first row that cannot be used.
    """
    tables = [(chosen, read_table(chosen)) for chosen in sets]
    prompts: list[Prompt] = []
    seen: dict[str, str] = {}
    used = {*taken, *(str(value) for chosen, table in tables for value in _ids(chosen, table) or ())}
    for chosen, table in tables:
        if not table.rows:
            raise PromptError(f"{chosen.place}: no prompts; it needs at least one row with a text")
        ids = _ids(chosen, table)
        if ids is None:
            ids = _numbered(chosen.name, table, used)
            used |= {*ids}
        for row, name in zip(table.rows, ids, strict=True):
            prompt = _prompt(row, chosen, table, name)
            if prompt.id in seen:
                raise PromptError(
                    f"{row.place}: id {prompt.id!r} is already taken by {seen[prompt.id]}; ids are unique"
                )
            seen[prompt.id] = row.place
            prompts.append(prompt)
    return Prompts(prompts, (note for _, table in tables for note in table.columns.notes))


def _ids(chosen: PromptSet, table: Table) -> list[Any] | None:
    """The ids of the rows; None where no row has one, and the set names no column of them."""
    column = table.columns.of["id"]
    if "id" not in chosen.columns and all(column not in row.values for row in table.rows):
        return None
    return [row.values.get(column) for row in table.rows]


def _numbered(name: str, table: Table, used: set[str]) -> list[str]:
    """Ids that no other prompt has."""
    labels = chain([name], (f"{name}.{n}" for n in count(2)))
    tries = ([f"{label}-{number}" for number, _ in enumerate(table.rows, 1)] for label in labels)
    return next(ids for ids in tries if used.isdisjoint(ids))


def _prompt(row: RawRow, chosen: PromptSet, table: Table, name: Any) -> Prompt:
    columns = table.columns
    values: dict[str, Any] = {key: row.values.get(column) for key, column in columns.of.items()} | {"id": name}
    for key in ("id", "cluster"):  # often whole numbers
        if isinstance(values[key], int) and not isinstance(values[key], bool):
            values[key] = str(values[key])
    if isinstance(values["text"], list):
        column = columns.of["text"]
        raise PromptError(
            f"{row.place}: {column} is a list, not a text; turns are read with chat: true and columns: "
            f"{{messages: {column}}} (--chat --columns messages={column})"
        )
    if columns.joined and row.values.get(columns.joined):
        values["text"] = f"{values['text']}\n\n{row.values[columns.joined]}"
    if "text" in chosen.columns and "messages" not in chosen.columns:
        values["messages"] = None
    chat = None
    if chosen.chat is not None and values["messages"] is not None:
        conversation, reply = read_conversation(values, chosen.chat, row.place)
        values |= {"text": last_text(conversation.messages), "target": _one_target(reply, values["target"], row.place)}
        chat = str(conversation)
    hint = "" if columns.of["text"] in row.values else f"; {line_to_write(chosen, row.values)}"
    read = read_row({key: values[key] for key in KEYS if key not in CHAT_KEYS}, row.place, columns.of, hint)
    if chosen.chat is not None and chat is None:
        chat = str(read_conversation({**values, "messages": None}, chosen.chat, row.place)[0])
    between = chosen.separator if chosen.separator and chat is None and not read.text[-1:].isspace() else ""
    return Prompt(
        id=read.id,
        set=chosen.name,
        domain=read.domain or chosen.domain or chosen.name,
        text=read.text,
        target=_after(between, read.target),
        foil=_after(between, read.foil),
        continuation=_after(between, read.continuation),
        chat=chat,
        cluster=read.cluster,
    )


def _after(between: str, words: str | None) -> str | None:
    return words if words is None or words[:1].isspace() else between + words


def _one_target(reply: str | None, target: Any, place: str) -> Any:
    if reply is not None and target is not None:
        raise PromptError(f"{place}: a target, and messages that end with the assistant's reply; keep one of the two")
    return target if reply is None else reply
