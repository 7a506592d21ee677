"""What a section of the report is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from probes.report.figures import Plot

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
class Panel:
    """Figures that belong side by side, how to read them, and the choices that switch all of them."""

    title: str
    note: str
    figures: Sequence[Figure]
    choices: Sequence[str] = field(default_factory=list)
    choose: str = ""
    wide: bool = False
