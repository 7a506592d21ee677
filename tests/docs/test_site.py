"""The documentation builds into a site that loads nothing from elsewhere."""

import re
from pathlib import Path

import pytest

from tests.docs.commands import ROOT

pytest.importorskip("mkdocs", reason="mkdocs is not installed")


def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strictly: a link to nowhere, a page outside the navigation or a name that is gone is an error."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    monkeypatch.chdir(ROOT)
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path / "site")))
    pages = {page.relative_to(tmp_path / "site").as_posix(): page.read_text() for page in tmp_path.rglob("*.html")}
    assert {"index.html", "tutorial.html", "reference/tv.html"} <= pages.keys()
    assert "Raises" in pages["reference/tv.html"]  # docstrings are there
    for name, text in pages.items():
        loaded = re.findall(r"<(?:script|img|link|iframe)[^>]+(?:src|href)=\"(https?:[^\"]+)", text)
        assert not loaded, (name, loaded)
