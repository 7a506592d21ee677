"""One table of a run as a handle: what it holds is known at once, and read when it is asked for."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa

from probes.schemas import SCHEMAS

if TYPE_CHECKING:
    from probes.store import Run, Where


@dataclass(frozen=True, repr=False)
class Table:
    """A table of a run, as `run.table` gives it: `len(table)` is its rows, and showing it reads none of them."""

    run: Run
    name: str

    def __len__(self) -> int:
        return int(self.run.manifest["tables"][self.name]["rows"])

    @property
    def columns(self) -> dict[str, str]:
        """The type of every column by its name, as Arrow calls it."""
        kinds = {entry.name: entry.type for entry in SCHEMAS[self.name]}
        return {name: str(kind.value_type if pa.types.is_dictionary(kind) else kind) for name, kind in kinds.items()}

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return self.run.size(self.name)

    def df(self, columns: Sequence[str] | None = None, where: Where = None) -> pd.DataFrame:
        """Its columns, for the rows that pass `where`, as a pandas DataFrame; see `Run.df`."""
        return self.run.df(self.name, columns, where)

    def arrow(self, columns: Sequence[str] | None = None, where: Where = None) -> pa.Table:
        """The same as an Arrow table."""
        return self.run.arrow(self.name, columns, where)

    def polars(self, columns: Sequence[str] | None = None, where: Where = None) -> Any:
        """The same as a polars DataFrame. Raises RunError where polars is not installed."""
        return self.run.polars(self.name, columns, where)

    def sql(self, statement: str) -> pd.DataFrame:
        """The answer to one SELECT that names this table, and may join the run's others; see `Run.sql`."""
        return self.run.sql(statement)

    def __repr__(self) -> str:
        width = max(map(len, self.columns))
        return "\n".join([self._title, *(f"  {name:<{width}}  {kind}" for name, kind in self.columns.items())])

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><td>{name}</td><td>{kind}</td></tr>" for name, kind in self.columns.items())
        title = html.escape(self._title)
        return f"<table><caption>{title}</caption><tr><th>column</th><th>type</th></tr>{rows}</table>"

    @property
    def _title(self) -> str:
        return f"{self.name}: {len(self):,} rows, {len(self.columns)} columns, {size_text(self.size)}"


def size_text(size: int) -> str:
    """A number of bytes as people say it: 4.2 MB."""
    power = next(i for i in (0, 1, 2, 3) if size < 1000 ** (i + 1) or i == 3)
    return f"{size / 1000**power:.{min(power, 1)}f} {('B', 'KB', 'MB', 'GB')[power]}"
