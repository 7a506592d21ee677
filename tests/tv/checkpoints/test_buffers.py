"""Buffers that files keep and training moves, as a layer's scale and a router's correction: read, moved and written."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

import tv
from tests.architectures.tiny import tiny_model, tuned
from tests.pairs import build_model, build_pair
from tv.architecture.values import values_of
from tv.checkpoints.live import load_model
from tv.errors import CheckpointError

KINDS = {"gemma4_text": "layer_scalar", "deepseek_v3": "e_score_correction_bias"}


def only(model: PreTrainedModel, word: str) -> PreTrainedModel:
    """A copy that differs in these buffers alone."""
    after = tuned(model)
    with torch.no_grad():
        for name, value in values_of(after).items():
            if not name.endswith(word):
                value.copy_(values_of(model)[name])
    return after


@pytest.fixture(params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, PreTrainedModel, PreTrainedModel, Path]:
    """(the buffers that move, base, tuned, where both lie)."""
    base = tiny_model(request.param)
    after = only(base, KINDS[request.param])
    base.save_pretrained(tmp_path / "base")
    after.save_pretrained(tmp_path / "tuned")
    return KINDS[request.param], base, after, tmp_path


def test_what_differs_in_buffers_alone_is_seen_and_moved(
    pair: tuple[str, PreTrainedModel, PreTrainedModel, Path],
) -> None:
    word, base, after, at = pair
    before, moved = values_of(base), {n: v for n, v in values_of(after).items() if n.endswith(word)}
    assert moved and not moved.keys() & dict(base.named_parameters()).keys()
    energy = sum(float((value - before[name]).square().sum()) for name, value in moved.items())
    weights = tv.geometry(at / "base", at / "tuned", heads=False)
    assert float((weights.delta_norm**2).sum()) == pytest.approx(energy, rel=1e-5)
    left, right = (tv.open_checkpoint(at / name).fingerprint() for name in ("base", "tuned"))
    assert left["structure"] == right["structure"] and left["content"] != right["content"]
    assert left["structure"] == tv.open_checkpoint(base).fingerprint()["structure"]  # in memory as in files

    vector = tv.extract(at / "base", at / "tuned")
    assert moved.keys() <= set(vector.names) and vector.norm() == pytest.approx(energy**0.5, rel=1e-5)
    vector.save(at / "t.safetensors")
    for source in (vector, at / "t.safetensors", at / "tuned"):
        applied = tv.apply(at / "base", {source: 1.0}, out=at / "out", conflicts=False, force=True)
        written = values_of(type(base).from_pretrained(applied.path))
        for name, value in values_of(after).items():
            assert torch.allclose(written[name], value, atol=1e-6), name
    live = values_of(load_model(at / "t.safetensors", base=at / "base"))
    assert all(torch.allclose(live[name], value, atol=1e-6) for name, value in moved.items())

    name = next(iter(moved))
    step = moved[name] - before[name]
    start = before[name].clone()
    with tv.variant(base, {vector: 0.5}):
        assert torch.allclose(values_of(base)[name], start + 0.5 * step)
    assert torch.equal(values_of(base)[name], start)
    with tv.variant(base, {vector: 1.0}, exclude=[f"*{word}"]):
        assert torch.equal(values_of(base)[name], start)


def test_a_buffer_keeps_the_finer_dtype(tmp_path: Path) -> None:
    """Routers add their corrections in float32, whatever the weights are stored in."""
    base = tiny_model("deepseek_v3")
    base.save_pretrained(tmp_path / "base")
    only(base, "e_score_correction_bias").save_pretrained(tmp_path / "tuned")
    applied = tv.apply(
        tmp_path / "base", {tmp_path / "tuned": 1.0}, out=tmp_path / "out", out_dtype="bfloat16", conflicts=False
    )
    stored = load_file(applied.path / "model.safetensors")
    expected = load_file(tmp_path / "tuned" / "model.safetensors")
    for name, value in stored.items():
        if name.endswith("e_score_correction_bias"):
            assert value.dtype == torch.float32 and torch.allclose(value, expected[name], atol=1e-6)
        else:
            assert value.dtype == torch.bfloat16
    assert applied.rounding.ratio > 1e5


def test_a_bound_that_neither_side_has_stands_still(tmp_path: Path) -> None:
    """An infinite buffer: T is 0, not the difference of two infinities; of one side alone there is none."""
    base = tiny_model("gemma4_text")
    name = "model.layers.0.layer_scalar"
    base.get_buffer(name).fill_(torch.inf)
    after = tuned(base)
    step = tv.extract(base, after)
    assert step[name].abs().max() == 0 and 0 < step.norm() < torch.inf
    after.get_buffer(name).fill_(1.0)
    with pytest.raises(CheckpointError, match=f"'{name}' is finite on one side"):
        tv.extract(base, after)[name]


def test_a_side_that_lacks_them_is_told(tmp_path: Path) -> None:
    base = tiny_model("gemma4_text")
    base.save_pretrained(tmp_path / "base")
    tuned(base).save_pretrained(tmp_path / "tuned")
    file = tmp_path / "tuned" / "model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if "layer_scalar" not in k}, file, {"format": "pt"})
    facts = tv.open_pair(tmp_path / "base", tmp_path / "tuned").facts
    told = [note for note in facts.notes if ": lacks " in note]
    assert len(told) == 1 and told[0].startswith(f"{tmp_path / 'tuned'}: lacks ") and "layer_scalar" in told[0]
    assert not any("layer_scalar" in name for name in tv.extract(tmp_path / "base", tmp_path / "tuned").names)


def test_transformers_must_load_them_as_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("gemma4_text")
    model.save_pretrained(tmp_path)
    cls = type(model)
    load = cls.from_pretrained

    def other(*args: object, **options: object) -> PreTrainedModel:
        loaded = load(*args, **options)
        loaded.get_buffer("model.layers.1.layer_scalar").fill_(1.0)
        return loaded

    monkeypatch.setattr(cls, "from_pretrained", other)
    with pytest.raises(CheckpointError, match=r"loads other values of 'model\.layers\.1\.layer_scalar'"):
        load_model(tmp_path)


def test_what_lies_outside_the_model_is_written_again(tmp_path: Path) -> None:
    """Heads that predict further tokens: no T moves them, and the new checkpoint has the base's."""
    base, after = build_pair(tmp_path, "llama")
    head = torch.randn(48, 96)
    file = base / "model.safetensors"
    save_file(load_file(file) | {"mtp.fc.weight": head}, file, {"format": "pt"})
    applied = tv.apply(base, {after: 1.0}, out=tmp_path / "out", conflicts=False)
    assert torch.equal(load_file(applied.path / "model.safetensors")["mtp.fc.weight"], head)
    assert "mtp.fc.weight" not in tv.extract(base, after).names
    assert set(tv.open_checkpoint(build_model("llama")).values) == set(tv.open_checkpoint(base).values)
