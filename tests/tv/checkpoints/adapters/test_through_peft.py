"""What peft computes of an adapter: its noise, its size, its sums, and one module at a time."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

import tv
from tests.adapters import CASES, IDS, build_base, load_base, shaken, wrapped
from tv.checkpoints.live import load_model

pytestmark = pytest.mark.filterwarnings("ignore")


def shares(pair: tv.WeightPair) -> dict[str, float]:
    """The noise share of every module that the tuned side moves, where T is not null."""
    found = {}
    for module in pair.modules:
        step, weight = float(pair.delta(module).norm()), float(pair.weight(module).norm())
        if step:
            found[f"{module.layer} {module.name}"] = pair.noise_share(module, weight, step)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("settings", [{"use_dora": True}, {"init_lora_weights": "pissa"}, {}], ids=str)
def test_an_untrained_adapter_is_null_or_all_noise(
    settings: dict[str, Any], dtype: torch.dtype, tmp_path: Path
) -> None:
    """DoRA's magnitudes and PiSSA's remainder are computed in the base's dtype: T is that rounding."""
    path = build_base(tmp_path, dtype=dtype)
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], **settings)
    get_peft_model(load_base(path, dtype), config).save_pretrained(tmp_path / "adapter")
    found = shares(tv.open_pair(path, tmp_path / "adapter"))
    assert set(found.values()) <= {1.0}
    assert bool(found) == bool(settings)  # a plain LoRA is null


def test_what_training_moved_is_no_noise(tmp_path: Path) -> None:
    path = build_base(tmp_path, dtype=torch.bfloat16)
    wrapped(CASES["dora"], load_base(path, torch.bfloat16)).save_pretrained(tmp_path / "adapter")
    found = shares(tv.open_pair(path, tmp_path / "adapter"))
    assert len(found) == 6 and max(found.values()) < 0.02


def test_new_rows_carry_the_rounding_of_rows(tmp_path: Path) -> None:
    """Two rows of 307 are stored in bfloat16: their rounding is far below the whole embedding's."""
    path = build_base(tmp_path, dtype=torch.bfloat16)
    model = wrapped(CASES["tokens"], load_base(path, torch.bfloat16)).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "adapter")
    pair = tv.open_pair(path, tmp_path / "adapter")
    embed = pair.modules[0]
    rows = pair.delta(embed).norm(dim=1).nonzero().flatten().tolist()
    assert rows == [3, 9]
    assert 0 < next(iter(shares(pair).values())) < 0.01
    assert pair.noise(embed.parameter).of_weight == pytest.approx(2**-8 * (2 / 307) ** 0.5)


def test_additive_kinds_carry_none_of_the_weight_s_rounding(tmp_path: Path) -> None:
    for name, formed in {"loha": False, "fourierft": False, "ia3": True, "oft": True}.items():
        case = CASES[name]
        base = build_base(tmp_path, case.architecture)
        wrapped(case, load_base(base)).save_pretrained(tmp_path / name)
        tuned = tv.open_checkpoint(tmp_path / name, base=base)
        assert all((tuned.noise(one).of_weight > 0) == formed for one in tuned.moved)
        assert tuned.noise("model.norm.weight").of_weight == tuned.noise("model.norm.weight").of_delta == 0


def test_modules_are_merged_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build_base(tmp_path)
    wrapped(CASES["dora"], load_base(path)).save_pretrained(tmp_path / "adapter")
    base = tv.open_checkpoint(path)
    read: list[str] = []
    of_base = tv.Checkpoint.read

    def told(self: tv.Checkpoint, name: str, expert: int = -1) -> torch.Tensor:
        read.append(name)
        return of_base(self, name, expert)

    monkeypatch.setattr(tv.Checkpoint, "read", told)
    tuned = tv.open_checkpoint(tmp_path / "adapter", base=base)
    assert read == []
    tuned.delta("model.layers.1.self_attn.q_proj.weight", base)
    assert set(read) == {"model.layers.1.self_attn.q_proj.weight"}


def test_opening_leaves_the_random_numbers_alone(tmp_path: Path) -> None:
    path = build_base(tmp_path)
    wrapped(CASES["vera, projections not saved"], load_base(path)).save_pretrained(tmp_path / "adapter")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    tv.extract(path, tmp_path / "adapter").norm()
    assert torch.equal(torch.rand(3), expected)


def test_fingerprint_sees_the_tensors_and_the_settings(tmp_path: Path) -> None:
    path = build_base(tmp_path)
    prints = set()
    for seed, scale in ((7, 8), (8, 8), (7, 9)):
        config = LoraConfig(r=4, lora_alpha=scale, target_modules=["q_proj"], use_dora=True)
        shaken(get_peft_model(load_base(path), config), seed=seed).save_pretrained(tmp_path / "adapter")
        prints.add(tv.open_checkpoint(tmp_path / "adapter", base=path).fingerprint()["content"])
    assert len(prints) == 3


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_adapters_of_several_kinds_add_up(architecture: str, tmp_path: Path) -> None:
    """0.7 of a LoRA and 0.3 of another are what peft combines by concatenation; a DoRA and a LoHa add up too."""
    path = build_base(tmp_path, architecture)
    settings: dict[str, Any] = {
        "a": {"r": 4, "target_modules": ["q_proj"]},
        "b": {"r": 3, "target_modules": ["q_proj", "lm_head"]},
        "c": {"r": 3, "target_modules": ["q_proj"], "use_dora": True},
    }
    for seed, (name, setting) in enumerate(settings.items()):
        config = LoraConfig(task_type="CAUSAL_LM", **setting)
        shaken(get_peft_model(load_base(path), config), seed=seed).save_pretrained(tmp_path / name)
    both = PeftModel.from_pretrained(load_base(path), tmp_path / "a", adapter_name="a")
    both.load_adapter(tmp_path / "b", "b")
    both.add_weighted_adapter(["a", "b"], [0.7, 0.3], "both", combination_type="cat")
    both.set_adapter("both")
    tv.apply(path, {tmp_path / "a": 0.7, tmp_path / "b": 0.3}, out=tmp_path / "out")
    expected = both.eval()(IDS).logits
    torch.testing.assert_close(load_model(tmp_path / "out")(IDS).logits, expected, atol=1e-4, rtol=1e-4)
    one, other = tv.extract(path, tmp_path / "a"), tv.extract(path, tmp_path / "c")
    name = "model.layers.0.self_attn.q_proj.weight"
    total = 0.5 * one + 2.0 * other
    torch.testing.assert_close(total[name], 0.5 * one[name] + 2.0 * other[name])
    assert total.noise(name).of_weight == pytest.approx(2 * other.noise(name).of_weight)


def test_tokens_of_a_grown_vocabulary(tmp_path: Path) -> None:
    path = build_base(tmp_path, "qwen2")
    model = load_base(path)
    model.resize_token_embeddings(311, mean_resizing=False)
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], trainable_token_indices=[3, 307, 310])
    running = shaken(get_peft_model(model, config))
    running.save_pretrained(tmp_path / "adapter")
    loaded = load_model(tmp_path / "adapter", base=path)
    ids = torch.tensor([[0, 310, 3, 44, 307]])
    torch.testing.assert_close(loaded(ids).logits, running(ids).logits, atol=1e-5, rtol=1e-4)
    pair = tv.open_pair(path, tmp_path / "adapter")
    assert pair.delta(pair.modules[0]).norm(dim=1).nonzero().flatten().tolist() == [3]


def test_without_peft_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build_base(tmp_path)
    wrapped(copy.copy(CASES["dora"]), load_base(path)).save_pretrained(tmp_path / "adapter")
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(tv.CheckpointError, match=r"\(DoRA\) is computed by peft, .*install tuning-probes\[peft\]"):
        tv.open_checkpoint(tmp_path / "adapter", base=path)
