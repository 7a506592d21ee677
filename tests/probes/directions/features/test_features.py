"""Sparse features end to end: a planted one is the first that is new, shams have none, effects are of the latents."""

import json
import re
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

import probes
from data.corpus import documents
from data.planted.feature import LAYER, WORDS, planted
from probes.attribution.attributor import Attributor
from probes.capture.pair import Pair, make_pair
from probes.cli import main
from probes.directions.features.causes import feature_effects
from probes.directions.features.dictionary import read_dictionary
from probes.directions.features.kept import kept_states
from probes.directions.features.study import Study, Wanted, study
from probes.directions.features.training import Training
from probes.directions.states import read_states
from probes.job.further import encoded_of, reopened
from probes.suite import Attribution
from tests.command import call
from tests.pairs import build_pair, write_prompts, write_suite
from tv.checkpoints.live import load_model, load_tokenizer
from tv.prompts.encoding import Encoded, encode
from tv.prompts.files import Prompt
from tv.runtime.compute import Compute

ROOT = Path(__file__).resolve().parents[4]
BASE = ROOT / "data" / "models" / "base"
FEW = {"latents": 24, "k": 3, "steps": 20, "seeds": 1}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pair, list[Encoded], Study, torch.Tensor]:
    """A base with a planted feature beside the base, read through small crosscoders."""
    tokenizer, base = load_tokenizer(BASE), load_model(BASE)
    model, direction, _ = planted(base, tokenizer, size=3.0)
    pair = make_pair(base, model, tokenizer)
    with_word = [text for text in islice(documents("base", 1), 900) if any(word in text for word in WORDS)][:70]
    prompts = [
        Prompt(f"t{i}", "x", "base", text) for i, text in enumerate([*with_word, *islice(documents("base", 2), 50)])
    ]
    encoded = encode(prompts, tokenizer, pair.architecture.context)
    training = Training("crosscoder", latents=64, k=6, steps=400, batch=128)
    wanted = Wanted(("resid_post", LAYER), training, batch_size=32)
    told = study(pair, encoded, wanted, tmp_path_factory.mktemp("features"), "", lambda *_: None)
    return pair, encoded, told, direction


def test_the_planted_feature_is_the_first_that_is_new(found: tuple[Pair, list[Encoded], Study, torch.Tensor]) -> None:
    _, _, told, direction = found
    latents = told.tables["features"]
    first = latents.iloc[0]
    assert first["class"] == "new" and first["rank"] == 0 and first.change > 2 * first.change_null
    assert (latents["class"] == "new").sum() == 1
    dictionary, _ = read_dictionary(told.file)
    step = dictionary.step[int(first.feature)]
    assert float(torch.nn.functional.cosine_similarity(step, direction, dim=0)) > 0.95
    texts = told.tables["feature_texts"]
    own = texts[texts.feature == first.feature]
    assert set(own.loc[own.groupby("text_rank").activation.idxmax()].token) & set(WORDS)


def test_shams_have_no_feature(found: tuple[Pair, list[Encoded], Study, torch.Tensor]) -> None:
    """Fresh null pairs, of another draw and another training than those that set the thresholds."""
    rows = found[2].tables["dictionaries"].set_index(["side", "seed"])
    fresh = rows.loc[[("rounded", 1), ("random", 1)]]
    assert (fresh[["new", "lost", "shifted", "called"]] == 0).all(axis=None)
    assert rows.called[[("rounded", 0), ("random", 0)]].isna().all() and (rows.called["real"] > 0).all()
    assert (rows.dead < 0.2).all() and rows.l0.between(4, 9).all()


def test_its_effect_is_that_of_its_part_and_the_curve_reaches_all_of_delta(
    found: tuple[Pair, list[Encoded], Study, torch.Tensor],
) -> None:
    """On prompts that end on a planted word, the metric is moved by this latent and by no control."""
    pair, _, told, _ = found
    names = [word for word in WORDS for _ in range(2)]
    prompts = [
        Prompt(f"p{i}", "x", "animals", f"{start} the{word}", " is", " was")
        for i, (word, start) in enumerate(zip(names, ["On Monday, Nils saw", "The home of"] * 10, strict=True))
    ]
    encoded = encode(prompts, pair.tokenizer, pair.architecture.context)
    options = {"methods": ["feature"], "metric": "kl", "dictionary": str(told.file), "features": 2}
    work = Attributor(pair, encoded, Attribution.model_validate(options), batch_size=8, seed=0).work
    dictionary, _ = read_dictionary(told.file)
    results = list(feature_effects(work, dictionary, ("resid_post", LAYER), features=2, fires=told.fires))
    *effects, curves = results
    first = int(told.tables["features"].feature.iloc[0])
    by = {(each.direction, each.control): each for each in effects}  # type: ignore[union-attr]
    forward = by["base→tuned", ""]
    assert forward.units[0].neuron == first and str(forward.units[0]) == f"resid_post {LAYER} feature {first}"
    mean = {control: float(np.nanmean(by["base→tuned", control].values[0])) for control in ("", "random latent")}
    assert mean[""] < 0 and abs(mean[""]) > 5 * abs(mean["random latent"])
    rows: pd.DataFrame = curves.rows  # type: ignore[union-attr]
    share = rows[rows.domain == "all"].set_index(["ranking", "n"]).share
    assert share["all of Δh"].iloc[0] == pytest.approx(1, abs=1e-3)  # nothing moved behind this site
    assert share["features", 1] > 0.5 > share["random directions", 1]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> probes.Run:
    folder = tmp_path_factory.mktemp("run")
    rows = (ROOT / "data" / "prompts" / "medical.jsonl").read_text(encoding="utf-8").splitlines()[:10]
    hostile = {"id": "<i>x</i>", "text": "</span><script>alert(1)</script> the cow", "cluster": "h"}
    file = folder / "prompts.jsonl"
    file.write_text("\n".join([*rows, json.dumps(hostile)]), encoding="utf-8")
    suite = {
        "name": "few",
        "base": str(BASE),
        "tuned": {"medical": str(BASE.parent / "medical")},
        "prompts": [{"file": str(file)}],
        "measure": ["behaviour"],
        "keep": ["resid_post"],
        "bootstrap": 20,
    }
    return probes.run(suite, out=folder / "run", stages=("capture",))


def test_a_run_gets_its_tables_effects_and_a_browser(run: probes.Run) -> None:
    latents = probes.features(run, **FEW, effects=2)  # type: ignore[arg-type]
    assert len(latents) == 24 and set(latents.layer) == {3} and sorted(latents["rank"]) == list(range(24))
    for table in ("dictionaries", "feature_rates", "feature_texts", "feature_words", "feature_curves"):
        assert len(run[table]), table
    effects = run["effects"]
    assert set(effects.method) == {"feature"} and set(effects.granularity) == {"feature"}
    assert set(effects.control) == {"", "random latent", "random direction"}
    rates = run["feature_rates"]
    inside = rates[rates.rate_base_lo.notna()]
    assert (inside.rate_base_lo <= inside.rate_base + 1e-6).all() and (
        inside.rate_base <= inside.rate_base_hi + 1e-6
    ).all()
    page = probes.report(run).read_text(encoding="utf-8")
    assert page.count('class="more feature"') == min(40, int((latents["class"] != "dead").sum()))
    assert "<script>alert(1)" not in page and "&lt;i&gt;x&lt;/i&gt;" in page and 'style="--kl:1.00"' in page


def test_what_is_moved_has_texts_and_words_though_others_lead(run: probes.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("probes.directions.features.study.LISTED", 1)
    probes.features(run, **FEW, effects=3)  # type: ignore[arg-type]
    moved = set(run["effects"].neuron.astype(int))
    assert len(moved) == 3
    assert moved <= set(run["feature_words"].feature) and moved <= set(run["feature_texts"].feature)


def test_what_was_trained_is_not_trained_again(run: probes.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    first = probes.features(run, **FEW, effects=0)  # type: ignore[arg-type]
    monkeypatch.setattr("probes.directions.features.study.train", None)
    again = probes.features(run, **FEW, effects=0)  # type: ignore[arg-type]
    pd.testing.assert_frame_equal(first, again)
    assert run["effects"].empty and run["feature_curves"].empty  # of an earlier dictionary's latents
    assert probes.report(run).exists()


def test_of_two_models_that_are_the_same_nothing_is_said(tmp_path: Path) -> None:
    texts = ["The heart pumps", "Seven and five make", "The capital of France is"] * 4
    rows = [{"id": f"p{i}", "text": text, "target": " four", "foil": " two"} for i, text in enumerate(texts)]
    prompts = [{"file": str(write_prompts(tmp_path / "many.jsonl", rows))}]
    pair = build_pair(tmp_path, step=0.0)
    suite = write_suite(tmp_path, *pair, prompts=prompts, measure=["behaviour"], attribute=None, bootstrap=20)
    still = probes.run(suite, out=tmp_path / "run", stages=("capture",))
    latents = probes.features(still, latents=8, k=2, steps=5, seeds=1, effects=2)
    assert set(latents["class"]) <= {"shared", "dead"} and "effects" not in still.tables


def test_kept_vectors_are_what_the_hooks_read(run: probes.Run) -> None:
    models = reopened(run, Compute())
    encoded = encoded_of(run, models, "medical")
    place = ("resid_post", 3)
    kept = kept_states(run, "medical", place, encoded)
    read = read_states(models.pair("medical"), encoded, [place], positions="all")
    assert kept is not None and kept_states(run, "medical", ("mlp_out", 3), encoded) is None
    by_prompt = {item.prompt.id: i for i, item in enumerate(read.encoded)}
    order = torch.tensor([by_prompt[item.prompt.id] for item in kept.encoded])
    for side in ("base", "tuned"):
        mine, theirs = getattr(kept, side)[place], read.by_prompt(getattr(read, side)[place])[order]
        assert torch.allclose(kept.by_prompt(mine), theirs, rtol=2e-3, atol=2e-2)


def test_a_public_dictionary_reads_both_models(run: probes.Run, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(32, 160, generator=generator), dim=1)
    tensors = {"W_enc": rows.T.contiguous(), "W_dec": rows, "b_enc": torch.zeros(32), "b_dec": torch.zeros(160)}
    save_file(tensors, tmp_path / "sae_weights.safetensors")
    (tmp_path / "cfg.json").write_text('{"architecture": "standard", "hook_name": "blocks.4.hook_resid_post"}')
    latents = probes.features(run, dictionary=tmp_path, effects=1)
    assert set(latents.form) == {"public"} and set(latents.layer) == {4} and len(latents) == 32
    assert (latents.rate_base != latents.rate_tuned).any()
    assert (latents["class"] != "shared").any(), "medical moved nothing beyond both nulls"
    rows_of = run["dictionaries"]
    assert rows_of.side.tolist() == ["real", "rounded", "random"] and rows_of.stability.isna().all()
    assert set(run.df("effects", where=[("method", "==", "feature")]).layer) == {4}


def test_bad_input_is_one_line(
    run: probes.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.txt").touch()
    for options, words in (
        (("--layer", 9), "layers 0 to 5"),
        (("--site", "gate"), "'gate' is not one of"),
        (("--metric", "loss"), "no metric 'loss'; there are"),
        (("--tuned", "law"), "no tuned model 'law'"),
        (("--latents", 4, "--k", 5), "k 5 is larger than the number of latents, 4"),
        (("--dictionary", tmp_path / "none"), "no directory"),
        (("--texts", tmp_path / "none.txt"), "cannot be read"),
        (("--texts", tmp_path / "empty.txt"), "no text in"),
    ):
        status, _, said = call(monkeypatch, capsys, main, "features", run.path, *options)
        assert status == 2 and re.search(words, said) and said.strip().count("\n") == 0, said
    status, _, said = call(monkeypatch, capsys, main, "attribute", run.path, "--method", "feature")
    assert status == 2 and "needs a dictionary" in said
