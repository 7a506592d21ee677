"""What a section of the report is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from probes.reporting.figures import Plot

#: Said wherever gate patterns of a model without a GLU are shown.
NO_GLU = "No GLU: what is shown is the sign of the MLP's pre-activation."


@dataclass(frozen=True)
class Figure:
    """One plot, in as many versions as its panel has choices (or in one)."""

    id: str
    title: str
    plots: Sequence[Plot]
    kind: str = "plot"  # or "scatter", which the page fills


@dataclass(frozen=True)
class Table:
    """Cells as text under the names of their columns; the page aligns what begins with a digit or a sign."""

    id: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Panel:
    """Figures that belong side by side, how to read them, the choices that switch all of them, and tables below."""

    title: str
    note: str
    figures: Sequence[Figure]
    choices: Sequence[str] = field(default_factory=list)
    choose: str = ""
    wide: bool = False
    tables: Sequence[Table] = field(default_factory=list)
