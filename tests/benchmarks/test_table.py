"""The performance table: one benchmark's failure is told in its row and stops no other; what was found is kept."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FOUND = [
    {"what": "work", "theirs": "a", "ours": "b", "values": [1.5, 3.0, 2.5]},
    {"what": "work", "theirs": "a", "ours": "c", "values": [0.5]},
]


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The program, over small benchmarks: one works, one breaks, one hangs, one lacks what it needs."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    own, wanted, results = (importlib.import_module(name) for name in ("table", "wanted", "results"))
    scripts = {
        "works.py": f"import sys; open(sys.argv[-1], 'w').write({json.dumps(FOUND)!r})",
        "breaks.py": "raise ValueError('no | room')",
        "hangs.py": "import time; time.sleep(60)",
    }
    for name, text in scripts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    rows = [
        wanted.Row("works", "work", "a", "b", 2),
        wanted.Row("works", "work", "a", "c", 0.6),
        wanted.Row("breaks", "broken", "a", "b", 2),
        wanted.Row("hangs", "endless", "a", "b"),
        wanted.Row("lacks", "elsewhere", "mergekit", "b"),
        wanted.Row("lengthy", "all night", "a", "b"),
    ]
    runs = {
        "breaks": wanted.Run("breaks.py"),
        "hangs": wanted.Run("hangs.py", minutes=0.01),
        "lacks": wanted.Run("works.py", "{mergekit}"),
        "lengthy": wanted.Run("works.py", long=True),
        "works": wanted.Run("works.py", rounds=3),
    }
    for name, value in (("HERE", tmp_path), ("RUNS", runs), ("ROWS", rows)):
        monkeypatch.setattr(own, name, value)
    monkeypatch.setattr(results, "BOUNDS", {(r.what, r.theirs, r.ours): r.wanted for r in rows if r.wanted})
    return own


def _run(table: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["table.py", "--keep", str(tmp_path / "kept"), *arguments])
    table.main()


def test_every_row_is_told(
    table: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="failed: breaks, hangs"):
        _run(table, monkeypatch, tmp_path)
    said = capsys.readouterr().out
    assert "| work | a / b | 2.50 (1.50–3.00) | ≥ 2.00 | yes |" in said
    assert "| work | a / c | 0.50 (one round) | ≥ 0.60 | **no** |" in said
    assert "| broken | a / b | failed: ValueError: no ¦ room | ≥ 2.00 | |" in said
    assert "| endless | a / b | failed: not done after 0.01 minutes |  | |" in said
    assert "| elsewhere | mergekit / b | not run: needs --mergekit |  | |" in said
    assert "| all night | a / b | not run |  | |" in said
    kept = json.loads((tmp_path / "kept" / "works.json").read_text(encoding="utf-8"))
    assert kept["command"].endswith("works.py --rounds 3") and "cores" in kept["machine"] and kept["date"]


def test_one_row_is_measured_again_and_written(
    table: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _run(table, monkeypatch, tmp_path, "--only", "works")
    page = tmp_path / "page.md"
    page.write_text("Before.\n<!-- benchmarks: works -->\nold\n<!-- /benchmarks -->\nAfter.\n", encoding="utf-8")
    _run(table, monkeypatch, tmp_path, "--write", str(page))
    text = page.read_text(encoding="utf-8")
    assert "2.50 (1.50–3.00)" in text and "old" not in text and "endless" not in text
    assert text.startswith("Before.\n<!--") and text.endswith("<!-- /benchmarks -->\nAfter.\n")
    _run(table, monkeypatch, tmp_path, "--write", str(page))
    assert page.read_text(encoding="utf-8") == text
    page.write_text(text.replace("works -->", "works typo -->"), encoding="utf-8")
    with pytest.raises(SystemExit, match="there is no benchmark typo"):
        _run(table, monkeypatch, tmp_path, "--write", str(page))
    with pytest.raises(SystemExit):
        _run(table, monkeypatch, tmp_path, "--only", "unknown")


def test_rows_are_found_by_runs_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    wanted = importlib.import_module("wanted")
    assert {row.run for row in wanted.ROWS} == set(wanted.RUNS)
    assert len({(row.what, row.theirs, row.ours) for row in wanted.ROWS}) == len(wanted.ROWS) > 30
    assert all((BENCHMARKS / run.script).is_file() for run in wanted.RUNS.values())
