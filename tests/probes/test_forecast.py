"""What a run takes, told before: every stage, in proportion to what it has to do."""

from pathlib import Path
from typing import Any

import pytest

import probes
from probes import forecast as module
from probes.attribution.metric import answerable
from probes.capture import final_answers
from probes.forecast import Stage, attribution_work, forecast
from probes.trial import Pace
from tests.pairs import PROMPTS, build_pair, write_prompts, write_suite
from tv.errors import CheckpointError
from tv.prompts.encoding import padded_tokens, positions


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forecast")
    return write_suite(folder, *build_pair(folder), bootstrap=20)


@pytest.fixture(autouse=True)
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is tried out takes a second of a CPU, and half of one on the clock."""

    def timed(work: Any) -> Any:
        work()
        return Pace(1.0, 0.5)

    monkeypatch.setattr(module, "timed", timed)
    monkeypatch.setattr("probes.trial.TOKENS", 4)


def _told(suite: Path, **settings: Any) -> dict[str, Stage]:
    job = probes.prepare(suite, out=suite.parent / "none", **settings)
    return {stage.name: stage for stage in forecast(job)}


def test_every_stage_is_told(suite: Path) -> None:
    told = _told(suite)
    assert list(told) == ["weights", "capture", "noise_floor", "attribute", "link and report"]
    assert all(stage.cpu > 0 and stage.wall > 0 and stage.memory > 100e6 for stage in told.values())
    assert told["capture"].wall == pytest.approx(told["capture"].cpu / 2)
    assert list(_told(suite, stages=["weights"])) == ["weights"]


def test_more_prompts_take_longer_in_proportion(suite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TOGETHER", 1)  # what few prompts write together takes as long as what many do
    once = _told(suite)
    more = [row | {"id": f"again {row['id']}"} for row in PROMPTS]
    write_prompts(suite.parent / "prompts.jsonl", [*PROMPTS, *more])
    try:
        twice = _told(suite)
    finally:
        write_prompts(suite.parent / "prompts.jsonl", PROMPTS)
    assert twice["capture"].cpu == pytest.approx(2 * once["capture"].cpu, rel=0.2)
    assert twice["weights"].cpu == once["weights"].cpu


def test_what_is_not_asked_for_takes_nothing(suite: Path) -> None:
    whole = _told(suite)
    less = _told(suite, settings={"measure": ["gates"], "attribute": None, "noise_floor": False})
    assert list(less) == ["weights", "capture", "link and report"]
    assert less["capture"].cpu < whole["capture"].cpu
    few = _told(suite, settings={"attribute": {"methods": ["graft"], "curves": False, "controls": []}})
    assert few["attribute"].cpu < 0.7 * whole["attribute"].cpu


def test_the_unembedding_is_never_skipped(suite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies before a swap is; so a model whose logits take long has longer grafts, at answers alone."""
    job = probes.prepare(suite, out=suite.parent / "none")
    work = {step.name: step for step in attribution_work(job.suite, job.pairs[0].base.architecture, len(job.encoded))}
    assert 0 < work["graft component"].blocks < work["graft component"].logits
    told = []
    for row in (0.0, 0.1, 0.2):
        monkeypatch.setattr(module, "_token", lambda *_, row=row: (Pace(1.0, 1.0), Pace(row, row)))
        told.append(_told(suite)["attribute"].cpu)
    assert job.suite.attribute is not None
    usable = answerable(job.encoded, job.suite.attribute.metric)
    rows = sum(len(positions(item, "target")) for item in usable)
    padded = padded_tokens(usable, job.suite.batch_size, True)
    blocks, logits = (sum(getattr(step, part) for step in work.values()) for part in ("blocks", "logits"))
    assert told == pytest.approx([padded * blocks * (1 - row) + rows * logits * row for row in (0.0, 0.1, 0.2)])


def test_what_other_processes_do_is_told_with_their_beginning(suite: Path) -> None:
    alone, shared = _told(suite), _told(suite, compute=probes.Compute(workers=2))
    assert list(shared) == list(alone)
    assert shared["weights"].cpu == alone["weights"].cpu + 2 * module.START
    assert shared["weights"].wall == alone["weights"].wall / 2 + module.START
    assert shared["link and report"].cpu == alone["link and report"].cpu


def test_what_other_machines_do_is_not_told(suite: Path) -> None:
    assert _told(suite, compute=probes.Compute(engine="ray")) == {}


def test_what_is_read_as_it_is_used_is_told_by_a_model_without_weights(
    suite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody writes answers there: each token would read all weights."""
    some = ["weights", "capture"]
    monkeypatch.setattr(module, "_written", lambda *_: pytest.fail("counted"))
    told = _told(suite, compute=probes.Compute(stream=True), stages=some)
    assert list(told) == some and told["capture"].cpu > 0


def test_the_floor_is_told_by_the_pace_of_the_other_precision(suite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU without bfloat16 takes several times as long in it; gates are read of so many prompts and no more."""
    even = _told(suite)["noise_floor"].cpu
    monkeypatch.setattr(module, "_twin", lambda compute: 5.0)
    assert _told(suite)["noise_floor"].cpu == pytest.approx(3 * even, rel=0.05)
    monkeypatch.setattr(module, "PROMPTS", 1)
    assert _told(suite)["noise_floor"].cpu < 0.9 * 3 * even


def test_what_models_write_is_told(suite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    less = {"measure": ["behaviour"]}
    once = _told(suite, settings=less)["capture"].cpu
    monkeypatch.setattr(final_answers, "SHORT", 3 * final_answers.SHORT)
    assert _told(suite, settings=less)["capture"].cpu > 1.3 * once


def test_answers_that_are_looked_for_are_told(suite: Path) -> None:
    less = {"measure": ["behaviour"]}
    asked = less | {"answer_pattern": r"\w+"}
    once, more = (_told(suite, settings=settings)["capture"].cpu for settings in (less, asked))
    assert more > 2 * once


def test_the_ledger_is_told_by_the_places_that_it_reads(suite: Path) -> None:
    last, target, none = (
        _told(suite, settings=settings)["capture"].cpu
        for settings in ({"ledger_positions": "last"}, {}, {"measure": ["gates", "behaviour", "contributions"]})
    )
    assert none < last < target


def test_a_second_fine_tune_finds_the_base_decomposed(suite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tried of the base's matrices counts once, of the others' as often as there are pairs."""
    calls = [0]

    def timed(work: Any) -> Any:
        work()
        calls[0] += 1
        return Pace(float(calls[0] <= once), 0.5)  # what comes later takes nothing

    once = 10**6
    monkeypatch.setattr(module, "timed", timed)
    first = _told(suite, stages=["weights"])["weights"].cpu
    once, calls[0] = calls[0], 0
    two = {"tuned": {name: str(next(suite.parent.glob("*-tuned"))) for name in ("one", "two")}}
    job = probes.prepare(suite, out=suite.parent / "two", stages=["weights"], **two)
    (both,) = forecast(job)
    assert both.cpu == pytest.approx(first) and calls[0] == 2 * once


@pytest.mark.parametrize("compute", [probes.Compute(), probes.Compute(stream=True), probes.Compute(workers=2)])
def test_an_attribution_that_is_left_for_later_needs_no_targets(
    suite: Path, tmp_path: Path, compute: probes.Compute
) -> None:
    untold = tmp_path / "prompts.jsonl"
    write_prompts(untold, [{"id": row["id"], "text": row["text"]} for row in PROMPTS])
    settings = {"attribute": {"metric": "logit_diff"}, "prompts": [{"file": str(untold)}]}
    assert list(_told(suite, settings=settings, stages=["capture"], compute=compute)) == ["capture"]


def test_a_trial_that_fails_is_said_and_ends_nothing(suite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise CheckpointError("no forward pass can be tried")

    monkeypatch.setattr(module, "tried", failing)
    job = probes.prepare(suite, out=suite.parent / "none", compute=probes.Compute(workers=2), stages=["capture"])
    assert [*module.estimated(job)] == ["estimated time: none, no forward pass can be tried"]
