"""`tv verify`: planted faults are named, each by its own name, and files that are base + ΔW pass."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import tv
from tests.pairs import build_model
from tv.checkpoints.checkpoint import Checkpoint
from tv.verifying.merge import Verified

_O, _O2 = (f"model.layers.{layer}.self_attn.o_proj.weight" for layer in (1, 2))  # square
_DOWN, _GATE = "model.layers.0.mlp.down_proj.weight", "model.layers.2.mlp.gate_up_proj.weight"
_NORM, _EMBED = "model.layers.1.input_layernorm.weight", "model.embed_tokens.weight"
_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def _save(path: Path, architecture: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    build_model(architecture, seed=seed).to(dtype).save_pretrained(path)
    return path


def _adapter(
    base: Path, path: Path, targets: list[str] | str, seed: int = 1, std: float = 0.05, **settings: object
) -> Path:
    torch.manual_seed(seed)
    config = LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": targets, **settings})
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape) * std
    model.save_pretrained(path)
    return path


def _merge(
    base: Path, adapter: Path, path: Path, dtype: torch.dtype, *, safe: bool = False, shard: str = "1GB"
) -> Path:
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=dtype), adapter)
    model.merge_and_unload(safe_merge=safe).save_pretrained(path, max_shard_size=shard)
    return path


@dataclass(frozen=True)
class _Made:
    base: Path
    other_base: Path
    adapter: Path
    other_adapter: Path
    merged: Path
    dtype: torch.dtype

    def __post_init__(self) -> None:
        base = tv.open_checkpoint(str(self.base))
        sides = {path: tv.open_checkpoint(str(path), base=base) for path in (self.adapter, self.other_adapter)}
        self.__dict__.update(w=load_file(self.base / "model.safetensors"), opened=base, sides=sides)

    def t(self, name: str, adapter: Path | None = None) -> Tensor:
        side: Checkpoint = self.__dict__["sides"][adapter or self.adapter]
        return side.delta(name, self.__dict__["opened"])

    def sum(self, name: str, delta: Tensor | float) -> Tensor:
        return (self.__dict__["w"][name].float() + delta).to(self.dtype)

    def factors(self, name: str, a: Path, b: Path) -> Tensor:
        sides = [load_file(side / "adapter_model.safetensors") for side in (a, b)]
        key = f"base_model.model.{name.removesuffix('.weight')}"
        return 1.5 * sides[1][f"{key}.lora_B.weight"] @ sides[0][f"{key}.lora_A.weight"]

    def verified(self, path: Path, edit: Callable[[dict[str, Tensor]], object]) -> Verified:
        shutil.copytree(self.merged, path)
        tensors = load_file(path / "model.safetensors")
        edit(tensors)
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
        return tv.verify(str(self.base), str(self.adapter), str(path))


@pytest.fixture(scope="module", params=list(_DTYPES))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> _Made:
    dtype, root = _DTYPES[request.param], tmp_path_factory.mktemp("a file")
    base, targets = _save(root / "base", "phi3", dtype), ["o_proj", "down_proj", "gate_up_proj"]
    adapters = [_adapter(base, root / f"adapter{seed}", targets, seed) for seed in (1, 2)]
    other = _save(root / "other", "phi3", dtype, seed=5)
    return _Made(base, other, adapters[0], adapters[1], _merge(base, adapters[0], root / "merged", dtype), dtype)


def _int8(value: Tensor) -> Tensor:
    step = value.float().abs().amax(1, keepdim=True).clamp(min=1e-9) / 127
    return ((value.float() / step).round() * step).to(value.dtype)


def _four_bits(value: Tensor) -> Tensor:
    blocks = value.float().reshape(-1, 32)
    step = blocks.abs().amax(1, keepdim=True) / 7
    return ((blocks / step).round() * step).reshape(value.shape).to(value.dtype)


def _truncated(delta: Tensor) -> Tensor:
    left, sizes, right = torch.linalg.svd(delta.double(), full_matrices=False)
    return ((left[:, :3] * sizes[:3]) @ right[:3]).float()


def _edits(made: _Made) -> dict[str, tuple[str, set[str], Callable[[dict[str, Tensor]], object]]]:
    """By name: the verdict, the parameters that get it, and the edit of a healthy file."""
    one, two = made.adapter, made.other_adapter

    def put(name: str, delta: Tensor) -> Callable[[dict[str, Tensor]], object]:
        return lambda file: file.__setitem__(name, made.sum(name, delta))

    def swap(file: dict[str, Tensor]) -> None:
        file[_O], file[_O2] = made.sum(_O, made.t(_O2)), made.sum(_O2, made.t(_O))

    def of_base(file: dict[str, Tensor]) -> None:
        other, own = load_file(made.other_base / "model.safetensors"), made.__dict__["w"]
        for name in file:
            file[name] = (file[name].float() + 0.2 * (other[name].float() - own[name].float())).to(made.dtype)

    def on_top(file: dict[str, Tensor]) -> None:
        file[_O] = (file[_O].float() + made.t(_O, two)).to(made.dtype)

    rounded = torch.float16 if made.dtype == torch.float32 else torch.float8_e4m3fn
    return {
        "ΔW missing": ("missing", {_GATE}, put(_GATE, 0 * made.t(_GATE))),
        "ΔW missing in a head": ("missing in part", {_O}, lambda file: file[_O][:, 4:8].copy_(made.sum(_O, 0)[:, 4:8])),
        "ΔW doubled": ("doubled", {_GATE}, put(_GATE, 2 * made.t(_GATE))),
        "1.001": ("scaled", {_GATE}, put(_GATE, 1.001 * made.t(_GATE))),
        "1.05": ("scaled", {_GATE}, put(_GATE, 1.05 * made.t(_GATE))),
        "a scale that nobody chose": ("scaled", {_O}, put(_O, 0.9731713 * made.t(_O))),
        "rsLoRA": ("scaled", {_O}, put(_O, 4**0.5 * made.t(_O) * 1.5)),
        "sign flipped": ("sign flipped", {_DOWN}, put(_DOWN, -made.t(_DOWN))),
        "transposed": ("transposed", {_O}, put(_O, made.t(_O).T)),
        "two layers swapped": ("of another module", {_O, _O2}, swap),
        "B of another adapter": ("one factor of another", {_DOWN}, put(_DOWN, made.factors(_DOWN, one, two))),
        "A of another adapter": ("one factor of another", {_DOWN}, put(_DOWN, made.factors(_DOWN, two, one))),
        "another adapter": ("another ΔW", {_DOWN}, put(_DOWN, made.t(_DOWN, two))),
        "truncated rank": ("truncated", {_GATE}, put(_GATE, _truncated(made.t(_GATE)))),
        "on top of a merged file": ("more on top", {_O}, on_top),
        "int8 by row": ("requantised", {_GATE}, lambda file: file.__setitem__(_GATE, _int8(file[_GATE]))),
        "4 bits": ("requantised", {_GATE}, lambda file: file.__setitem__(_GATE, _four_bits(file[_GATE]))),
        "rounded": ("requantised", {_O}, lambda file: file.__setitem__(_O, file[_O].to(rounded).to(made.dtype))),
        "norm": ("touched elsewhere", {_NORM}, lambda file: file[_NORM][3].add_(0.1)),
        "row of the embedding": ("touched elsewhere", {_EMBED}, lambda file: file[_EMBED][17].mul_(1.1)),
        "one entry": ("changed beside ΔW", {_O}, lambda file: file[_O][3, 5].add_(0.1)),
        "wrong base": ("of another base", set(), of_base),
        "not finite": ("not finite", {_O}, lambda file: file[_O][3, 5].fill_(math.inf)),
    }


@pytest.mark.sampled(1)
def test_every_planted_fault_is_named_where_it_is_and_nothing_else(made: _Made, tmp_path: Path) -> None:
    for name, (verdict, places, edit) in _edits(made).items():
        found = made.verified(tmp_path / name, edit)
        assert found.passes is False, name
        assert set(found.faults.verdict) == {verdict}, (name, found.faults.said.tolist())
        assert not places or set(found.faults.parameter) == places, name
        assert verdict in found.said[0]


def test_scales_come_with_their_value_and_their_reason(made: _Made, tmp_path: Path) -> None:
    edits = _edits(made)
    for name, scale in (("1.001", 1.001), ("a scale that nobody chose", 0.9731713), ("ΔW doubled", 2.0)):
        (row,) = made.verified(tmp_path / name, edits[name][2]).faults.to_dict("records")
        assert abs(row["scale"] - scale) <= max(4 * row["scale_error"], 1e-6), name
    left_out = made.verified(tmp_path / "α", lambda file: file.__setitem__(_O, made.sum(_O, made.t(_O) / 1.5)))
    assert "the scaling α/r = 1.5 was left out" in left_out.faults.said.item()
    swapped = made.verified(tmp_path / "swap", edits["two layers swapped"][2]).faults.set_index("parameter")
    assert _O2 in swapped.said[_O]
    row = made.verified(tmp_path / "row", edits["row of the embedding"][2]).faults.said.item()
    assert "in row 17" in row


def test_what_is_equal_says_which_scale_would_be_seen(made: _Made) -> None:
    found = tv.verify(str(made.base), str(made.adapter), str(made.merged))
    assert found.passes and not len(found.faults)
    moved = found.table[found.table.delta_norm > 0]
    assert set(moved.verdict) == {"equal"} and len(moved) == 9
    limit = 1e-6 if made.dtype == torch.float32 else 1e-3
    assert (moved.detectable < limit).all() and (moved.detectable > 0).all()


def test_a_scale_below_what_is_detectable_is_not_seen_and_one_above_is(made: _Made, tmp_path: Path) -> None:
    table = tv.verify(str(made.base), str(made.adapter), str(made.merged)).table.set_index("parameter")
    limit = float(table.detectable[_O])
    seen = made.verified(tmp_path / "x", lambda file: file.__setitem__(_O, made.sum(_O, (1 + 4 * limit) * made.t(_O))))
    assert seen.table.set_index("parameter").off[_O] > 0


@pytest.mark.sampled(1)
@pytest.mark.parametrize("base_dtype", [torch.bfloat16, torch.float32])
def test_every_healthy_merge_passes(tmp_path: Path, base_dtype: torch.dtype) -> None:
    base = _save(tmp_path / "a base", "gemma", base_dtype)
    adapter = _adapter(base, tmp_path / "adapter", "all-linear", use_rslora=True)
    made: dict[str, Path] = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for safe in (False, True)[: 1 + (dtype != torch.float32)]:
            path = tmp_path / f"{dtype} {safe}"
            made[path.name] = _merge(base, adapter, path, dtype, safe=safe, shard="50KB" if safe else "1GB")
    for name, stochastic in (("float32", False), ("bfloat16", False), ("bfloat16", True)):
        path = tmp_path / f"apply {name} {stochastic}"
        applied = tv.apply(str(base), {str(adapter): 1.0}, out=path, out_dtype=name, stochastic_rounding=stochastic)
        made[path.name] = applied.path
    for name, path in made.items():
        found = tv.verify(str(base), str(adapter), str(path))
        assert found.passes, (name, found.faults.said.tolist())
        limits = found.table[found.table.delta_norm > 0].detectable
        assert (limits < (0.02 if "float32" not in name else 1e-5)).all(), name


def test_tied_ends_experts_and_vectors(tmp_path: Path) -> None:
    base = _save(tmp_path / "qwen2", "qwen2", torch.bfloat16)
    adapter = _adapter(base, tmp_path / "adapter", ["q_proj"])
    assert tv.verify(str(base), str(adapter), str(_merge(base, adapter, tmp_path / "m", torch.bfloat16))).passes
    head = _adapter(base, tmp_path / "head", ["lm_head"])  # peft merges it into the matrix that the embedding is too
    with pytest.warns(UserWarning, match="tie"):
        merged = _merge(base, head, tmp_path / "h", torch.bfloat16)
    found = tv.verify(str(base), str(head), str(merged))
    assert found.faults.parameter.tolist() == [_EMBED] and "lm_head" in found.faults.said.item()

    sides = [_save(tmp_path / f"moe{seed}", "mixtral", torch.bfloat16, seed) for seed in (0, 3)]
    vector = tmp_path / "t.safetensors"
    tv.extract(str(sides[0]), str(sides[1])).save(vector)
    assert tv.verify(str(sides[0]), str(vector), str(sides[1])).passes
    half = tv.apply(str(sides[0]), {str(vector): 0.5}, out=tmp_path / "half", only=["expert=1"])
    faults = tv.verify(str(sides[0]), str(vector), str(half.path)).faults
    assert set(faults.verdict) == {"scaled", "missing"}
    assert set(faults[(faults.verdict == "scaled") & (faults.expert >= 0)].expert) == {1}


def test_what_the_dtype_swallows_cannot_be_told(tmp_path: Path) -> None:
    base = _save(tmp_path / "base", "llama", torch.bfloat16)
    adapter = _adapter(base, tmp_path / "adapter", ["q_proj"], std=1e-5)
    merged = _merge(base, adapter, tmp_path / "merged", torch.bfloat16)
    found = tv.verify(str(base), str(adapter), str(merged))
    assert found.passes is None and "swallows" in found.said[0]
    assert set(found.table[found.table.delta_norm > 0].detectable) == {math.inf}
    small = _adapter(base, tmp_path / "small", ["q_proj"], std=0.002)  # most entries stay as they are
    assert tv.verify(str(base), str(small), str(base)).passes is False
    assert tv.verify(str(base), str(small), str(_merge(base, small, tmp_path / "s", torch.bfloat16))).passes


def test_other_settings_and_other_models_are_told(made: _Made, tmp_path: Path) -> None:
    shutil.copytree(made.merged, tmp_path / "x")
    config = tmp_path / "x" / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-05', '"rms_norm_eps": 0.1'))
    found = tv.verify(str(made.base), str(made.adapter), str(tmp_path / "x"))
    assert found.faults.verdict.tolist() == ["other settings"] and "rms_norm_eps" in found.faults.said.item()
    llama = _save(tmp_path / "llama", "llama")
    with pytest.raises(tv.CheckpointError, match="cannot have been made"):
        tv.verify(str(made.base), str(made.adapter), str(llama))
