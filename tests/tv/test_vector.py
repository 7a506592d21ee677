"""The tuning vector: its arithmetic, and its file."""

import weakref
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import tv
from tests.pairs import build_pair


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return build_pair(tmp_path, "llama")


def test_it_is_the_difference_of_every_parameter(pair: tuple[Path, Path]) -> None:
    vector = tv.extract(*pair)
    base, tuned = (tv.open_checkpoint(path) for path in pair)
    assert set(vector.names) == set(base.names)
    for name in vector.names:
        assert torch.equal(vector[name], tuned.tensor(name) - base.tensor(name))
    with pytest.raises(KeyError):
        vector["no.such.parameter"]


def test_arithmetic(pair: tuple[Path, Path]) -> None:
    vector = tv.extract(*pair)
    name = vector.names[3]
    assert torch.equal((2 * vector)[name], 2 * vector[name])
    assert torch.equal((-vector)[name], -vector[name])
    assert torch.equal((vector + vector)[name], (vector * 2.0)[name])
    assert vector.cosine(vector) == pytest.approx(1) and vector.cosine(-vector) == pytest.approx(-1)
    assert vector.cosine(vector * 0.0) == 0
    flat = torch.cat([vector[n].flatten() for n in vector.names]).double()
    assert vector.norm() == pytest.approx(float(flat.norm()))


def test_save_and_load(pair: tuple[Path, Path], tmp_path: Path) -> None:
    vector = tv.extract(*pair)
    vector.save(tmp_path / "t.safetensors")
    loaded = tv.TuningVector.load(tmp_path / "t.safetensors")
    assert set(loaded.names) == set(vector.names)
    assert all(torch.equal(loaded[name], vector[name]) for name in vector.names)
    assert loaded.provenance["base"]["source"] == str(pair[0])
    assert loaded.provenance["tuned"]["content"] != loaded.provenance["base"]["content"]
    with safe_open(tmp_path / "t.safetensors", framework="pt") as file:
        assert file.get_tensor(vector.names[0]).dtype == torch.float32
    assert not list(tmp_path.glob("*.tmp"))
    assert loaded.cosine(vector) == pytest.approx(1)


def test_saving_holds_one_tensor_at_a_time(tmp_path: Path) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []

    def read(name: str) -> torch.Tensor:
        assert not any(reference() is not None for reference in alive)
        value = torch.full((3, 5), float(name))
        alive.append(weakref.ref(value))
        return value

    tv.TuningVector({str(i): (3, 5) for i in range(4)}, read, {}).save(tmp_path / "t.safetensors")
    assert float(tv.TuningVector.load(tmp_path / "t.safetensors")["2"].mean()) == 2


def test_a_save_that_fails_leaves_nothing(pair: tuple[Path, Path], tmp_path: Path) -> None:
    tensors = load_file(pair[1] / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, pair[1] / "model.safetensors")
    with pytest.raises(tv.CheckpointError, match="NaN"):
        tv.extract(*pair).save(tmp_path / "t.safetensors")
    assert not list(tmp_path.glob("t.safetensors*"))


def test_bad_files_and_vectors_of_other_models(pair: tuple[Path, Path], tmp_path: Path) -> None:
    for path in (pair[0] / "model.safetensors", tmp_path / "nothing.safetensors"):
        with pytest.raises(tv.CheckpointError, match="not a tuning vector"):
            tv.TuningVector.load(path)
    other = tv.extract(*build_pair(tmp_path, "qwen2"))
    with pytest.raises(tv.CheckpointError, match="different models"):
        tv.extract(*pair) + other
    with pytest.raises(tv.CheckpointError, match="different models"):
        tv.extract(*pair).cosine(other)
    with pytest.raises(tv.CheckpointError, match="cannot be written"):
        tv.extract(*pair).save(tmp_path / "no" / "such" / "place.safetensors")
