"""GGUF files as checkpoints: the numbers of transformers' own loader, and the noise that quantisation leaves."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import PreTrainedModel

import tv
from tv.checkpoints.live import load_model
from tv.checkpoints.noise import ROUNDING
from tv.errors import LackOfMemory

gguf = pytest.importorskip("gguf")

Q = gguf.GGMLQuantizationType
_HEADS, _KV, _WIDTH = 4, 2, 16


def build_model(seed: int = 0) -> PreTrainedModel:
    """A Llama whose rows are whole blocks of 32."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=_HEADS,
        num_key_value_heads=_KV,
        vocab_size=307,
        max_position_embeddings=64,
        initializer_range=0.15,
        rms_norm_eps=1e-5,
    )
    return transformers.LlamaForCausalLM(config).float().eval()


def write_gguf(model: PreTrainedModel, file: Path, dtype: "Q" = Q.Q8_0, tensors: bool = True) -> Path:
    """Write a Llama as llama.cpp's converter does: its names, and the rows of q and k in its rotary order."""
    config = model.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(_WIDTH)
    writer.add_vocab_size(config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, parameter in model.named_parameters() if tensors else ():
        value = parameter.detach().numpy()
        for projection, heads in (("q_proj", _HEADS), ("k_proj", _KV)):
            if projection in name:
                value = value.reshape(heads, 2, _WIDTH // 2, -1).swapaxes(1, 2).reshape(value.shape)
        kept = value.ndim == 1 or dtype == Q.F32
        stored = np.ascontiguousarray(value) if kept else gguf.quants.quantize(np.ascontiguousarray(value), dtype)
        key = names.get_name(name.removesuffix(".weight"))
        writer.add_tensor(f"{key}.weight", stored, raw_dtype=Q.F32 if kept else dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_its_tensors_are_the_models(tmp_path: Path) -> None:
    model = build_model()
    checkpoint = tv.open_checkpoint(write_gguf(model, tmp_path / "x.gguf", Q.F32))
    for name, value in model.named_parameters():
        assert torch.equal(checkpoint.tensor(name), value)
    assert set(checkpoint.names) == set(dict(model.named_parameters()))
    assert checkpoint.architecture.name == "LlamaForCausalLM"
    assert checkpoint.dtype == "F32" and not checkpoint.notes


def test_a_file_without_tensors_is_said(tmp_path: Path) -> None:
    file = write_gguf(build_model(), tmp_path / "x.gguf", tensors=False)
    with pytest.raises(tv.CheckpointError, match=r"x\.gguf: cannot be read as GGUF: it holds no tensors"):
        tv.open_checkpoint(file)


@pytest.mark.parametrize("dtype", [Q.Q4_1, Q.Q8_0])
def test_quantisation_is_told_and_is_what_noise_share_says(dtype: "Q", tmp_path: Path) -> None:
    model = build_model()
    model.save_pretrained(tmp_path / "base")
    file = write_gguf(model, tmp_path / "x.gguf", dtype)
    pair = tv.open_pair(tmp_path / "base", file)
    assert any(f"quantised, mostly as {dtype.name}" in note for note in pair.facts.notes)
    assert not any("configurations differ" in note for note in pair.facts.notes)
    assert pair.facts.tokenizer == "not compared"
    module = pair.base.architecture.module(1, "down")
    assert pair.dtype(module) == dtype.name
    assert pair.tuned.info("model.norm.weight").dtype == "F32"
    delta, weight = pair.delta(module), pair.weight(module)
    assert float(delta.norm() / weight.norm()) == pytest.approx(ROUNDING[dtype.name], rel=0.1)
    share = pair.noise_share(module, float(weight.norm()), float(delta.norm()))
    assert share == pytest.approx(1, abs=0.2)  # nothing was tuned: all of T is rounding
    assert pair.noise_share(module, float(weight.norm()), 100 * float(delta.norm())) < 2e-4


def test_a_quantised_base_adds_its_noise(tmp_path: Path) -> None:
    base = write_gguf(build_model(), tmp_path / "base.gguf", Q.Q4_1)
    build_model(1).bfloat16().save_pretrained(tmp_path / "tuned")
    pair = tv.open_pair(base, tmp_path / "tuned")
    module = pair.base.architecture.module(0, "q")
    assert pair.noise_share(module, 1.0, 1.0) == pytest.approx(ROUNDING["Q4_1"] ** 2 + ROUNDING["BF16"] ** 2)
    vector = tv.extract(base, tmp_path / "tuned")
    assert vector.noise(module.parameter).share(1.0, 1.0) == pytest.approx(pair.noise_share(module, 1.0, 1.0))


def test_the_model_is_never_loaded_to_read_its_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tv.checkpoints.gguf.AutoModelForCausalLM", None)
    checkpoint = tv.open_checkpoint(write_gguf(build_model(), tmp_path / "x.gguf"))
    checkpoint.fingerprint()
    for name in checkpoint.names:
        assert checkpoint.tensor(name).shape == checkpoint.info(name).shape


def test_a_directory_that_holds_one(tmp_path: Path) -> None:
    file = write_gguf(build_model(), tmp_path / "x.gguf")
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(tv.open_checkpoint(tmp_path).tensor(name), tv.open_checkpoint(file).tensor(name))
    file.rename(tmp_path / "a.gguf")
    write_gguf(build_model(), tmp_path / "b.gguf")
    with pytest.raises(tv.CheckpointError, match=r"holds 2 \.gguf files; pass one of them \(a\.gguf"):
        tv.open_checkpoint(tmp_path)


def test_fingerprint_sees_the_files_bytes(tmp_path: Path) -> None:
    prints = [
        tv.open_checkpoint(write_gguf(build_model(seed), tmp_path / f"{seed}{dtype.name}.gguf", dtype)).fingerprint()
        for seed, dtype in ((0, Q.Q8_0), (0, Q.Q4_1), (1, Q.Q8_0))
    ]
    assert len({found["content"] for found in prints}) == 3
    assert prints[0]["structure"] == prints[2]["structure"] != prints[1]["structure"]


def test_a_live_model_of_it(tmp_path: Path) -> None:
    model = build_model()
    live = load_model(write_gguf(model, tmp_path / "x.gguf", Q.F32))
    ids = torch.tensor([[0, 5, 9, 44]])
    torch.testing.assert_close(live(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-4)


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:200])


def _nonsense(file: Path) -> None:
    file.write_bytes(b"not a GGUF file at all")


def _another_architecture(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b"llama", b"lamma"))


REFUSED: dict[str, Callable[[Path], None]] = {
    "cut": _cut,
    "nonsense": _nonsense,
    "another architecture": _another_architecture,
    "empty": lambda file: file.write_bytes(b"") and None,
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_damaged_file_is_one_line(case: str, tmp_path: Path) -> None:
    file = write_gguf(build_model(), tmp_path / "x.gguf")
    REFUSED[case](file)
    for action in (tv.open_checkpoint, load_model):
        with pytest.raises(tv.CheckpointError, match=r"x\.gguf: cannot be read as GGUF") as caught:
            action(file)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 bytes")])
def test_a_lack_of_memory_is_no_damage(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a tensor is read, and while transformers loads the model."""
    file = write_gguf(build_model(), tmp_path / "x.gguf")
    checkpoint = tv.open_checkpoint(file)

    def lack(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(type(checkpoint.reader._loader), "made", lack)
    monkeypatch.setattr("tv.checkpoints.gguf.AutoModelForCausalLM.from_pretrained", lack)
    for action in (lambda: checkpoint.tensor(checkpoint.names[0]), lambda: load_model(file)):
        with pytest.raises(LackOfMemory, match=r"x\.gguf: reading it: out of memory \(.*; close other") as caught:
            action()
        assert "download" not in str(caught.value) and "\n" not in str(caught.value)


def test_the_extra_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_gguf(build_model(), tmp_path / "x.gguf")
    loader = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    monkeypatch.setattr(loader, "is_gguf_available", lambda *_: False)
    with pytest.raises(tv.CheckpointError, match=r"pip install 'tuning-probes\[gguf\]'"):
        tv.open_checkpoint(file)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="no list of mapped files")
def test_nothing_of_the_file_stays_in_memory(tmp_path: Path) -> None:
    """However large the file, what was read of it does not count as this process's memory."""
    file = write_gguf(build_model(), tmp_path / "model.gguf")
    checkpoint = tv.open_checkpoint(file)
    for name in checkpoint.names:
        checkpoint.tensor(name)
    maps = Path("/proc/self/smaps").read_text(encoding="utf-8").split(f"{file}\n")[1:]
    resident = [int(line.split()[1]) for part in maps for line in part.splitlines()[:8] if line.startswith("Rss:")]
    assert len(maps) == len(resident) >= 1 and sum(resident) == 0
