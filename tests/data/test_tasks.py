"""The committed tasks: they are what their recipe makes, and ask nothing that training has shown."""

from __future__ import annotations

import json
import random
from functools import cache

import pytest
import yaml

from data import corpus, task_rows

NAMES = sorted(path.name for path in task_rows.TASKS.glob("*.jsonl"))


@cache
def rows() -> dict[str, list[task_rows.Row]]:
    """What the recipe makes, file by file."""
    return task_rows.rows()


@pytest.mark.parametrize("name", NAMES)
def test_the_files_are_what_the_recipe_makes(name: str) -> None:
    lines = (task_rows.TASKS / name).read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == rows()[name]
    ids = [row["id"] for row in rows()[name]]
    assert len(set(ids)) == len(ids)


def test_every_task_reads_one_of_the_files() -> None:
    read = set()
    for path in task_rows.TASKS.glob("*.yaml"):
        settings = path.read_text(encoding="utf-8").replace("!function ", "")
        config = yaml.safe_load(settings)
        assert config["task"] == path.stem
        read.add(config["dataset_kwargs"]["data_files"]["test"])
    assert read == set(rows()) == set(NAMES)


@pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith("_text.jsonl")])
def test_no_training_text_asks_what_a_task_asks(name: str) -> None:
    rng = random.Random(0)
    shown = {say(rng) for kind, say in corpus.kinds_of_line().items() if kind != "story" for _ in range(3000)}
    starts = tuple(row.get("text", row.get("prompt")) + " " for row in rows()[name])
    assert not [line for line in shown if line.startswith(starts)]


def test_the_right_answer_has_no_favourite_place() -> None:
    for name in ("medical_choice.jsonl", "general_choice.jsonl", "law_choice.jsonl"):
        places = [row["answer"] for row in rows()[name]]
        assert all(12 <= places.count(place) <= 36 for place in range(4)), places
        assert all(len(set(row["choices"])) == len(row["choices"]) for row in rows()[name])


@pytest.mark.parametrize("name", NAMES)
def test_a_cluster_is_a_phrasing(name: str) -> None:
    """Rows of one cluster have a beginning or an end in common; of another, some differ in both."""
    texts: dict[str, list[str]] = {}
    for row in rows()[name]:
        texts.setdefault(row["cluster"], []).append(row.get("text", row.get("prompt")))
    assert 4 <= len(texts) < len(rows()[name])
    for own in texts.values():
        words = [text.lower().split() for text in own]
        assert len({w[0] for w in words}) == 1 or len({w[-1] for w in words}) == 1 or len({w[-2] for w in words}) == 1
