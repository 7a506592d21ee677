"""Each failure signature is found where it was planted, and nowhere else."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import PreTrainedModel

import probes
from probes.cli import main
from probes.reporting.claim import sentence
from probes.reporting.diagnose import _little_change, _nothing_new, conflict_of
from probes.reporting.evidence import gather
from probes.reporting.summary import summary
from probes.reporting.verdict import verdict
from tests.command import call
from tests.pairs import PROMPTS, build_model, build_tokenizer, perturb, write_prompts, write_suite
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
    rows = [{**row, "id": f"{row['id']}-{i}", "text": f"{i} {row['text']}"} for i in range(8) for row in PROMPTS]
    suite = write_suite(
        tmp_path,
        paths["base"],
        paths["base"],
        tuned={name: str(paths[name]) for name in tuned},
        prompts=[{"file": str(write_prompts(tmp_path / "many.jsonl", rows))}],
        measure=["gates", "behaviour"],
        attribute=None,
        bootstrap=50,
    )
    run = probes.run(suite, out=tmp_path / "run", stages=("weights", "capture", "noise_floor"))
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
    still = found.loc["same"].sentence
    assert "nothing to negate" in still.little_change
    assert "0 moved" in still.rounding and "0 moved" in still.nothing_new
    assert found.holds["same", "little_change"] and found.holds["same", "gates_at_the_floor"]
    assert [name for name in ("other", "inside", "moved") if found.holds[name, "little_change"]] == []
    wanted = {"not_derived": ["other"], "rounding": ["rounded"], "nothing_new": ["inside"]}
    for signature, names in wanted.items():
        own = found.xs(signature, level="signature").holds
        assert [name for name in ("other", "rounded", "inside", "moved") if own[name]] == names, signature
    assert not found.holds["moved", "gates_at_the_floor"]


def _permuted(model: PreTrainedModel) -> None:
    with torch.no_grad():
        for layer in model.model.layers:
            order = torch.randperm(layer.mlp.gate_proj.out_features, generator=torch.Generator().manual_seed(1))
            for matrix in (layer.mlp.gate_proj, layer.mlp.up_proj):
                matrix.weight.copy_(matrix.weight[order])
            layer.mlp.down_proj.weight.copy_(layer.mlp.down_proj.weight[:, order])


def _gains(model: PreTrainedModel) -> None:
    """Norms' gains twice as large, and what reads them half."""
    with torch.no_grad():
        for layer in model.model.layers:
            layer.input_layernorm.weight.mul_(2)
            layer.post_attention_layernorm.weight.mul_(2)
            attn, mlp = layer.self_attn, layer.mlp
            for reader in (attn.q_proj, attn.k_proj, attn.v_proj, mlp.gate_proj, mlp.up_proj):
                reader.weight.div_(2)


def _scaled(model: PreTrainedModel) -> None:
    """Values and ups twice as large, and what reads them half."""
    with torch.no_grad():
        for layer in model.model.layers:
            for writer, reader in (("v_proj", "o_proj"), ("up_proj", "down_proj")):
                part = layer.self_attn if writer == "v_proj" else layer.mlp
                getattr(part, writer).weight.mul_(2)
                getattr(part, reader).weight.div_(2)


@pytest.mark.thorough
def test_models_of_one_function_changed_in_nothing(tmp_path: Path) -> None:
    """What moved in the weights is told, and of behaviour nothing is claimed."""
    same = {"permuted": _permuted, "gains": _gains, "scaled": _scaled, "rounded": _rounded}
    found = _diagnosed(tmp_path, **same)
    assert found.xs("little_change", level="signature").holds.tolist() == [True] * 4
    assert [name for name in same if found.holds[name, "not_derived"]] == ["permuted"]
    told = found.sentence["permuted", "not_derived"]
    assert told.startswith("In 9 of 21 matrices") and "gate (3), up (3) and down (3)" in told and "`tv align`" in told
    assert [name for name in same if found.holds[name, "rounding"]] == ["rounded"]
    assert found.holds["rounded", "gates_at_the_floor"] and found.holds["gains", "gates_at_the_floor"]
    run = probes.load(tmp_path / "run")
    for name in same:
        evidence = gather(run, name)
        assert set(evidence.behaviour.said) <= {"within noise", ""}, name
        (worse,) = [part for part in verdict(evidence) if part.label == "Got worse"]
        assert worse.tone == "" and "stayed within rounding noise" in worse.sentences[0]
        lost = sentence(summary(evidence, pd.DataFrame()).lost)
        assert lost == "No measured change is clearly for the worse: all are within rounding noise."


@pytest.fixture(scope="module")
def opposed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    """Where the checkpoints and the run of two opposite steps are, and what is said of them."""
    directory = tmp_path_factory.mktemp("opposed")
    return directory, _diagnosed(directory, there=_step(1.0), back=_step(-1.0))


def test_vectors_that_undo_each_other_conflict(opposed: tuple[Path, pd.DataFrame], monkeypatch, capsys) -> None:
    directory, found = opposed
    conflict = found.loc[("there + back", "conflict")]
    assert conflict.holds and "pull against each other" in conflict.sentence
    code, out, _ = call(monkeypatch, capsys, main, "diagnose", directory / "run", "--no-conflicts")
    assert code == 0 and "there: little_change: no." in out and "conflict" not in out


@pytest.mark.parametrize(
    ("cosine", "holds", "said"),
    [(np.nan, None, "One of the two vectors is 0"), (0.0, False, "Nothing moved in both"), (-0.01, False, "Neither")],
)
def test_vectors_with_nothing_to_compare_have_no_dash_for_a_number(cosine: float, holds: bool, said: str) -> None:
    z = -1.0 if said == "Neither" else np.nan
    pair = pd.DataFrame([dict(scope=scope, cosine=cosine, cosine_shared_z=z) for scope in ("whole", "module")])
    found, sentence = conflict_of(pair)
    assert found is holds and sentence.startswith(said) and "–" not in sentence


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
def test_checkpoints_that_cannot_be_compared_are_said(opposed: tuple[Path, pd.DataFrame], damage: str) -> None:
    weights = opposed[0] / "there" / "model.safetensors"
    whole = weights.read_bytes()
    weights.unlink() if damage == "gone" else weights.write_bytes(b"no weights")
    try:
        found = probes.diagnose(probes.load(opposed[0] / "run"))
    finally:
        weights.write_bytes(whole)
    conflict = found[found.signature == "conflict"].iloc[0]
    assert conflict.holds is None and "there" in conflict.sentence


def test_what_one_metric_shows_and_a_family_does_not_says_so() -> None:
    rows = pd.DataFrame(
        [
            dict(domain="d", metric="logit_diff", base=1.0, tuned=0.9, change=-0.1, change_lo=-0.2, change_hi=-0.01),
            dict(domain="d", metric="target_nll_per_token", base=1.0, tuned=1.0, change=0.0, change_lo=-1, change_hi=1),
        ]
    ).assign(said="cannot tell", units=9, p=[0.03, 0.9])
    for tried, reason in (
        (rows, "cannot be told, corrected for their number: most"),
        (rows[1:], "cannot be told: most"),
    ):
        holds, sentence = _little_change(SimpleNamespace(behaviour=tried), None)  # type: ignore[arg-type]
        assert holds is None and reason in sentence


def test_a_gain_or_an_unembedding_that_moved_is_not_the_same_weights() -> None:
    """SSA is measured of neither."""
    alignment = pd.DataFrame([dict(ssa=np.nan, ssa_null=np.nan, epsilon=0.05, side="left")])
    for norm, said in ((0.3, "SSA at ε = 0.05 is known of 0 matrices"), (0.0, "Of 1 modules 0 moved")):
        weights = pd.DataFrame([dict(module="final_norm", relative_norm=norm)])
        found = _nothing_new(SimpleNamespace(alignment=alignment, all_weights=weights), None)  # type: ignore[arg-type]
        assert found[0] is None and found[1].startswith(said)
