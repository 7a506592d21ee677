"""Tensors in a file come back as they were; a file that is not finished is none."""

from pathlib import Path
from typing import Any

import pytest
import torch

from probes.capture.tensor_file import index_of, tensor_file, value_of
from probes.errors import RunError

CPU = torch.device("cpu")
VALUES: dict[str, Any] = {
    "half": torch.randn(3, 5).bfloat16(),
    "turned": torch.arange(12.0).view(3, 4).T,
    "repeated": torch.ones(1, 3).expand(4, 3),
    "none": torch.zeros(0, 7, dtype=torch.int16),
    "one": torch.tensor(True),
    "nested": {"a": [1, "tensor", None, (torch.tensor([float("nan"), -0.0]), None)], "b": [[0.1]]},
}


def test_values_come_back_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "of"
    with tensor_file(path) as file:
        for name, value in VALUES.items():
            file.put(name, value)
    index = index_of(path)
    found = {name: value_of(path, entry, CPU) for name, entry in index.items()}
    for name in ("half", "turned", "repeated", "none", "one"):
        assert found[name].dtype == VALUES[name].dtype and found[name].shape == VALUES[name].shape
        assert torch.equal(found[name], VALUES[name])
    assert found["turned"].stride() == (1, 4) and found["half"].data_ptr() % 64 == 0
    pair, nothing = found["nested"]["a"].pop()
    assert pair.view(torch.int32).tolist() == VALUES["nested"]["a"][3][0].view(torch.int32).tolist() and nothing is None
    assert found["nested"] == {"a": [1, "tensor", None], "b": [[0.1]]}


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    for error, told in ((ValueError("no"), ValueError), (OSError(28, "No space left on device"), RunError)):
        with pytest.raises(told, match=r"no|No space left"), tensor_file(tmp_path / "of") as file:
            file.put("one", VALUES["half"])
            raise error
        assert not list(tmp_path.iterdir())
    with pytest.raises(RunError, match="cannot be written: No such file"), tensor_file(tmp_path / "no" / "of"):
        pass
