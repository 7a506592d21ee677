"""A token whose id is no row of a model's embedding is named, in every command that reads prompts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

import probes
import tv
from tests.pairs import build_pair, build_tokenizer, write_prompts, write_suite
from tests.tv.evaluation.test_decoding import task_file
from tv.errors import PromptError
from tv.prompts.behaviour import beyond_rows, require_rows
from tv.prompts.encoding import encode
from tv.prompts.files import Prompt

SAID = r"'p' of prompts: id 310 is token '<\|new3\|>' of the tokenizer's 311, and the model's embedding has 307 rows"
ROW = {"id": "p", "text": "The <|new3|> heart", "target": " blood"}


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """The tuned model's tokenizer has four tokens more than its embedding, and it has no other tokens."""
    paths = build_pair(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(paths[1])
    tokenizer.add_tokens([f"<|pad{i}|>" for i in range(307 - len(tokenizer))])
    for path in paths:
        tokenizer.save_pretrained(path)
    tokenizer.add_tokens([f"<|new{i}|>" for i in range(4)])
    tokenizer.save_pretrained(paths[1])
    write_prompts(tmp_path / "prompts.jsonl", [ROW])
    return paths


def test_every_reader_of_prompts_names_it(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = pair
    rows = tmp_path / "prompts.jsonl"
    with pytest.raises(PromptError, match=SAID):
        tv.quality(tuned, rows, new_tokens=2)
    with pytest.raises(PromptError, match=SAID):
        tv.path(tuned, base, rows, alphas=(0, 1))
    plain = write_prompts(tmp_path / "plain.jsonl", [{"id": "q", "text": "The heart"}])
    with pytest.raises(PromptError, match=SAID):
        tv.quality(tuned, plain, texts=rows, new_tokens=2)
    task = task_file(tmp_path)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"id": "p", "text": "The <|new3|> heart", "answer": "x"}))
    with pytest.raises(tv.InputError, match=r"prompt 'The <\|new3\|> heart': id 310 is token"):
        tv.evaluate(tuned, task)


@pytest.mark.parametrize("tokenizer", ["own", "base"])
def test_a_run_names_it_before_a_model_is_loaded(
    tokenizer: str, pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides = pair if tokenizer == "own" else pair[::-1]
    suite = json.loads(write_suite(tmp_path, *sides, attribute=None, measure=["behaviour"]).read_text())
    suite["prompts"] = [{"file": str(tmp_path / "prompts.jsonl")}]
    suite |= {"tokenizer": "own"} if tokenizer == "own" else {}
    write_prompts(tmp_path / "prompts.jsonl", [ROW])
    monkeypatch.setattr("probes.capture.loading.load_model", None)
    with pytest.raises(PromptError, match=SAID):
        probes.prepare(suite, out=tmp_path / "run", stages=["capture"])


def test_a_foil_counts_and_the_last_row_is_one() -> None:
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["<|x|>"])
    last = len(tokenizer) - 1
    foiled = encode([Prompt("f", "s", "s", "The", " heart", "<|x|>")], tokenizer, 64)
    with pytest.raises(PromptError, match=rf"'f' of s: id {last} is token '<\|x\|>'"):
        require_rows(foiled, tokenizer, last)
    require_rows(foiled, tokenizer, last + 1)
    assert beyond_rows([last], tokenizer, last + 1) is None and beyond_rows((), tokenizer, 1) is None
