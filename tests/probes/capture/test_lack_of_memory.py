"""The proof and the floor's twin say that memory ran out, and take it for no property of the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import pytest

import probes
from probes.capture import noise_floor, proof
from probes.capture.pair import make_pair
from tests.pairs import build_model, build_pair, build_tokenizer, write_suite
from tv.errors import LackOfMemory

HOST = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"


def _fails(*_: Any, **__: Any) -> NoReturn:
    raise RuntimeError(HOST)


@pytest.mark.parametrize(
    ("where", "model"),
    [
        ("seen_of", "llama"),  # in the forward itself
        ("linear", "llama"),  # in a test inside it
        ("skipping", "llama"),  # in the forward without the first blocks
        ("together", "llama"),  # in the forward beside padding
        ("mixture.total", "qwen2_moe"),  # in the experts one by one
    ],
)
def test_the_proof(where: str, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    live = build_model(model)
    monkeypatch.setattr(f"{proof.__name__}.{where}", _fails)
    with pytest.raises(LackOfMemory, match=r"the proof on a few tokens: out of memory \(Default.*--stream") as caught:
        make_pair(live, live, build_tokenizer())
    assert "\n" not in str(caught.value) and "cannot run on it" not in str(caught.value)


def test_the_twin_is_not_taken_for_one_that_cannot_compute_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model()
    pair = make_pair(model, model, build_tokenizer())
    monkeypatch.setattr(type(model), "forward", _fails)
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"), noise_floor.twin_of(pair):
        pass


def test_what_a_run_has_done_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = write_suite(tmp_path, *build_pair(tmp_path), attribute=None, noise_floor=False, measure=["gates"])
    with monkeypatch.context() as patch:

        def lack(*_: Any, **__: Any) -> NoReturn:
            raise LackOfMemory("x: out of memory; take more")

        patch.setattr("probes.job.job.write_activations", lack)
        with pytest.raises(LackOfMemory):
            probes.run(suite, out=tmp_path / "run", stages=["weights", "capture"])
    told = list[str]()
    compute = probes.Compute(progress=lambda stage, *_: told.append(stage))
    probes.run(suite, out=tmp_path / "run", stages=["weights", "capture"], compute=compute)
    assert told and "weights moved" not in told
