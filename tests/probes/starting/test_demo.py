"""`probes demo`: which suite it runs, and where."""

import webbrowser
from pathlib import Path
from typing import Any

import pytest

from probes.cli import demo, main
from probes.errors import RunError
from probes.starting import demo as packaged
from tests.command import call
from tests.docs.commands import ROOT


def test_the_demo_runs_the_suite_of_the_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[dict[str, Any]] = []
    opened: list[str] = []
    monkeypatch.setattr(demo, "run", lambda **given: asked.append(given))
    monkeypatch.setattr(webbrowser, "open", opened.append)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert call(monkeypatch, capsys, main, "demo", "--open")[0] == 0
    suite = ROOT / "data" / "suites" / "demo.yaml"
    assert asked == [{"suite": suite, "out": "reports/demo", "force": False}]
    assert opened == [(tmp_path / "reports" / "demo" / "report.html").as_uri()]


def test_an_archive_that_is_damaged_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "demo.tar.bz2").write_bytes(b"no archive")
    monkeypatch.setattr(packaged, "_PACKED", tmp_path / "demo.tar.bz2")
    monkeypatch.setenv("TUNING_PROBES_CACHE", str(tmp_path / "cache"))
    with pytest.raises(RunError, match="cannot be unpacked there"):
        packaged.demo_suite()
    assert not [*(tmp_path / "cache" / "demo").iterdir()]
    monkeypatch.setenv("TUNING_PROBES_CACHE", "off")
    with pytest.raises(RunError, match="is off; set it to a folder"):
        packaged.demo_suite()
