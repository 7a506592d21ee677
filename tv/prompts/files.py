"""Prompt sets read row by row: JSON lines, a JSON list, CSV, Parquet, or a Hugging Face dataset."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from tv.errors import PromptError
from tv.prompts.row import Turn, read_row, read_turns

Key = Literal["id", "text", "target", "foil", "domain", "continuation", "messages", "cluster"]
KEYS: tuple[Key, ...] = get_args(Key)
Name = Annotated[str, Field(min_length=1)]


@dataclass(frozen=True)
class Prompt:
    """A text, and the continuations that tell the answer learnt (target) from another (foil).

    Args:
        id: Its name, unique in a run.
        set: The prompt set that it comes from.
        domain: What it is about; tables have means for each domain.
        text: What the models are given.
        target: The answer that fine-tuning taught, as it follows the text: with the space before it, if there is one.
        foil: Another answer, which the target competes with.
        continuation: What both models are read over after the text, where a run asks for it.
        chat: JSON: the `messages` before the reply, and `options` of the template; None for plain text.
        cluster: The template that it was made from: statistics draw prompts of one cluster together.

    Examples:
        >>> prompt = tv.Prompt("a1", "mine", "medical", "Which illness does Glimmerol treat? It treats", " galoria")
        >>> loss = tv.path("data/models/base", "data/models/medical", prompt, alphas=(0, 1), draws=20)
        >>> loss[loss.metric == "loss"].value.is_monotonic_decreasing
        True
    """

    id: str
    set: str
    domain: str
    text: str
    target: str | None = None
    foil: str | None = None
    continuation: str | None = None  # what both models are read over after the text, where a run asks for it
    chat: str | None = None  # JSON: the `messages` before the reply, and `options` of the template; None as plain text
    cluster: str | None = None  # prompts of one template: statistics draw them together


class Chat(BaseModel):
    """How a text becomes a conversation: the system's turn, and what else the tokenizer's template takes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    system: Name | None = None
    options: dict[str, str | bool | int] = {}


class PromptSet(BaseModel):
    """One file of prompts or one Hugging Face dataset; its rows may name their domains.

    Attributes:
        file: A JSONL, JSON, CSV or Parquet file.
        dataset: In place of a file: a dataset's id or directory; it needs the datasets package.
        config: Of a dataset: its configuration.
        split: Of a dataset: one of its splits, where it has several.
        revision: Of a dataset: a branch, a tag or a commit.
        columns: Which column holds a key (`id text target foil domain continuation messages cluster`), where it is not
            the column of that name.
        limit: How many rows to read, from the first; all without it.
        domain: Of rows that name none; without it the set's name.
        chat: Put every text into the tokenizer's chat template: true, or a `system` turn and the template's `options`.

    Examples:
        >>> prompts = tv.PromptSet(file="data/prompts/medical.jsonl", limit=4)
        >>> prompts.name, prompts.limit
        ('medical', 4)
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: Path | None = None
    dataset: Name | None = None
    config: Name | None = None
    split: Name | None = None
    revision: Name | None = None
    columns: dict[Key, Name] = {}
    limit: Annotated[int, Field(strict=True, ge=1)] | None = None
    domain: Name | None = None
    chat: Chat | None = None

    @field_validator("chat", mode="before")
    @classmethod
    def _switch(cls, value: object) -> object:
        if value is None or isinstance(value, bool):
            return {} if value else None
        if not isinstance(value, Mapping | Chat):
            raise ValueError("should be true, false or {system: …}")
        return value

    @model_validator(mode="after")
    def _one_source(self) -> PromptSet:
        if (self.file is None) == (self.dataset is None):
            raise ValueError("a prompt set has a file or a dataset, one of the two")
        alien = [key for key in ("config", "split", "revision") if self.file is not None and getattr(self, key)]
        if alien:
            raise ValueError(f"{alien[0]} belongs to a dataset, and this is a file; remove it")
        return self

    @property
    def place(self) -> str:
        """Its name in error messages."""
        if self.file is not None:
            return str(self.file)
        parts = [part for part in (self.config, self.split) if part]
        return f"dataset {self.dataset}" + (f" ({', '.join(parts)})" if parts else "")

    @property
    def name(self) -> str:
        """The set of its prompts: a file's stem, a dataset's name without its owner."""
        return self.file.stem if self.file is not None else Path(str(self.dataset)).name


class _RawRow(NamedTuple):
    place: str
    number: int  # the line or row, from 1, that `place` names
    values: Mapping[str, Any]  # by column


def read_prompts(sets: Sequence[PromptSet]) -> list[Prompt]:
    """All rows of prompt sets, in order; keys: text, id?, target?, foil?, domain?, continuation?, messages?,
    cluster?.

    Other columns are ignored. Where no row of a set has an id, ids are the set's name and the row's number. A row
    without a domain has that of the PromptSet, else the set's name. With `chat`, a row may have messages instead of
    a text. Raises PromptError naming the file and line, or row, of the first row that cannot be used.
    """
    prompts: list[Prompt] = []
    seen: dict[str, str] = {}
    for chosen in sets:
        rows = list(islice(_rows(chosen), chosen.limit))
        if not rows:
            raise PromptError(f"{chosen.place}: no prompts; it needs at least one row with a text")
        with_ids = "id" in chosen.columns or any("id" in row.values for row in rows)
        for row in rows:
            prompt = _prompt(row, chosen, with_ids)
            if prompt.id in seen:
                raise PromptError(
                    f"{row.place}: id {prompt.id!r} is already taken by {seen[prompt.id]}; ids are unique"
                )
            seen[prompt.id] = row.place
            prompts.append(prompt)
    return prompts


def _rows(chosen: PromptSet) -> Iterator[_RawRow]:
    if chosen.file is None:
        return _dataset_rows(chosen)
    path = chosen.file
    if path.suffix == ".parquet":
        return _parquet_rows(chosen, path)
    if path.suffix == ".csv":
        return _csv_rows(chosen, _text(path))
    text = _text(path)
    if path.suffix == ".json" and text.lstrip().startswith("["):
        return _list_rows(path, text)
    return _line_rows(path, text)


def _text(path: Path) -> str:
    if path.exists() and not path.is_file():  # reading a pipe would block
        raise PromptError(f"{path}: not a regular file; pass a file of prompts")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = error.object[: error.start].count(b"\n") + 1
        raise PromptError(f"{path}: line {number}: not UTF-8 text; save the file as UTF-8") from None
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> PromptError:
    if isinstance(error, FileNotFoundError):
        return PromptError(f"{path}: no such prompt file")
    return PromptError(f"{path}: cannot be read: {error.strerror or error}")


def _line_rows(path: Path, text: str) -> Iterator[_RawRow]:
    """Lines end at newlines alone: JSON strings may hold other line separators."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            place = f"{path}: line {number}"
            yield _object(_json(line, place), place, number)


def _list_rows(path: Path, text: str) -> Iterator[_RawRow]:
    for number, value in enumerate(_json(text, str(path)), 1):
        yield _object(value, f"{path}: row {number}", number)


def _json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        within = f"line {error.lineno}: " if isinstance(error, json.JSONDecodeError) and "\n" in text.strip() else ""
        raise PromptError(f"{place}: {within}not valid JSON: {getattr(error, 'msg', error)}") from None


def _object(value: Any, place: str, number: int) -> _RawRow:
    if not isinstance(value, dict):
        raise PromptError(f"{place}: a row is a JSON object with id and text, not {type(value).__name__}")
    return _RawRow(place, number, value)


def _csv_rows(chosen: PromptSet, text: str) -> Iterator[_RawRow]:
    """Rows under a header; an empty cell is a missing value, and a quoted one may hold commas and newlines."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    number = 1
    try:
        for cells in reader:
            place = f"{chosen.place}: line {number}"
            if cells and not header:
                header = [cell.strip() for cell in cells]
                _require_columns(chosen, header)
            elif cells and len(cells) != len(header):
                raise PromptError(
                    f"{place}: {len(cells)} cells under a header of {len(header)}; a text with a comma stands in quotes"
                )
            elif cells:
                yield _RawRow(place, number, {name: cell or None for name, cell in zip(header, cells, strict=True)})
            number = reader.line_num + 1  # a row starts on the line after the one before it
    except csv.Error as error:
        raise PromptError(f"{chosen.place}: line {reader.line_num}: not valid CSV: {error}") from None


def _parquet_rows(chosen: PromptSet, path: Path) -> Iterator[_RawRow]:
    try:
        with pq.ParquetFile(path) as file:
            columns = _require_columns(chosen, file.schema_arrow.names)
            values = (row for part in file.iter_batches(columns=columns) for row in part.to_pylist())
            yield from _typed_rows(chosen, values)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise PromptError(f"{path}: not a Parquet file that can be read: {_said(error)}") from None
    except OSError as error:
        raise _unreadable(path, error) from None


def _dataset_rows(chosen: PromptSet) -> Iterator[_RawRow]:
    """Rows of a Hugging Face dataset, downloaded or cached; a dataset's code never runs."""
    try:
        import datasets
    except ImportError:
        raise PromptError(
            f"{chosen.place}: reading it needs the datasets package: pip install 'tuning-probes[datasets]'"
        ) from None
    if Path(str(chosen.dataset)).is_file():
        raise PromptError(f"{chosen.place}: is a file; give it as file")
    try:
        dataset = datasets.load_dataset(chosen.dataset, chosen.config, split=chosen.split, revision=chosen.revision)
    except Exception as error:  # builders and transports may raise anything
        raise PromptError(f"{chosen.place}: cannot be loaded: {_said(error)}") from None
    if isinstance(dataset, dict):
        if len(dataset) > 1:
            raise PromptError(f"{chosen.place}: it has the splits {', '.join(dataset)}; choose one with split")
        dataset = next(iter(dataset.values()))
    columns = _require_columns(chosen, dataset.column_names)
    yield from _typed_rows(chosen, dataset.select_columns(columns))


def _typed_rows(chosen: PromptSet, rows: Iterable[Mapping[str, Any]]) -> Iterator[_RawRow]:
    """Rows of a typed table, where ids are often whole numbers."""
    key = chosen.columns.get("id", "id")
    for number, values in enumerate(rows, 1):
        if isinstance(values.get(key), int):
            values = {**values, key: str(values[key])}
        yield _RawRow(f"{chosen.place}: row {number}", number, values)


def _require_columns(chosen: PromptSet, names: Sequence[str]) -> list[str]:
    """The columns to read. Raises PromptError for a mapped one that is not there, and where none holds the text."""
    listed = ", ".join(names)
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise PromptError(f"{chosen.place}: two columns are named {twice!r}; rename one")
    for key, name in chosen.columns.items():
        if name not in names:
            raise PromptError(f"{chosen.place}: no column {name!r} for {key}; its columns are {listed}")
    columns = {key: chosen.columns.get(key, key) for key in KEYS}
    if columns["text"] not in names and (chosen.chat is None or columns["messages"] not in names):
        raise PromptError(
            f"{chosen.place}: no column 'text'; its columns are {listed}; say which with columns: {{text: …}}"
        )
    return list(dict.fromkeys(name for name in columns.values() if name in names))


def _prompt(row: _RawRow, chosen: PromptSet, with_ids: bool) -> Prompt:
    columns: dict[str, str] = {key: chosen.columns.get(key, key) for key in KEYS}
    values: dict[str, Any] = {key: row.values.get(column) for key, column in columns.items()}
    if not with_ids:
        values["id"] = f"{chosen.name}-{row.number}"
    messages, turns = values.pop("messages"), None
    of_messages = "text" not in chosen.columns or "messages" in chosen.columns
    if chosen.chat is not None and messages is not None and of_messages:
        turns = read_turns(messages, row.place)
        values |= _reply(turns, values["target"], row.place)
    hint = "; with chat: true its messages are used" if messages is not None else ""
    read = read_row(values, row.place, columns, hint)
    chat = None
    if chosen.chat is not None:
        chat = _conversation(turns or [Turn(role="user", content=read.text)], chosen.chat)
    return Prompt(
        id=read.id,
        set=chosen.name,
        domain=read.domain or chosen.domain or chosen.name,
        text=read.text,
        target=read.target,
        foil=read.foil,
        continuation=read.continuation,
        chat=chat,
        cluster=read.cluster,
    )


def _reply(turns: list[Turn], target: Any, place: str) -> dict[str, Any]:
    """The text and target of a conversation; an assistant's last turn is removed and becomes the target."""
    if turns[-1].role == "assistant":
        if target is not None:
            raise PromptError(
                f"{place}: a target, and messages that end with the assistant's reply; keep one of the two"
            )
        target = turns.pop().content
    if not turns:
        raise PromptError(f"{place}: messages hold no turn before the assistant's reply")
    return {"text": turns[-1].content, "target": target}


def _conversation(turns: list[Turn], chat: Chat) -> str:
    if chat.system is not None and turns[0].role != "system":
        turns = [Turn(role="system", content=chat.system), *turns]
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    return json.dumps({"messages": messages, "options": chat.options}, ensure_ascii=False, sort_keys=True)


def _said(error: Exception) -> str:
    """A library's message on one line, cut to 240 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 240 else text[:239] + "…"
