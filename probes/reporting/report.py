"""The report: one self-contained HTML file that a person reads top to bottom."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from probes.errors import RunError
from probes.reporting import tables
from probes.reporting.activation_panels import activation_panels
from probes.reporting.cause_panels import cause_panels, link_panels
from probes.reporting.evidence import Evidence, gather
from probes.reporting.experiment_panels import experiment_panels
from probes.reporting.page import render
from probes.reporting.panels import NO_GLU, Panel
from probes.reporting.prompts import SHOWN, ShownPrompt, prompt_panels, shown_prompts
from probes.reporting.proof_panels import proof_panels
from probes.reporting.trajectory_panels import trajectory_panels
from probes.reporting.verdict import Headline, Statement, headline, verdict
from probes.reporting.weight_panels import cosine_panels, head_panels, spectra_panels, weights_panels
from probes.store.run import Run
from tv.runtime.atomic import replacing


@dataclass(frozen=True)
class Chapter:
    """Everything the report says of one tuned model."""

    key: str
    evidence: Evidence
    headline: list[Headline]
    verdict: list[Statement]
    pair: list[dict[str, str]]
    panels: dict[str, list[Panel]]
    behaviour: list[dict[str, str]]
    correlations: dict[str, list[dict[str, str]]]
    prompts: list[ShownPrompt]


def report(run: Run, *, to: Path | None = None) -> Path:
    """Write the report of `run` to `to` (default report.html in the run) and return its path.

    The file loads nothing from anywhere, and is written whole or not at all. Whatever comes from prompts, models or
    names is escaped. A table that the run lacks leaves its section saying so. Raises RunError where it cannot be
    written.
    """
    if to is None and not isinstance(run.path, Path):
        raise RunError(f"{run.path}: a report is written to this machine; say where with `to`")
    path = Path(run.path) / "report.html" if to is None else Path(to)
    page = _page(run, [_chapter(run, i, name) for i, name in enumerate(run.manifest["suite"]["tuned"])])
    with replacing(path, RunError) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _chapter(run: Run, index: int, tuned: str) -> Chapter:
    key, evidence, prompts = f"m{index}", gather(run, tuned), shown_prompts(run, tuned)
    return Chapter(
        key,
        evidence,
        headline(evidence),
        verdict(evidence),
        tables.pair_rows(run.manifest, tuned),
        {
            "weights": [
                *weights_panels(key, evidence),
                *head_panels(key, evidence, run),
                *spectra_panels(key, evidence, run),
                *cosine_panels(key, evidence, run),
            ],
            "activations": activation_panels(key, evidence) + trajectory_panels(key, evidence, run),
            "causes": cause_panels(key, evidence) + proof_panels(key, evidence, run),
            "link": link_panels(key, evidence),
            "prompts": prompt_panels(key, evidence, run, prompts),
            "experiments": experiment_panels(key, evidence, run),
        },
        tables.behaviour_rows(evidence.behaviour),
        tables.correlation_rows(evidence.correlations),
        prompts,
    )


def _page(run: Run, chapters: list[Chapter]) -> str:
    panels = [panel for chapter in chapters for own in chapter.panels.values() for panel in own]
    return render(
        "report.html",
        panels,
        {chapter.key: tables.link_points(chapter.evidence) for chapter in chapters},
        suite=run.manifest["suite"],
        manifest=run.manifest,
        chapters=chapters,
        no_glu=NO_GLU,
        most_prompts=SHOWN,
    )
