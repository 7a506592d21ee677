"""Weights go on after the last module and floors after the last batch that a killed run had done."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import probes
from probes.capture import behaviour_floor, noise_floor
from probes.errors import RunError
from probes.store.unfinished import Unfinished
from tests.hostile.forked import tree
from tests.pairs import PROMPTS, build_pair, write_suite
from tv.measures import tables
from tv.runtime.compute import Compute

STAGES = ("weights", "noise_floor")
BATCHES = 3  # six prompts, two a batch


class Killed(BaseException):
    """Nothing catches it."""


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pair")
    options = {"batch_size": 2, "measure": ["gates", "behaviour"], "attribute": None}
    return write_suite(directory, *build_pair(directory), **options)


@pytest.fixture(scope="module")
def whole(suite: Path, tmp_path_factory: pytest.TempPathFactory) -> probes.Run:
    return probes.run(suite, out=tmp_path_factory.mktemp("whole") / "run", stages=STAGES)


def _counted(function: Callable[..., Any], calls: list[int], last: int | None = None) -> Callable[..., Any]:
    """The function, which counts its calls and is killed in the last."""

    def call(*args: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == last:
            raise Killed
        return function(*args, **options)

    return call


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("where", "calls", "killed_in", "kept"),
    [
        (
            (tables, "measure_module"),
            None,
            5,
            "weights moved: 4 of {} modules; still to do: weights moved, noise_floor",
        ),
        (
            (noise_floor, "_compared"),
            BATCHES,
            2,
            "weights moved, noise_floor: 1 batch of gates; still to do: noise_floor",
        ),
        (
            (behaviour_floor, "_logits"),
            2 * BATCHES,
            6,
            "weights moved, noise_floor: 3 batches of gates and 2 batches of behaviour; still to do: noise_floor",
        ),
    ],
)
def test_a_killed_piece_repeats_one_part(
    where: tuple[Any, str],
    calls: int | None,
    killed_in: int,
    kept: str,
    suite: Path,
    whole: probes.Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    module, name = where
    rows = whole["weights"]
    modules = len(rows[rows["head"] < 0]) if calls is None else calls  # a matrix is a row, and so is each of its heads
    done, function = [0], getattr(module, name)
    with monkeypatch.context() as patch:
        patch.setattr(module, name, _counted(function, done, killed_in))
        with pytest.raises(Killed):
            probes.run(suite, out=tmp_path / "run", stages=STAGES)
    monkeypatch.setattr(module, name, _counted(function, done))
    run = probes.run(suite, out=tmp_path / "run", stages=STAGES)
    assert modules < done[0] <= modules + (2 if name == "_logits" else 1)  # a batch reads two models
    lines = [record.getMessage() for record in caplog.records if record.name == "probes.job.job"]
    assert lines == [f"resuming; done already: {kept.format(modules)}"]
    assert run.manifest["tables"] == whole.manifest["tables"]
    assert tree(tmp_path / "run") == tree(whole.path)


def test_what_it_tells_begins_with_what_is_there(suite: Path, whole: probes.Run, tmp_path: Path) -> None:
    def interrupted(stage: str, done: int, *_: object) -> None:
        if stage == "weights moved" and done == 7:
            raise KeyboardInterrupt

    told = list[int]()
    with pytest.raises(KeyboardInterrupt):
        probes.run(suite, out=tmp_path / "run", stages=["weights"], compute=Compute(progress=interrupted))
    compute = Compute(progress=lambda _, done, *__: told.append(done))
    run = probes.run(suite, out=tmp_path / "run", stages=["weights"], compute=compute)
    assert told == list(range(7, told[-1] + 1))
    for table in run.tables:
        pd.testing.assert_frame_equal(run[table], whole[table], check_exact=True)
    assert set(run.tables) == {"prompts", "weights", "alignment", "spectra"} and len(run["prompts"]) == len(PROMPTS)


def test_parts_come_back_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    first = Unfinished(tmp_path / "a" / "b" / "parts.jsonl")
    first["é 1"] = [0.1 + 0.2, float("nan"), np.float64(1e-310), np.int64(3), None, "x", True]
    first["2"] = {"up": -0.0}
    whole = first.file.read_bytes()
    first.file.write_bytes(whole + b'{"3": [1, 2')  # a kill in the middle of a line
    second = Unfinished(first.file)
    assert list(second) == ["é 1", "2"] and repr(dict(second)) == repr(dict(first))
    assert repr(second["é 1"]) == "[0.30000000000000004, nan, 1e-310, 3, None, 'x', True]"
    assert first.file.read_bytes() == whole
    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(RunError, match="cannot be created: No space left"):
        Unfinished(tmp_path / "c" / "parts.jsonl")["1"] = 1
