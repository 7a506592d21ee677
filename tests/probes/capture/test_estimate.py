"""What a run takes on disk, told in advance, against what it takes."""

import os
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

import probes
from probes.capture.estimate import require_space
from probes.errors import RunError
from tests.pairs import build_pair, write_suite
from tests.runs import NO_REPORT
from tv.runtime.compute import Compute

DEMO = Path(__file__).parents[3] / "data"


def _taken(run: probes.Run, table: str) -> int:
    return sum(path.stat().st_size for path in (run.path / "tables" / table).rglob("*.parquet"))


def _told(suite: Any, out: Path) -> tuple[probes.Run, dict[str, int]]:
    job = probes.prepare(suite, stages=NO_REPORT, out=out)
    return job.run(), job.sizes


def test_the_demo_takes_what_was_told(tmp_path: Path) -> None:
    """All tables, of one tuned model and a third of the prompts."""
    suite = {
        "name": "demo",
        "base": str(DEMO / "models" / "base"),
        "tuned": {"medical": str(DEMO / "models" / "medical")},
        "prompts": [{"file": str(DEMO / "prompts" / "medical.jsonl")}],
        "keep": ["resid_post", "attn_out", "embed_out"],
    }
    run, told = _told(suite, tmp_path / "run")
    small = {
        "answers",
        "weights",
        "alignment",
        "spectra",
        "prompts",
        "link",
        "correlations",
        "noise_floor",
        "behaviour_floor",
    }
    assert set(told) == set(run.tables) - small
    for table, expected in told.items():
        assert expected / 2 <= _taken(run, table) <= expected * 2, (table, expected, _taken(run, table))


@pytest.mark.sampled(1)
@pytest.mark.parametrize("architecture", ["gpt2", "qwen2_moe"])
def test_other_architectures(architecture: str, tmp_path: Path) -> None:
    """Tiny files are mostly what every file has; rows are few."""
    suite = write_suite(tmp_path, *build_pair(tmp_path, architecture), attribute=None, ledger_positions="all")
    run, told = _told(suite, tmp_path / "run")
    for table, expected in told.items():
        assert expected / 2 <= _taken(run, table) <= expected * 2, (table, expected, _taken(run, table))


def test_only_what_is_measured_is_counted(tmp_path: Path) -> None:
    base, tuned = build_pair(tmp_path, "llama")
    suite = write_suite(tmp_path, base, tuned, measure=["changes", "gates"], sites=["mlp_out"], attribute=None)
    run, told = _told(suite, tmp_path / "run")
    assert set(told) == {"tokens", "predictions", "changes"} == set(run.tables) & {*told, "gates", "neurons", "ledger"}


def test_a_disk_without_room_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    suite = write_suite(tmp_path, *build_pair(tmp_path, "llama"), attribute=None)
    before = sorted(os.listdir(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 10_000, 10_000))
    stages: list[str] = []
    with pytest.raises(RunError, match=r"the run takes about 0\.000\d+ GB, and 1e-05 GB are free there") as caught:
        probes.run(suite, out=tmp_path / "new" / "run", compute=Compute(progress=lambda name, *_: stages.append(name)))
    assert "\n" not in str(caught.value) and set(stages) == {"load models and check their structure"}
    assert sorted(os.listdir(tmp_path)) == before
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "a.parquet").write_bytes(b"x" * 5000)
    require_space(tmp_path / "part", 14_000)  # what is there already needs no room
    with pytest.raises(RunError):
        require_space(tmp_path / "part", 16_000)
    with pytest.raises(RunError, match="the run takes about 1\\.1e-05 GB"):
        require_space(tmp_path / "part", 14_000, besides=2_000)
    (tmp_path / "part" / "batches").mkdir()
    (tmp_path / "part" / "batches" / "00001.read").write_bytes(b"x" * 1500)
    require_space(tmp_path / "part", 14_000, besides=2_000)
