"""Tasks of lm-evaluation-harness, written from held-out texts and from benchmarks: few items each, short ones."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from studies.real_models.texts import Text, benchmark, in_order, shortest
from tv.errors import PromptError

#: Answers of a choice: the right one and so many of other questions.
FOILS = 3
#: Characters of the abstracts of a question of PubMedQA, of a question of MMLU with its options, of a prompt of IFEval.
ABSTRACT, QUESTION, PROMPT = 900, 300, 200
#: Instructions that an answer of a few dozen tokens can follow or not.
BRIEF = {
    *("punctuation:no_comma", "change_case:english_lowercase", "change_case:english_capital", "startend:quotation"),
    *("keywords:existence", "keywords:forbidden_words", "detectable_format:title", "detectable_format:json_format"),
    *("detectable_format:constrained_response", "detectable_format:number_bullet_lists"),
}
#: Benchmarks in which a domain is asked about; IFEval is for all.
OF_DOMAIN: Mapping[str, tuple[str, ...]] = {
    "medical": ("pubmedqa", "mmlu"),
    "math": ("svamp", "mmlu"),
    "code": ("mmlu",),
}

_HEAD = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {name}.jsonl}}}}
test_split: test
doc_to_text: text
target_delimiter: ""
"""
_LOSS = """output_type: loglikelihood
doc_to_target: target
process_results: !function studies.real_models.tasks.per_token
metric_list:
  - {metric: nll, aggregation: mean, higher_is_better: false}
"""
_CHOICE = """output_type: multiple_choice
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""


def per_token(doc: Mapping[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """What the harness logs of an answer that is only read: −log p in nats a token."""
    return {"nll": -results[0][0] / doc["tokens"]}


def loss_task(name: str, texts: Iterable[Text], tokenizer: PreTrainedTokenizerBase, folder: Path) -> str:
    """`NAME-loss`: what the answers cost, as `training.losses` counts it."""
    rows = []
    for one in texts:
        tokens = len(tokenizer(one.text + one.target).input_ids) - len(tokenizer(one.text).input_ids)
        rows.append({"id": one.id, "text": one.text, "target": one.target, "tokens": tokens, "cluster": one.cluster})
    return _task(folder, f"{name}-loss", _LOSS, rows)


def choice_task(name: str, texts: Sequence[Text], n: int, folder: Path) -> str:
    """`NAME-choice`: the right answer among those of other questions, the next in length, so that length tells little.

    Questions are n of the shorter quarter of `texts`. Raises PromptError where these are too few.
    """
    distinct = {one.target: one for one in texts}.values()
    pool = shortest(distinct, max(len(distinct) // 4, n + FOILS))
    rows: list[dict[str, object]] = []
    for one in in_order(pool, seed=0)[:n]:
        others = [other.target for other in pool if other.cluster != one.cluster]
        random.Random(one.id).shuffle(others)  # of answers of one length not always the same three
        near = sorted(others, key=partial(_further, one.target))[:FOILS]
        if len(near) < FOILS:
            raise PromptError(f"{name}: {len(pool)} held-out texts are too few for a choice among {FOILS + 1} answers")
        place = len(rows) % (FOILS + 1)
        answers = [*near[:place], one.target, *near[place:]]
        rows.append({"id": one.id, "text": one.text, "choices": answers, "answer": place, "cluster": one.cluster})
    return _task(folder, f"{name}-choice", _CHOICE, rows)


def _further(target: str, other: str) -> int:
    """How many letters longer or shorter."""
    return abs(len(other) - len(target))


def benchmark_tasks(name: str, data: Path, n: int, folder: Path) -> list[str]:
    """Those that a domain is asked in, n items each, in the formats of docs/evaluation.md."""
    return [_BENCHMARKS[one](one, name, data, n, folder) for one in OF_DOMAIN.get(name, ())]


def ifeval_task(data: Path, n: int, folder: Path) -> str:
    """Instructions that a short answer can follow."""
    fitting = [
        row
        for row in benchmark("ifeval", data)
        if {*row["instruction_id_list"]} <= BRIEF and len(row["prompt"]) <= PROMPT
    ]
    return _rows(folder, "ifeval", fitting[:n])


def _pubmedqa(name: str, _: str, data: Path, n: int, folder: Path) -> str:
    rows = [
        {"id": row["pmid"], "question": row["question"], "contexts": row["contexts"], "final_decision": row["answer"]}
        for row in benchmark(name, data)
        if sum(map(len, row["contexts"])) <= ABSTRACT and row["answer"] in ("yes", "no")
    ]
    return _rows(folder, name, rows[:n])


def _mmlu(name: str, domain: str, data: Path, n: int, folder: Path) -> str:
    rows = [
        {key: row[key] for key in ("question", "choices", "answer")}
        for row in benchmark(name, data)
        if row["domain"] == domain and len(row["question"]) + sum(map(len, row["choices"])) <= QUESTION
    ]
    return _rows(folder, name, [row | {"id": str(i)} for i, row in enumerate(rows[:n])])


def _svamp(name: str, _: str, data: Path, n: int, folder: Path) -> str:
    """The number, after the words with which a fine-tune on GSM8K ends, among those of other questions."""
    texts = []
    for row in benchmark(name, data):
        question = f"Question: {row['body']} {row['question']}\nAnswer: The answer is"
        texts.append(Text(row["id"], question, f" {row['answer']:g}.", row["id"]))
    return choice_task(name, texts, n, folder)


_BENCHMARKS: Mapping[str, Callable[[str, str, Path, int, Path], str]] = {
    "pubmedqa": _pubmedqa,
    "mmlu": _mmlu,
    "svamp": _svamp,
}


def _rows(folder: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """FORMAT=FILE."""
    if not rows:
        raise PromptError(f"{name}: no row of its file is short enough")
    _write(folder / f"{name}.jsonl", rows)
    return f"{name}={folder / name}.jsonl"


def _task(folder: Path, name: str, kind: str, rows: Sequence[Mapping[str, Any]]) -> str:
    _write(folder / f"{name}.jsonl", rows)
    path = folder / f"{name}.yaml"
    path.write_text(_HEAD.format(name=name) + kind, encoding="utf-8")
    return str(path)


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
