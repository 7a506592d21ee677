"""SQL over a run's tables through DuckDB, which here can neither write nor read anything else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds

from probes.errors import RunError
from tv.errors import first_line

_MEMORY = 4_000_000_000
_ALONE = Lock()  # the bound is the whole process's: of two queries at once the second would put the first's bound back
_READS = {duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN}
_SEALED: dict[str, Any] = {
    "enable_external_access": "false",  # no file, no URL, no other database
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
    "python_enable_replacements": "false",  # a name is a table of the run, never a variable of the caller's
    "temp_directory": "",  # what memory cannot hold is refused, not spilled
    "memory_limit": f"{_MEMORY}B",
    "lock_configuration": "true",
}


def query(tables: Mapping[str, Callable[[], ds.Dataset]], statement: str) -> pa.Table:
    """The answer to one SELECT (or WITH, FROM, DESCRIBE, SUMMARIZE, EXPLAIN) over `tables`, opened as they are named.

    Only the columns and row groups that it needs are read. Raises RunError in one line for whatever is no such
    statement, names what is not there, reaches outside the tables, or needs more than 4 GB. Queries of several threads
    wait for each other.
    """
    named = [name for name in tables if name in statement.lower()] or list(tables)
    with _ALONE, _bounded(), duckdb.connect(":memory:", config=_SEALED) as connection:
        try:
            found = connection.extract_statements(statement)
            if len(found) != 1 or found[0].type not in _READS:
                raise RunError("query: pass one statement that reads: SELECT … FROM one of the run's tables")
            for name in named:
                connection.register(name, tables[name]())
            return connection.sql(statement).to_arrow_table()
        except (duckdb.Error, pa.ArrowException, OSError, MemoryError) as error:
            there = f"; tables: {', '.join(tables)}" if isinstance(error, duckdb.CatalogException) else ""
            raise RunError(f"query: {first_line(error)}{there}") from error


@contextmanager
def _bounded() -> Iterator[None]:
    """Where the system can do it (Linux), this process gets no more than `_MEMORY` on top of what it has.

    DuckDB's own limit does not count long strings, and `repeat('x', 1000000000)` is a short statement.
    """
    statistics = Path("/proc/self/statm")
    if not statistics.exists():
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = int(statistics.read_text().split()[5]) * resource.getpagesize() + _MEMORY
    least = min((most, *(limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY)))
    resource.setrlimit(resource.RLIMIT_DATA, (least, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
