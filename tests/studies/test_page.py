"""The study's page: every number on it is the committed tables'."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from studies.real_models.answers.shown import Tables
from studies.real_models.figures import FIGURES, draw
from studies.real_models.page import IMAGES, PAGE, page
from studies.real_models.tables import COMMITTED, load


@pytest.fixture(scope="module")
def tables() -> Tables:
    return load(COMMITTED)


def test_the_page_is_what_the_tables_say(tables: Tables) -> None:
    """Run `python -m studies.real_models.page` after a change of tables or of the template."""
    assert PAGE.read_text(encoding="utf-8") == page(tables)


def test_another_number_is_another_page(tables: Tables) -> None:
    weights = tables["weights"].assign(delta_norm=2 * tables["weights"].delta_norm)
    assert page(tables | {"weights": weights}) != page(tables)


def test_every_figure_is_drawn_and_shown(tables: Tables, tmp_path: Path) -> None:
    draw(tables, tmp_path)
    shown = re.findall(rf"\({IMAGES}/(\w+)\.svg\)", page(tables))
    assert sorted(shown) == sorted(FIGURES) == sorted(path.stem for path in tmp_path.iterdir())
    for name in FIGURES:
        drawn, kept = ((folder / f"{name}.svg").read_text() for folder in (tmp_path, PAGE.parent / IMAGES))
        assert _words(drawn) == _words(kept)


def test_no_weights_and_few_megabytes_are_committed(tables: Tables) -> None:
    files = [path for path in COMMITTED.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".csv"} and sum(path.stat().st_size for path in files) < 8 * 2**20
    assert tables["digests"].sha256.str.fullmatch(r"[0-9a-f]{64}").all()


def _words(svg: str) -> list[str]:
    """What a figure says: its titles, labels and legends."""
    return re.findall(r">([^<>\s][^<>]*)</text>", svg)
