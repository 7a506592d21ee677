"""Tuning vectors as LoRA adapters: what peft makes of them is T; starts lie where they say."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

import tv
from tests.command import call
from tests.pairs import build_pair, perturb
from tests.tv.arithmetic.test_variants import vector
from tv.checkpoints.live import load_model
from tv.checkpoints.ties import untie
from tv.cli import main

IDS = torch.arange(3, 20)[None]
#: Plain, tied with biases, Conv1D, sandwich norms, fused, and experts that LoRA cannot hold.
ARCHITECTURES = ["llama", "qwen2", "gpt2", "gemma2", "phi3", "qwen3_moe", "mixtral"]


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(input_ids=IDS).logits


def with_adapter(base: Path, adapter: Path, **options: object) -> PreTrainedModel:
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter, **options)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_at_full_rank_it_is_t(architecture: str, tmp_path: Path) -> None:
    base, tuned = build_pair(tmp_path, architecture)
    adapter = tv.lora_export(base, tuned, out=tmp_path / "adapter", energy=1.0)
    assert adapter.retained == pytest.approx(1, abs=1e-9) and adapter.others.held.all()
    assert float(adapter.modules.share.sum() + adapter.others.share.sum()) == pytest.approx(1)
    model, target = with_adapter(base, tmp_path / "adapter"), logits(load_model(tuned))
    assert (logits(load_model(base)) - target).abs().max() > 0.01
    assert torch.allclose(logits(model), target, atol=2e-5)
    assert torch.allclose(logits(model.merge_and_unload()), target, atol=2e-5)
    found, expected = tv.extract(base, tmp_path / "adapter"), tv.extract(base, tuned)
    for name in expected.names:
        assert torch.allclose(found[name], expected[name], atol=1e-6), name


def test_a_rank_keeps_what_the_svd_says(tmp_path: Path) -> None:
    base, tuned = build_pair(tmp_path)
    adapter = tv.lora_export(base, tuned, out=tmp_path / "adapter", rank=5, save_others=False)
    found, expected = tv.extract(base, tmp_path / "adapter"), tv.extract(base, tuned)
    assert len(adapter.modules) == 22 and set(adapter.modules["rank"]) == {5}
    total = expected.norm() ** 2
    for row in adapter.modules.itertuples():
        own = expected[f"{row.module}.weight"].double()
        sigma = torch.linalg.svdvals(own)
        assert row.retained == pytest.approx(float(sigma[:5].pow(2).sum() / sigma.pow(2).sum()), abs=1e-6)
        assert row.share == pytest.approx(float(own.pow(2).sum()) / total, rel=1e-6)
        left = own - found[f"{row.module}.weight"].double()
        assert float(left.pow(2).sum() / own.pow(2).sum()) == pytest.approx(1 - row.retained, abs=1e-5)
    assert set(adapter.others.parameter) == {n for n in expected.names if "norm" in n or "embed" in n}
    assert not adapter.others.held.any()
    assert adapter.retained == pytest.approx(found.norm() ** 2 / total, abs=1e-6)


def test_an_energy_takes_the_smallest_rank_of_each_module(tmp_path: Path) -> None:
    base, tuned = build_pair(tmp_path)
    adapter = tv.lora_export(base, tuned, out=tmp_path / "adapter", energy=0.6)
    expected = tv.extract(base, tuned)
    assert adapter.modules["rank"].nunique() > 1
    for row in adapter.modules.itertuples():
        energy = torch.linalg.svdvals(expected[f"{row.module}.weight"].double()).pow(2)
        kept = energy.cumsum(0) / energy.sum()
        assert kept[row.rank - 1] >= 0.6 > (kept[row.rank - 2] if row.rank > 1 else 0)
    model = with_adapter(base, tmp_path / "adapter")  # peft reads the ranks from the patterns
    own = dict(model.named_parameters())
    for row in adapter.modules.itertuples():
        assert own[f"base_model.model.{row.module}.lora_A.default.weight"].shape[0] == row.rank
    moved = load_model(base)
    with tv.variant(moved, {tv.extract(base, tmp_path / "adapter"): 1.0}):
        assert torch.allclose(logits(model), logits(moved), atol=1e-5)


def test_warm_starts_at_the_leading_directions_and_the_others_at_the_base(tmp_path: Path) -> None:
    base, tuned = build_pair(tmp_path)
    before, rank = logits(load_model(base)), 4
    for mode in ("warm", "subspace", "orthogonal"):
        adapter = tv.lora_init(base, tuned, out=tmp_path / mode, rank=rank, mode=mode)
        model = with_adapter(base, tmp_path / mode, is_trainable=True)
        trainable = [name for name, value in model.named_parameters() if value.requires_grad]
        assert len(trainable) == 2 * 22 and all("lora_" in name for name in trainable)
        assert torch.equal(logits(model), before) == (mode != "warm")
        assert {"model.embed_tokens.weight"} <= set(adapter.others.parameter) and not adapter.others.held.any()
    tv.lora_export(base, tuned, out=tmp_path / "cut", rank=rank, save_others=False)
    cut, warm = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("cut", "warm"))
    assert cut.keys() == warm.keys() and all(torch.equal(cut[name], warm[name]) for name in cut)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("mode", ["subspace", "orthogonal"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_training_stays_where_the_start_put_it(architecture: str, mode: str, tmp_path: Path) -> None:
    base, tuned = build_pair(tmp_path, architecture)
    tv.lora_init(base, tuned, out=tmp_path / "start", rank=4, mode=mode)
    model = with_adapter(base, tmp_path / "start", is_trainable=True)
    frozen = tv.freeze_inputs(model)
    assert frozen == len([name for name, _ in model.named_parameters() if ".lora_A." in name]) > 0
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        loss = model(input_ids=IDS, labels=IDS).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(tmp_path / "trained")
    step, vectors = tv.extract(base, tmp_path / "trained"), tv.extract(base, tuned)
    moved = [name for name in step.names if step[name].abs().max() > 0]
    assert len(moved) == frozen
    for name in moved:
        update, delta = step[name].double(), vectors[name].double()
        if architecture == "gpt2" and "lm_head" not in name:
            update, delta = update.T, delta.T
        leading = torch.linalg.svd(delta).Vh[:4].T
        inside = float((update @ leading).norm() / update.norm())
        assert inside == pytest.approx(1 if mode == "subspace" else 0, abs=1e-5), name


def test_starts_have_the_size_of_pefts_own_and_a_seed(tmp_path: Path) -> None:
    base, tuned = build_pair(tmp_path)
    downs = []
    for seed in (0, 0, 1):
        out = tmp_path / "start"
        tv.lora_init(base, tuned, out=out, rank=4, mode="orthogonal", seed=seed, force=True)
        downs.append(load_file(out / "adapter_model.safetensors")["base_model.model.lm_head.lora_A.weight"])
    assert torch.equal(downs[0], downs[1]) and not torch.equal(downs[0], downs[2])
    assert torch.allclose(downs[0] @ downs[0].T, torch.eye(4) / 3, atol=1e-6)
    assert json.loads((tmp_path / "start" / "adapter_config.json").read_text())["inference_mode"] is False


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    base, tuned = build_pair(tmp_path)
    tv.extract(base, tuned).save(tmp_path / "t.safetensors")
    export = ["lora-export", base, tmp_path / "t.safetensors", "-o", tmp_path / "out", "--rank", 3]
    code, stdout, stderr = call(monkeypatch, capsys, main, *export)
    assert code == 0, stderr
    assert "saved in full next to the factors" in stdout and "model.embed_tokens.weight" in stdout
    code, stdout, _ = call(monkeypatch, capsys, main, *export, "--no-others", "--force")
    assert code == 0 and "left out" in stdout and "saved in full" not in stdout
    start = ["lora-init", base, tuned, "-o", tmp_path / "start", "--rank", 3, "--mode", "orthogonal"]
    code, stdout, stderr = call(monkeypatch, capsys, main, *start)
    assert code == 0 and "tv.freeze_inputs" in stdout, stderr


def test_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    base, tuned = build_pair(tmp_path)
    other, _ = build_pair(tmp_path, "qwen2")
    (tmp_path / "there").mkdir()
    out = ["-o", tmp_path / "out"]
    cases = {
        "neither": (["lora-export", base, tuned, *out], "either a rank or an energy"),
        "both": (["lora-export", base, tuned, "--rank", 2, "--energy", 0.5, *out], "either a rank or an energy"),
        "energy": (["lora-export", base, tuned, "--energy", 1.5, *out], "at most 1"),
        "rank": (["lora-export", base, tuned, "--rank", 0, *out], "at least rank 1"),
        "another model": (["lora-export", base, other, "--rank", 2, *out], "Qwen2ForCausalLM"),
        "itself": (["lora-export", base, base, "--rank", 2, *out], "nothing would move"),
        "mode": (["lora-init", base, tuned, "--rank", 2, "--mode", "cold", *out], "cold"),
        "too large": (
            ["lora-init", base, tuned, "--rank", 25, "--mode", "orthogonal", *out],
            "50 directions are requested",
        ),
        "there": (["lora-export", base, tuned, "--rank", 2, "-o", tmp_path / "there"], "already exists"),
        "no adapter": (
            ["lora-export", base, tuned, "--rank", 2, "-o", tmp_path / "there", "--force"],
            "is not an adapter, so it is not replaced",
        ),
    }
    before = set(tmp_path.iterdir())
    for case, (arguments, message) in cases.items():
        code, _, stderr = call(monkeypatch, capsys, main, *arguments)
        assert code == 2 and message in stderr and len(stderr.strip().splitlines()) == 1, (case, stderr)
    assert set(tmp_path.iterdir()) == before
    gain = vector({"model.norm.weight": torch.ones(48)})
    with pytest.raises(tv.CheckpointError, match="moves no matrix of a linear layer"):
        tv.lora_export(base, gain, out=tmp_path / "out", rank=2)


def test_a_tuned_model_whose_unembedding_moved_apart(tmp_path: Path) -> None:
    """The base is tied: the adapter holds what each of the two moved by."""
    base, tuned = build_pair(tmp_path, "qwen2")
    model = AutoModelForCausalLM.from_pretrained(tuned)
    untie(model)
    perturb(model.lm_head, 0.3, seed=3)
    model.save_pretrained(tuned)
    adapter = tv.lora_export(base, tuned, out=tmp_path / "adapter", rank=48)
    assert adapter.retained == pytest.approx(1, abs=1e-6) and not any("fingerprint" in note for note in adapter.notes)
    assert torch.allclose(logits(load_model(tmp_path / "adapter", base=base)), logits(model), atol=2e-5)
    assert torch.allclose(logits(with_adapter(base, tmp_path / "adapter")), logits(model), atol=2e-5)
