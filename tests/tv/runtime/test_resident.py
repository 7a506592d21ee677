"""What leaves memory is there when it is read again."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tv.runtime.resident import page_out, trim


def _resident() -> int:
    """Bytes of files in this process's memory."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("RssFile:")[1].split()[0]) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="nothing is given back elsewhere")
def test_pages_of_a_file_leave_and_come_back(tmp_path: Path) -> None:
    size = 2**24
    save_file({"a": torch.arange(size, dtype=torch.float32), "b": torch.ones(7)}, tmp_path / "model.safetensors")
    held = load_file(tmp_path / "model.safetensors")
    total = float(held["a"].sum(dtype=torch.float64))
    before = _resident()
    page_out(held.values())
    assert before - _resident() > 4 * size * 0.9
    assert float(held["a"].sum(dtype=torch.float64)) == total and bool((held["b"] == 1).all())


def test_what_no_file_backs_stays_as_it_is() -> None:
    value = torch.arange(2**20)
    page_out([value, value[:0]])
    trim()
    assert bool((value == torch.arange(2**20)).all())
