"""Whole quantised checkpoints: opened, measured, loaded to run, and read part by part."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

import tv
from tests.pairs import build_model, build_pair
from tests.tv.checkpoints.quantised.packers import FORMATS, gptq, nf4, quantise
from tests.tv.checkpoints.test_parameters import experts
from tv.architecture.resolve import skeleton
from tv.checkpoints.file_tensors import FileTensors
from tv.checkpoints.live import load_model
from tv.checkpoints.noise import ROUNDING
from tv.checkpoints.quantised.declaration import declaration
from tv.checkpoints.quantised.formats import dequantised
from tv.checkpoints.safetensors_files import weight_files
from tv.checkpoints.tensors import Stored, stored_tensors
from tv.checkpoints.tree import tree_of

IDS = torch.tensor([[0, 5, 9, 44, 100, 306]])
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return build_pair(tmp_path, "llama", step=0.5)


@pytest.mark.parametrize("name", FORMATS)
def test_weights_and_logits_are_those_of_the_dequantised_model(name: str, pair: tuple[Path, Path]) -> None:
    expected = quantise(pair[1], name)
    checkpoint = tv.open_checkpoint(pair[1])
    assert set(checkpoint.names) == set(expected)
    note = f"quantised, mostly as {FORMATS[name][2]}: its rounding is part of any T taken with it (see noise_share)"
    assert checkpoint.notes == (f"{pair[1]}: {note}",)
    for key, value in expected.items():
        torch.testing.assert_close(checkpoint.tensor(key), value, rtol=1e-6, atol=1e-7)
        assert checkpoint.info(key).dtype == (FORMATS[name][2] if key.endswith("_proj.weight") else "F32")
    reference = load_model(pair[0])
    reference.load_state_dict({key: checkpoint.tensor(key) for key in expected})
    assert torch.equal(load_model(pair[1])(IDS).logits, reference(IDS).logits)
    assert tv.check_pair(tv.open_checkpoint(pair[0]), checkpoint).notes == checkpoint.notes  # nothing twice


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", FORMATS)
def test_noise_share(name: str, pair: tuple[Path, Path], tmp_path: Path) -> None:
    rounding = ROUNDING[FORMATS[name][2]]
    base, tuned = (tv.open_checkpoint(path) for path in pair)
    module = base.architecture.module(1, "up")
    quantise(build_pair(tmp_path / "same", "llama", step=0.5)[0], name)
    same = tmp_path / "same" / "llama-base"
    table = tv.weights(pair[0], same, heads=False)
    row = table[(table.layer == 1) & (table.module == "up")].iloc[0]
    assert row.noise_share == 1  # T is rounding and nothing else
    moved = tv.weights(same, pair[1], heads=False)
    row = moved[(moved.layer == 1) & (moved.module == "up")].iloc[0]  # here the base is what was rounded
    weight, delta = (
        tv.open_checkpoint(same).matrix(module),
        tuned.matrix(module) - tv.open_checkpoint(same).matrix(module),
    )
    assert row.noise_share == pytest.approx(float(rounding * weight.norm() / delta.norm()) ** 2, rel=1e-3)
    assert 1e-5 < row.noise_share < 0.2
    quantise(pair[1], name)  # and here both are
    both = tv.weights(same, pair[1], heads=False)
    row = both[(both.layer == 1) & (both.module == "up")].iloc[0]
    assert row.noise_share == pytest.approx(2 * float(rounding * weight.norm() / delta.norm()) ** 2, rel=0.05)


@pytest.mark.parametrize("name", ["gptq", "compressed-tensors", "nf4"])
def test_a_tensor_is_read_alone(name: str, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    quantise(pair[1], name)
    read: list[str] = []
    load = Stored.load
    monkeypatch.setattr(Stored, "load", lambda self, index=-1: read.append(self.name) or load(self, index))
    checkpoint = tv.open_checkpoint(pair[1])
    checkpoint.fingerprint()
    settings = ("weight_shape", "quant_state.bitsandbytes__nf4")  # a few bytes that no header says
    assert all(part.endswith(settings) for part in read)
    read.clear()
    checkpoint.tensor(UP)
    assert len(read) == 3
    assert all(part.startswith(UP.removesuffix("weight")) for part in read)


def test_the_fingerprint_knows_every_part(pair: tuple[Path, Path]) -> None:
    quantise(pair[1], "gptq")
    before = tv.open_checkpoint(pair[1]).fingerprint()
    for part in ("qweight", "qzeros", "scales"):
        tensors = load_file(pair[1] / "model.safetensors")
        tensors[UP.replace("weight", part)][0, 0] += 1
        save_file(tensors, pair[1] / "model.safetensors")
        after = tv.open_checkpoint(pair[1]).fingerprint()
        assert after["content"] != before["content"] and after["structure"] == before["structure"]
        before = after


def test_gptq_with_quantize_config_json_alone(pair: tuple[Path, Path]) -> None:
    expected = quantise(pair[1], "gptq")
    config = json.loads((pair[1] / "config.json").read_text())
    declared = config.pop("quantization_config")
    del declared["quant_method"]
    (pair[1] / "config.json").write_text(json.dumps(config))
    (pair[1] / "quantize_config.json").write_text(json.dumps(declared | {"desc_act": False, "damp_percent": 0.01}))
    assert torch.equal(tv.open_checkpoint(pair[1]).tensor(UP), expected[UP])
    assert torch.equal(load_model(pair[1]).get_parameter(UP), expected[UP])
    (pair[1] / "quantize_config.json").unlink()
    for action in (tv.open_checkpoint, load_model):
        with pytest.raises(tv.CheckpointError) as caught:
            action(pair[1])
        assert "quantised" in str(caught.value) and "incomplete" not in str(caught.value)


def test_modelopt_with_hf_quant_config_json_alone(pair: tuple[Path, Path]) -> None:
    tensors = load_file(pair[1] / "model.safetensors")
    expected = {}
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        scale = tensors[name].abs().max() / 448
        tensors[name] = (tensors[name] / scale).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale"] = scale
        tensors[name.replace("weight", "input_scale")] = torch.tensor(0.5)
        expected[name] = tensors[name].float() * scale
    save_file(tensors, pair[1] / "model.safetensors")
    quantisation = {"quant_algo": "FP8", "kv_cache_quant_algo": None, "exclude_modules": ["lm_head"]}
    declared = {"producer": {"name": "modelopt", "version": "0.29"}, "quantization": quantisation}
    (pair[1] / "hf_quant_config.json").write_text(json.dumps(declared))
    checkpoint, model = tv.open_checkpoint(pair[1]), load_model(pair[1])
    assert checkpoint.dtype == "F8_E4M3" and len(checkpoint.notes) == 1
    for name, value in expected.items():
        assert torch.equal(checkpoint.tensor(name), value) and torch.equal(model.get_parameter(name), value)


def test_float8_that_nothing_declares_runs_as_it_is_read(pair: tuple[Path, Path]) -> None:
    tensors = load_file(pair[1] / "model.safetensors")
    tensors[UP] = tensors[UP].to(torch.float8_e4m3fn)
    tensors[f"{UP}_scale"] = torch.tensor(3.0)
    save_file(tensors, pair[1] / "model.safetensors")
    expected = tensors[UP].float() * 3
    assert torch.equal(tv.open_checkpoint(pair[1]).tensor(UP), expected)
    assert torch.equal(load_model(pair[1]).get_parameter(UP), expected)


def test_experts_that_are_quantised_apart(tmp_path: Path) -> None:
    model, path = experts(tmp_path, "mixtral")
    tensors, expected = load_file(path / "model.safetensors"), {}
    for name in [name for name in tensors if ".experts." in name]:
        parts, expected[name] = gptq(tensors.pop(name), size=8)
        tensors |= {f"{name.removesuffix('weight')}{part}": value.contiguous() for part, value in parts.items()}
    save_file(tensors, path / "model.safetensors")
    quantisation = {"quant_method": "gptq", "bits": 4, "group_size": 8}
    stored = dequantised("here", stored_tensors(weight_files(path)), quantisation)
    files = FileTensors("here", stored, tree_of(skeleton(model.config)), quantisation)
    prefix = "model.layers.1.block_sparse_moe.experts"
    rows = [torch.cat([expected[f"{prefix}.{i}.{part}.weight"] for part in ("w1", "w3")]) for i in range(11)]
    name = "model.layers.1.mlp.experts.gate_up_proj"
    assert files.infos[name].dtype == "GPTQ4" and not files.notes
    assert torch.equal(files.read(name), torch.stack(rows)) and torch.equal(files.read(name, 10), rows[10])


def test_gpt_oss(tmp_path: Path) -> None:
    config = transformers.GptOssConfig(
        hidden_size=64,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=24,
        vocab_size=97,
        num_local_experts=3,
        num_experts_per_tok=2,
    )
    model = transformers.GptOssForCausalLM(config)
    tensors = dict(model.state_dict())
    for name, rows, groups in (("gate_up_proj", 64, 2), ("down_proj", 64, 1)):
        name = f"model.layers.0.mlp.experts.{name}"
        del tensors[name]
        tensors[f"{name}_blocks"] = torch.full((3, rows, groups, 16), 0x72, dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.full((3, rows, groups), 128, dtype=torch.uint8)
    model.save_pretrained(tmp_path)
    save_file(tensors, tmp_path / "model.safetensors")
    config = AutoConfig.from_pretrained(tmp_path)
    quantisation = {"quant_method": "mxfp4"}
    stored = dequantised("here", stored_tensors(weight_files(tmp_path)), quantisation)
    files = FileTensors("here", stored, tree_of(skeleton(config)), quantisation)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    assert files.infos[name].shape == (3, 64, 64) and files.infos[name].dtype == "MXFP4" and not files.notes
    whole = files.read(name)
    assert torch.equal(whole[2], files.read(name, 2))
    assert torch.equal(whole[0, :2], torch.tensor([[2.0], [12.0]]).expand(2, 64))  # codes 2 and 7, times 2


def test_another_dtype_than_declared_is_refused(pair: tuple[Path, Path]) -> None:
    quantise(pair[1], "int8")
    tensors = load_file(pair[1] / "model.safetensors")
    del tensors[UP.replace("weight", "SCB")]
    save_file(tensors, pair[1] / "model.safetensors")
    with pytest.raises(tv.CheckpointError, match=rf"{UP}' is stored quantised, as I8, .*declares it \(bitsandbytes\)"):
        tv.open_checkpoint(pair[1])


def test_inputs_before_outputs_are_refused(tmp_path: Path) -> None:
    model = build_model("gpt2")
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "transformer.h.0.attn.c_proj.weight"  # it is square: no shape would tell
    parts, _ = nf4(tensors.pop(name))
    save_file(
        tensors | {f"{name.removesuffix('weight')}{k}": v for k, v in parts.items()}, tmp_path / "model.safetensors"
    )
    config = json.loads((tmp_path / "config.json").read_text())
    declared = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": declared}))
    with pytest.raises(
        tv.CheckpointError, match=r"c_proj.weight' is quantised, and its model has inputs before outputs"
    ):
        tv.open_checkpoint(tmp_path)


def test_a_quantised_base_is_applied_and_written_dequantised(pair: tuple[Path, Path], tmp_path: Path) -> None:
    expected = quantise(pair[1], "nf4")
    tv.apply(pair[0], {pair[1]: 1.0}, out=tmp_path / "out", conflicts=False)
    tv.apply(pair[1], {pair[0]: 1.0}, out=tmp_path / "back", conflicts=False)
    for directory, value in (("out", expected[UP]), ("back", load_file(pair[0] / "model.safetensors")[UP])):
        written = tv.open_checkpoint(tmp_path / directory)
        assert written.dtype == "F32" and not declaration(tmp_path / directory)
        torch.testing.assert_close(written.tensor(UP), value)


@pytest.mark.parametrize("declared", [{"quant_method": "gptq", "bits": 4, "group_size": 16}, {"quant_method": "fp8"}])
def test_plain_weights_that_are_declared_quantised(declared: dict[str, object], pair: tuple[Path, Path]) -> None:
    """What a merge of an adapter over a quantised base leaves behind: transformers would quantise on loading."""
    config = json.loads((pair[1] / "config.json").read_text())
    (pair[1] / "config.json").write_text(json.dumps(config | {"quantization_config": declared}))
    with pytest.raises(
        tv.CheckpointError, match=rf"quantised with {declared['quant_method']}, and none of its tensors"
    ):
        tv.open_checkpoint(pair[1])
