"""Runs on two models whose tokenizers differ: what is said, what is refused, and each model on its own tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import probes
import tv
from tests.command import call
from tests.pairs import PROMPTS, build_pair, build_tokenizer, write_suite
from tests.tv.checkpoints.test_tokenizers import TEMPLATE, edit
from tv.checkpoints.live import load_model, load_tokenizer

MODELS = Path(__file__).parents[3] / "data" / "models"
ANSWERS: dict[str, Any] = {"tokenizer": "own", "measure": ["behaviour"], "attribute": None, "bootstrap": 20}
FEW: dict[str, Any] = {"measure": ["behaviour"], "attribute": None, "bootstrap": 20}


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return build_pair(tmp_path, "llama", step=0.3)


def lowered(directory: Path) -> None:
    edit(directory, lambda t: t.update(normalizer={"type": "Lowercase"}))


def nll(directory: Path, row: dict[str, str], tokenizer: Path | None = None) -> float:
    """−log p of a row's target by hand, nats."""
    words, model = load_tokenizer(tokenizer or directory), load_model(directory)
    text = row["text"]
    start = len(words(text)["input_ids"])
    ids = torch.tensor([words(text + row["target"])["input_ids"]])
    with torch.inference_mode():
        scores = model(ids).logits[0].log_softmax(-1)
    return -float(sum(scores[i - 1, ids[0, i]] for i in range(start, ids.shape[1])))


def values(run: probes.Run, metric: str, model: str) -> dict[str, float]:
    rows = run.df("behaviour")
    rows = rows[(rows.metric == metric) & (rows.model == model)]
    assert rows.prompt_id.is_unique
    return dict(zip(rows.prompt_id, rows.value, strict=True))


def test_a_run_says_how_many_prompts_differ(
    tmp_path: Path, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lowered(pair[1])
    suite = write_suite(tmp_path, *pair, **FEW)
    from probes.cli import main

    code, _, err = call(monkeypatch, capsys, main, "run", suite, "--out", tmp_path / "run", "--stages", "capture")
    run = probes.load(tmp_path / "run")
    assert code == 0 and "the tokenizers differ" in err
    n, its = (len(load_tokenizer(side)("The heart pumps blood")["input_ids"]) for side in pair)
    said = f"6 of 6 prompts become other tokens with its own tokenizer (first prompt 'a1' of prompts: {n} and {its} "
    said += "tokens)"
    assert run.manifest["notes"]["moved"][:3] == [
        "the tokenizers differ in normalizer",
        said,
        "the base's tokenizer encodes the prompts for both",
    ]
    assert f"note: {said}" in err
    asked = {row["id"]: row for row in PROMPTS if "target" in row}
    for name, found in values(run, "target_nll", "moved").items():
        assert found == pytest.approx(nll(pair[1], asked[name], tokenizer=pair[0]), rel=1e-4)


def test_each_model_on_its_own_tokens(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    lowered(pair[1])
    told: list[tuple[Any, ...]] = []
    compute = tv.Compute(progress=lambda *said: told.append(said[:3]))
    run = probes.run(write_suite(tmp_path, *pair, **ANSWERS), out=tmp_path / "run", compute=compute)
    n = len(run.df("prompts"))
    assert [said for said in told if said[0].startswith("capture")] == [("capture moved", i, n) for i in (0, n)]
    assert {"weights", "behaviour", "link"} <= set(run.tables) and "tokens" not in run.tables
    assert (tmp_path / "run" / "report.html").is_file()
    assert run.manifest["notes"]["moved"][2] == "each model reads its own tokens"
    asked = {row["id"]: row for row in PROMPTS if "target" in row}
    for name, side in (("base", pair[0]), ("moved", pair[1])):
        found = values(run, "target_nll", name)
        assert found.keys() == asked.keys()
        for prompt, value in found.items():
            assert value == pytest.approx(nll(side, asked[prompt]), rel=1e-4)
    assert set(values(run, "exact_match", "moved")) == set(asked) == set(values(run, "logit_diff", "base"))
    kl = values(run, "kl", "moved")
    assert set(kl) == {row["id"] for row in PROMPTS} - {"c1"}  # " Paris" is other tokens in small letters
    assert all(value > 0 for value in kl.values())
    again = probes.run(write_suite(tmp_path, *pair, **ANSWERS), out=tmp_path / "run")
    assert again.df("behaviour").equals(run.df("behaviour"))


def test_own_tokens_that_are_the_same_give_what_a_paired_run_gives(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    edit(pair[1], lambda t: t["added_tokens"][2].update(normalized=True))
    lone, both = (
        probes.run(write_suite(tmp_path, *pair, **keys), out=tmp_path / name, stages=["capture"]).df("behaviour")
        for name, keys in (("own", ANSWERS), ("both", {**FEW, "positions": "target"}))
    )
    keys = ["prompt_id", "model", "metric"]
    lone, both = (frame.sort_values(keys).reset_index(drop=True) for frame in (lone, both))
    same = lone.metric != "first_divergence"
    assert lone[keys][same].values.tolist() == both[keys][both.metric != "first_divergence"].values.tolist()
    assert lone.value[same].tolist() == pytest.approx(both.value[both.metric != "first_divergence"].tolist(), rel=1e-4)
    assert set(lone[~same].prompt_id) == set(both[both.metric == "first_divergence"].prompt_id)
    assert lone[~same].value.min() == 0  # the answer's first token


def test_two_tuned_models_share_the_base_rows(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    lowered(pair[1])
    third = shutil.copytree(pair[1], tmp_path / "third")
    run = probes.run(
        write_suite(tmp_path, *pair, **{**ANSWERS, "tuned": {"a": str(pair[1]), "b": str(third)}}),
        out=tmp_path / "run",
        stages=["capture"],
    )
    assert values(run, "target_nll", "a") == values(run, "target_nll", "b") != values(run, "target_nll", "base")


@pytest.mark.parametrize(
    "changes",
    [
        {"measure": ["behaviour", "gates"]},
        {"attribute": {"methods": ["graft"]}},
        {"generate": {"tokens": 3, "from": "base"}},
        {"keep": ["resid_post"]},
    ],
)
def test_nothing_but_answers_is_compared_of_own_tokens(
    changes: dict[str, Any], tmp_path: Path, pair: tuple[Path, Path]
) -> None:
    with pytest.raises(probes.SuiteError, match=r"tokenizer: own gives .* set measure: \[behaviour\] and leave out"):
        probes.load_suite(write_suite(tmp_path, *pair, **{**ANSWERS, **changes}))


def test_a_model_without_a_tokenizer_has_no_tokens_of_its_own(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    (pair[1] / "tokenizer.json").write_text("{}")
    suite = write_suite(tmp_path, *pair, **FEW)
    assert probes.prepare(suite, out=tmp_path / "run").pairs[0].facts.tokenizer == "not compared"
    with pytest.raises(probes.SuiteError, match="tokenizer: own: tokenizers not compared: "):
        probes.prepare(suite, settings=ANSWERS, out=tmp_path / "run")


def test_a_prompt_with_a_renamed_token_is_refused(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    for directory, token in zip(pair, ("<|reserved_0|>", "<|mine|>"), strict=True):
        tokenizer = build_tokenizer(290)
        tokenizer.add_tokens([token], special_tokens=True)
        tokenizer.save_pretrained(directory)
    suite = write_suite(tmp_path, *pair, **FEW)
    assert probes.prepare(suite, out=tmp_path / "run").pairs[0].facts.tokenizer == "renamed"
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"text": "A <|reserved_0|> lamp"}))
    with pytest.raises(tv.PromptError, match=r"id 290 is '<\|reserved_0\|>' to the tokenizer"):
        probes.prepare(suite, out=tmp_path / "run")
    assert probes.prepare(suite, settings=ANSWERS, out=tmp_path / "run").suite.tokenizer == "own"


def test_the_tuned_models_template_from_the_suite_to_the_effects(tmp_path: Path) -> None:
    base, tuned = (shutil.copytree(MODELS / name, tmp_path / name) for name in ("base", "instruct"))
    (tuned / "chat_template.jinja").write_text(
        "{% for message in messages %}{{ bos_token }}User: {{ message['content'] }}\n{% endfor %}Assistant:"
    )
    rows = [json.loads(line) for line in (MODELS.parent / "prompts" / "instruct.jsonl").read_text().splitlines()[:2]]
    written = tmp_path / "written.jsonl"
    written.write_text("".join(json.dumps(row) + "\n" for row in rows))
    bare = tmp_path / "bare.jsonl"
    asked = [row | {"text": row["text"].removeprefix("User: ").removesuffix("\nAssistant:")} for row in rows]
    bare.write_text("".join(json.dumps(row) + "\n" for row in asked))
    suite: dict[str, Any] = {"name": "x", "base": str(base), "tuned": {"instruct": str(tuned)}, **FEW}
    suite |= {"positions": "all"}
    by_hand, lent = (
        probes.run(suite | {"prompts": [{"file": str(file), **chat}]}, out=tmp_path / file.stem, stages=["capture"])
        for file, chat in ((written, {}), (bare, {"chat": "tuned"}))
    )
    columns = ["prompt_id", "pos", "token_id", "nll_tuned"]
    assert lent.df("tokens")[columns].equals(by_hand.df("tokens")[columns])
    assert set(values(lent, "exact_match", "instruct").values()) == {1.0}
    assert "the tokenizers differ in chat template (only the tuned model has one)" in lent.manifest["notes"]["instruct"]
    # Encoded again, from the run's own prompts.
    effects = probes.attribute(lent, method="graft", granularity="component", controls=[], curves=False)
    assert effects.effect.abs().max() > 1
    with pytest.raises(tv.PromptError, match="has no chat template; chat: tuned takes the tuned model's"):
        probes.run(suite | {"prompts": [{"file": str(bare), "chat": True}]}, out=tmp_path / "no", stages=["capture"])


def test_the_template_option_of_the_commands(
    tmp_path: Path, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tv.cli import main

    (pair[1] / "chat_template.jinja").write_text(TEMPLATE)
    prompts = write_suite(tmp_path, *pair).parent / "prompts.jsonl"
    arguments = ("path", *pair, "--prompts", prompts, "--points", 2)
    code, _, err = call(monkeypatch, capsys, main, *arguments, "--chat")
    assert code == 2 and "chat: tuned takes the tuned model's" in err
    code, _, err = call(monkeypatch, capsys, main, *arguments, "--chat-template", "tuned", "--limit", 2)
    assert code == 0, err
    arguments = ("quality", *pair, "--prompts", prompts, "--new-tokens", 1, "--chat-template", "tuned")
    code, _, err = call(monkeypatch, capsys, main, *arguments)
    assert code == 0, err
    (pair[1] / "chat_template.jinja").unlink()
    code, _, err = call(monkeypatch, capsys, main, *arguments)
    assert code == 2 and "takes the tuned model's chat template, and no tuned model has one" in err
