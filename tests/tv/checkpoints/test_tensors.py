"""Stored tensors: whole, one slice, their difference. Damaged files are in test_checkpoint."""

import mmap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import tv
from tv.checkpoints.safetensors_files import weight_files
from tv.checkpoints.tensors import difference, header, sample_of, stored_tensors


def test_a_slice_is_read_without_the_rest(tmp_path: Path) -> None:
    value = torch.arange(24.0).reshape(4, 3, 2).bfloat16()
    save_file({"x": value, "y": torch.tensor(3.0)}, tmp_path / "model.safetensors")
    stored = stored_tensors(weight_files(tmp_path))
    assert (stored["x"].shape, stored["x"].dtype) == ((4, 3, 2), "BF16")
    assert torch.equal(stored["x"].load(), value)
    assert torch.equal(stored["x"].load(2), value[2])
    assert stored["y"].load().shape == ()


def test_a_loaded_tensor_can_be_changed_and_the_file_is_not(tmp_path: Path) -> None:
    save_file({"x": torch.ones(4, 3)}, tmp_path / "model.safetensors")
    stored = stored_tensors(weight_files(tmp_path))["x"]
    stored.load().zero_()
    assert torch.equal(stored.load(), torch.ones(4, 3))


def test_a_file_that_vanishes_is_one_line(tmp_path: Path) -> None:
    save_file({"x": torch.ones(4, 3)}, tmp_path / "model.safetensors")
    stored = stored_tensors(weight_files(tmp_path))["x"]
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(tv.CheckpointError, match=r"'x' cannot be read.*download it again") as caught:
        stored.load()
    assert "\n" not in str(caught.value)
    with pytest.raises(tv.CheckpointError, match="not a readable safetensors file"):
        header(tmp_path / "model.safetensors")


def test_a_file_that_was_written_again_is_read_as_it_is_now(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"x": torch.ones(4, 3)}, file)
    stored = stored_tensors([file])["x"]
    save_file({"before": torch.zeros(4, 3), "x": 2 * torch.ones(4, 3)}, file)
    assert torch.equal(stored.load(), 2 * torch.ones(4, 3))
    save_file({"before": torch.zeros(4, 3)}, file)
    with pytest.raises(tv.CheckpointError, match="'x' cannot be read: it is not in the file any more"):
        stored.load()


def test_a_dtype_that_torch_does_not_know_is_one_line(tmp_path: Path) -> None:
    save_file({"x": torch.ones(4, 3)}, tmp_path / "model.safetensors")
    stored = stored_tensors(weight_files(tmp_path))["x"]
    with pytest.raises(
        tv.CheckpointError, match=r"'x' is stored as F5, which this torch does not know; use a newer one$"
    ):
        replace(stored, dtype="F5").load()


def test_a_sample_is_the_ends(tmp_path: Path) -> None:
    content = bytes(range(256)) * 100
    (tmp_path / "x").write_bytes(content)
    assert sample_of(tmp_path / "x", 10, 20_010) == content[10:4106] + content[20_010 - 4096 : 20_010]
    assert sample_of(tmp_path / "x", 3, 13) == content[3:13] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(), (7,), (600, 3), (3, 4, 5), (0, 3)])
def test_difference(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    after, before = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    found = difference(after, before)
    assert found.dtype == torch.float32 and torch.equal(found, after.float() - before.float())
    assert found.data_ptr() not in (after.data_ptr(), before.data_ptr()) or not found.numel()


def test_difference_of_the_rows_in_common_and_of_views() -> None:
    after, before = torch.randn(5, 700), torch.randn(3, 700).bfloat16()
    assert torch.equal(difference(after, before), after[:3] - before.float())
    assert torch.equal(difference(before.T, after[:3].T), before.T.float() - after[:3].T)


@pytest.mark.parametrize("n", [3, 2**21 + 1])  # read, and mapped
def test_what_is_held_of_a_file_is_the_tensor_alone(tmp_path: Path, n: int) -> None:
    values = {"before": torch.arange(2**21 + 3).bfloat16(), "x": torch.arange(float(n)).bfloat16()}
    save_file({**values, "after": torch.ones(2**21)}, tmp_path / "model.safetensors")
    stored = stored_tensors(weight_files(tmp_path))["x"]
    held = _private()
    loaded = stored.load()
    assert torch.equal(loaded, values["x"])
    assert loaded.data_ptr() % mmap.PAGESIZE == stored.start % mmap.PAGESIZE  # as where the whole file is mapped
    assert _private() - held <= loaded.nbytes + 2 * mmap.PAGESIZE
    loaded.zero_()
    assert torch.equal(stored.load(), values["x"])


def _private() -> int:
    """Bytes of this process's private, writable memory, which a limit of it counts."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmData"))
