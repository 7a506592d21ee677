"""GGUF parameters one by one: bitwise what transformers loads, architecture by architecture, and no more is read."""

import importlib
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import tv
from tv.checkpoints.gguf import gguf_config, load_gguf
from tv.runtime import transformers_private as private

gguf = pytest.importorskip("gguf")

Q = gguf.GGMLQuantizationType
_QUANTISED = (Q.Q8_0, Q.Q4_1, Q.F16, Q.BF16)
_SIZES: dict[str, Any] = {
    **{"context_length": 60, "embedding_length": 64, "block_count": 2, "feed_forward_length": 96, "vocab_size": 307},
    **{"attention.head_count": 4, "attention.head_count_kv": 2, "rope.freq_base": 10000.0, "rope.dimension_count": 16},
    **{"attention.layer_norm_rms_epsilon": 1e-5, "attention.layer_norm_epsilon": 1e-5, "attention.key_length": 16},
}
_MOE = {"expert_count": 3, "expert_used_count": 2}
_LFM2 = {"attention.head_count_kv": [0, 2], "shortconv.l_cache": 3}
_MAMBA = {"ssm.conv_kernel": 4, "ssm.state_size": 8, "ssm.time_step_rank": 5, "ssm.inner_size": 128}
_QWEN35 = {
    **{"expert_feed_forward_length": 160, "expert_shared_feed_forward_length": 72, "full_attention_interval": 2},
    **{"ssm.conv_kernel": 4, "ssm.state_size": 8, "ssm.group_count": 2, "ssm.time_step_rank": 4, "ssm.inner_size": 48},
    **{"rope.dimension_sections": [1, 1, 0, 0], "rope.dimension_count": 4},
}
#: Architecture as GGUF names it → its own settings.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "qwen2moe": _MOE,
    "qwen3moe": _MOE,
    "minimax-m2": _MOE | {"expert_gating_func": 2},
    "gemma2": {"attention.sliding_window": 8},
    "gemma3": {"attention.sliding_window": 8},
    "nemotron": {},
    "gpt2": {},
    "bloom": {},
    "falcon": {},
    "phi3": {},
    "stablelm": {},
    "starcoder2": {},
    "mamba": _MAMBA,
    "lfm2": _LFM2,
    "qwen35moe": _MOE | _QWEN35,
    "gpt-oss": _MOE,  # not whole; see below
}
#: Parameters of which the gguf package knows no name.
_OTHERS = {"e_score_correction_bias": "exp_probs_b.bias", "dt_bias": "ssm_dt.bias"}
_STACKS = {"gate_up_proj": ("ffn_gate_exps", "ffn_up_exps"), "down_proj": ("ffn_down_exps",)}


def write(file: Path, architecture: str, *, tied: bool = True, extra: dict[str, Any] | None = None) -> Path:
    """A file of random tensors under the names and shapes that the architecture's model asks for."""
    _write(file, architecture, {})
    config = gguf_config(file)
    config.tie_word_embeddings = tied
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    random = np.random.default_rng(0)
    tensors: dict[str, tuple[np.ndarray, Any]] = {}
    for name, shape in _declared(architecture, model).items():
        if name == "output.weight" and tied:
            continue
        value = random.standard_normal(shape).astype(np.float32)
        kind = Q.F32 if len(shape) < 2 or shape[-1] % 32 else _QUANTISED[len(tensors) % len(_QUANTISED)]
        if name.endswith("ffn_up_exps.weight"):  # of a kind with the gate's, as converters write them
            kind = tensors[name.replace("_up_", "_gate_")][1]
        if name.endswith("ssm_a"):
            value = -np.abs(value)  # −exp of the parameter
        tensors[name] = (value if kind == Q.F32 else gguf.quants.quantize(value, kind), kind)
    _write(file, architecture, tensors | (extra or {}))
    return file


def _declared(architecture: str, model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """Name in the file → shape in the file."""
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, model.config.num_hidden_layers)
    declared: dict[str, tuple[int, ...]] = {}
    for name, value in model.state_dict().items():
        shape = tuple(value.shape)
        stack = re.search(r"layers\.(\d+)\..*experts\.(gate_up_proj|down_proj)$", name)
        if stack:
            rows = shape[1] // len(_STACKS[stack[2]])
            declared |= {f"blk.{stack[1]}.{part}.weight": (shape[0], rows, shape[2]) for part in _STACKS[stack[2]]}
            continue
        other = next((key for end, key in _OTHERS.items() if name.endswith(end)), None)
        if other:
            declared[f"blk.{name.split('.')[2]}.{other}"] = shape
            continue
        path, dot, leaf = name.rpartition(".")
        if leaf not in ("weight", "bias"):
            path, dot, leaf = name, "", ""
        key = names.get_name(path) or names.get_name(path.removeprefix("transformer."))
        if key is None:
            continue
        if architecture == "gpt2" and re.search(r"(c_attn|c_proj|c_fc)\.weight$", name):
            shape = shape[::-1]
        if architecture in ("mamba", "lfm2", "qwen35moe") and len(shape) == 3:
            shape = (shape[0], shape[2])
        if "shared_expert_gate" in name:
            shape = shape[1:]
        declared[key + dot + leaf] = shape
    return declared


def _write(file: Path, architecture: str, tensors: dict[str, tuple[np.ndarray, Any]]) -> None:
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_name("tiny")
    writer.add_token_list([f"t{i}" for i in range(_SIZES["vocab_size"])])
    writer.add_pad_token_id(0)
    for key, value in (_SIZES | ARCHITECTURES[architecture]).items():
        kinds = {float: writer.add_float32, int: writer.add_uint32, list: writer.add_array}
        kinds[type(value)](f"{architecture}.{key}", value)
    for name, (value, kind) in tensors.items():
        writer.add_tensor(name, value, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_rows_that_transformers_would_leave_in_another_order_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An old Llama names no number of key-value heads; llama.cpp takes that of all heads."""
    monkeypatch.delitem(_SIZES, "attention.head_count_kv")
    file = write(tmp_path / "x.gguf", "llama")
    for action in (tv.open_checkpoint, load_gguf):
        with pytest.raises(tv.CheckpointError, match=r"lacks llama.attention.head_count_kv, .* wrong order"):
            action(file)
    assert tv.open_checkpoint(write(tmp_path / "y.gguf", "qwen2")).names  # whose rows are in one order everywhere


@pytest.mark.sampled(10)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "gpt-oss"])
def test_every_parameter_is_bitwise_what_transformers_loads(architecture: str, tied: bool, tmp_path: Path) -> None:
    if architecture == "gemma2" and not tied:
        pytest.skip("gemma2 has no output matrix in GGUF")
    if architecture == "qwen35moe" and not private.converts_gguf(architecture):
        pytest.skip("this version of transformers does not read it")
    file = write(tmp_path / "x.gguf", architecture, tied=tied)
    checkpoint = tv.open_checkpoint(file)
    loaded = dict(load_gguf(file).named_parameters())
    assert set(checkpoint.names) == set(loaded)
    for name, value in loaded.items():
        assert torch.equal(checkpoint.tensor(name), value), name
        some = sorted({0, len(value) // 3, len(value) - 1})
        assert torch.equal(checkpoint.reader.rows(name, some), value[some]), name
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            assert all(torch.equal(checkpoint.read(name, expert), value[expert]) for expert in range(3))
    assert not any("leaves out" in note for note in checkpoint.notes)


@pytest.fixture
def dequantised(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many numbers each call of the gguf package's dequantiser has made."""
    sizes: list[int] = []

    def counted(data: np.ndarray, kind: Any, do: Any = gguf.dequantize) -> np.ndarray:
        value = do(data, kind)
        sizes.append(value.size)
        return value

    monkeypatch.setattr("gguf.dequantize", counted)
    return sizes


@pytest.mark.parametrize(
    ("architecture", "name", "expert", "expected"),
    [
        ("qwen3", "model.layers.1.mlp.up_proj.weight", -1, [96 * 64]),
        ("qwen3moe", "model.layers.1.mlp.experts.gate_up_proj", -1, [3 * 768 * 64] * 2),
        ("qwen3moe", "model.layers.1.mlp.experts.gate_up_proj", 2, [768 * 64] * 2),
        ("qwen3moe", "model.layers.1.mlp.experts.down_proj", 1, [64 * 768]),
    ],
)
def test_a_read_dequantises_what_it_returns_and_no_more(
    architecture: str, name: str, expert: int, expected: list[int], tmp_path: Path, dequantised: list[int]
) -> None:
    checkpoint = tv.open_checkpoint(write(tmp_path / "x.gguf", architecture))
    checkpoint.fingerprint()
    assert not dequantised
    assert checkpoint.read(name, expert).numel() == sum(expected)
    assert dequantised == expected


@pytest.mark.parametrize(
    ("architecture", "name", "expected"),
    [
        ("llama", "model.layers.1.self_attn.q_proj.weight", [2 * 64]),  # its rows are in another order in the file
        ("llama", "model.embed_tokens.weight", [2 * 64]),
        ("qwen3moe", "model.layers.1.mlp.experts.down_proj", [64 * 768] * 2),
        ("gpt2", "transformer.h.1.attn.c_attn.weight", [64 * 192]),  # whose columns are its rows
    ],
)
def test_two_rows_dequantise_those_rows(
    architecture: str, name: str, expected: list[int], tmp_path: Path, dequantised: list[int]
) -> None:
    checkpoint = tv.open_checkpoint(write(tmp_path / "x.gguf", architecture))
    checkpoint.reader.rows(name, [0, 2])
    assert dequantised == expected


@pytest.mark.parametrize(
    ("architecture", "name", "expert", "expected"),
    [
        ("lfm2", "model.layers.1.feed_forward.w1.weight", -1, [96 * 64]),
        ("qwen35moe", "model.layers.1.mlp.experts.gate_up_proj", -1, [3 * 160 * 64] * 2),
        ("qwen35moe", "model.layers.1.mlp.experts.gate_up_proj", 2, [160 * 64] * 2),
        ("qwen35moe", "model.layers.1.mlp.experts.down_proj", 0, [64 * 160]),
    ],
)
def test_a_converted_architecture_reads_no_more_either(
    architecture: str, name: str, expert: int, expected: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not private.converts_gguf(architecture):
        pytest.skip("this version of transformers loads it otherwise")
    checkpoint = tv.open_checkpoint(write(tmp_path / "x.gguf", architecture))
    shapes: list[torch.Size] = []
    lazy = importlib.import_module("transformers.integrations.gguf.reader").LazyGgufTensor
    take = lazy.__getitem__

    def counted(stored: Any, _: Any) -> torch.Tensor:
        shapes.append(stored.shape)
        return take(stored, _)

    monkeypatch.setattr(lazy, "__getitem__", counted)
    assert checkpoint.read(name, expert).numel() == sum(expected)
    width = checkpoint.info(name).shape[-1]  # a row's, whatever its bytes
    assert [math.prod(shape[:-1]) * width for shape in shapes] == expected


ROPES = ["rope_freqs.weight", "rope_factors_long.weight"]


@pytest.mark.parametrize("name", [*ROPES, "mm.0.weight"])
def test_tensors_that_the_loader_leaves_out_are_named(name: str, tmp_path: Path) -> None:
    extra = {name: (np.linspace(1, 8, 8, dtype=np.float32), Q.F32)}
    base = write(tmp_path / "base.gguf", "llama")
    pair = tv.open_pair(base, write(tmp_path / "tuned.gguf", "llama", extra=extra))
    notes = [note for note in pair.facts.notes if "leaves out" in note]
    assert len(notes) == 1 and f"tuned.gguf: transformers' loader leaves out 1 of its tensors ({name!r}" in notes[0]
    assert ("rotary" in notes[0]) == (name in ROPES)


def test_a_model_that_would_be_left_random_in_part_is_refused(tmp_path: Path) -> None:
    """Of GPT-OSS, transformers' loader finds no experts in the file."""
    file = write(tmp_path / "x.gguf", "gpt-oss")
    with pytest.raises(tv.CheckpointError, match=r"finds no tensor for \d+ parameters \('model.layers.0.mlp.experts"):
        load_gguf(file)
    checkpoint = tv.open_checkpoint(file)
    assert any("leaves out 6 of its tensors ('blk.0.ffn_gate_exps.weight'" in note for note in checkpoint.notes)
    with pytest.raises(tv.CheckpointError, match="incomplete"):
        checkpoint.tensor("model.layers.0.mlp.experts.down_proj")


def test_a_tensor_of_another_size_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "x.gguf", "llama", extra={"output_norm.weight": (np.ones(63, np.float32), Q.F32)})
    with pytest.raises(tv.CheckpointError, match=r"'output_norm.weight' holds 63 numbers, .*say \[64\]"):
        tv.open_checkpoint(file)
