"""The README's example on the embedded models, without a network: the main job on real effects."""

import pytest
import yaml

import probes
from examples import python_api
from examples.python_api import DATA
from probes.attribution.effects import focus
from tests.hostile.offline import no_network


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> probes.Run:
    directory = tmp_path_factory.mktemp("demo")
    suite = yaml.safe_load((DATA / "suites" / "demo.yaml").read_text().replace("../", f"{DATA}/"))
    suite["attribute"] |= {"methods": ["revert"], "curves": False, "controls": []}  # what is asked about below
    for prompts in suite["prompts"]:
        prompts["limit"] = 12
    (directory / "demo.yaml").write_text(yaml.safe_dump(suite))
    with no_network() as asked:
        python_api.main(directory / "run", directory / "demo.yaml")
    assert not asked
    return probes.load(directory / "run")


def _accuracy(run: probes.Run, model: str, domain: str) -> float:
    values = run.df("behaviour", where=[("model", "==", model), ("metric", "==", "exact_match")])
    prompts = run["prompts"].set_index("prompt_id").domain
    return float(values[values.prompt_id.map(prompts) == domain].value.mean())


@pytest.mark.slow
def test_each_fine_tune_learnt_its_domain_and_the_causes_lie_there(run: probes.Run) -> None:
    for name in ("medical", "math"):
        assert _accuracy(run, "base", name) <= 0.15
        assert _accuracy(run, name, name) >= 0.8
        effects = run.df("effects", where=[("tuned", "==", name)])
        assert focus(effects) == name
        revert = effects[(effects.domain == name) & (effects.method == "revert")]
        assert (revert.q < 0.05).sum() >= 5
        assert (revert.lo <= revert.effect).all() and (revert.effect <= revert.hi).all()


@pytest.mark.slow
def test_the_raw_ssa_pattern_is_the_null_and_the_fixed_fraction_is_not(run: probes.Run) -> None:
    """The shape artefact, on a real fine-tune: ε = 0.05 shows what noise shows, 10 % of the dimension shows more."""
    alignment = run.df("alignment", where=[("head", "==", -1)])
    at = alignment[((alignment.epsilon - 0.05).abs() < 1e-9) & (alignment.side == "left")]
    means = at.groupby("module")[["ssa", "ssa_null"]].mean()
    assert means.ssa.corr(means.ssa_null) > 0.95
    assert (means.ssa - means.ssa_null).abs().max() < 0.1
    fixed = alignment[alignment.epsilon.isna() & (alignment.side == "right")]
    assert (fixed.ssa**2 / fixed.ssa_null**2).mean() > 1.3


@pytest.mark.slow
def test_gates_flip_more_on_what_was_learnt_and_less_than_chance(run: probes.Run) -> None:
    gates = run.df("gates", columns=["tuned", "prompt_id", "flip_rate", "chance_flip_rate"])
    gates["domain"] = gates.prompt_id.map(run["prompts"].set_index("prompt_id").domain)
    means = gates.groupby(["tuned", "domain"])[["flip_rate", "chance_flip_rate"]].mean()
    assert (means.flip_rate < means.chance_flip_rate).all() and (means.flip_rate > 0).all()
    for name in ("medical", "math"):
        assert means.flip_rate[name, name] > means.flip_rate[name, "general"]


@pytest.mark.slow
def test_the_books_balance_and_the_report_is_small(run: probes.Run) -> None:
    assert (run.df("ledger", columns=["closure"]).closure <= 1e-4).all()
    assert (run.path / "report.html").stat().st_size < 8_000_000
