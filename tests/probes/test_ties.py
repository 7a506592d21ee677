"""A base whose unembedding is its embedding, against tuned models in which the two moved apart."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import probes
import tv
from tests.pairs import build_pair, build_tokenizer, perturb, write_prompts, write_suite
from tests.runs import NO_REPORT
from tv.checkpoints.ties import is_tied, untie
from tv.measures.declared import TABLES

ATTRIBUTE = {
    "methods": ["graft", "revert", "path"],
    "metric": "target_nll",
    "granularity": ["component", "module"],
    "curves": False,
    "controls": [],
}


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tied base, a tied tuned model, and one in which the unembedding alone moved."""
    directory = tmp_path_factory.mktemp("ties")
    base, tied = build_pair(directory, "qwen2")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    untie(model)
    head = model.lm_head
    perturb(head, 0.3, seed=3)
    model.save_pretrained(directory / "apart")
    build_tokenizer().save_pretrained(directory / "apart")
    return {"base": base, "tied": tied, "apart": directory / "apart"}


def test_the_unembedding_is_the_cause(paths: dict[str, Path], tmp_path: Path) -> None:
    suite = write_suite(tmp_path, paths["base"], paths["apart"], attribute=ATTRIBUTE, bootstrap=50)
    run = probes.run(suite, out=tmp_path / "run", stages=NO_REPORT)
    weights = run["weights"].query("head == -1").set_index("module")
    assert weights.delta_norm["embed"] == 0 and weights.delta_norm["unembed"] > 0
    effects = run["effects"].query("domain == 'all' and granularity == 'module'")
    for method in ("graft", "revert", "path"):
        by_module = effects[effects.method == method].groupby("module").effect.sum()
        assert abs(by_module["unembed"]) > 0 and (by_module.drop("unembed") == 0).all(), method
    total = effects.query("module == 'unembed'").set_index("method").effect.astype(float)
    assert total["path"] == pytest.approx(total["graft"], rel=0.02) == pytest.approx(total["revert"], rel=0.02)


def test_one_form_serves_every_model_of_a_run(paths: dict[str, Path], tmp_path: Path) -> None:
    """The live base is the user's: it stays tied."""
    model = AutoModelForCausalLM.from_pretrained(paths["base"], dtype=torch.float32)
    suite = write_suite(tmp_path, paths["base"], paths["tied"], attribute=ATTRIBUTE | {"methods": ["graft"]})
    tuned = {"tied": str(paths["tied"]), "apart": str(paths["apart"])}
    run = probes.run(suite, base=model, tuned=tuned, out=tmp_path / "run", stages=NO_REPORT, settings={"bootstrap": 50})
    assert not run["weights"].tied.any()
    norms = (
        run["weights"]
        .query("head == -1 and module in ['embed', 'unembed']")
        .pivot(index="tuned", columns="module", values="delta_norm")
    )
    assert (
        norms.loc["tied", "embed"] == pytest.approx(norms.loc["tied", "unembed"]) and norms.loc["apart", "embed"] == 0
    )
    assert is_tied(model)


def test_workers_see_one_form_too(paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker opens a pair alone, and sees nothing of the other tuned model that makes all untied."""
    monkeypatch.setattr("probes.job.stages.WEIGHT_TABLES", {"weights": TABLES["weights"]})  # the others take seconds
    monkeypatch.setattr("tv.measures.tables.ordered", lambda modules, work_on, *_, **__: map(work_on("cpu"), modules))
    suite = write_suite(tmp_path, paths["base"], paths["tied"])
    tuned = {"tied": str(paths["tied"]), "apart": str(paths["apart"])}
    out = tmp_path / "run"
    run = probes.run(suite, tuned=tuned, out=out, stages=["weights"], compute=tv.Compute(workers=2))
    assert not run["weights"].tied.any()


def test_a_path_and_a_quality_over_both(paths: dict[str, Path], tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "p.jsonl")
    ends = tv.path(paths["base"], paths["apart"], prompts, alphas=(0, 1), draws=20)
    loss = ends[(ends.metric == "loss") & (ends.domain == "all")].set_index("alpha").value
    alone = tv.path(paths["apart"], paths["base"], prompts, alphas=(0, 1), draws=20)
    back = alone[(alone.metric == "loss") & (alone.domain == "all")].set_index("alpha").value
    assert loss[0] == pytest.approx(back[1], rel=1e-6) and loss[1] == pytest.approx(back[0], rel=1e-6)
    assert loss[0] != pytest.approx(loss[1], rel=1e-3)
    grid = tv.plane(paths["base"], paths["tied"], paths["apart"], prompts, alphas=(0, 1), betas=(0, 1))
    corner = grid[(grid.metric == "loss") & (grid.domain == "all") & (grid.beta == 0)].set_index("alpha").value
    tied = tv.path(paths["base"], paths["tied"], prompts, alphas=(0, 1), draws=20)
    expected = tied[(tied.metric == "loss") & (tied.domain == "all")].set_index("alpha").value
    assert corner[1] == pytest.approx(expected[1], rel=1e-6)
