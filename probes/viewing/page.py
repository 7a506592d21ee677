"""The page and the notebook's widget, out of the same script and style."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path

_HERE = Path(__file__).parent


def page() -> str:
    """The page without any data, as HTML: it asks for everything."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>Both models, live</title><style>{style()}</style></head>'
        f'<body><main id="view"></main><script type="module">{_of_page()}</script></body></html>\n'
    )


def policy() -> str:
    """The page's Content-Security-Policy: this script, this style, this server, and nothing else."""
    return (
        f"default-src 'none'; script-src '{_digest(_of_page())}'; style-src '{_digest(style())}'; connect-src 'self'; "
        "frame-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


#: The policy of a run's report, which has scripts of its own: an origin of its own too, so it reaches nothing here.
REPORT_POLICY = (
    "sandbox allow-scripts allow-downloads; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; frame-ancestors 'self'"
)


def style() -> str:
    """The style sheet; it touches nothing outside the view."""
    return _file("view.css")


def widget_script() -> str:
    """The module that a notebook loads."""
    return _file("view.js") + _file("widget.js")


def _of_page() -> str:
    return _file("view.js") + _file("page.js")


@cache
def _file(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
