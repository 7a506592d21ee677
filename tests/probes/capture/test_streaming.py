"""A pair that is read a layer at a time: the same tables, to the byte, and every layer read once for all batches."""

from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch

import probes
import tv
from probes.capture.hooks import turns
from probes.capture.hooks.turns import Shelf, in_turns, turn
from probes.capture.loading import Pairs
from probes.capture.runner import run_shard, shards
from probes.errors import RunError
from probes.suite import load_suite
from tests.pairs import PROMPTS, build_pair, write_suite
from tv.prompts.encoding import encode
from tv.prompts.files import Prompt
from tv.runtime.compute import Compute

EVERYTHING = ["gates", "contributions", "changes", "ledger", "lens", "behaviour"]


def files(directory: Path) -> dict[str, str]:
    """Without what models write: a streamed one would read all weights for each token."""
    return {
        str(path.relative_to(directory)): sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*.parquet")
        if path.parent.name != "answers"
    }


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("architecture", "bound", "accounted"),
    [("falcon", 2**26, "target"), ("gemma2", 0, "all"), ("qwen3_next", 0, "all")],
)
def test_tables_are_the_same_to_the_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, bound: int, accounted: str
) -> None:
    shelves: list[Shelf] = []
    monkeypatch.setattr(turns, "Shelf", lambda _: shelves.append(Shelf(bound)) or shelves[-1])
    suite = write_suite(
        tmp_path,
        *build_pair(tmp_path, architecture),
        measure=EVERYTHING,
        batch_size=2,
        keep=["resid_post"],
        ledger_positions=accounted,
    )
    found = []
    for streams in (False, True):
        run = probes.run(
            suite, out=tmp_path / str(streams), stages=["capture", "noise_floor"], compute=Compute(stream=streams)
        )
        found.append(files(run.path))
    assert found[0] == found[1] and len(found[0]) > 20
    assert shelves and all((shelf.written > 0) == (bound == 0) for shelf in shelves)


def test_every_layer_is_read_once_for_all_batches(tmp_path: Path) -> None:
    pairs = opened(tmp_path, batch_size=2)
    session = pairs.session("moved")
    encoded = encode([Prompt(row["id"], "s", "d", row["text"]) for row in PROMPTS], pairs.tokenizer, 64)
    (shard,) = shards(encoded, pairs.suite, "moved", session.pair.architecture)
    before = [model.weights.reads for model in session.pair.models]
    run_shard(shard, session, tmp_path / "tables")
    for model, earlier in zip(session.pair.models, before, strict=True):
        once = sum(value.nbytes for value in model.parameters())
        head = model.lm_head.weight.nbytes  # once for the directions of target and foil, and once at the end
        assert model.weights.reads - earlier <= once + head


def test_a_run_that_was_begun_in_memory_is_the_same_run(tmp_path: Path) -> None:
    suite = write_suite(tmp_path, *build_pair(tmp_path), measure=["gates"])
    run = probes.run(suite, out=tmp_path / "run", stages=["capture"], compute=Compute(stream=True))
    again = probes.prepare(suite, out=tmp_path / "run", stages=["capture"], compute=Compute(stream=False))
    assert again.is_done and again.there is not None and again.there.path == run.path


def test_a_pair_that_does_not_fit_is_streamed_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not opened(tmp_path, None).streams
    monkeypatch.setattr("probes.capture.loading.free_memory", lambda: 100_000)
    assert opened(tmp_path, None).streams
    assert not opened(tmp_path, None, backend="nnsight").streams  # which cannot; a run says so as ever
    assert not opened(tmp_path, False).streams


@pytest.mark.parametrize(
    ("settings", "compute", "what"),
    [
        ({"backend": "nnsight"}, {}, "backend nnsight runs whole models"),
        ({"generate": {"tokens": 3}}, {}, "a continuation would read both models once per token"),
        ({"align": True}, {}, "rewritten as a whole"),
        ({}, {"offload": True}, "leave --offload out"),
    ],
)
def test_what_cannot_be_streamed_is_refused_first(
    tmp_path: Path, settings: dict[str, Any], compute: dict[str, Any], what: str
) -> None:
    suite = write_suite(tmp_path, *build_pair(tmp_path), **settings)
    with pytest.raises(RunError, match=what):
        probes.prepare(suite, stages=["capture"], compute=Compute(stream=True, **compute))


def test_tasks_reach_a_place_together() -> None:
    seen: list[tuple[int, str]] = []

    def task(name: str, places: list[int]) -> str:
        for place in places:
            turn(place)
            seen.append((place, name))
        return name

    work = [lambda: task("a", [0, 1, 2]), lambda: task("b", [1, 2]), lambda: task("c", [0, 2])]
    assert list(in_turns(work, 0)) == ["a", "b", "c"]
    assert seen == [(0, "a"), (0, "c"), (1, "a"), (1, "b"), (2, "a"), (2, "b"), (2, "c")]
    assert not torch.is_inference_mode_enabled()


def test_an_error_ends_every_task_and_passes() -> None:
    ended: list[int] = []

    def task(i: int) -> None:
        try:
            turn(0)
            if i == 1:
                raise ValueError("no")
            turn(1)
        finally:
            ended.append(i)

    with pytest.raises(ValueError, match="no"):
        list(in_turns([lambda i=i: task(i) for i in range(3)], 0))  # type: ignore[misc]
    assert sorted(ended) == [0, 1, 2] and turns._Tasks.running is None


def test_a_batch_that_runs_out_of_memory_is_halved(tmp_path: Path) -> None:
    from probes.capture.halving import within_memory

    rows = encode([Prompt(row["id"], "s", "d", row["text"]) for row in PROMPTS], opened(tmp_path).tokenizer, 64)

    def run(batch: Any) -> int:
        turn(0)
        if len(batch.encoded) > 2:
            raise MemoryError("too large")
        return len(batch.encoded)

    found = list(within_memory(rows, 4, 0, run, lambda tasks: in_turns(tasks, 0)))
    assert [n for _, n in found] == [2, 2, 2]
    assert {item.prompt.id for batch, _ in found for item in batch.encoded} == {row["id"] for row in PROMPTS}


def test_a_shelf_gives_the_memory_up_and_the_values_back() -> None:
    shelf, value = Shelf(100), torch.arange(50.0)
    view, small = value[10:], torch.ones(5)
    kept, back = shelf.put(small), shelf.put(value)
    assert shelf.held == 20 and shelf.written == 200 and value.untyped_storage().nbytes() == 0
    back()
    kept()
    assert shelf.held == 0 and torch.equal(value, torch.arange(50.0)) and torch.equal(view, torch.arange(10.0, 50.0))
    shelf.put(torch.zeros(50))()
    assert shelf._end == 200  # the place in the file is used again
    shelf.close()


def opened(directory: Path, streams: bool | None = True, **settings: Any) -> Pairs:
    suite = write_suite(directory, *build_pair(directory), measure=["gates", "changes", "ledger", "lens"], **settings)
    return Pairs(load_suite(suite), tv.Compute(stream=streams))
