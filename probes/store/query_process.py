"""The process that answers SQL: DuckDB, sealed, its memory bounded by the system where that is possible (Linux)."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds

from probes.store.query import read, write
from tv.errors import choices, first_line, meant

_MEMORY = 4_000_000_000
_READS = {duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN}
_SEALED: dict[str, Any] = {
    "enable_external_access": "false",  # no file, no URL, no other database
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
    "python_enable_replacements": "false",  # a name is a table of the run, never a variable
    "temp_directory": "",  # what memory cannot hold is refused, not spilled
    "memory_limit": f"{_MEMORY}B",
    "lock_configuration": "true",
}


def serve() -> None:
    """Answer statements from standard input, one after the other, until it ends."""
    questions, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # anything else that prints goes to stderr, not among the answers
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and ends this process
    _bound()
    while True:
        try:
            question = read(questions)
        except EOFError:
            return
        try:
            write(answers, answer(*question))
        except BrokenPipeError:
            return


def answer(tables: Mapping[str, ds.Dataset], known: list[str], statement: str) -> tuple[str, Any]:
    """("table", Arrow's stream), or (the kind of mistake, its message in one line)."""
    try:
        with duckdb.connect(":memory:", config=_SEALED) as connection:
            statements = connection.extract_statements(statement)
            if len(statements) != 1 or statements[0].type not in _READS:
                return "statement", "pass one statement that reads: SELECT … FROM one of the run's tables"
            for name, dataset in tables.items():
                connection.register(name, dataset)
            table = connection.sql(statement).to_arrow_table()
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, table.schema) as stream:
                stream.write_table(table)
            return "table", sink.getvalue().to_pybytes()
    except duckdb.CatalogException as error:
        return "catalog", _of_catalog(error, known)
    except duckdb.BinderException as error:
        return "error", _of_column(error, {name: tables[name].schema.names for name in tables})
    except (duckdb.Error, pa.ArrowException, OSError, MemoryError) as error:
        return "error", first_line(error)


def _of_catalog(error: duckdb.CatalogException, known: list[str]) -> str:
    named = re.search("Table with name (.+) does not exist", str(error))
    if named is not None:
        return f"no table {named[1]!r}{choices(named[1], known)}"
    similar = re.search('Did you mean "(.+)"', str(error))  # of a function
    return first_line(error) + (f"; did you mean {similar[1]!r}?" if similar else "")


def _of_column(error: duckdb.BinderException, columns: Mapping[str, list[str]]) -> str:
    """What a query does wrong; of a column that no table has, those that the tables have."""
    named = re.search('column "(.+?)" not found|does not have a column named "(.+?)"', str(error))
    if named is None:
        return first_line(error)
    name = named[1] or named[2]
    there = "; ".join(f"columns of {table}: {', '.join(names)}" for table, names in columns.items())
    return f"no column {name!r}{meant(name, chain(*columns.values())) or ';'} {there}"


def _bound() -> None:
    """Limit this process to `_MEMORY` on top of what it already uses."""
    statistics = Path("/proc/self/statm")
    if sys.platform != "linux" or not statistics.exists():
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = int(statistics.read_text().split()[5]) * resource.getpagesize() + _MEMORY
    least = min((most, *(limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY)))
    resource.setrlimit(resource.RLIMIT_DATA, (least, hard))
