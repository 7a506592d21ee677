"""A finding as a metric: the component that was planted leads, the shares add up, and what is not there is refused."""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import probes
from probes.attribution.metric import metric_of
from probes.discovery.finding import finding_of
from probes.discovery.observing import Texts
from probes.errors import NothingFound
from probes.job import stages
from probes.job.effects import effects_of, prompts_of
from tests.pairs import TEXT, build_tokenizer, perturb
from tests.probes.discovery.planted import BLOCK, N_TEXTS, SECRET, planted_pair
from tv.prompts.encoding import batches, encode

METRICS = ("discovered:difference_lens/first plain base", "discovered:difference_lens/first")
LESS = {"methods": ["path", "graft", "revert"], "controls": [], "curves": False}


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """The planted pair, with a small random step of every parameter beside what was planted, and texts."""
    folder = tmp_path_factory.mktemp("planted")
    pair = planted_pair()
    tuned = copy.deepcopy(pair.tuned)
    perturb(tuned, 0.003, seed=3)
    for name, model in (("base", pair.base), ("tuned", tuned)):
        model.save_pretrained(folder / name)
        build_tokenizer().save_pretrained(folder / name)
    words = TEXT.split()
    rows = [{"id": f"t{i}", "text": " ".join(words[i : i + 9])} for i in range(N_TEXTS)]
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {
        "name": "planted",
        "base": str(folder / "base"),
        "tuned": {"planted": str(folder / "tuned")},
        "prompts": [{"file": str(folder / "texts.jsonl")}],
        "measure": ["behaviour"],
        "discover": {"parts": ["difference_lens"], "controls": ["sham"], "draws": 16, "null_texts": 16},
        "attribute": {**LESS, "metric": METRICS[0]},
    }


@pytest.fixture(scope="module")
def run(suite: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> probes.Run:
    return probes.run(suite, out=tmp_path_factory.mktemp("runs") / "run", stages=["weights", "discover", "attribute"])


def test_what_was_planted_leads_and_the_shares_are_the_change(run: probes.Run) -> None:
    words = run["discovered_words"]
    assert SECRET in set(words[words.stands_out].token_id)
    for metric in METRICS:
        effects = run["effects"] if metric == METRICS[0] else probes.attribute(run, metric=metric, **LESS)
        _assert_planted_leads(effects, metric)
        checks = run["checks"]
        assert checks.holds.all() and "completeness" in set(checks.check)


def _assert_planted_leads(effects: pd.DataFrame, metric: str) -> None:
    assert set(effects.metric) == {metric}
    for method in effects.method.unique():
        own = effects[(effects.method == method) & (effects.granularity == "component")]
        first = own.loc[own.effect.abs().idxmax()]
        assert method == "synergy" or (first.layer, first.component) == (BLOCK, "mlp"), (metric, method)


def test_the_kind_of_tuning_is_told_where_weights_are_measured(run: probes.Run) -> None:
    kind = run["tuning_kind"].set_index("evidence")
    assert {"changed_bf16", "leading_left", "rank", "constant_first"} <= set(kind.index)
    assert kind.value["constant_first"] > kind.reference["constant_first"]


def test_it_is_measured_on_texts_that_did_not_choose_it(run: probes.Run) -> None:
    halves = Texts.of(encode(prompts_of(run), planted_pair().tokenizer, 64), 0, 1, 0, seed=0).halves
    effects = probes.attribute(run, metric=METRICS[0], **{**LESS, "methods": ["graft"]})
    assert len(effects) and {halves[name] for name in run["prompt_effects"].prompt_id} == {1}


def test_the_metric_is_the_words_mean_logit_less_that_of_the_vocabulary(run: probes.Run) -> None:
    pair = planted_pair()
    encoded = encode(prompts_of(run), pair.tokenizer, 64)
    finding = finding_of(run, METRICS[0], "planted", pair, texts=encoded, encoded=encoded, batch_size=8)
    item = next(item for item in encoded if item.prompt.id in finding.places)
    assert finding.places[item.prompt.id] == (1, 2, 3, 4, 5)  # behind the BOS
    batch = batches([item], 1, pair.pad_id)
    with torch.inference_mode():
        found = metric_of(METRICS[0], pair.tuned, batch, finding).of(pair.base, batch[0])
    logits = pair.base(input_ids=torch.tensor([item.ids])).logits[0, 1:6].double()
    wanted = (logits[:, finding.tokens].mean() - logits.mean()).detach()
    np.testing.assert_allclose(float(found), float(wanted), rtol=1e-4)


def test_an_earlier_run_gives_its_finding_to_another_suite(
    suite: dict[str, object], run: probes.Run, tmp_path: Path
) -> None:
    other = {key: value for key, value in suite.items() if key != "discover"}
    section = {**LESS, "methods": ["graft"], "metric": "discovered:difference_lens/first plain base"}
    other["attribute"] = {**section, "discovered": str(run.path)}
    again = probes.run(other, out=tmp_path / "again", stages=["attribute"])
    whole = probes.attribute(run, metric=METRICS[0], **{**LESS, "methods": ["graft"]})
    np.testing.assert_allclose(again["effects"].effect, whole.effect, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"metric": "discovered:nothing/mean"}, "no part 'nothing'"),
        ({"metric": "discovered:spoken/as it is"}, "add spoken to the parts"),
        ({"metric": "logit_diff", "discovered": "."}, "set that metric"),
        ({"metric": "discovered:divergences", "discovered": "nowhere"}, "nowhere: no such run"),
    ],
)
def test_what_cannot_be_found_is_refused_before_any_work(
    changes: dict[str, str], said: str, suite: dict[str, object], tmp_path: Path
) -> None:
    with pytest.raises(probes.InputError, match=said) as caught:
        probes.prepare({**suite, "attribute": {**LESS, **changes}}, out=tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_a_finding_of_another_tokenizer_is_refused_before_any_work(
    suite: dict[str, object], run: probes.Run, tmp_path: Path
) -> None:
    for name, source in (("base", suite["base"]), ("tuned", suite["tuned"]["planted"])):  # type: ignore[index]
        shutil.copytree(str(source), tmp_path / name)
        file = tmp_path / name / "tokenizer.json"
        held = json.loads(file.read_text(encoding="utf-8"))
        vocabulary = held["model"]["vocab"]
        one, other = (next(key for key, value in vocabulary.items() if value == token) for token in (SECRET, 5))
        vocabulary[one], vocabulary[other] = 5, SECRET
        file.write_text(json.dumps(held), encoding="utf-8")
    models = {"base": str(tmp_path / "base"), "tuned": {"planted": str(tmp_path / "tuned")}, "discover": None}
    section = {**LESS, "metric": METRICS[0], "discovered": str(run.path)}
    with pytest.raises(probes.InputError, match="has another tokenizer: its token") as caught:
        probes.prepare({**suite, **models, "attribute": section}, out=tmp_path / "run", stages=["attribute"])
    assert "\n" not in str(caught.value)


def test_a_tuned_model_without_a_finding_does_not_stop_the_others(
    suite: dict[str, object], run: probes.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def effects(models: object, run: object, name: str, *rest: object) -> dict[str, pd.DataFrame]:
        if name == "quiet":
            raise NothingFound("no word stands out there")
        return effects_of(models, run, name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(stages, "effects_of", effects)
    both = {"quiet": suite["base"], **suite["tuned"]}  # type: ignore[dict-item]
    section = {**LESS, "methods": ["graft"], "metric": METRICS[0], "discovered": str(run.path)}
    wanted = {**suite, "tuned": both, "discover": None, "attribute": section}
    found = probes.run(wanted, out=tmp_path / "run", stages=["attribute"])
    assert set(found["effects"].tuned) == {"planted"}
    assert "quiet: no effects: no word stands out there" in found.notes
    with pytest.raises(NothingFound, match="no word"):  # where none has a finding
        probes.run({**wanted, "tuned": {"quiet": suite["base"]}}, out=tmp_path / "none", stages=["attribute"])


def test_a_suite_without_a_discovery_is_refused(suite: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(probes.InputError, match="add a section discover: and its stage"):
        probes.prepare({**suite, "discover": None}, out=tmp_path / "run")
    with pytest.raises(probes.InputError, match="add a section discover: and its stage"):
        probes.prepare(suite, out=tmp_path / "run", stages=["attribute"])


def test_where_nothing_stands_out_the_discovery_is_kept_and_places_are_still_there(
    suite: dict[str, object], tmp_path: Path
) -> None:
    few = {"parts": ["token_shifts", "divergences"], "controls": ["sham"], "draws": 2}
    nothing = {**suite, "discover": few, "attribute": {**LESS, "metric": "discovered:token_shifts/mean"}}
    both = ["discover", "attribute"]
    with pytest.raises(probes.InputError, match="no word stands out there; such words are in no reading"):
        probes.run(nothing, out=tmp_path / "run", stages=both)
    kept = list(tmp_path.glob("*.partial/tables/discovered_words/**/*.parquet"))
    assert kept
    run = probes.run(nothing, out=tmp_path / "run", stages=["discover"])
    _assert_planted_leads(probes.attribute(run, metric="discovered:divergences", **LESS), "discovered:divergences")
    assert not run["discovered_words"].stands_out.any() and not list(tmp_path.glob("*.partial"))
