"""A shard that was killed between two batches goes on after the last of them, and ends with the same bytes."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import probes
from probes.capture import batch_files, rows, runner
from probes.capture.pair import make_pair
from probes.capture.runner import Session, Shard, run_shard, shards
from probes.suite import load_suite
from tests.hostile.forked import tree
from tests.pairs import PROMPTS, build_model, build_pair, build_tokenizer, perturb, write_suite
from tv.prompts.encoding import encode
from tv.prompts.files import Prompt
from tv.runtime.compute import Compute

BATCHES = 6  # of one prompt each; together they are one shard


class Killed(BaseException):
    """Nothing catches it."""


def _dying(function: Callable[..., Any], calls: int, before: bool) -> Callable[..., Any]:
    """The function, which dies before or after its n-th call."""
    left = [calls]

    def call(*args: Any, **options: Any) -> Any:
        left[0] -= 1
        if before and not left[0]:
            raise Killed
        result = function(*args, **options)
        if not left[0]:
            raise Killed
        return result

    return call


@pytest.fixture(params=["llama", "qwen2_moe"])
def work(request: pytest.FixtureRequest) -> tuple[Shard, Session]:
    base, tuned = build_model(request.param), build_model(request.param)
    perturb(tuned, 0.05, seed=1)
    pair = make_pair(base, tuned, build_tokenizer())
    given = {"name": "one", "base": "base", "tuned": {"moved": "tuned"}, "prompts": [{"file": "none.jsonl"}]}
    suite = load_suite({**given, "edit_distance": "all", "keep": ["mlp_out"], "batch_size": 1})
    prompts = [
        Prompt(row["id"], "tiny", row.get("domain", "none"), row["text"], row.get("target"), row.get("foil"))
        for row in PROMPTS
    ]
    (shard,) = shards(encode(prompts, pair.tokenizer, 64), suite, "moved", pair.architecture)
    return shard, Session.open(pair, suite)


@pytest.mark.sampled(1)
def test_killed_anywhere_a_shard_has_the_same_bytes_and_repeats_a_batch_at_most(
    work: tuple[Shard, Session], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It dies in a forward, as a file gets its name and as its tables are written, again and again."""
    shard, session = work
    row = run_shard(shard, session, tmp_path / "whole")
    whole = {name: held for name, held in tree(tmp_path / "whole").items() if not name.startswith("batches")}
    draw, read, run_batch = random.Random(19), list[str](), runner._run_batch

    def reading(session: Session, tuned: str, batch: Any) -> Any:
        read.extend(item.prompt.id for item in batch.encoded)
        return run_batch(session, tuned, batch)

    monkeypatch.setattr(runner, "_run_batch", reading)
    for number in range(5):
        out = tmp_path / str(number)
        read.clear()
        deaths = [(runner, "_run_batch", 4), (batch_files, "replacing", 3), (rows, "write_part", 9)]
        for target, name, most in deaths:
            with monkeypatch.context() as patch:
                dying = _dying(getattr(target, name), draw.randint(1, most), draw.random() < 0.5)
                patch.setattr(target, name, dying)
                with pytest.raises(Killed):
                    run_shard(shard, session, out)
        assert run_shard(shard, session, out) == row
        assert len(read) <= BATCHES + len(deaths) and len(set(read)) == BATCHES
        assert {name: held for name, held in tree(out).items() if not name.startswith("batches")} == whole


def test_a_run_that_is_stopped_keeps_its_batches(tmp_path: Path) -> None:
    """What it tells begins with them, workers go on with them, and nothing of them stays beside the tables."""
    suite = write_suite(
        tmp_path, *build_pair(tmp_path), batch_size=1, measure=["gates"], attribute=None, noise_floor=False
    )
    stages, alone = ["capture"], tmp_path / "alone" / "run"
    probes.run(suite, out=alone, stages=stages)
    for left, told, workers in ((4, [4, 5, 6], 1), (2, [2, 6], 2)):
        out = tmp_path / str(left) / "run"

        def interrupted(stage: str, done: int, *_: object, at: int = left) -> None:
            if stage.startswith("capture") and done == at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            probes.run(suite, out=out, stages=stages, compute=Compute(progress=interrupted))
        assert out.with_name("run.partial").is_dir()
        heard = list[int]()

        def hear(stage: str, done: int, *_: object, heard: list[int] = heard) -> None:
            if stage.startswith("capture"):
                heard.append(done)

        compute = Compute(progress=hear, workers=workers)
        probes.run(suite, out=out, stages=stages, compute=compute)
        assert heard == told
        assert tree(out.parent) == tree(alone.parent)
