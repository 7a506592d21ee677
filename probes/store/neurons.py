"""The table `neurons`: every shard counts over its prompts, and the counts are summed once all are there."""

from __future__ import annotations

from functools import reduce
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from probes.store.parquet import cast
from probes.store.schemas import SCHEMAS

#: The directory inside a run's that holds the shards' counts until they are summed.
SHARES = "shares"

_KEYS = ["tuned", "domain", "layer", "expert", "neuron"]
_COUNTS = [name for name in SCHEMAS["neurons"].names if name not in _KEYS]


def summed(directory: Path) -> pa.Table | None:
    """One row a neuron, domain and tuned model, summed from the shards' counts; None where there are none."""
    parts = sorted((directory / SHARES).rglob("*.parquet"))
    if not parts:
        return None
    tables = (pq.read_table(part, partitioning=None).select([*_KEYS, *_COUNTS]) for part in parts)
    total = reduce(lambda total, part: _sum(pa.concat_tables([total, part.cast(total.schema)])), tables)
    return cast("neurons", total.sort_by([(key, "ascending") for key in _KEYS]), {}, ())


def _sum(table: pa.Table) -> pa.Table:
    """Rows of one key added up."""
    totals = table.group_by(_KEYS).aggregate([(name, "sum") for name in _COUNTS])
    return totals.select([*_KEYS, *(f"{name}_sum" for name in _COUNTS)]).rename_columns([*_KEYS, *_COUNTS])
