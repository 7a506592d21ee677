"""Each failure signature is found where it was planted, and nowhere else."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import PreTrainedModel

import probes
from probes.cli import main
from tests.command import call
from tests.pairs import build_model, build_tokenizer, perturb, write_suite
from tests.runs import NO_REPORT


def _diagnosed(tmp_path: Path, **tuned: Callable[[PreTrainedModel], None]) -> pd.DataFrame:
    """A run over the base and what each function makes of it."""
    base = build_model("llama")
    paths = {"base": tmp_path / "base"} | {name: tmp_path / name for name in tuned}
    for name, path in paths.items():
        model = build_model("llama")
        if name != "base":
            tuned[name](model)
        model.save_pretrained(path)
        build_tokenizer().save_pretrained(path)
    del base
    suite = write_suite(
        tmp_path,
        paths["base"],
        paths["base"],
        tuned={name: str(paths[name]) for name in tuned},
        measure=["gates", "behaviour"],
        attribute=None,
        bootstrap=50,
    )
    run = probes.run(suite, out=tmp_path / "run", stages=NO_REPORT)
    found = probes.diagnose(run)
    assert found.sentence.str.endswith(".").all() and found.sentence.str.contains(r"\d").all()
    return found.set_index(["tuned", "signature"])


def _nothing(model: PreTrainedModel) -> None:
    pass


def _another(model: PreTrainedModel) -> None:
    model.load_state_dict(build_model("llama", seed=5).state_dict())


def _rounded(model: PreTrainedModel) -> None:
    model.bfloat16()


def _inside(model: PreTrainedModel) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                u, s, v = torch.linalg.svd(parameter, full_matrices=False)
                k = max(1, parameter.shape[0] // 20)
                parameter += 0.3 * (u[:, :k] * s[:k]) @ v[:k]


def _step(sign: float) -> Callable[[PreTrainedModel], None]:
    def move(model: PreTrainedModel) -> None:
        before = {name: value.clone() for name, value in model.state_dict().items()}
        perturb(model, 0.1, seed=3)
        with torch.no_grad():
            for name, value in model.named_parameters():
                value.copy_(before[name] + sign * (value - before[name]))

    return move


def test_planted_signatures_are_found(tmp_path: Path) -> None:
    found = _diagnosed(tmp_path, same=_nothing, other=_another, rounded=_rounded, inside=_inside, moved=_step(1.0))
    assert found.holds["same", "little_change"] and found.holds["same", "gates_at_the_floor"]
    assert [name for name in ("other", "inside", "moved") if found.holds[name, "little_change"]] == []
    wanted = {"not_derived": ["other"], "rounding": ["rounded"], "nothing_new": ["inside"]}
    for signature, names in wanted.items():
        own = found.xs(signature, level="signature").holds
        assert [name for name in ("other", "rounded", "inside", "moved") if own[name]] == names, signature
    assert not found.holds["moved", "gates_at_the_floor"]


def test_vectors_that_undo_each_other_conflict(tmp_path: Path, monkeypatch, capsys) -> None:
    found = _diagnosed(tmp_path, there=_step(1.0), back=_step(-1.0))
    conflict = found.loc[("there + back", "conflict")]
    assert conflict.holds and "pull against each other" in conflict.sentence
    code, out, _ = call(monkeypatch, capsys, main, "diagnose", tmp_path / "run", "--no-conflicts")
    assert code == 0 and "there: little_change: no." in out and "conflict" not in out


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    model = build_model("llama")
    for name in ("base", "tuned"):
        model.save_pretrained(tmp_path / name)
        build_tokenizer().save_pretrained(tmp_path / name)
        perturb(model, 0.1, seed=1)
    suite = write_suite(
        tmp_path, tmp_path / "base", tmp_path / "tuned", measure=["changes"], attribute=None, noise_floor=False
    )
    found = probes.diagnose(probes.run(suite, out=tmp_path / "run", stages=NO_REPORT)).set_index("signature")
    for signature in ("little_change", "gates_at_the_floor"):
        assert found.holds[signature] is None and "not measured" in found.sentence[signature]


@pytest.mark.parametrize("damage", ["gone", "other"])
def test_checkpoints_that_cannot_be_compared_are_said(tmp_path: Path, damage: str) -> None:
    _diagnosed(tmp_path, there=_step(1.0), back=_step(-1.0))
    weights = tmp_path / "there" / "model.safetensors"
    weights.unlink() if damage == "gone" else weights.write_bytes(b"no weights")
    found = probes.diagnose(probes.load(tmp_path / "run"))
    conflict = found[found.signature == "conflict"].iloc[0]
    assert conflict.holds is None and "there" in conflict.sentence
