"""A panel is one function: where it stands, when it is left out, and that it shows by itself on its page."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import probes
from probes.reporting.chapter import REPORT, Chapter, panel
from probes.reporting.compare.comparison import COMPARISON, Comparison, compare_panel
from probes.reporting.figures import layout
from probes.reporting.panel import Figure, Panel, Panels, Section, Table
from tests.pages import data_of
from tests.pairs import build_pair, write_suite
from tests.runs import NO_REPORT

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> probes.Run:
    folder = tmp_path_factory.mktemp("panel")
    base, tuned = build_pair(folder)
    tuned_models = {"one": str(tuned), "two": str(tuned)}
    suite = write_suite(folder, base, tuned, tuned=tuned_models, attribute=None, measure=["behaviour"], bootstrap=20)
    return probes.run(suite, out=folder / "run", stages=NO_REPORT)


@pytest.fixture
def plugged(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What tests register is gone after them."""
    for registry in (REPORT.registry, COMPARISON.registry):
        assert len(registry)  # its own panels are read before they are copied
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    yield


def _toy(title: str) -> Panel:
    figure = Figure("toy", "Toy figure", [{"data": [], "layout": layout(height=100)}])
    return Panel(title, HOSTILE, [figure], tables=[Table("toy-table", "", ["<i>"], [[HOSTILE]])])


def _page() -> Panels[str]:
    return Panels(
        "toy panel", "probes.reporting.compare.panels", [Section("a", "A", "A", "none"), Section("b", "B", "B", "none")]
    )


def test_panels_stand_in_order_and_those_without_one_below() -> None:
    page = _page()
    page.panel("b")(lambda who: [Panel(f"last of {who}", "", [])])

    @page.panel("b", order=20)
    def second(who: str) -> list[Panel]:
        return [Panel("second", "", []), Panel("third", "", [])]

    @page.panel("b", order=10)
    def first(who: str) -> Iterator[Panel]:
        yield Panel("first", "", [])

    @page.panel("b", order=15)
    def nothing(who: str) -> None:
        return None

    drawn = page.drawn("all", [])
    assert [panel.title for panel in drawn["b"]] == ["first", "second", "third", "last of all"] and drawn["a"] == []


def test_a_panel_whose_table_is_missing_is_not_called() -> None:
    page = _page()

    @page.panel("a", needs=["weights", "gates"])
    def needy(who: str) -> list[Panel]:
        raise AssertionError("it is called without its tables")

    assert page.drawn("x", ["weights"]) == {"a": [], "b": []}
    with pytest.raises(AssertionError):  # a panel that fails is a fault to mend, never a page without it
        page.drawn("x", ["weights", "gates"])


def test_a_section_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="no section 'weighs'; use behaviour, prompts"):
        panel("weighs")


def test_a_panel_shows_in_every_chapter_by_itself(run: probes.Run, tmp_path: Path, plugged: None) -> None:
    @panel("link", needs=["weights"])
    def toy(chapter: Chapter) -> list[Panel]:
        rows = chapter.rows("weights", "layer relative_norm")
        return [_toy(f"{len(rows)} rows of {chapter.evidence.tuned}")]

    page = probes.report(run, to=tmp_path / "r.html").read_text(encoding="utf-8")
    figures = data_of(page)["figures"]
    assert {"m0-toy", "m1-toy"} <= set(figures)
    rows = run.df("weights", where=[("tuned", "==", "two")])
    assert f"<h4>{len(rows)} rows of two</h4>" in page and 'class="plot" id="m1-toy"' in page
    assert '<table id="m0-toy-table">' in page and HOSTILE not in page and "<i>" not in page
    tables = {name: counts for name, counts in run.manifest["tables"].items() if name != "weights"}
    bare = replace(run, manifest={**run.manifest, "tables": tables})
    assert "m0-toy" not in probes.report(bare, to=tmp_path / "r.html").read_text(encoding="utf-8")


def test_a_panel_of_the_comparison_shows_by_itself(run: probes.Run, tmp_path: Path, plugged: None) -> None:
    @compare_panel("order", needs=["behaviour"])
    def toy(compared: Comparison) -> list[Panel]:
        return [_toy(" and ".join(compared.labels))]

    page = probes.compare([run], to=tmp_path / "c.html").read_text(encoding="utf-8")
    assert "<h4>one and two</h4>" in page and 'class="plot" id="toy"' in page and HOSTILE not in page
