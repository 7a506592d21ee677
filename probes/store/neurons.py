"""The table `neurons`: every shard counts over its prompts, and the counts are summed once all are there."""

from __future__ import annotations

from functools import reduce
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from probes.store.parquet import cast
from probes.store.schemas import SCHEMAS

#: The directory inside a run's that holds the shards' counts until they are summed.
SHARES = "shares"

_KEYS = ["tuned", "domain", "layer", "expert", "neuron"]
_COUNTS = [name for name in SCHEMAS["neurons"].names if name not in _KEYS]
#: Neurons that are listed of a tuned model.
LISTED = 20


def flipped_most(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of `neurons` whose gate differs on most tokens of a domain, with that share as `rate`.

    Examples:
        >>> rows = pd.DataFrame({"neuron": [0, 1, 2], "n": [4, 4, 4], "n_flips": [1, 0, 3]})
        >>> flipped_most(rows).neuron.tolist()
        [2, 0]
    """
    rows = rows.assign(rate=rows.n_flips / rows.n)
    return rows[rows.rate > 0].nlargest(LISTED, "rate")


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
