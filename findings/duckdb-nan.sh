#!/bin/sh
# A Parquet file with NaN in it, as pyarrow writes it: DuckDB counts none with isnan(x), keeps all with NOT isnan(x),
# and finds another maximum than in the same rows in memory. Nothing is raised.
#
# duckdb 2.0.1, pyarrow 26.0.1. Eight rows of which two are NaN, in two row groups, as a table and as a file:
#   count(*) WHERE isnan(x): 2 and 0
#   count(*) WHERE x > 0.5: 5 and 4
#   count(*) WHERE x <= 1: 6 and 8
#   avg(x) WHERE NOT isnan(x): 0.4833 and nan
#   max(x): nan and 0.9
# - Parquet's statistics leave NaN out of minimum and maximum by rule. DuckDB takes them to be the bounds of all rows
#   (read_parquet's can_have_nan, false by default): a condition that the bounds decide is never asked of the rows, and
#   row groups below a threshold are skipped, NaN and all, though NaN > 0.5 is true in DuckDB. So a count depends on the
#   size of the row groups.
# - With can_have_nan=true all five agree. Files that DuckDB writes carry no bounds where there is NaN, and agree too.
#
# Exits 0 while that is so, 1 once a file reads as its table.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet duckdb==2.0.1 pyarrow==26.0.1
cd "$place"
"$place/venv/bin/python" - <<'PYTHON'
import sys

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

nan = float("nan")
rows = pa.table({"x": [0.1, 0.2, nan, 0.4, 0.6, 0.7, nan, 0.9]})
pq.write_table(rows, "x.parquet", row_group_size=4)
QUERIES = ("count(*) WHERE isnan(x)", "count(*) WHERE x > 0.5", "count(*) WHERE x <= 1")
QUERIES += ("avg(x) WHERE NOT isnan(x)", "max(x)")


def answers(source):
    found = []
    for query in QUERIES:
        what, _, where = query.partition(" WHERE ")
        ((value,),) = duckdb.sql(f"SELECT {what} FROM {source} WHERE {where or 'true'}").fetchall()
        found.append(f"{value:.4g}")
    return found


print("duckdb", duckdb.__version__)
memory, file = answers("rows"), answers("'x.parquet'")
for query, *pair in zip(QUERIES, memory, file):
    print(f"{query}:", " and ".join(pair))
told = answers("read_parquet('x.parquet', can_have_nan=true)")
sys.exit(not (told == memory and all(one != other for one, other in zip(memory, file))))
PYTHON
