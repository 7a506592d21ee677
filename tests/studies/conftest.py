"""A study of the embedded models: their checkpoints stand in for trained ones, and invented texts for data sets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from studies.real_models import models
from studies.real_models.study import Size, Study, trainings

MODELS = Path(__file__).parents[2] / "data" / "models"
#: One model, two domains, one seed.
SMALLEST = Size(1, {"demo": ("medical", "math")}, ("medical", "math"), ("full",), (0,), 2, 8, 8, 2)


def _rows(n: int) -> dict[str, list[dict[str, object]]]:
    """Rows in the layouts of the data sets, in words that the embedded models know."""
    things = ["fever", "a cough", "gold", "silver", "the sea", "bread", "iron", "rain", "milk", "sand", "wood", "snow"]
    return {
        "medical_medquad.jsonl": [
            {
                "id": f"m{i}",
                "question": f"What is the treatment for {things[i % 12]} {i} ?",
                "answer": f"Take {i} and rest.",
                "focus": f"{things[i % 12]} {i}",
            }
            for i in range(n)
        ],
        "general_wikitext2.jsonl": [
            {
                "split": ("valid", "test")[i % 2],
                "title": f"{i}",
                "text": f"They saw {things[i % 12]} and went home . " * 6,
            }
            for i in range(n)
        ],
        **{
            f"math_gsm8k_{split}.jsonl": [
                {
                    "question": f"What is {i} plus {i + 1}?",
                    "answer": f"{i} plus {i + 1} is {2 * i + 1}.\n#### {2 * i + 1}",
                }
                for i in range(start, start + n // 2)
            ]
            for split, start in (("train", 0), ("test", 100))
        },
    }


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A folder of data sets."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for name, rows in _rows(80).items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.fixture
def study(tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A study whose models are there already."""
    demo = models.Source(
        "demo==1", "demo", lambda module, work: module, "a tiny model", "MIT",
        mib=8, blocks=6, layers=4, words=2000, token=0.0002, forward=0.0001, update=0.01,
    )  # fmt: skip
    monkeypatch.setitem(models.SOURCES, "demo", demo)
    study = Study(SMALLEST, texts, tmp_path / "work")
    tuned = {study.tuned(one): one.domain for one in trainings(SMALLEST)}
    for folder, name in {study.base("demo"): "base", **tuned}.items():
        folder.mkdir(parents=True)
        for file in (MODELS / name).iterdir():
            (folder / file.name).symlink_to(file)
        for table in ("steps", "held_out"):
            (folder / f"{table}.csv").write_text("step\n1\n", encoding="utf-8")
    return study
