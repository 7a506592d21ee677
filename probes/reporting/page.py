"""One self-contained HTML page: a template, panels of figures, and the script that draws them."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from probes.reporting.claim import clauses, linked
from probes.reporting.panel import Panel
from probes.reporting.words import ending, number, signed

_HERE = Path(__file__).parent


def render(
    template: str,
    panels: Iterable[Panel],
    links: Mapping[str, Any],
    likely: Mapping[str, Any] | None = None,
    **values: Any,
) -> str:
    """The page as HTML. Everything that is not markup is escaped, and the page loads nothing. It holds
    what draws figures where it has any.

    `links` are the points of a page's link scatters, by chapter, and `likely` the likeliest tokens at each token of its
    prompts (`probes.reporting.prompts.packed_likely`); `values` are the template's variables.
    """
    figures = {figure.id: list(figure.plots) for panel in panels for figure in panel.figures}
    data = {"figures": figures, "links": links, "likely": likely or {}}
    page = _templates().get_template(template)
    return page.render(
        **values,
        style=_file("style.css"),
        script=_file("page.js"),
        plotly=_plotly() if figures else "",
        data=_packed(json.dumps(data, separators=(",", ":"), allow_nan=False)),
    )


def part(template: str, **values: Any) -> Markup:
    """A part of a page, from a template of its own; what is no markup is escaped."""
    return Markup(_templates().get_template(template).render(**values))


@cache
def _templates() -> Environment:
    """The pages' templates, each compiled once."""
    environment = Environment(
        loader=PackageLoader("probes.reporting", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "signed": signed, "linked": linked, "clauses": clauses, "ending": ending}
    return environment


@cache
def _plotly() -> Markup:
    """What draws figures, the same on every page."""
    return _packed(get_plotlyjs())


def _file(name: str) -> Markup:
    return Markup((_HERE / name).read_text(encoding="utf-8"))


def _packed(text: str) -> Markup:
    """Compressed, as base64: a third of the size, and nothing in it can end a script element.

    The same text gives the same bytes: no time is written.
    """
    return Markup(base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode())
