"""An architecture as plain values that JSON holds, and back."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from tv.architecture.anatomy import Architecture, Block, Module, Writer


def to_json(architecture: Architecture) -> dict[str, Any]:
    """Every module once, in a table; all that names one holds its number there.

    Examples:
        >>> architecture = tv.open_checkpoint("data/models/base").architecture
        >>> from_json(to_json(architecture)) == architecture
        True
    """
    table: dict[Module, int] = {}

    def plain(value: Any) -> Any:
        if isinstance(value, Module):
            return table.setdefault(value, len(table))
        if isinstance(value, Writer | Block):
            return [plain(getattr(value, field.name)) for field in fields(value)]
        return [plain(inner) for inner in value] if isinstance(value, tuple | frozenset) else value

    rows = {field.name: plain(getattr(architecture, field.name)) for field in fields(architecture)}
    return {**rows, "table": [[getattr(module, field.name) for field in fields(module)] for module in table]}


def from_json(rows: dict[str, Any]) -> Architecture:
    """The architecture that `to_json` was given. What is none raises KeyError, TypeError, ValueError or IndexError."""
    rows = dict(rows)
    table = [_module(row) for row in rows.pop("table")]
    for name in ("modules", "others"):
        rows[name] = tuple(table[i] for i in rows[name])
    rows["unread"] = frozenset(table[i] for i in rows["unread"])
    rows["blocks"] = tuple(_block(row, table) for row in rows["blocks"])
    return Architecture(**rows)


_SHAPE, _RANGES = ([field.name for field in fields(Module)].index(name) for name in ("shape", "ranges"))


def _module(row: list[Any]) -> Module:
    row[_SHAPE], row[_RANGES] = tuple(row[_SHAPE]), tuple(map(tuple, row[_RANGES]))
    return Module(*row)


def _block(row: list[Any], table: list[Module]) -> Block:
    given = dict(zip((field.name for field in fields(Block)), row, strict=True))
    given["writers"] = tuple(_writer(writer, table) for writer in given["writers"])
    return Block(**given | {name: _at(given[name], table) for name in ("gate", "up")})


def _writer(row: list[Any], table: list[Module]) -> Writer:
    given = dict(zip((field.name for field in fields(Writer)), row, strict=True))
    return Writer(**given | {"head_module": _at(given["head_module"], table)})


def _at(index: int | None, table: list[Module]) -> Module | None:
    return None if index is None else table[index]
