"""A lack of memory is told as one, wherever it shows, with what to do about it."""

from __future__ import annotations

import errno
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from tests.command import call
from tests.pairs import build_model
from tv.checkpoints.live import load_model
from tv.checkpoints.quantised.parts import Quantised
from tv.checkpoints.tensors import stored_tensors
from tv.cli import main
from tv.errors import LackOfMemory
from tv.runtime.memory import is_out_of_memory
from tv.runtime.workers import _tried

HOST = "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"
LACKS = [
    MemoryError(),
    RuntimeError(HOST),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


def _raise(error: Exception) -> NoReturn:
    raise error


def _torch_asks_for_too_much(*_: Any, **__: Any) -> torch.Tensor:
    return torch.empty(2**60, dtype=torch.uint8)


def test_torch_says_it_here_in_words_that_are_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        _torch_asks_for_too_much()
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize("error", LACKS, ids=lambda error: type(error).__name__)
def test_every_kind_is_one(error: Exception) -> None:
    assert is_out_of_memory(error)
    report = pickle.loads(pickle.dumps(_tried(_raise, error)))  # as a worker sends it
    assert isinstance(report, LackOfMemory) and "a worker ran out of memory (" in str(report)


@pytest.mark.parametrize("error", [ValueError("too long"), RuntimeError("shapes"), OSError(errno.ENOSPC, "No space")])
def test_other_errors_are_none(error: Exception) -> None:
    assert not is_out_of_memory(error) and not isinstance(_tried(_raise, error), LackOfMemory)


def test_quantised_parts_do_not_contradict_each_other_for_it(tmp_path: Path) -> None:
    build_model().save_pretrained(tmp_path)
    stored = stored_tensors([tmp_path / "model.safetensors"])
    name = next(iter(stored))

    def values(_: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return _torch_asks_for_too_much()

    with pytest.raises(LackOfMemory, match=rf"model\.safetensors: dequantising '{name}': out of memory"):
        Quantised(name, stored[name].shape, "U8", {"a": stored[name]}, values).load()


def test_loading_a_model_does_not_call_it_a_wrong_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model()
    model.save_pretrained(tmp_path)
    monkeypatch.setattr(type(model), "from_pretrained", lambda *_, **__: _raise(RuntimeError(HOST)))
    with pytest.raises(LackOfMemory, match="loading it: out of memory"):
        load_model(tmp_path)


def test_a_command_says_it_in_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("tv.checkpoints.info.described", _torch_asks_for_too_much)
    status, _, said = call(monkeypatch, capsys, main, "info", "data/models/base")
    assert status == 2 and said.count("\n") == 1
    assert "error: out of memory (" in said and "close other programs" in said
