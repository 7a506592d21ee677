"""A model's parameters out of its files: experts kept apart or fused, float8 with its scales, old names, left-overs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

import tv
from tests.pairs import build_model, build_pair
from tv.architecture.resolve import skeleton
from tv.checkpoints.file_tensors import FileTensors
from tv.checkpoints.quantised.formats import dequantised
from tv.checkpoints.safetensors_files import weight_files
from tv.checkpoints.tensors import Stored, stored_tensors
from tv.checkpoints.tree import tree_of

_SIZES = dict(
    hidden_size=48,
    intermediate_size=80,
    moe_intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    vocab_size=307,
    initializer_range=0.15,
)
#: More than ten experts: a sort by text would put 10 before 2.
EXPERTS: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("MixtralConfig", {**_SIZES, "num_local_experts": 11}),
    "qwen2_moe": ("Qwen2MoeConfig", {**_SIZES, "num_experts": 11, "shared_expert_intermediate_size": 56}),
    "qwen3_moe": ("Qwen3MoeConfig", {**_SIZES, "num_experts": 11}),
}


def experts(directory: Path, name: str) -> tuple[transformers.PreTrainedModel, Path]:
    """A model with fused experts, and its directory, where transformers keeps them apart."""
    kind, sizes = EXPERTS[name]
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(getattr(transformers, kind)(**sizes)).float().eval()
    model.save_pretrained(directory / name)
    return model, directory / name


def open_files(path: Path, quantisation: dict[str, Any] | None = None) -> FileTensors:
    model = skeleton(AutoConfig.from_pretrained(path))
    stored = dequantised(str(path), stored_tensors(weight_files(path)), quantisation or {})
    return FileTensors(str(path), stored, tree_of(model), quantisation or {})


@pytest.mark.parametrize("name", EXPERTS)
@pytest.mark.parametrize("form", ["apart", "fused", "sharded"])
def test_experts_are_read_one_at_a_time(name: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, path = experts(tmp_path, name)
    apart = any(".experts.10." in key for key in load_file(path / "model.safetensors"))
    assert apart
    if form == "fused":
        save_file(dict(model.state_dict()), path / "model.safetensors")
    if form == "sharded":
        (path / "model.safetensors").unlink()
        model.save_pretrained(path, max_shard_size="100KB")
    tensors = open_files(path)
    parameters = dict(model.named_parameters())
    assert set(tensors.infos) == set(parameters) and not tensors.notes and not tensors.converted
    loaded: list[tuple[str, int]] = []
    load = Stored.load

    def counted(stored: Stored, index: int = -1) -> torch.Tensor:
        loaded.append((stored.name, index))
        return load(stored, index)

    monkeypatch.setattr(Stored, "load", counted)
    for key, value in parameters.items():
        assert tensors.infos[key].shape == tuple(value.shape)
        if value.ndim == 3:
            loaded.clear()
            assert torch.equal(tensors.read(key, 10), value[10])
            if form == "fused":
                assert loaded == [(key, 10)]
            else:
                assert 1 <= len(loaded) <= 2 and all(".experts.10." in name for name, _ in loaded)
        assert torch.equal(tensors.read(key), value)


def test_a_fused_tensor_is_not_read_for_one_expert(tmp_path: Path) -> None:
    save_file({"x": torch.arange(24.0).reshape(4, 3, 2)}, tmp_path / "model.safetensors")
    stored = stored_tensors(weight_files(tmp_path))["x"]
    assert torch.equal(stored.load(2), torch.arange(12.0, 18).reshape(3, 2))
    assert stored.load(2).untyped_storage().nbytes() <= 24 * 4  # a view of the mapped file at most


@pytest.mark.parametrize("case", ["one expert is missing", "half of one is missing", "another width"])
def test_experts_that_do_not_add_up(case: str, tmp_path: Path) -> None:
    _, path = experts(tmp_path, "mixtral")
    tensors = load_file(path / "model.safetensors")
    first, second = (f"model.layers.0.block_sparse_moe.experts.3.{part}.weight" for part in ("w1", "w3"))
    assert first in tensors
    if case == "another width":
        tensors[first] = torch.ones(80, 47)
    for key in {"one expert is missing": (first, second), "half of one is missing": (first,)}.get(case, ()):
        del tensors[key]
    save_file(tensors, path / "model.safetensors")
    expected = r"gate_up_proj' has shape \[1.*config.json says \[11, 160, 48\]"
    if case == "half of one is missing":
        expected = "of the 21 tensors that make up .*gate_up_proj' some are missing"
    with pytest.raises(tv.CheckpointError, match=expected):
        open_files(path)


def test_a_conversion_of_any_kind_is_that_of_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A form that has no rule here, as transformers may know for another architecture."""
    from transformers.core_model_loading import Transpose, WeightConverter

    base, tuned = build_pair(tmp_path, "llama")
    other = WeightConverter("mlp.up_proj.weight", "mlp.up_proj.weight", operations=[Transpose(0, 1)])
    monkeypatch.setattr("tv.checkpoints.transformers_names.get_model_conversion_mapping", lambda model: [other])
    name = "model.layers.1.mlp.up_proj.weight"
    with pytest.raises(tv.CheckpointError, match=r"up_proj.weight' makes .* of shape \[48, 80\].*says \[80, 48\]"):
        tv.open_checkpoint(base).tensor(name)
    expected = {}
    for path in (base, tuned):
        tensors = load_file(path / "model.safetensors")
        expected[path] = tensors[name]
        save_file(
            {k: v.T.contiguous() if "up_proj" in k else v for k, v in tensors.items()}, path / "model.safetensors"
        )
    pair = tv.open_pair(base, tuned)
    assert torch.equal(pair.base.tensor(name), expected[base])
    assert [*pair.base.converted] == [[f"model.layers.{layer}.mlp.up_proj.weight"] for layer in range(3)]
    assert torch.equal(tv.extract(base, tuned)[name], expected[tuned].float() - expected[base].float())


def test_one_tensor_that_makes_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.core_model_loading import Chunk, WeightConverter

    base, _ = build_pair(tmp_path, "llama")
    tensors = load_file(base / "model.safetensors")
    for layer in range(3):
        gate, up = (tensors.pop(f"model.layers.{layer}.mlp.{part}_proj.weight") for part in ("gate", "up"))
        tensors[f"model.layers.{layer}.mlp.gate_up.weight"] = torch.cat([gate, up])
    save_file(tensors, base / "model.safetensors")
    targets = ["mlp.gate_proj.weight", "mlp.up_proj.weight"]
    fused = WeightConverter("mlp.gate_up.weight", targets, operations=[Chunk(dim=0)])
    monkeypatch.setattr("tv.checkpoints.transformers_names.get_model_conversion_mapping", lambda model: [fused])
    checkpoint = tv.open_checkpoint(base)
    assert len(checkpoint.converted) == 3
    for target, expected in zip(targets, (gate, up), strict=True):
        assert torch.equal(checkpoint.tensor(f"model.layers.2.{target}"), expected)
        assert torch.equal(checkpoint.reader.rows(f"model.layers.2.{target}", [7, 70]), expected[[7, 70]])


def test_layers_that_the_configuration_leaves_out_are_noted(tmp_path: Path) -> None:
    base, tuned = build_pair(tmp_path, "llama")
    for path in (base, tuned):
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    notes = tv.check_pair(tv.open_checkpoint(base), tv.open_checkpoint(tuned)).notes
    told = [note for note in notes if "9 of its tensors ('model.layers.2." in note]
    assert len(told) == 2 and all(note.endswith("outside the forward pass") for note in told)


def test_buffers_of_old_files_are_not_noted(tmp_path: Path) -> None:
    base, tuned = build_pair(tmp_path, "gpt2")
    tensors = load_file(base / "model.safetensors")
    buffers = {
        "transformer.h.0.attn.bias": torch.ones(1, 1, 64, 64),
        "transformer.h.0.attn.masked_bias": torch.tensor(-1e4),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
    }
    save_file(tensors | buffers, base / "model.safetensors")
    assert not tv.check_pair(tv.open_checkpoint(base), tv.open_checkpoint(tuned)).notes


def quantise(path: Path, block: tuple[int, int] | None, dtype: torch.dtype, suffix: str) -> dict[str, torch.Tensor]:
    """Rewrite the projections of a checkpoint in float8 with scales; returns what they stand for."""
    tensors = load_file(path / "model.safetensors")
    expected: dict[str, torch.Tensor] = {}
    for name, value in list(tensors.items()):
        if not name.endswith("_proj.weight") and ".experts." not in name:
            expected[name] = value
            continue
        high, wide = block or value.shape
        grid = [[part.abs().max() / 448 for part in band.split(wide, 1)] for band in value.split(high)]
        scales = torch.tensor(grid)
        full = scales.repeat_interleave(high, 0).repeat_interleave(wide, 1)[: value.shape[0], : value.shape[1]]
        tensors[name] = (value / full).to(dtype)
        tensors[name + suffix] = scales if block else scales.reshape(())
        expected[name] = tensors[name].float() * full
    save_file(tensors, path / "model.safetensors")
    config = json.loads((path / "config.json").read_text())
    quantisation = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": block}
    (path / "config.json").write_text(json.dumps(config | {"quantization_config": quantisation}))
    return expected


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("block", [(32, 32), (1, 48), (128, 128), None])
def test_float8_with_scales(tmp_path: Path, block: tuple[int, int] | None, dtype: torch.dtype) -> None:
    """Blocks that are cut off at the edges, whole rows, blocks larger than the matrix, and one scale a tensor."""
    base, tuned = build_pair(tmp_path, "llama")
    expected = quantise(tuned, block, dtype, "_scale" if block is None else "_scale_inv")
    pair = tv.open_pair(base, tuned)
    for name, value in expected.items():
        assert torch.equal(pair.tuned.tensor(name), value)
    name = "model.layers.1.mlp.down_proj.weight"
    stored = {torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2"}[dtype]
    assert pair.tuned.info(name).dtype == pair.tuned.dtype == stored
    assert pair.tuned.info("model.norm.weight").dtype == "F32"
    module = pair.base.architecture.module(1, "down")
    assert torch.equal(pair.delta(module), expected[name] - pair.base.tensor(name))
    assert getattr(pair.tuned.config, "quantization_config", None) is None
    assert not any("quantization_config" in note for note in pair.facts.notes)
    rounding = pair.noise(name).of_weight
    exact = tv.open_checkpoint(build_pair(tmp_path / "again", "llama")[1]).tensor(name)
    assert float((expected[name] - exact).norm() / exact.norm()) == pytest.approx(rounding, rel=0.2)


def test_scales_that_are_exponents(tmp_path: Path) -> None:
    _, tuned = build_pair(tmp_path, "llama")
    tensors = load_file(tuned / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = torch.ones(80, 48).to(torch.float8_e4m3fn)
    tensors[name + "_scale_inv"] = torch.full((2, 1), 2.0**-5).to(torch.float8_e8m0fnu)
    save_file(tensors, tuned / "model.safetensors")
    assert torch.equal(tv.open_checkpoint(tuned).tensor(name), torch.full((80, 48), 2.0**-5))
    tensors[name + "_scale_inv"] = torch.full((2, 1), 127 - 5, dtype=torch.uint8)
    save_file(tensors, tuned / "model.safetensors")
    assert torch.equal(tv.open_checkpoint(tuned).tensor(name), torch.full((80, 48), 2.0**-5))


@pytest.mark.parametrize("form", ["apart", "fused"])
def test_float8_experts(form: str, tmp_path: Path) -> None:
    model, path = experts(tmp_path, "mixtral")
    name = "model.layers.1.mlp.experts.gate_up_proj"
    if form == "fused":
        tensors = dict(model.state_dict())
        scales = torch.rand(11, 5, 2) + 0.5
        full = scales.repeat_interleave(32, 1).repeat_interleave(32, 2)[..., :48]
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)
        expected = tensors[name].float() * full
        save_file(tensors | {name + "_scale_inv": scales}, path / "model.safetensors")
    else:
        parts = quantise(path, (32, 32), torch.float8_e4m3fn, "_scale_inv")
        prefix = "model.layers.1.block_sparse_moe.experts"
        rows = [torch.cat([parts[f"{prefix}.{i}.{part}.weight"] for part in ("w1", "w3")]) for i in range(11)]
        expected = torch.stack(rows)
    tensors_of = _open_quantised(path)
    assert not tensors_of.notes
    assert tensors_of.infos[name].dtype == "F8_E4M3"
    assert torch.equal(tensors_of.read(name), expected)
    assert torch.equal(tensors_of.read(name, 10), expected[10])


def _open_quantised(path: Path) -> FileTensors:
    config = AutoConfig.from_pretrained(path)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    quantisation = {"quant_method": "fp8", "weight_block_size": [32, 32]}
    stored = dequantised(str(path), stored_tensors(weight_files(path)), quantisation)
    return FileTensors(str(path), stored, tree_of(skeleton(config)), quantisation)


def test_plain_float8_stands_for_itself(tmp_path: Path) -> None:
    _, tuned = build_pair(tmp_path, "llama")
    tensors = {name: value.to(torch.float8_e5m2) for name, value in load_file(tuned / "model.safetensors").items()}
    save_file(tensors, tuned / "model.safetensors")
    checkpoint = tv.open_checkpoint(tuned)
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(checkpoint.matrix(checkpoint.architecture.module(0, "up")), tensors[name].float())
    assert checkpoint.dtype == "F8_E5M2"


def test_scales_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    _, tuned = build_pair(tmp_path, "llama")
    quantise(tuned, (32, 32), torch.float8_e4m3fn, "_scale_inv")
    tensors = load_file(tuned / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight_scale_inv"] = torch.ones(3, 5)
    save_file(tensors, tuned / "model.safetensors")
    with pytest.raises(tv.CheckpointError, match=r"up_proj.weight' has shape \[80, 48\] and scales \[3, 5\]"):
        tv.open_checkpoint(tuned)


def test_float8_of_another_method_is_refused(tmp_path: Path) -> None:
    _, tuned = build_pair(tmp_path, "llama")
    quantise(tuned, (32, 32), torch.float8_e4m3fn, "_scale_inv")
    config = json.loads((tuned / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "quark"}
    (tuned / "config.json").write_text(json.dumps(config))
    with pytest.raises(tv.CheckpointError, match="quantised with quark, which is not read; load it with transformers"):
        tv.open_checkpoint(tuned)


def test_a_live_float8_model_is_refused() -> None:
    model = build_model("llama")
    weight = model.model.layers[0].mlp.up_proj.weight
    weight.data = weight.data.to(torch.float8_e4m3fn)
    with pytest.raises(tv.CheckpointError, match=r"up_proj\.weight' is quantised"):
        tv.open_checkpoint(model)
