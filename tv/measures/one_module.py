"""Every wanted weight table of one row's module: its parts through each table's function, or a group's sums."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from tv.architecture.anatomy import Module
from tv.checkpoints.pairing import WeightPair
from tv.measures.declared import TABLES
from tv.measures.group import group_row
from tv.measures.part import parts_of

#: Rows by table.
Rows: TypeAlias = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Wanted:
    """What to measure of every module, and where to compute it; picklable, so that any process can do it."""

    tables: Mapping[str, Mapping[str, Any]]  # the options of every table, by its name
    heads: bool = True
    seed: int = 0
    device: str = "cpu"
    cache: Path | None = None


def measure_module(pair: WeightPair, module: Module, wanted: Wanted) -> Rows:
    """The rows of a module, its heads and its bias, by table. Of a group only `weights` has one, of sums."""
    rows: Rows = {name: [] for name in wanted.tables}
    if module.kind == "group":
        if "weights" in rows:
            rows["weights"].append(group_row(pair, module, wanted.device))
        return rows
    for part in parts_of(pair, module, heads=wanted.heads, seed=wanted.seed, device=wanted.device, cache=wanted.cache):
        for name, options in wanted.tables.items():
            table = TABLES[name]
            where = {column: value for column, value in part.where.items() if column in table.form.names}
            rows[name] += [where | dict(row) for row in table.function(part, **options)]
    return rows
