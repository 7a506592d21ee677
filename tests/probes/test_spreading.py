"""The seconds of a plan: in proportion to what is done, and divided among workers where tasks can be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import probes
from probes import spreading
from probes.spreading import Step, steps_of
from probes.trial import Pace, Trial
from tests.pairs import build_pair, write_suite
from tv.prompts.encoding import padded_tokens
from tv.runtime.compute import Compute


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spreading")
    return write_suite(folder, *build_pair(folder), batch_size=2)


@pytest.fixture(autouse=True)
def paced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A token takes a second, a row of logits none; how many threads the trials had."""
    threads = list[int]()

    def tried(*_: object) -> Trial:
        threads.append(spreading.torch.get_num_threads())
        return Trial(Pace(2.0, 1.0), Pace(2.0, 1.0), Pace(0.0, 0.0))

    monkeypatch.setattr(spreading, "tried", tried)
    return threads


def _steps(suite: Path, compute: Compute = Compute(), **settings: Any) -> dict[str, Step]:
    return {step.name: step for step in steps_of(probes.plan(suite, settings=settings), compute)}


def test_every_step_of_the_plan_has_its_time(suite: Path) -> None:
    plan = probes.plan(suite)
    found = _steps(suite)
    assert set(found) == set(plan.forwards)
    assert all(step.cpu == 2 * step.wall > 0 for step in found.values())
    assert found["noise floor"].each is None and found["capture"].each == found["capture"].wall
    assert found["noise floor"].wall == 4 * padded_tokens(plan.given.encoded, 2, True) > 4 * plan.tokens


def test_what_spreads_is_divided_by_whole_tasks(suite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six prompts are three batches of two: of three workers each has one, of two one has two."""
    alone = _steps(suite, measure=["gates"])
    monkeypatch.setattr("probes.capture.runner.ROWS_PER_SHARD", 1)
    for workers, share in ((2, 2 / 3), (3, 1 / 3), (9, 1 / 3)):
        found = _steps(suite, Compute(workers=workers), measure=["gates"])
        assert found["capture"].each == pytest.approx(share * found["capture"].wall)
        assert found["noise floor"].each is None
        assert found["graft component"].each == found["graft component"].wall  # all prompts are one row
        assert {name: step.cpu for name, step in found.items()} == {name: step.cpu for name, step in alone.items()}


def test_a_worker_has_its_share_of_the_threads(suite: Path, paced: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    before = spreading.torch.get_num_threads()
    monkeypatch.setattr(spreading, "share_of_threads", lambda compute: before + compute.workers)
    _steps(suite, Compute(workers=2), attribute=None)
    assert paced == [before + 2] and spreading.torch.get_num_threads() == before


def test_nothing_is_told_where_lengths_are_unknown(suite: Path) -> None:
    assert steps_of(probes.plan(suite, base=str(_without_tokenizer(suite)))) == []
    assert _steps(suite, tokenizer="own", measure=["behaviour"], attribute=None) == {}


def _without_tokenizer(suite: Path) -> Path:
    from probes.suite import load_suite

    folder = suite.parent / "alone"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_bytes((Path(load_suite(suite).base) / "config.json").read_bytes())
    return folder
