"""A streamed pass that was killed goes on at the layer that it was in, and ends with the same bytes."""

import logging
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch

import probes
import tv
from probes.capture import halving, passed_layers
from probes.capture.loading import Pairs
from probes.capture.passed_layers import PassedLayers, kept_layers
from probes.capture.runner import Session, Shard, run_shard, shards
from probes.capture.tensor_file import TensorFile
from probes.errors import RunError
from probes.suite import load_suite
from tests.hostile.forked import forked, tree
from tests.pairs import PROMPTS, build_pair, write_suite
from tv.checkpoints.streamed import Weights
from tv.prompts.encoding import encode
from tv.prompts.files import Prompt
from tv.runtime.compute import Compute

MODELS = Path(__file__).parents[3] / "data" / "models"
EVERYTHING = ["gates", "contributions", "changes", "ledger", "lens", "behaviour"]
STAGES = ["capture"]


class Killed(BaseException):
    """Nothing catches it."""


def work(path: Path, architecture: str = "llama", dtype: str = "float32", **settings: Any) -> tuple[Shard, Session]:
    given = {"measure": EVERYTHING, "batch_size": 2, "keep": ["resid_post"], "ledger_positions": "all", **settings}
    suite = load_suite(write_suite(path, *build_pair(path, architecture), **given))
    session = Pairs(suite, tv.Compute(stream=True, dtype=dtype)).session("moved")
    rows = [Prompt(r["id"], "s", r.get("domain", "d"), r["text"], r.get("target"), r.get("foil")) for r in PROMPTS]
    encoded = encode(rows, session.pair.tokenizer, 64)
    (shard,) = shards(encoded, suite, "moved", session.pair.architecture)
    return shard, session


def tables(directory: Path) -> dict[str, str]:
    return {name: held for name, held in tree(directory).items() if not name.startswith("batches")}


def dies(monkeypatch: pytest.MonkeyPatch, layer: int, *, before: bool = False) -> Callable[[], None]:
    """Let a pass die as a layer is said to be whole, or just before; the result undoes it."""
    record = PassedLayers._record

    def recording(self: PassedLayers, place: int) -> None:
        if not (before and place == layer):
            record(self, place)
        if place == layer:
            raise Killed

    monkeypatch.setattr(PassedLayers, "_record", recording)
    return lambda: monkeypatch.setattr(PassedLayers, "_record", record)


@pytest.fixture(autouse=True)
def no_mode_is_left() -> Iterator[None]:
    """A pass that ends in the middle leaves torch as it was."""
    yield
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The layers whose parameters are read, in order."""
    layers: list[int] = []
    from_checkpoint = Weights._from_checkpoint

    def reading(self: Weights, name: str) -> Any:
        layers.extend(int(part) for part in name.split(".") if part.isdigit())
        return from_checkpoint(self, name)

    monkeypatch.setattr(Weights, "_from_checkpoint", reading)
    return layers


@pytest.mark.sampled(1)
@pytest.mark.parametrize("architecture", ["falcon", "qwen3_next"])
def test_killed_at_any_layer_the_bytes_are_the_same_and_no_layer_behind_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, read: list[int]
) -> None:
    shard, session = work(tmp_path, architecture)
    row = run_shard(shard, session, tmp_path / "whole")
    ids = [item.prompt.id for item in shard.encoded]
    for layer in (1, 2, 3):
        out = tmp_path / str(layer)
        for kept, before in ((layer - 1, True), (layer, False)):
            undo = dies(monkeypatch, layer, before=before)
            with pytest.raises(Killed):
                run_shard(shard, session, out)
            undo()
            assert kept_layers(out, shard.name, ids) == kept
        read.clear()
        assert run_shard(shard, session, out) == row
        assert [of for of, _ in groupby(read)] == list(range(layer, 3))
        assert tables(out) == tables(tmp_path / "whole")
        assert len(list(out.rglob("*.passed"))) == 1 and not list(out.rglob("*.tmp"))


def test_killed_between_two_batches_of_the_end(tmp_path: Path, read: list[int]) -> None:
    shard, session = work(tmp_path)
    run_shard(shard, session, tmp_path / "whole")

    def told(_: int) -> None:
        raise Killed

    with pytest.raises(Killed):
        run_shard(shard, session, tmp_path / "out", told)
    ids = [item.prompt.id for item in shard.encoded]
    assert kept_layers(tmp_path / "out", shard.name, ids) == 3
    read.clear()
    done: list[int] = []
    run_shard(shard, session, tmp_path / "out", done.append)
    assert done == [2, 2] and not read
    assert tables(tmp_path / "out") == tables(tmp_path / "whole")


def test_what_is_not_of_this_pass_is_not_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: list[int]
) -> None:
    """Another dtype, other prompts, a file that was cut short, another pass of whole models meanwhile."""
    shard, session = work(tmp_path)
    (tmp_path / "half").mkdir()
    _, other = work(tmp_path / "half", dtype="bfloat16")
    fewer = replace(shard, encoded=shard.encoded[:-1])
    changes = ("dtype", other, shard), ("prompts", session, fewer), ("cut", session, shard)
    for name, changed, changed_shard in changes:
        out, alone = tmp_path / name, tmp_path / f"{name} alone"
        undo = dies(monkeypatch, 2)
        with pytest.raises(Killed):
            run_shard(shard, session, out)
        undo()
        if name == "cut":
            path = next(out.rglob("00001.read"))
            os.truncate(path, path.stat().st_size - 1)
        read.clear()
        run_shard(changed_shard, changed, out)
        assert 0 in read
        run_shard(changed_shard, changed, alone)
        assert tables(out) == tables(alone)


def test_a_full_disk_is_said_and_costs_the_layer_that_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: list[int]
) -> None:
    shard, session = work(tmp_path)
    run_shard(shard, session, tmp_path / "whole")
    put, calls = TensorFile.put, [0]

    def full(self: TensorFile, name: str, value: Any) -> None:
        calls[0] += 1
        if calls[0] == 9:  # of two files, and of three batches of a layer
            raise OSError(28, "No space left on device")
        put(self, name, value)

    monkeypatch.setattr(TensorFile, "put", full)
    with pytest.raises(RunError, match=r"0000[12]\.\w+: cannot be written: No space left on device") as caught:
        run_shard(shard, session, tmp_path / "out")
    assert isinstance(caught.value.__cause__, OSError)  # of the machine: a run keeps what it has
    assert sorted(path.name for path in (tmp_path / "out").rglob("*") if path.is_file()) == [
        "00001.passed",
        "00001.read",
        "layers.jsonl",
    ]
    read.clear()
    run_shard(shard, session, tmp_path / "out")
    assert set(read) == {1, 2} and tables(tmp_path / "out") == tables(tmp_path / "whole")


def test_a_batch_that_is_halved_begins_anew_and_goes_on_halved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: list[int]
) -> None:
    shard, session = work(tmp_path, batch_size=4)
    keep = PassedLayers._keep

    def lacking(self: PassedLayers, place: int, name: str, progress: Any, passed: Any) -> None:
        if place == 2 and len(passed[0]) > 2:
            raise MemoryError("too large")
        keep(self, place, name, progress, passed)

    monkeypatch.setattr(PassedLayers, "_keep", lacking)
    row = run_shard(shard, session, tmp_path / "whole")
    undo = dies(monkeypatch, 2)
    with pytest.raises(Killed):
        run_shard(shard, session, tmp_path / "out")
    undo()
    read.clear()
    monkeypatch.setattr(halving, "first_line", None)  # nothing runs out of memory again
    assert run_shard(shard, session, tmp_path / "out") == row
    assert set(read) == {2} and tables(tmp_path / "out") == tables(tmp_path / "whole")


def test_the_embedded_models_killed_while_a_layer_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A run says what is kept and what is left, and leaves nothing beside its tables; the disk it takes was told."""
    suite = write_suite(
        tmp_path, MODELS / "base", MODELS / "medical", measure=["gates", "lens"], batch_size=2, noise_floor=False
    )
    compute, out = Compute(stream=True), tmp_path / "out" / "run"
    whole = probes.run(suite, out=tmp_path / "whole" / "run", stages=STAGES, compute=compute)
    put, calls = TensorFile.put, [0]

    def killed(self: TensorFile, name: str, value: Any) -> None:
        calls[0] += 1
        put(self, name, value)
        if calls[0] == 22:  # in layer 3
            os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(TensorFile, "put", killed)
        ended = forked(lambda: probes.run(suite, out=out, stages=STAGES, compute=compute))
    assert ended.status == -signal.SIGKILL, ended.err
    taken: list[int] = []
    record = PassedLayers._record

    def weighed(self: PassedLayers, place: int) -> None:
        taken.append(sum(path.stat().st_size for path in self._folder.rglob("*")))
        record(self, place)

    monkeypatch.setattr(passed_layers.PassedLayers, "_record", weighed)
    job = probes.prepare(suite, out=out, stages=STAGES, compute=compute)
    with caplog.at_level(logging.WARNING):
        job.run()
    assert (
        "resuming; done already: capture moved (0 of 6 prompts and 3 of 6 layers of another 6); "
        "still to do: capture moved (6 prompts, of which 6 need 3 of 6 layers)" in caplog.text
    )
    assert len(taken) == 3 and job.besides / 4 < max(taken) <= job.besides
    assert tree(out.parent) == tree(whole.path.parent)
    assert not probes.prepare(suite, out=tmp_path / "new", stages=STAGES, compute=Compute(stream=False)).besides
