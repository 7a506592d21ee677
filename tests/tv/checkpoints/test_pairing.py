"""Do two sides belong together? What is compared, what is refused, what is noted; and T with its noise."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import tv
from tests.pairs import build_model, build_pair, build_tokenizer


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return build_pair(tmp_path, "llama")


def _configure(path: Path, **changes: object) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | changes))


def test_pairs_that_do_not_belong_together(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    mistral, _ = build_pair(tmp_path / "m", "mistral")
    with pytest.raises(tv.CheckpointError, match="MistralForCausalLM, but the base"):
        tv.check_pair(tv.open_checkpoint(pair[0]), tv.open_checkpoint(mistral))
    tensors = load_file(pair[1] / "model.safetensors")
    for layer in range(3):
        for name, shape in (("gate", (96, 48)), ("up", (96, 48)), ("down", (48, 96))):
            tensors[f"model.layers.{layer}.mlp.{name}_proj.weight"] = torch.zeros(shape)
    save_file(tensors, pair[1] / "model.safetensors")
    _configure(pair[1], intermediate_size=96)
    with pytest.raises(tv.CheckpointError, match=r"gate_proj.weight' has shape \[96, 48\], the base's \[80, 48\]"):
        tv.check_pair(tv.open_checkpoint(pair[0]), tv.open_checkpoint(pair[1]))


def test_the_same_shapes_cut_into_other_heads_are_refused(pair: tuple[Path, Path]) -> None:
    _configure(pair[1], num_attention_heads=8, num_key_value_heads=4, head_dim=8)
    with pytest.raises(tv.CheckpointError, match="n_heads is 8, the base's 4"):
        tv.check_pair(tv.open_checkpoint(pair[0]), tv.open_checkpoint(pair[1]))


def test_another_setting_is_noted(pair: tuple[Path, Path]) -> None:
    _configure(pair[1], rms_norm_eps=1e-3)
    facts = tv.check_pair(tv.open_checkpoint(pair[0]), tv.open_checkpoint(pair[1]))
    assert len(facts.notes) == 1 and "rms_norm_eps (1e-06 and 0.001)" in facts.notes[0]


def test_a_grown_vocabulary_is_reported_and_its_common_rows_compared(pair: tuple[Path, Path]) -> None:
    model = build_model("llama")
    model.resize_token_embeddings(311, mean_resizing=False)
    model.save_pretrained(pair[1])
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(pair[1])
    facts = tv.check_pair(tv.open_checkpoint(pair[0]), tv.open_checkpoint(pair[1]))
    assert (facts.tokenizer, facts.vocab_base, facts.vocab_tuned, facts.common_rows) == ("grown", 307, 311, 307)
    assert any("311" in note for note in facts.notes)
    frame = tv.geometry(*pair, heads=False).set_index("module")
    assert frame.loc["embed", "rows"] == 307 and frame.loc["embed", "delta_norm"] == 0


def test_another_tokenizer_is_refused(pair: tuple[Path, Path]) -> None:
    file = pair[1] / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["vocab"] = {token: (i + 1 if i > 2 else i) for token, i in content["model"]["vocab"].items()}
    file.write_text(json.dumps(content))
    with pytest.raises(tv.CheckpointError, match="tokenizer differs"):
        tv.check_pair(tv.open_checkpoint(pair[0]), tv.open_checkpoint(pair[1]))


def test_a_setting_within_rounding_is_not_noted(pair: tuple[Path, Path]) -> None:
    _configure(pair[1], rms_norm_eps=float(torch.tensor(1e-6)), rope_theta=10000)
    _configure(pair[0], rope_theta=10000.0)
    assert not tv.check_pair(tv.open_checkpoint(pair[0]), tv.open_checkpoint(pair[1])).notes


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "phi3", "neox"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_t_is_the_difference_of_both_sides(architecture: str, dtype: torch.dtype, tmp_path: Path) -> None:
    pair = tv.open_pair(*build_pair(tmp_path, architecture, dtype=dtype))
    before = {module: pair.weight(module).clone() for module in pair.modules}
    for module in pair.modules:
        delta = pair.delta(module)
        assert delta.dtype == torch.float32 and float(delta.norm()) > 0
        assert torch.equal(delta, pair.tuned.matrix(module) - pair.weight(module))
        assert pair.weight(module).shape == delta.shape == module.shape
    assert all(torch.equal(pair.weight(module), value) for module, value in before.items())


def test_live_sides_are_left_as_they_were() -> None:
    base, tuned = build_model("llama"), build_model("llama", seed=1)
    kept = {name: value.detach().clone() for name, value in base.named_parameters()}
    pair = tv.open_pair(base, tuned)
    for module in pair.modules:
        pair.delta(module).zero_()
    assert all(torch.equal(value, kept[name]) for name, value in base.named_parameters())


def test_noise_is_that_of_the_tuned_side(tmp_path: Path) -> None:
    base, _ = build_pair(tmp_path / "a", "llama")
    _, tuned = build_pair(tmp_path / "b", "llama", dtype=torch.bfloat16)
    pair = tv.open_pair(base, tuned)
    module = pair.base.architecture.module(0, "up")
    assert "stored as F32 and BF16: the coarser one's rounding is part of T" in pair.facts.notes
    vector = tv.open_pair(tuned, tv.extract(tuned, base))  # T is held as it is
    assert (vector.facts.dtype_base, vector.facts.dtype_tuned, vector.facts.notes) == ("BF16", "F32", ())
    assert pair.noise_share(module, 2.0, 1.0) == pytest.approx((1.66e-3 * 2) ** 2)
    assert pair.noise_share(module, 1e6, 1.0) == 1 and math.isnan(pair.noise_share(module, 1.0, 0.0))
    back = tv.open_pair(tuned, base)  # training began from the rounded weights: they are not noise
    assert back.noise_share(module, 2.0, 1.0) < 1e-8
    only_rounded = tv.open_pair(tv.open_checkpoint(base), build_model("llama").bfloat16())
    weight, delta = only_rounded.weight(module), only_rounded.delta(module)
    assert only_rounded.noise_share(module, float(weight.norm()), float(delta.norm())) == pytest.approx(1, abs=0.1)
