"""What a whole run says of the weights of models that compute the same, and of one that was trained in part."""

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

import probes
from probes.reporting.evidence import gather
from probes.reporting.verdict import verdict
from tests.pairs import build_model, build_tokenizer, perturb, write_suite


def _gains_moved_into_readers(model: PreTrainedModel) -> None:
    for layer in model.model.layers:
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.weight.mul_(2)
        for name in ("q_proj", "k_proj", "v_proj"):
            getattr(layer.self_attn, name).weight.div_(2)
        for name in ("gate_proj", "up_proj"):
            getattr(layer.mlp, name).weight.div_(2)


def _writers_halved(model: PreTrainedModel) -> None:
    for layer in model.model.layers:
        for more, less in ((layer.self_attn.v_proj, layer.self_attn.o_proj), (layer.mlp.up_proj, layer.mlp.down_proj)):
            more.weight.mul_(2)
            less.weight.div_(2)


def _v_alone(model: PreTrainedModel) -> None:
    for layer in model.model.layers:
        perturb(layer.self_attn.v_proj, 0.1, seed=3)


def _nothing(model: PreTrainedModel) -> None:
    pass


TUNED: dict[str, Callable[[PreTrainedModel], None]] = {
    "gains": _gains_moved_into_readers,
    "writers": _writers_halved,
    "v": _v_alone,
    "same": _nothing,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> probes.Run:
    folder = tmp_path_factory.mktemp("same")
    for name, move in {"base": _nothing, **TUNED}.items():
        model = build_model()
        with torch.no_grad():
            move(model)
        model.save_pretrained(folder / name)
        build_tokenizer().save_pretrained(folder / name)
    suite = write_suite(
        folder,
        folder / "base",
        folder / "base",
        tuned={name: str(folder / name) for name in TUNED},
        measure=["ledger"],
        positions="last",
        ledger_positions="last",
        attribute=None,
        noise_floor=False,
    )
    return probes.run(suite, out=folder / "run", stages=("weights", "capture", "link"))


def _said(run: probes.Run, tuned: str) -> dict[str, str]:
    return {statement.label: " ".join(statement.sentences) for statement in verdict(gather(run, tuned))}


def test_readers_that_undo_their_norms_have_no_doing_of_their_own(run: probes.Run) -> None:
    said = _said(run, "gains")
    assert said["Weights"].startswith("Trained: q, k, v, gate, up; not moved: o, down, embed, unembed.")
    assert "the terms cancel" in said["Own weights"] and "due to the module's own weights" not in said["Own weights"]
    assert "as much as W x itself writes there" in said["Own weights"]
    ledger = run.df("ledger", where=[("tuned", "==", "gains")])
    blocks = ledger[ledger.new_share_10_null.notna()]
    assert blocks[["direct_share", "inherited_share", "interaction_share"]].isna().all().all()


def test_a_value_that_is_doubled_and_halved_again_is_its_own_doing_once(run: probes.Run) -> None:
    shares = run.df("ledger", where=[("tuned", "==", "writers")]).groupby("module").direct_share.mean()
    assert shares[["v", "up"]].tolist() == pytest.approx([1, 1], abs=1e-4) and shares[["o", "down"]].isna().all()
    assert (
        "In down (at 100 % of places) and o (at 100 % of places) the terms cancel"
        in _said(run, "writers")["Own weights"]
    )


def test_of_a_model_trained_in_part_only_that_part_counts(run: probes.Run) -> None:
    said = _said(run, "v")
    assert said["Weights"].startswith("Trained: v; not moved: q, k, o, gate, up, down, embed, unembed.")
    assert "output side v " in said["Alignment"] and "down" not in said["Alignment"]
    assert (
        "most in v" in said["Own weights"]
        and "q" not in said["Own weights"].split("Share of this direct change")[1][:60]
    )
    still = run.df("link", where=[("tuned", "==", "v"), ("module", "==", "q")])
    assert still[["ssa_left", "kappa_left", "kappa10_right", "new_share"]].isna().all().all()


def test_nothing_is_said_of_the_base_itself(run: probes.Run) -> None:
    said = _said(run, "same")
    assert said["Weights"] == "No matrix moved: both checkpoints hold the same weights."
    assert said["Alignment"] == "Undefined: no matrix that this is measured of moved." and "Own weights" not in said
