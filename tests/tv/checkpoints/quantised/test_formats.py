"""Every format against its library's own dequantisation of what that library packed (see data/README.md)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

import tv
from tv.checkpoints.noise import ROUNDING
from tv.checkpoints.quantised.formats import dequantised
from tv.checkpoints.quantised.parts import Quantised
from tv.checkpoints.tensors import Stored, header

DATA = sorted((Path(__file__).parent / "data").glob("*.safetensors"))
_METHODS = {"mlx": "mlx", "modelopt": "modelopt", "gptq4": "gptq"}
_WORDS = {
    **{"awq4": "AWQ4", "bnb-fp4": "FP4", "bnb-int8": "LLM.INT8", "bnb-nf4": "NF4", "ct-fp8": "F8_E4M3"},
    **{"ct-int8": "INT8", "ct-mxfp4": "MXFP4", "ct-naive": "F8_E4M3", "ct-nvfp4": "NVFP4", "ct-pack3": "INT3"},
    **{"ct-pack4": "INT4", "ct-pack8": "INT8", "modelopt-fp8": "F8_E4M3", "modelopt-nvfp4": "NVFP4"},
    **{f"{kind}{bits}": f"{kind.upper()}{bits}" for kind in ("gptq", "mlx") for bits in (2, 3, 4, 5, 6, 8)},
}


def declared_in(file: Path) -> dict[str, Any]:
    """What a checkpoint with this file's parts declares."""
    with safe_open(file, "pt") as opened:
        declared = json.loads(opened.metadata()["declaration"])
    method = next((method for name, method in _METHODS.items() if file.name.startswith(name)), None)
    return {"quant_method": method} | declared.get("quantization", declared)


def read(file: Path, declared: dict[str, Any] | None = None) -> dict[str, Stored | Quantised]:
    stored = {tensor.name: tensor for tensor in header(file) if tensor.name != "expected"}
    return dequantised("here", stored, declared_in(file) if declared is None else declared)


@pytest.mark.parametrize("file", DATA, ids=lambda file: file.stem)
def test_it_is_what_the_library_takes_it_for(file: Path) -> None:
    expected = load_file(file)["expected"]
    tensors = read(file)
    weight = tensors["proj.weight"]
    assert set(tensors) <= {"proj.weight", "proj.input_scale"}
    assert weight.shape == tuple(expected.shape)
    assert weight.dtype == next(word for name, word in _WORDS.items() if file.stem.startswith(name))
    assert weight.dtype in ROUNDING
    value = weight.load()
    assert value.dtype == torch.float32 and value.is_contiguous()
    if file.stem == "bnb-int8":  # it multiplies by a float32 near 1/127
        torch.testing.assert_close(value, expected, rtol=2e-7, atol=0)
    else:
        assert torch.equal(value, expected)
    assert torch.equal(weight.load(7), expected[7])
    assert len(weight.sample()) > 100


def test_every_library_has_packed_something() -> None:
    assert {file.stem.split("-")[0].rstrip("0123456789") for file in DATA} == {
        "gptq",
        "awq",
        "ct",
        "bnb",
        "modelopt",
        "mlx",
    }


def test_mxfp4_of_gpt_oss(tmp_path: Path) -> None:
    """Every code with every exponent but the extremes, against transformers' own conversion."""
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (3, 20, 2, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(20, 230, (3, 20, 2), generator=generator, dtype=torch.uint8)
    save_file({"up_proj_blocks": blocks, "up_proj_scales": scales, "bias": torch.ones(3)}, tmp_path / "x.safetensors")
    tensors = read(tmp_path / "x.safetensors", {"quant_method": "mxfp4"})
    expected = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    assert set(tensors) == {"up_proj", "bias"} and tensors["up_proj"].shape == (3, 64, 20)
    assert torch.equal(tensors["up_proj"].load(), expected)
    assert torch.equal(tensors["up_proj"].load(2), expected[2])


def test_an_expert_is_read_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks, scales = torch.zeros(3, 20, 2, 16, dtype=torch.uint8), torch.zeros(3, 20, 2, dtype=torch.uint8)
    save_file({"x_blocks": blocks, "x_scales": scales}, tmp_path / "x.safetensors")
    tensors = read(tmp_path / "x.safetensors", {"quant_method": "mxfp4"})
    asked: list[int] = []
    load = Stored.load
    monkeypatch.setattr(Stored, "load", lambda self, index=-1: asked.append(index) or load(self, index))
    assert tensors["x"].load(1).shape == (64, 20)
    assert asked == [1, 1]


def _rewrite(name: str, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    source = next(file for file in DATA if file.stem == name)
    tensors = load_file(source)
    change(tensors)
    with safe_open(source, "pt") as opened:
        metadata = opened.metadata()
    save_file({key: t.contiguous() for key, t in tensors.items()}, tmp_path / source.name, metadata=metadata)
    return tmp_path / source.name


def _cut(key: str) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors.update({key: tensors[key][:-1]})


def _to(key: str, dtype: torch.dtype) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors.update({key: tensors[key].to(dtype)})


#: File, what is done to it, and what the refusal says.
DAMAGED: dict[str, tuple[str, Callable[[dict[str, torch.Tensor]], object], str]] = {
    "gptq, no zeros": ("gptq4-auto-gptq", lambda t: t.pop("proj.qzeros"), "tensor 'proj.qzeros' is missing"),
    "gptq, no scales": ("gptq4-auto-gptq", lambda t: t.pop("proj.scales"), "tensor 'proj.scales' is missing"),
    "gptq, other words": (
        "gptq4-auto-gptq",
        _to("proj.qweight", torch.int16),
        "'proj.qweight' is stored as I16, not as I32",
    ),
    "gptq, a row short": (
        "gptq4-auto-gptq",
        _cut("proj.qweight"),
        r"'proj.qweight' has shape \[11, 32\].*ask for \[12, 32\]",
    ),
    "gptq, a group short": ("gptq4-auto-gptq", _cut("proj.qzeros"), r"'proj.qzeros' has shape \[2, 4\].*\[3, 4\]"),
    "awq, a group short": ("awq4-32", _cut("proj.scales"), r"'proj.scales' has shape \[2, 32\].*\[3, 32\]"),
    "awq, no zeros": ("awq4-32", lambda t: t.pop("proj.qzeros"), "'proj.qzeros' is missing"),
    "awq, scaled activations": (
        "awq4-32",
        lambda t: t.update({"mlp.act.scales": torch.ones(3)}),
        "'mlp.act.scales' scales an activation",
    ),
    "packed, no scale": ("ct-pack4-group-sym", lambda t: t.pop("proj.weight_scale"), "'proj.weight_scale' is missing"),
    "packed, no zero": ("ct-pack4-group-asym", lambda t: t.pop("proj.weight_zero_point"), "zero_point' is missing"),
    "packed, another shape": (
        "ct-pack4-group-sym",
        lambda t: t.update({"proj.weight_shape": torch.tensor([32, 90])}),
        r"'proj.weight_scale' has shape \[32, 3\], which is no scale for \[32, 90\]",
    ),
    "packed, scales cut": ("ct-pack4-group-sym", _cut("proj.weight_scale"), r"'proj.weight_scale' has shape \[31, 3\]"),
    "int8, scales cut": ("ct-int8-channel", _cut("proj.weight_scale"), r"'proj.weight_scale' has shape \[31, 1\]"),
    "float8, scales cut": ("ct-fp8-channel", _cut("proj.weight_scale"), r"shape \[32, 96\] and scales \[31, 1\]"),
    "float8, no scale": ("modelopt-fp8", lambda t: t.pop("proj.weight_scale"), "stored quantised, as F8_E4M3, and its"),
    "float8, a number": (
        "modelopt-fp8",
        lambda t: t.update({"proj.weight_scale": torch.ones(96), "proj.weight": t["proj.weight"][0]}),
        r"shape \[96\] and scales \[96\], which do not fit",
    ),
    "gptq, a vector": (
        "gptq4-auto-gptq",
        lambda t: t.update({"proj.g_idx": torch.tensor(3)}),
        "its settings or its tensors do not fit gptq: ",
    ),
    "nvfp4, no scalar": ("ct-nvfp4", lambda t: t.pop("proj.weight_global_scale"), "weight_global_scale' is missing"),
    "nvfp4, scales cut": ("modelopt-nvfp4", _cut("proj.weight_scale"), r"'proj.weight_scale' has shape \[31, 6\]"),
    "modelopt's awq": (
        "modelopt-nvfp4",
        lambda t: t.update({"proj.pre_quant_scale": torch.ones(96)}),
        "'proj.pre_quant_scale' scales an activation",
    ),
    "nf4, no levels": ("bnb-nf4", lambda t: t.pop("proj.weight.quant_map"), "'proj.weight.quant_map' is missing"),
    "nf4, bytes cut": ("bnb-nf4", _cut("proj.weight"), r"'proj.weight' has 719 bytes, not 720 for \[40, 36\]"),
    "nf4, scales cut": ("bnb-nf4-double", _cut("proj.weight.absmax"), r"absmax' has shape \[257\].*\[258\]"),
    "nf4, nonsense": (
        "bnb-nf4",
        lambda t: t["proj.weight.quant_state.bitsandbytes__nf4"].zero_(),
        "does not say how 'proj.weight' is quantised",
    ),
    "mlx, no biases": ("mlx4-64", lambda t: t.pop("proj.biases"), "'proj.biases' is missing"),
    "mlx, scales cut": ("mlx4-64", _cut("proj.scales"), r"'proj.scales' has shape \[31, 2\].*\[32, 2\]"),
    "mlx, stacked experts": (
        "mlx4-64",
        lambda t: t.update({"mlp.switch_mlp.up_proj.weight": torch.ones(3)}),
        "stacks experts as MLX does",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_refused_by_name(case: str, tmp_path: Path) -> None:
    name, change, expected = DAMAGED[case]
    with pytest.raises(tv.CheckpointError, match=expected) as caught:
        read(_rewrite(name, tmp_path, change))
    assert "\n" not in str(caught.value) and str(caught.value).startswith("here: ")


def test_parts_that_contradict_each_other_are_refused_when_read(tmp_path: Path) -> None:
    for value in (3, -1):
        file = _rewrite("gptq4-auto-gptq", tmp_path, lambda t, value=value: t["proj.g_idx"].fill_(value))
        with pytest.raises(tv.CheckpointError, match=r"'proj.weight' is quantised, and its parts contradict") as caught:
            read(file)["proj.weight"].load()
        assert "\n" not in str(caught.value)
    file = _rewrite("bnb-int8", tmp_path, lambda t: t["proj.weight_format"].fill_(2))
    with pytest.raises(tv.CheckpointError, match="laid out for a GPU"):
        read(file)["proj.weight"].load()


#: File, changed settings of its declaration, and what the refusal says.
MISDECLARED: dict[str, tuple[str, dict[str, Any], str]] = {
    "gptq, bits": ("gptq4-auto-gptq", {"bits": 8}, "'proj.qzeros' packs 4 bits a number, and the declaration says 8"),
    "gptq, groups": (
        "gptq4-auto-gptq",
        {"group_size": 16},
        r"'proj.scales' has shape \[3, 32\].*group_size 16.*\[6, 32\]",
    ),
    "gptq, marlin": (
        "gptq4-auto-gptq",
        {"checkpoint_format": "marlin"},
        "layout 'marlin'.*save it in the layout 'gptq'",
    ),
    "gptq, words": ("gptq4-auto-gptq", {"group_size": "many"}, "its settings or its tensors do not fit gptq: "),
    "awq, layout": ("awq4-32", {"version": "gemv"}, "layout 'gemv' of 4 bits.*with AutoAWQ"),
    "awq, groups": ("awq4-32", {"group_size": 48}, r"'proj.scales' has shape \[3, 32\].*\[2, 32\]"),
    "packed, sparse": ("ct-pack4-group-sym", {"format": "marlin-24"}, "as 'marlin-24', which is not read; decompress"),
    "packed, rotated": (
        "ct-pack4-group-sym",
        {"transform_config": {"config_groups": {"R4": {}}}},
        "has rotated its weights",
    ),
    "packed, no groups": ("ct-pack4-group-sym", {"config_groups": {}}, "packs 4 bits a number"),
    "packed, a list": (
        "ct-pack4-group-sym",
        {"config_groups": [1]},
        "its settings or its tensors do not fit compressed-tensors",
    ),
    "mlx, bits": ("mlx4-64", {"bits": 8}, r"'proj.scales' has shape \[32, 2\].*bits 8"),
    "mlx, mode": ("mlx4-64", {"mode": "mxfp4"}, "in the mode 'mxfp4'.*mlx_lm.convert --dequantize"),
    **{
        method: (
            "mlx4-64",
            {"quant_method": method},
            f"quantised with {method}, which is not read; load it with transf",
        )
        for method in ("hqq", "aqlm", "quip", "eetq", "spqr", "vptq", "torchao", "auto-round")
    },
}


@pytest.mark.parametrize("case", MISDECLARED)
def test_a_declaration_that_does_not_fit_is_refused(case: str) -> None:
    name, changes, expected = MISDECLARED[case]
    file = next(file for file in DATA if file.stem == name)
    with pytest.raises(tv.CheckpointError, match=expected) as caught:
        read(file, declared_in(file) | changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["gptq4-auto-gptq", "awq4-32", "ct-pack4-group-sym", "bnb-nf4", "bnb-int8"])
def test_parts_that_nothing_declares_are_called_quantised(name: str) -> None:
    with pytest.raises(tv.CheckpointError, match=r"part of a quantised weight, and neither config.json nor") as caught:
        read(next(file for file in DATA if file.stem == name), {})
    assert "incomplete" not in str(caught.value)


def test_modules_may_have_settings_of_their_own() -> None:
    file = next(file for file in DATA if file.stem == "mlx3-32")
    expected = load_file(file)["expected"]
    settings = {"quant_method": "mlx", "bits": 4, "group_size": 64, "proj": {"bits": 3, "group_size": 32}}
    assert torch.equal(read(file, settings)["proj.weight"].load(), expected)
    file = next(file for file in DATA if file.stem == "gptq8-32-gptq-sym-act")
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 128, "dynamic": {"+:proj": {"bits": 8}}}
    assert torch.equal(read(file, settings)["proj.weight"].load(), load_file(file)["expected"])


def test_what_is_not_quantised_passes_through(tmp_path: Path) -> None:
    plain = {"lm_head.weight": torch.ones(5, 3).bfloat16(), "norm.weight": torch.ones(3), "ids": torch.arange(4)}
    file = _rewrite("gptq4-auto-gptq", tmp_path, lambda tensors: tensors.update(plain))
    tensors = read(file)
    assert set(tensors) == {"proj.weight", *plain}
    for name, value in plain.items():
        assert torch.equal(tensors[name].load(), value) and isinstance(tensors[name], Stored)
