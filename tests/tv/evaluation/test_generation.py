"""Generation quality: each measure on texts where it is known, and on the demo models."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import tv
from data import task_rows
from tests.command import call
from tests.pairs import build_model, build_tokenizer, write_prompts
from tests.tv.evaluation.test_judge import Endpoint, endpoint
from tests.tv.prompts.templates import TEMPLATES, THOUGHT, USER
from tv.checkpoints.live import load_model, load_tokenizer
from tv.cli import main
from tv.evaluation.generation import distinct, nll, repetition, write
from tv.evaluation.judge import Judge
from tv.evaluation.paired import compare, summarise
from tv.prompts.behaviour import gather
from tv.prompts.files import Prompt

MODELS = task_rows.TASKS.parent / "models"
__all__ = ["endpoint"]  # a fixture


def prompts(name: str, n: int = 8) -> list[Prompt]:
    return gather(MODELS.parent / "prompts" / f"{name}.jsonl")[:n]


def test_variety_and_repetition() -> None:
    assert distinct(["a b a b"], 1) == 0.5 and distinct(["a b a b"], 2) == pytest.approx(2 / 3)
    assert distinct(["a b", "a b"], 2) == 0.5 and distinct(["a b", "b a"], 2) == 1
    assert math.isnan(distinct(["a", ""], 2))
    assert repetition("a b c d e f") == 0 and repetition("a b c") == 0
    assert repetition("a b c d a b c d") == pytest.approx(1 / 5) and repetition("a " * 23) == pytest.approx(0.95)


def test_a_batch_writes_what_each_prompt_alone_does() -> None:
    model, tokenizer = build_model(), build_tokenizer()
    asked = [Prompt(str(i), "s", "s", text) for i, text in enumerate(["The heart", "Seven and five make twelve.", "A"])]
    together, alone = (write(model, tokenizer, asked, 6, batch_size) for batch_size in (3, 1))
    assert together == alone
    ids = torch.tensor([tokenizer("The heart")["input_ids"]])
    for _ in range(6):
        with torch.inference_mode():
            ids = torch.cat([ids, model(ids).logits[:, -1].argmax(-1, keepdim=True)], 1)
    assert together[0] == tokenizer.decode(ids[0, -6:], skip_special_tokens=True).strip().split("\n")[0]
    with pytest.raises(tv.InputError, match="0 new tokens"):
        write(model, tokenizer, asked, 0)


def test_the_loss_of_a_text_is_of_all_its_tokens() -> None:
    model, tokenizer = build_model(), build_tokenizer()
    texts = [Prompt("long", "s", "s", "The capital of France is Paris."), Prompt("short", "s", "s", "A lamp", " gives")]
    for text, found in zip(texts, nll(model, tokenizer, texts), strict=True):
        ids = torch.tensor([tokenizer(text.text)["input_ids"]])
        with torch.inference_mode():
            loss = torch.nn.functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:])
        assert found == pytest.approx(float(loss), abs=1e-5)


def test_the_instruct_model_answers_in_its_form() -> None:
    sources = {"base": MODELS / "base", "instruct": MODELS / "instruct"}
    items = tv.quality(
        sources, prompts("instruct", 16), texts=prompts("general"), pattern=r"The answer is \w+", new_tokens=8
    )
    means = summarise(items).set_index(["variant", "metric"])
    assert means.value["base", "format"] == 0 and means.value["instruct", "format"] == 1
    assert means.value["instruct", "rouge_l"] > 0.9 > means.value["base", "rouge_l"]
    assert 0 < means.value["base", "nll"] < 10 and means.n["base", "nll"] == 8
    found = compare(items, "base").set_index("metric")
    assert found.test["format"] == "mcnemar" and found.p["format"] < 0.05
    assert found.difference["rouge_l"] > 0.5
    assert items[items.metric == "words"].response.str.len().gt(0).all()
    assert set(items.cluster) == {prompt.cluster for prompt in (*prompts("instruct", 16), *prompts("general"))}


def test_a_reply_with_more_than_text_is_compared_as_the_template_writes_it(tmp_path: Path) -> None:
    model, tokenizer = build_model(), build_tokenizer()
    tokenizer.chat_template = TEMPLATES["tools"]
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = write_prompts(tmp_path / "p.jsonl", [{"messages": [USER, THOUGHT]}])
    items = tv.quality(tmp_path / "model", tv.PromptSet(file=rows, chat={}), new_tokens=2)
    assert set(items.target) == {"<think>It says five.</think>Five."} and "rouge_l" in set(items.metric)


def test_a_judge_scores_every_response(endpoint: Endpoint) -> None:
    model, tokenizer = load_model(MODELS / "base"), load_tokenizer(MODELS / "base")
    asked = prompts("general", 2)
    items = tv.quality(model, asked, judge=Judge(endpoint.url, "grader"), tokenizer=MODELS / "base", new_tokens=4)
    assert items[items.metric == "judge"].value.tolist() == [7.0, 7.0]
    texts = [body["messages"][0]["content"] for _, _, body in endpoint.seen]
    for prompt, response, text in zip(asked, write(model, tokenizer, asked, 4), texts, strict=True):
        assert prompt.text in text and response in text and str(prompt.target) in text
    endpoint.answers = [(401, {})]
    with pytest.raises(tv.InputError, match="HTTP 401"):
        tv.quality(model, asked, judge=Judge(endpoint.url, "grader"), tokenizer=MODELS / "base", new_tokens=4)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.pairs import write_prompts

    file = write_prompts(tmp_path / "p.jsonl")
    arguments = ("quality", MODELS / "base", MODELS / "medical", "--prompts", file, "--new-tokens", 3)
    code, out, err = call(monkeypatch, capsys, main, *arguments, "--text", file, "-o", tmp_path / "q.parquet")
    assert code == 0, err
    assert "distinct-2" in out and "perplexity" in out and "difference from base" in out
    code, _, err = call(monkeypatch, capsys, main, *arguments, "--format", "(")
    assert code == 2 and "not a regular expression" in err
