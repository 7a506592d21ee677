"""Runs without a page, and runs that say something else than what was measured."""

from typing import Any

import pandas as pd

import probes

#: Every stage of a run but the page, for tests that read its tables: the page is half of a tiny run's work.
NO_REPORT = ("weights", "capture", "noise_floor", "attribute", "link")


def edited(run: probes.Run, table: str, rows: pd.DataFrame) -> probes.Run:
    """The run, with these rows as one of its tables."""

    class Edited(probes.Run):
        def df(self, name: str, columns: Any = None, where: Any = None) -> pd.DataFrame:
            if name != table:
                return super().df(name, columns, where)
            kept = rows
            for column, operator, value in where or ():
                assert operator in ("==", "in"), operator
                kept = kept[kept[column].isin(value if operator == "in" else [value])]
            return kept if columns is None else kept[list(columns)]

    return Edited(run.path, run.manifest)
