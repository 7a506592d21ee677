"""One self-contained HTML page: a template, panels of figures, and the script that draws them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from probes.reporting.panel import Panel
from probes.reporting.words import linked, number, signed

_HERE = Path(__file__).parent


def render(template: str, panels: Iterable[Panel], links: Mapping[str, Any], **values: Any) -> str:
    """The page as HTML. Everything that is not markup is escaped, and the page loads nothing.

    `links` are the points of a page's link scatters, by chapter; `values` are the template's variables.
    """
    environment = Environment(
        loader=PackageLoader("probes.reporting", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "signed": signed, "linked": linked}
    figures = {figure.id: list(figure.plots) for panel in panels for figure in panel.figures}
    return environment.get_template(template).render(
        **values,
        style=_file("style.css"),
        script=_file("page.js"),
        plotly=Markup(get_plotlyjs()),
        data=_embedded({"figures": figures, "links": links}),
    )


def _file(name: str) -> Markup:
    return Markup((_HERE / name).read_text(encoding="utf-8"))


def _embedded(content: Mapping[str, Any]) -> Markup:
    """JSON that is safe inside a script element: `&`, `<` and `>` are escaped."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))
