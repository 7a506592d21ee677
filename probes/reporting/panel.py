"""What a page is made of: sections, the panels in them, and their figures and tables.

A panel is one decorated function in one file: see `probes.reporting.chapter.panel` for the report's, and
`probes.reporting.compare.comparison.compare_panel` for the comparison's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

from markupsafe import Markup

from probes.reporting.figures import Plot
from tv.runtime.registry import Registry

#: The note wherever gate patterns of a model without a GLU are shown.
NO_GLU = "No GLU: what is shown is the sign of the MLP's pre-activation."
#: The order of a panel that sets none: below those that do.
LAST = 1000


@dataclass(frozen=True)
class Figure:
    """One plot, in one version for each choice of its panel (or in one)."""

    id: str
    title: str
    plots: Sequence[Plot]
    kind: str = "plot"  # or "scatter", which the page fills


@dataclass(frozen=True)
class Table:
    """Cells as text under the names of their columns; the page aligns cells that begin with a digit or a sign."""

    id: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Panel:
    """Figures that belong side by side, how to read them, the choices that switch all of them, and tables below.

    With a second choice, a figure's plots are those of the first choice in the order of the second, then of the next.
    """

    title: str
    note: str
    figures: Sequence[Figure]
    choices: Sequence[str] = field(default_factory=list)
    choose: str = ""
    second: Sequence[str] = field(default_factory=list)
    choose_second: str = ""
    wide: bool = False
    tables: Sequence[Table] = field(default_factory=list)
    below: Markup | None = None  # of a template of its own: `probes.reporting.page.part`


Fold = Literal["open", "closed", "never"]


@dataclass(frozen=True)
class Section:
    """A part of a page: its panels under a title, or a sentence that says why there are none."""

    id: str
    name: str  # in the page's navigation
    title: str
    absent: str  # shown where no panel has anything to show
    intro: str = ""
    template: str = "section.html"  # of the part below the title
    fold: Fold = "closed"  # how it stands at first
    optional: bool = False  # left out where it has nothing to show


Subject = TypeVar("Subject")
Draw = Callable[[Subject], Iterable[Panel] | None]


@dataclass(frozen=True)
class Entry(Generic[Subject]):
    """A registered panel function: its section, its place in it, and the tables that it needs."""

    section: str
    order: int
    needs: tuple[str, ...]
    draw: Draw[Subject]


class Panels(Generic[Subject]):
    """The panel functions of one kind of page, by section."""

    def __init__(self, kind: str, room: str, sections: Iterable[Section]) -> None:
        """Args:
        kind: What an entry is, for messages: "report panel".
        room: The package whose files define panels.
        sections: The sections of the page, in their order.
        """
        self.sections: dict[str, Section] = {}
        for section in sections:
            if section.id in self.sections:
                raise ValueError(f"{kind}: two sections have the id {section.id!r}")
            self.sections[section.id] = section
        self.registry: Registry[Entry[Subject]] = Registry(kind, room)

    def panel(
        self, section: str, *, order: int = LAST, needs: Sequence[str] = ()
    ) -> Callable[[Draw[Subject]], Draw[Subject]]:
        """A decorator: the page draws the function's panels in `section`.

        Args:
            section: The id of a section of this page.
            order: The panel's place in the section, smallest on top; without it, below all that have one.
            needs: Tables of a run. Where one of them is missing, the panel is left out.

        Raises:
            ValueError: There is no such section, or another file has a panel of this name in it.

        Examples:
            >>> page = Panels("panel", "probes.reporting.panels", [Section("end", "End", "The end", "Nothing.")])
            >>> @page.panel("end", needs=["weights"])
            ... def farewell(subject: str) -> list[Panel]:
            ...     return [Panel(f"Farewell, {subject}", "How to read it.", [])]
            >>> farewell("reader")[0].title
            'Farewell, reader'
        """
        if section not in self.sections:
            raise ValueError(f"{self.registry.kind}: no section {section!r}; use {', '.join(self.sections)}")

        def decorate(draw: Draw[Subject]) -> Draw[Subject]:
            name = f"{section}/{draw.__name__}"
            self.registry.add(name, Entry(section, order, tuple(needs), draw), draw.__module__)
            return draw

        return decorate

    def drawn(self, subject: Subject, tables: Collection[str]) -> dict[str, list[Panel]]:
        """The panels of every section, in order; those whose tables are missing are left out.

        Args:
            subject: What the panels show: a chapter of the report, or a comparison.
            tables: The available tables.

        Returns:
            Panels by the id of their section; an empty list where a section has none.
        """
        panels: dict[str, list[Panel]] = {section: [] for section in self.sections}
        for entry in sorted(self.registry.values(), key=lambda entry: entry.order):
            if set(entry.needs) <= set(tables):
                panels[entry.section] += entry.draw(subject) or ()
        return panels
