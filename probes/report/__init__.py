"""The report: one self-contained HTML file that a person reads top to bottom."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from probes.errors import RunError
from probes.report.chapter import Chapter, chapter
from probes.report.tables import link_points
from probes.report.verdict import METRICS, number
from probes.store import Run
from tv.atomic import replacing

_HERE = Path(__file__).parent


def report(run: Run, *, to: Path | None = None) -> Path:
    """Write the report of `run` to `to` (default report.html in the run) and return its path.

    The file loads nothing from anywhere. Whatever comes from prompts, models or names is escaped. Raises RunError where
    it cannot be written.
    """
    path = to or run.path / "report.html"
    chapters = [chapter(run, name) for name in run.manifest["suite"]["tuned"]]
    environment = Environment(
        loader=PackageLoader("probes.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["number"] = number
    page = environment.get_template("template.html").render(
        suite=run.manifest["suite"],
        manifest=run.manifest,
        chapters=chapters,
        metrics=METRICS,
        plotly=Markup(get_plotlyjs()),
        style=Markup((_HERE / "style.css").read_text(encoding="utf-8")),
        script=Markup((_HERE / "page.js").read_text(encoding="utf-8")),
        data=_embedded(run, chapters),
    )
    with replacing(path, RunError) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _embedded(run: Run, chapters: list[Chapter]) -> Markup:
    """Figures and link points as JSON that is safe inside a script element: no `<` survives as itself."""
    content = {
        "figures": {
            figure.id: figure.plot.to_plotly_json() for c in chapters for s in c.sections for figure in s.figures
        },
        "links": {c.id: link_points(run, c.tuned) for c in chapters},
    }
    text = json.dumps(content, default=_plain, ensure_ascii=True)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [None if isinstance(v, float) and np.isnan(v) else v for v in value.tolist()]
    if isinstance(value, np.generic):
        return value.item()
    return value.to_plotly_json()
