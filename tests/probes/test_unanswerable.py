"""A metric that no prompt can answer is told before a model or a tokenizer is opened."""

import shutil
from pathlib import Path

import pytest

import probes
from probes.errors import InputError, RunError
from tests.pairs import PROMPTS, write_prompts, write_suite

KEPT = Path(__file__).parent / "store" / "data" / "run_v3"
WITHOUT_FOILS = [{key: value for key, value in row.items() if key != "foil"} for row in PROMPTS]
WITHOUT_TARGETS = [{key: value for key, value in row.items() if key != "target"} for row in WITHOUT_FOILS]
#: What no prompt has, and the metric named instead, by metric and what prompts lack; None where they will do.
CASES = {
    ("logit_diff", "foils"): ("a target and a foil", "target_nll"),
    ("logit_diff", "targets"): ("a target and a foil", "kl"),
    ("target_nll", "targets"): ("a target", "kl"),
    ("exact_match", "targets"): ("a target", "kl"),
    ("target_nll", "foils"): None,
    ("kl", "targets"): None,
    ("first_divergence", "targets"): None,
    ("logit_diff", ""): None,
}


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """A suite over two directories that hold no model."""
    for name in ("base", "tuned"):
        (tmp_path / name).mkdir()
    return tmp_path


@pytest.mark.parametrize(("metric", "lacking"), CASES)
def test_it_is_told_before_anything_is_opened(metric: str, lacking: str, suite: Path) -> None:
    settings = {"methods": ["graft"], "metric": metric}
    file = write_suite(suite, suite / "base", suite / "tuned", attribute=settings)
    write_prompts(suite / "prompts.jsonl", {"foils": WITHOUT_FOILS, "targets": WITHOUT_TARGETS, "": PROMPTS}[lacking])
    with pytest.raises(InputError) as told:
        probes.prepare(file, out=suite / "run")
    expected = CASES[metric, lacking]
    if expected is None:
        assert "config.json" in str(told.value)  # what is missing next
        return
    needed, other = expected
    said = f"attribution by {metric}: no prompt has {needed}; add them to the prompt set, choose the metric {other},"
    assert str(told.value).startswith(said)
    assert "\n" not in str(told.value) and not (suite / "run").exists()
    with pytest.raises(InputError, match=r"config\.json"):  # nothing is attributed
        probes.prepare(file, out=suite / "run", stages=["weights", "capture"])


def test_a_dtype_without_gradients_is_told_then_too(suite: Path) -> None:
    file = write_suite(suite, suite / "base", suite / "tuned", attribute={"methods": ["path"]})
    with pytest.raises(RunError, match="path needs float32, not bfloat16"):
        probes.prepare(file, out=suite / "run", compute=probes.Compute(dtype="bfloat16"))


def test_another_metric_on_a_finished_run(tmp_path: Path) -> None:
    """Whose models may be gone."""
    run = probes.load(shutil.copytree(KEPT, tmp_path / "run"))
    rows = run.df("prompts")
    run.add("prompts", rows.assign(foil=None, target=None))
    with pytest.raises(RunError, match=r"attribution by target_nll: no prompt has a target; .* the metric kl"):
        probes.attribute(run, method="graft", metric="target_nll")
