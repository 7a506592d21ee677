"""Live models of whatever can be opened: they compute with the weights that the tables describe."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import tv
from tests.pairs import build_model, build_pair
from tests.tv.checkpoints.test_parameters import EXPERTS, experts, quantise
from tv.checkpoints.live import load_model, load_tokenizer

IDS = torch.tensor([[0, 5, 9, 44, 100, 306]])


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return build_pair(tmp_path, "llama")


def test_a_live_model_is_used_as_it_is() -> None:
    model = build_model("llama").train()
    assert load_model(model) is model and not model.training


def test_a_tuning_vector_moves_a_copy_of_the_base(pair: tuple[Path, Path], tmp_path: Path) -> None:
    expected = load_model(pair[1])(IDS).logits
    vector = tv.extract(*pair)
    vector.save(tmp_path / "t.safetensors")
    base = load_model(pair[0])
    before = base(IDS).logits
    for source in (tmp_path / "t.safetensors", str(tmp_path / "t.safetensors"), vector):
        for under in (None, pair[0], base):
            torch.testing.assert_close(load_model(source, base=under)(IDS).logits, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(base(IDS).logits, before)
    assert not torch.allclose(before, expected, atol=1e-3)
    halfway = load_model(0.5 * vector)(IDS).logits
    assert not torch.allclose(halfway, expected, atol=1e-3) and not torch.allclose(halfway, before, atol=1e-3)


def test_float8_is_dequantised(pair: tuple[Path, Path]) -> None:
    expected = quantise(pair[1], (32, 32), torch.float8_e4m3fn, "_scale_inv")
    model = load_model(pair[1])
    for name, value in model.named_parameters():
        assert torch.equal(value, expected[name])
    reference = load_model(pair[0])
    reference.load_state_dict(expected)
    assert torch.equal(model(IDS).logits, reference(IDS).logits)


@pytest.mark.parametrize("name", EXPERTS)
def test_experts(name: str, tmp_path: Path) -> None:
    model, path = experts(tmp_path, name)
    torch.testing.assert_close(load_model(path)(IDS).logits, model(IDS).logits, atol=1e-5, rtol=1e-5)


def test_dtype(pair: tuple[Path, Path]) -> None:
    vector = tv.extract(*pair)
    for source in (pair[0], vector):
        assert load_model(source, dtype="bfloat16").lm_head.weight.dtype == torch.bfloat16


def test_tokenizers(pair: tuple[Path, Path], tmp_path: Path) -> None:
    vocabulary = load_tokenizer(pair[0]).get_vocab()
    model = load_model(pair[0])
    assert load_tokenizer(model).get_vocab() == vocabulary
    vector = tv.extract(*pair)
    vector.save(tmp_path / "t.safetensors")
    for source in (vector, tmp_path / "t.safetensors"):
        with pytest.raises(tv.CheckpointError, match="no tokenizer; pass its base"):
            load_tokenizer(source)
    (pair[0] / "tokenizer.json").unlink()
    (pair[0] / "tokenizer_config.json").unlink()
    with pytest.raises(tv.CheckpointError, match="no tokenizer lies beside the weights; copy"):
        load_tokenizer(pair[0])


def test_what_is_broken_is_one_line(pair: tuple[Path, Path]) -> None:
    tensors = load_file(pair[1] / "model.safetensors")
    (pair[1] / "model.safetensors").rename(pair[1] / "pytorch_model.bin")
    with pytest.raises(tv.CheckpointError, match="holds pickled weights only, which are not read; save them") as caught:
        load_model(pair[1])
    assert "\n" not in str(caught.value)
    save_file(tensors, pair[1] / "loose.safetensors")
    with pytest.raises(tv.CheckpointError, match="not a tuning vector"):
        load_model(pair[1] / "loose.safetensors", base=pair[0])
