"""`probes query`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from probes.cli.options import RunPath
from tv.cli.output import check_output, write_table
from tv.cli.terminal import Shown, print_table, say


def query(
    path: RunPath,
    statement: Annotated[str, typer.Argument(help="One SELECT statement in the SQL of DuckDB.", metavar="SQL")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the whole answer to this file: .csv, .parquet or .json.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows to print.")] = 40,
) -> None:
    """Query the tables of a run with SQL, which can read these tables only and cannot change them.

    Example: probes query reports/demo "SELECT layer, avg(flip_rate) AS flips FROM gates GROUP BY layer ORDER BY layer"
    """
    import probes

    check_output(out)
    found = probes.load(path).sql_arrow(statement)
    if out is not None:
        write_table(found, out)
        return
    shown = found.slice(0, rows).to_pandas(integer_object_nulls=True)  # whole numbers stay whole beside missing ones
    cells = [[_cell(value) for value in row] for row in shown.itertuples(index=False)]
    print_table("", found.column_names, cells, digits=5)
    if found.num_rows > rows:
        say(f"{found.num_rows - rows:,} more rows; --rows N prints N rows, --out FILE writes all")


def _cell(value: object) -> object:
    return Shown(value, f"{len(value)} bytes") if isinstance(value, bytes) else value
