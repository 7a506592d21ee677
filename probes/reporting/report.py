"""The report: one self-contained HTML file that a person reads top to bottom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from probes.errors import RunError
from probes.reporting import tables
from probes.reporting.before_after import before_after
from probes.reporting.chapter import REPORT, Chapter, chapters_of
from probes.reporting.discovery.curves import SIDES
from probes.reporting.discovery.found import is_alone
from probes.reporting.discovery.shown import shown_of
from probes.reporting.in_short import verdicts_of
from probes.reporting.page import render
from probes.reporting.panel import NO_GLU, Panel
from probes.reporting.prompts import SHOWN, packed_likely
from probes.reporting.summary import SENTENCES
from probes.reporting.verdict import verdict
from probes.store.run import Run
from probes.store.verdict import write_verdict
from tv.runtime.atomic import replacing


def report(run: Run, *, to: Path | None = None) -> Path:
    """Write the report of a run: one HTML file that a person reads top to bottom, and beside it the run's verdict.

    The file loads nothing, and is written whole or not at all. Text from prompts, models and names is escaped. Where
    the run lacks a table, its section says so.

    Args:
        run: A finished run.
        to: The file to write, and nothing else; without it, report.html and verdict.json (see `Run.verdict`) in the
            run. A run at a URL needs it.

    Returns:
        The file's path.

    Raises:
        RunError: The file cannot be written, or `to` is missing for a run at a URL.

    Examples:
        >>> page = probes.report(probes.load("reports/demo"), to=Path("demo.html"))
        >>> page.read_text(encoding="utf-8")[:15]
        '<!doctype html>'
    """
    if to is None and not isinstance(run.path, Path):
        raise RunError(f"{run.path}: a report is written to this machine; say where with `to`")
    path = Path(run.path) / "report.html" if to is None else Path(to)
    chapters = chapters_of(run)
    page = report_page(run, chapters)
    with replacing(path, RunError) as temporary:
        temporary.write_text(page, encoding="utf-8")
    if to is None:
        write_verdict(Path(run.path), run.manifest, verdicts_of(chapters))
    return path


def report_page(run: Run, chapters: Sequence[Chapter]) -> str:
    """The page of these chapters of `run`, as HTML."""
    shown = [_shown(chapter) for chapter in chapters]
    return render(
        "report.html",
        [panel for chapter in shown for section in chapter["panels"].values() for panel in section],
        {chapter.key: tables.link_points(chapter.evidence) for chapter in chapters},
        {chapter.key: packed_likely(chapter.prompts) for chapter in chapters},
        suite=run.manifest["suite"],
        manifest=run.manifest,
        chapters=shown,
        alone=is_alone(run.tables),
        discovers=any(chapter.found for chapter in chapters),
        no_glu=NO_GLU,
        most_prompts=SHOWN,
        line_names=list(SIDES.values()),
    )


def _shown(chapter: Chapter) -> dict[str, Any]:
    """The template's variables for a chapter."""
    evidence = chapter.evidence
    panels = REPORT.drawn(chapter, chapter.run.tables)
    discovery = shown_of(chapter.found) if chapter.found else {}
    alone = is_alone(chapter.run.tables)
    sections = [
        section
        for section in REPORT.sections.values()
        if panels[section.id] or discovery.get(section.id) or not (section.optional or alone)
    ]
    if "behaviour" not in chapter.run.tables:
        sections.sort(key=lambda section: not section.optional)  # what was discovered is all there is of behaviour
    return {
        "key": chapter.key,
        "left_out": chapter.left_out,
        "evidence": evidence,
        "sentences": [(label, claims) for label, of in SENTENCES.items() if (claims := of(chapter.summary))],
        "chart": before_after(evidence.behaviour, chapter.choices),
        "examples": chapter.examples,
        "verdict": verdict(evidence),
        "pair": tables.pair_rows(chapter.run.manifest, evidence.tuned),
        "panels": {section: [_prefixed(chapter.key, panel) for panel in drawn] for section, drawn in panels.items()},
        "behaviour": tables.behaviour_rows(evidence.behaviour),
        "correlations": tables.correlation_rows(evidence.correlations),
        "prompts": chapter.prompts,
        "discovery": discovery,
        "sections": sections,
    }


def _prefixed(key: str, panel: Panel) -> Panel:
    """The panel with its ids prefixed by the chapter's key, so that they are unique on the page."""
    return replace(
        panel,
        figures=[replace(figure, id=f"{key}-{figure.id}") for figure in panel.figures],
        tables=[replace(table, id=f"{key}-{table.id}") for table in panel.tables],
    )
