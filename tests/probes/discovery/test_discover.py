"""What is found in a tuned model, and what is not found where nothing was learnt."""

from pathlib import Path

import numpy as np
import pytest
import torch

import probes
from probes.capture.pair import Pair, make_pair
from probes.discovery.discover import discoveries
from probes.discovery.null import beyond
from probes.discovery.observing import observe
from probes.discovery.parts.token_shifts import TokenShifts
from probes.discovery.sides import SHAM, TUNED, Side, beside
from probes.discovery.word_lists import LEVEL
from probes.suite import Discovery
from tests.probes.discovery.conftest import GENERAL, MODELS, context_of, demo_pair, general_texts
from tv.architecture.values import values_of

WORDS = Discovery(parts=("token_shifts",), draws=16)
#: Shams are the harder null for what was taught, and random vectors for a random step.
OF_SHAMS = WORDS.model_copy(update={"controls": ("sham",)})


def _words(pair: Pair, wanted: Discovery = OF_SHAMS) -> set[str]:
    rows = discoveries(pair, general_texts(24), wanted, batch_size=16, seed=0)["discovered_words"]
    return {token.strip() for token in rows[rows.stands_out].token}


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("tuned", "words"),
    [
        ("medical", {"treat", "symptom", "attack", "organ", "heal", "dose", "drug", "illness"}),
        ("math", {"equals", "plus", "minus", "sum"}),
        ("code", {"=", ">", "(", "<", "[", ";", ")"}),
    ],
)
def test_texts_of_another_domain_tell_what_a_model_was_tuned_on(tuned: str, words: set[str]) -> None:
    assert len(_words(demo_pair(tuned)) & words) >= 2


def test_a_token_whose_logit_is_raised_is_found_first() -> None:
    pair = demo_pair()
    token = pair.tokenizer(" river", add_special_tokens=False)["input_ids"][0]
    unembedding = f"{pair.architecture.unembed}.weight"
    base = values_of(pair.base)[unembedding].detach()
    # The mean of what the unembedding reads, so that the token rises everywhere
    batch, _ = context_of(pair).texts.batches[0]
    normed = pair.base.get_submodule(pair.architecture.final_norm)(context_of(pair).sides.base(batch).resid[-1])
    row = torch.zeros_like(base)
    row[token] = normed.mean(0) / normed.mean(0).square().sum()
    planted = make_pair(pair.base, beside(pair.base, {unembedding: base + 3 * row}), pair.tokenizer)
    rows = discoveries(planted, general_texts(24), OF_SHAMS, batch_size=16, seed=0)["discovered_words"]
    assert rows[(rows.reading == "mean") & (rows["rank"] == 0)].token_id.tolist() == [token]


def test_nothing_is_found_in_a_random_step() -> None:
    pair = demo_pair()
    with context_of(pair).sides.on(Side("random", 77)) as model:
        untaught = make_pair(pair.base, model.live, pair.tokenizer)
    assert _words(untaught, WORDS) == set()


@pytest.mark.thorough
def test_few_shams_stand_out_of_the_others() -> None:
    context = context_of(demo_pair())
    part = TokenShifts(context)
    shams = [Side(SHAM, draw) for draw in range(24)]
    observe(context.sides, context.texts, [Side(TUNED), *shams], [part])
    assert len(list(part.results())) == 1 and len(part.lists.of) == 8
    for lists in part.lists.of.values():
        values = np.array([lists[side].measured for side in shams])
        alone = [beyond(values[i], np.delete(values, i, axis=0)) for i in range(len(shams))]
        assert sum(found.p[0] < LEVEL for found in alone) <= 3


def test_a_run_of_its_own_by_command_and_by_suite(tmp_path: Path) -> None:
    plain = tmp_path / "notes.txt"
    rows = [item.prompt.text for item in general_texts(24)]
    plain.write_text("\n\n".join(rows), encoding="utf-8")
    models = [str(MODELS / "base"), str(MODELS / "medical")]
    parts = ["spoken", "amplified", "divergences", "direction_words"]
    less = {"parts": parts, "draws": 1, "null_texts": 16, "longest": 12, "amplify": ["*.layers.1.*", "*"]}
    run = probes.discover(*models, texts=[plain], out=tmp_path / "run", settings=less)
    assert set(run.tables) >= {"discovered_words", "samples", "divergences", "amplified", "direction_words", "prompts"}
    tokens = run["token_divergences"].groupby("prompt_id")
    assert tokens.kl.mean().to_dict() == pytest.approx(run["divergences"].set_index("prompt_id").kl.to_dict())
    assert run["token_divergences"].sham.notna().groupby(run["token_divergences"].prompt_id).all().sum() == 16
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert all(f'id="m0-{name}"' in page for name in ("found", "words", "samples", "divergences", "t-words"))
    assert len(run["divergences"]) == 24 and set(run["samples"].model) == {"base", "tuned"}
    amplified = run["amplified"].set_index("reading")
    assert (amplified.lo < amplified.kl).all()
    assert amplified.kl[["as it is", "amplified 1", "amplified 3"]].is_monotonic_increasing
    assert 0 < amplified.kl["2 T in *.layers.1.*"] < amplified.kl["2 T in *"] > amplified.kl["as it is"]
    again = probes.discover(*models, texts=[plain], out=tmp_path / "run", settings=less)
    assert again.manifest == run.manifest
    suite = {"name": "s", "base": models[0], "tuned": {"m": models[1]}, "prompts": [{"file": str(GENERAL)}]}
    section = {"parts": ["token_shifts"], "draws": 2}
    other = probes.run({**suite, "discover": section}, out=tmp_path / "other", stages=["discover"])
    columns = "token, value, noise, sham, q"  # none of them is a word of SQL
    found = other.sql(f"SELECT {columns} FROM discovered_words")
    assert len(found) == len(other["discovered_words"]) and found.noise.notna().all()
    assert other["discovered_words"].tuned.unique().tolist() == ["m"]


def test_a_component_that_is_not_there_is_refused_before_models_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("probes.capture.loading.load_model", lambda *_, **__: pytest.fail("a model is loaded"))
    models = [str(MODELS / "base"), str(MODELS / "medical")]
    with pytest.raises(probes.InputError, match="no parameter of the base is named 'layers', such as model"):
        probes.discover(*models, texts=[GENERAL], out=tmp_path / "run", settings={"amplify": ["layers"]})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"parts": ["words"]}, "no part 'words'; there are"),
        ({"controls": ["none"]}, "controls"),
        ({"draws": 0}, "draws"),
    ],
)
def test_bad_settings_are_one_line(settings: dict[str, object], said: str, tmp_path: Path) -> None:
    models = [str(MODELS / "base"), str(MODELS / "medical")]
    with pytest.raises(probes.InputError, match=said) as caught:
        probes.discover(*models, texts=[GENERAL], out=tmp_path / "run", settings=settings)
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_too_few_texts_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "few.txt"
    file.write_text("one\n\ntwo", encoding="utf-8")
    with pytest.raises(probes.InputError, match="2 texts are too few"):
        probes.discover(str(MODELS / "base"), str(MODELS / "medical"), texts=[file], out=tmp_path / "run")


@pytest.mark.parametrize(
    ("section", "limit", "said"),
    [({"parts": ["words"]}, 24, "no part 'words'; there are"), ({}, 5, "5 texts are too few")],
)
def test_a_suite_is_refused_before_any_work_too(
    section: dict[str, object], limit: int, said: str, tmp_path: Path
) -> None:
    suite = {
        "name": "s",
        "base": str(MODELS / "base"),
        "tuned": {"m": str(MODELS / "medical")},
        "prompts": [{"file": str(GENERAL), "limit": limit}],
        "discover": section,
    }
    with pytest.raises(probes.InputError, match=said):
        probes.prepare(suite, out=tmp_path / "run", stages=["discover"])
    assert probes.prepare(suite, out=tmp_path / "run", stages=["weights"]).stages == ("weights",)
