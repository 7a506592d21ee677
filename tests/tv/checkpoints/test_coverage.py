"""Every number of a model is in one row of `weights`, and what is in none is said."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tv
import tv.checkpoints.opening
from tests.architectures.tiny import tiny_pair
from tests.command import call
from tests.pairs import build_model, build_pair, perturb
from tv.architecture.values import values_of
from tv.checkpoints.checkpoint import Checkpoint
from tv.checkpoints.coverage import coverage
from tv.cli import main


@pytest.mark.parametrize(
    "kind", ["gpt_oss", "gemma3", "llava_next", "mamba", "apertus", "bloom", "modernbert-decoder", "qwen2_vl"]
)
def test_rows_hold_every_number_once(kind: str) -> None:
    """Sinks and expert biases, towers, a stray parameter, kernels, saved buffers, norms of embeddings, a tied bias."""
    base, tuned = tiny_pair(kind)
    weights = tv.geometry(base, tuned, heads=False)
    weights = weights[~weights.tied]
    before, after = ({name: value.detach() for name, value in values_of(side).items()} for side in (base, tuned))
    assert int(weights.numbers.sum()) == sum(value.numel() for value in before.values())
    energy = sum(float((after[name].double() - value.double()).square().sum()) for name, value in before.items())
    assert float((weights.delta_norm**2).sum()) == pytest.approx(energy, rel=1e-4)
    assert weights.attrs["notes"] == [note for note in weights.attrs["notes"] if "in no row" not in note]


def _without_rows(checkpoint: Checkpoint, *names: str) -> Checkpoint:
    """The checkpoint of an architecture that knows no rows for these parameters."""
    architecture = checkpoint.architecture
    others = tuple(row for row in architecture.others if not row.parameter.endswith(names))
    modules = tuple(module for module in architecture.modules if not module.parameter.endswith(names))
    architecture = replace(architecture, others=others, modules=modules)
    return Checkpoint(checkpoint.source, checkpoint.path, checkpoint.config, architecture, checkpoint.reader)


def test_what_is_in_no_row_is_counted_and_warned_of() -> None:
    base, tuned = (tv.open_checkpoint(build_model("gpt_oss")) for _ in range(2))
    base = _without_rows(base, "sinks")
    still = coverage(base, tuned)
    assert (still.n_unrowed, still.n_changed, len(still.names)) == (3 * 4, 0, 3)
    names = ", ".join(f"model.layers.{layer}.self_attn.sinks" for layer in range(3))
    assert still.note == f"12 parameters ({1200 / still.n_parameters:.2g} %) are in no row: {names}"
    model = build_model("gpt_oss")
    with torch.no_grad():
        model.model.layers[1].self_attn.sinks[2] += 0.5
    facts = tv.check_pair(base, tv.open_checkpoint(model))
    assert facts.coverage.n_changed == 1
    assert any(
        note.startswith("warning: 12 parameters") and note.endswith("of these 1 differ between the two")
        for note in facts.notes
    )


def test_a_slice_that_no_module_takes_is_counted() -> None:
    """Of a fused matrix without its values a third of the rows is left, and so is a third of its bias."""
    checkpoint = tv.open_checkpoint(build_model("gpt2"))
    modules = tuple(m for m in checkpoint.architecture.modules if (m.layer, m.name) != (1, "v"))
    one = replace(checkpoint.architecture, modules=modules)
    covered = coverage(Checkpoint("gpt2", None, checkpoint.config, one, checkpoint.reader))
    assert covered.n_unrowed == 48 * 48 + 48
    assert covered.names == ("transformer.h.1.attn.c_attn.weight", "transformer.h.1.attn.c_attn.bias")


def test_commands_say_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    base, tuned = build_pair(tmp_path, "gpt_oss")
    resolve = tv.architecture.resolve.resolve
    monkeypatch.setattr("tv.architecture.resolve.resolve", lambda model: replace(resolve(model), others=()))
    for command in (["ssa"], ["geometry"], ["info"], ["extract", "-o", str(tmp_path / "t.safetensors")]):
        status, _, err = call(monkeypatch, capsys, main, command[0], base, tuned, *command[1:])
        assert status == 0 and "warning: " in err and "differ between the two" in err, command


def test_only_a_vision_tower_moves() -> None:
    """Its row, the sums of its parameters, says so; every other row stands still."""
    base, tuned = tiny_pair("gemma3")
    same = dict(base.named_parameters())
    with torch.no_grad():
        for name, value in tuned.named_parameters():
            if "vision_tower" not in name:
                value.copy_(same[name])
    weights = tv.geometry(base, tuned, heads=False).set_index("module")
    moved = weights[weights.delta_norm > 0]
    assert list(moved.index) == ["vision_tower"]
    inside = [
        (same[name].double(), value.double()) for name, value in tuned.named_parameters() if "vision_tower" in name
    ]
    w, t = (
        torch.cat([part.flatten() for part in parts]) for parts in zip(*((b, a - b) for b, a in inside), strict=True)
    )
    row = moved.iloc[0]
    assert (row.kind, row["rows"], row.cols, row.numbers) == ("group", len(inside), 1, len(w))
    assert row.delta_norm == pytest.approx(float(t.norm()), rel=1e-5)
    assert row.cosine == pytest.approx(float(w @ (w + t) / w.norm() / (w + t).norm()), rel=1e-6)
    assert row.cos_weight_delta == pytest.approx(float(w @ t / w.norm() / t.norm()), abs=1e-6)
    assert row.changed_fraction == pytest.approx(float((t != 0).double().mean()))
    perturb(tuned.model.language_model.layers[0].mlp.down_proj, 0.1, seed=5)
    assert (tv.ssa(base, tuned, heads=False).module != "vision_tower").all()


def test_a_command_names_the_tower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, model in zip(("base", "tuned"), tiny_pair("gemma3"), strict=True):
        model.save_pretrained(tmp_path / name)
    status, out, _ = call(monkeypatch, capsys, main, "geometry", tmp_path / "base", tmp_path / "tuned", "--tokens", "0")
    assert status == 0 and "vision_tower" in out and "parts beside the language model" in out
