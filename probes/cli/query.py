"""`probes query`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from probes.cli.options import RunPath
from probes.errors import RunError
from tv.atomic import replacing
from tv.cli.terminal import print_table, say, wrote

if TYPE_CHECKING:
    import pyarrow as pa


def query(
    path: RunPath,
    statement: Annotated[str, typer.Argument(help="One SELECT, in DuckDB's dialect.", metavar="SQL")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the whole answer: .csv, .parquet or .json.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows that are printed.")] = 40,
) -> None:
    """Ask a run's tables in SQL. It reads those tables and nothing else, and never writes to them.

    Example: probes query reports/demo "SELECT layer, avg(flip_rate) AS flips FROM gates GROUP BY layer ORDER BY layer"
    """
    import probes

    found = probes.load(path).sql_arrow(statement)
    if out is not None:
        _write_answer(found, out)
        wrote(out, f"{found.num_rows:,} rows")
        return
    cells = [[_cell(value) for value in row] for row in found.slice(0, rows).to_pandas().itertuples(index=False)]
    print_table("", found.column_names, cells, digits=5)
    if found.num_rows > rows:
        say(f"{found.num_rows - rows:,} rows more; --rows N prints N, --out FILE writes all")


def _write_answer(found: pa.Table, out: Path) -> None:
    """Written whole or not at all."""
    import pyarrow.parquet as pq

    writers: dict[str, Callable[[Path], object]] = {
        ".csv": lambda path: found.to_pandas().to_csv(path, index=False),
        ".parquet": lambda path: pq.write_table(found, path),
        ".json": lambda path: found.to_pandas().to_json(path, orient="records"),
    }
    if out.suffix not in writers:
        raise RunError(f"{out}: its name ends in none of {', '.join(writers)}, which say how to write it")
    with replacing(out, RunError) as temporary:
        writers[out.suffix](temporary)


def _cell(value: object) -> object:
    return f"{len(value)} bytes" if isinstance(value, bytes) else value
