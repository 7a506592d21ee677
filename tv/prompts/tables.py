"""Prompt sets as tables of rows: JSON lines, a list, CSV, TSV, Parquet, a Hugging Face dataset, an evaluation's log."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from tv.errors import PromptError, meant
from tv.prompts.columns import Columns, columns_of, line_to_write
from tv.prompts.logs.item import Item
from tv.prompts.logs.reading import is_log_file, read_log
from tv.prompts.sets import CHAT_KEYS, KEYS, PromptSet


class RawRow(NamedTuple):
    """The values of a row by column, as the table has them."""

    place: str
    values: Mapping[str, Any]


class Table(NamedTuple):
    """The rows of a prompt set, and which column holds which key."""

    columns: Columns
    rows: list[RawRow]


def read_table(chosen: PromptSet) -> Table:
    """The rows of a set, the first `limit` of them. Raises PromptError for a table that cannot be read."""
    if chosen.file is None:
        return _of_dataset(chosen)
    path, ending = chosen.file, chosen.file.suffix.casefold()
    if ending == ".parquet":
        return _of_parquet(chosen, path)
    if is_log_file(path):
        return _of_logs(chosen, path)
    text = _text(path)
    if ending in _DELIMITERS:
        return _of_cells(chosen, text, _delimiter(text, ending))
    rows = _json_rows(path, text, chosen.limit)
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    if rows:
        _require_named(chosen, names)
    return Table(columns_of(chosen, names), rows)


#: The endings of files with cells, and what may stand between these: of CSV a comma, or what a spreadsheet writes in
#: countries where the comma is in numbers.
_DELIMITERS = {".csv": ",;\t", ".tsv": "\t"}


_NAMES = {",": "comma", ";": "semicolon", "\t": "tab"}


def column_names(chosen: PromptSet) -> list[str]:
    """The columns of a file of prompts, whatever they hold; none of a file without rows, or of a log.

    Raises:
        PromptError: The file cannot be read.

    Examples:
        >>> column_names(PromptSet(file="data/prompts/medical.jsonl"))[:4]
        ['id', 'text', 'target', 'foil']
    """
    path = Path(str(chosen.file))
    ending = path.suffix.casefold()
    if is_log_file(path):
        return []
    if ending == ".parquet":
        with _parquet(path) as file:
            return list(file.schema_arrow.names)
    text = _text(path)
    if ending in _DELIMITERS:
        header = text.lstrip().partition("\n")[0]
        cells = next(csv.reader([header], delimiter=_delimiter(header, ending)), [])
        return [cell.strip() for cell in cells]
    return list(dict.fromkeys(name for row in _json_rows(path, text, chosen.limit) for name in row.values))


def _json_rows(path: Path, text: str, limit: int | None) -> list[RawRow]:
    in_list = path.suffix.casefold() == ".json" and text.lstrip().startswith("[")
    return list(islice((_list_rows if in_list else _line_rows)(path, text), limit))


def _delimiter(text: str, ending: str) -> str:
    """What stands between the cells: of those that the ending allows, the first that is in the header."""
    header = text.lstrip().partition("\n")[0]
    return next((one for one in _DELIMITERS[ending] if one in header), _DELIMITERS[ending][0])


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


def _line_rows(path: Path, text: str) -> Iterator[RawRow]:
    """Lines end at newlines alone: JSON strings may hold other line separators."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            place = f"{path}: line {number}"
            yield _object(_json(line, place), place)


def _list_rows(path: Path, text: str) -> Iterator[RawRow]:
    for number, value in enumerate(_json(text, str(path)), 1):
        yield _object(value, f"{path}: row {number}")


def _json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        within = f"line {error.lineno}: " if isinstance(error, json.JSONDecodeError) and "\n" in text.strip() else ""
        raise PromptError(f"{place}: {within}not valid JSON: {getattr(error, 'msg', error)}") from None


def _object(value: Any, place: str) -> RawRow:
    if not isinstance(value, dict):
        raise PromptError(f"{place}: a row is a JSON object with id and text, not {type(value).__name__}")
    return RawRow(place, value)


def _of_cells(chosen: PromptSet, text: str, delimiter: str) -> Table:
    """Rows under a header; an empty cell is a missing value, and a quoted one may hold delimiters and newlines."""
    reader = csv.reader(io.StringIO(_without_blanks(text, delimiter), newline=""), strict=True, delimiter=delimiter)
    header: list[str] = []
    rows: list[RawRow] = []
    number = 1
    try:
        for cells in reader:
            place = f"{chosen.place}: line {number}"
            if cells and not header:
                header = [cell.strip() for cell in cells]
                columns = _require_columns(chosen, header)
            elif cells and len(cells) != len(header):
                raise PromptError(
                    f"{place}: {len(cells)} cells under a header of {len(header)}; a text with a "
                    f"{_NAMES[delimiter]} stands in quotes"
                )
            elif cells:
                rows.append(RawRow(place, {name: cell or None for name, cell in zip(header, cells, strict=True)}))
            if len(rows) == chosen.limit:
                break
            number = reader.line_num + 1  # a row starts on the line after the one before it
    except csv.Error as error:
        kind = "TSV" if chosen.place.casefold().endswith(".tsv") else "CSV"
        raise PromptError(f"{chosen.place}: line {reader.line_num}: not valid {kind}: {error}") from None
    return Table(columns if header else columns_of(chosen, ()), rows)


def _without_blanks(text: str, delimiter: str) -> str:
    """The text without the spaces around quoted cells, which would make their quotes part of the cell."""
    cell = rf' *("(?>[^"]|"")*+") *(?=[{delimiter}\r\n]|\Z)|[^{delimiter}\r\n]+|[{delimiter}\r\n]'
    return re.sub(cell, lambda found: found[1] or found[0], text) if re.search('" | "', text) else text


def _of_parquet(chosen: PromptSet, path: Path) -> Table:
    with _parquet(path) as file:
        columns = _require_columns(chosen, file.schema_arrow.names)
        needed = [name for name in columns.needed if name in file.schema_arrow.names]
        values = (row for part in file.iter_batches(columns=needed) for row in part.to_pylist())
        return Table(columns, _typed_rows(chosen, columns, values))


@contextmanager
def _parquet(path: Path) -> Iterator[Any]:
    """The opened file. Raises PromptError for whatever is wrong with it."""
    import pyarrow as pa  # here: no other kind of file needs it
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise PromptError(f"{path}: not a Parquet file that can be read: {_said(error)}") from None
    except OSError as error:
        raise _unreadable(path, error) from None


def _of_logs(chosen: PromptSet, path: Path) -> Table:
    """The items that another evaluation logged, each once, as the model got them; further columns are its fields."""
    logs = read_log(path)
    items = {item.prompt_id: item for log in reversed(logs) for item in reversed(log.items)}
    asked = [item for item in reversed(items.values()) if item.text is not None or item.messages]
    rows = [RawRow(f"{path}: item {item.id} of {item.task}", _row(item, chosen)) for item in asked]
    _require_named(chosen, list(dict.fromkeys(name for row in rows for name in row.values)))
    notes = [note for log in logs for note in log.notes]
    if lost := len(items) - len(asked):
        notes.append(f"{path}: {lost} items are more than text, and are left out")
    if chosen.chat is None and (several := sum(len(item.messages) > 1 for item in asked)):
        notes.append(f"{path}: of {several} items with several turns the last is read; chat: true (--chat) reads all")
    columns: dict[str, str] = {key: chosen.columns.get(key, key) for key in KEYS}
    return Table(Columns(columns, notes=tuple(notes)), rows[: chosen.limit])


def _row(item: Item, chosen: PromptSet) -> dict[str, Any]:
    plain = chosen.chat is None
    turns = {} if plain or not item.messages else {"messages": [dict(turn) for turn in item.messages]}
    target, foil = (item.answer(text, plain=plain) for text in (item.target, item.foil))
    own = {"id": item.prompt_id, "text": item.text, "target": target, "foil": foil, "domain": item.task, **turns}
    return {**item.fields, **own}


def _of_dataset(chosen: PromptSet) -> Table:
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
    needed = [name for name in columns.needed if name in dataset.column_names]
    return Table(columns, _typed_rows(chosen, columns, dataset.select_columns(needed)))


def _typed_rows(chosen: PromptSet, columns: Columns, rows: Iterable[Mapping[str, Any]]) -> list[RawRow]:
    """Rows of a typed table. There every message has the keys of all, and those without a value were not given."""
    nested = [columns.of[key] for key in CHAT_KEYS]
    return [
        RawRow(
            f"{chosen.place}: row {number}",
            {**row, **{name: _given(row[name]) for name in nested if name in row}},
        )
        for number, row in enumerate(islice(rows, chosen.limit), 1)
    ]


def _given(value: Any) -> Any:
    """A nested value without the keys that hold nothing."""
    if isinstance(value, Mapping):
        return {key: _given(inner) for key, inner in value.items() if inner is not None}
    return [_given(inner) for inner in value] if isinstance(value, list) else value


def _require_columns(chosen: PromptSet, names: Sequence[str]) -> Columns:
    """The columns to read. Raises PromptError for a mapped one that is not there, and where none holds the text."""
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise PromptError(f"{chosen.place}: two columns are named {twice!r}; rename one")
    _require_named(chosen, names)
    columns = columns_of(chosen, names)
    if columns.of["text"] not in names and (chosen.chat is None or columns.of["messages"] not in names):
        raise PromptError(
            f"{chosen.place}: no column 'text'; its columns are {_listed(names)}; {line_to_write(chosen, names)}"
        )
    return columns


def _require_named(chosen: PromptSet, names: Sequence[str]) -> None:
    """Raises PromptError for a column that the set names and no row has."""
    for key, name in chosen.columns.items():
        if name not in names:
            raise PromptError(
                f"{chosen.place}: no column {name!r} for {key}{meant(name, names)}; its columns are {_listed(names)}"
            )


def _listed(names: Sequence[str]) -> str:
    """The first names; a file without a header has a text for each."""
    short = [name if len(name) <= 30 else name[:29] + "…" for name in names[:6]]
    return ", ".join(short) + f" and {len(names) - 6} more" * (len(names) > 6)


def _said(error: Exception) -> str:
    """A library's message on one line, cut to 240 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 240 else text[:239] + "…"
