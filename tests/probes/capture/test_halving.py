"""Where memory runs out, batches are halved, and the rows are the same."""

import logging
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import probes
from probes.capture.halving import within_memory
from probes.capture.hooks import backends
from probes.errors import ActivationError
from tests.pairs import build_pair, build_tokenizer, write_suite
from tests.runs import NO_REPORT
from tv.prompts.encoding import Batch, Encoded, encode
from tv.prompts.files import Prompt

CPU = "[enforce fail at alloc_cpu.cpp:124] data. DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 b"


def _encoded(n: int) -> list[Encoded]:
    texts = ["The heart pumps blood"[: 5 + i] for i in range(n)]
    prompts = [Prompt(id=f"p{i}", set="set", domain="all", text=text) for i, text in enumerate(texts)]
    return encode(prompts, build_tokenizer(), 64)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError(CPU), MemoryError()])
def test_every_prompt_once_in_smaller_batches(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    sizes: list[int] = []

    def run(batch: Batch) -> int:
        sizes.append(len(batch.encoded))
        if len(batch.encoded) > 3:
            raise error
        return len(batch.encoded)

    encoded = _encoded(13)
    found = list(within_memory(encoded, 6, 0, run))
    assert sizes == [6, 3, 3, 3, 3, 1] and [n for _, n in found] == [3, 3, 3, 3, 1]
    assert sorted(item.prompt.id for batch, _ in found for item in batch.encoded) == sorted(
        e.prompt.id for e in encoded
    )
    assert [record.getMessage() for record in caplog.records] == ["out of memory on 6 prompts at once; going on with 3"]
    assert caplog.records[0].levelno == logging.WARNING


def test_one_prompt_that_is_too_much_is_named_and_other_errors_pass() -> None:
    def failing(error: Exception) -> Any:
        def run(batch: Batch) -> None:
            raise error

        return list(within_memory(_encoded(4), 4, 0, run))

    with pytest.raises(ActivationError, match=r"out of memory on prompt 'p0' alone, with \d+ tokens") as caught:
        failing(RuntimeError(CPU + "\nmore"))
    assert "\n" not in str(caught.value)
    with pytest.raises(RuntimeError, match="shapes"):
        failing(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_what_failed_is_let_go_before_the_next_try() -> None:
    left: list[Any] = []

    def run(batch: Batch) -> None:
        assert all(reference() is None for reference in left)
        tensor = torch.zeros(1)
        left.append(weakref.ref(tensor))
        if len(left) < 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    assert len(list(within_memory(_encoded(4), 4, 0, run))) == 4 and len(left) == 6


def test_a_run_that_runs_out_of_memory_has_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = write_suite(tmp_path, *build_pair(tmp_path, "llama"), attribute=None, batch_size=6)
    whole = probes.run(suite, out=tmp_path / "whole", stages=NO_REPORT)
    lockstep, sizes = backends.lockstep, []

    def scarce(base: Any, tuned: Any, reads: Any, inputs: Any, reduce: Any) -> Any:
        sizes.append(len(inputs["input_ids"]))
        if len(sizes) > 1:
            return lockstep(base, tuned, reads, inputs, reduce)

        def full(*args: Any) -> None:
            reduce(*args)
            if len(reduce.pieces) > 5:
                raise RuntimeError(CPU)

        return lockstep(base, tuned, reads, inputs, full)

    monkeypatch.setattr(backends, "lockstep", scarce)
    halved = probes.run(suite, out=tmp_path / "halved", stages=NO_REPORT)
    assert sizes == [6, 3, 3] and halved.manifest["tables"] == whole.manifest["tables"]
    for table in halved.tables:
        if table != "correlations":  # ranks, which the last bits may turn
            left, right = (_sorted(run[table]) for run in (halved, whole))
            pd.testing.assert_frame_equal(left, right, rtol=1e-3, atol=1e-4)
    assert np.array_equal(halved["neurons"].n_flips, whole["neurons"].n_flips)


def _sorted(frame: pd.DataFrame) -> pd.DataFrame:
    keys = frame.select_dtypes(["str", "int16", "int32", "float64"]).columns
    return frame.sort_values(list(keys), ignore_index=True)
