"""A fine-tune that is taken away, on tasks that the study writes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from studies.real_models import negating, tasks
from studies.real_models.study import Study
from studies.real_models.texts import domain
from studies.real_models.training import losses
from tv.checkpoints.live import load_model, load_tokenizer
from tv.evaluation.evaluate import evaluate

BENCHMARKS = {
    "medical_pubmedqa.jsonl": [
        {"pmid": f"{i}", "question": "Is rest good ?", "contexts": ["Rest is good ."], "answer": ("yes", "no")[i % 2]}
        for i in range(4)
    ],
    "mcq_mmlu_medical_math_code.jsonl": [
        {"domain": ("medical", "math")[i % 2], "subject": "s", "question": "What ?", "choices": ["a", "b"], "answer": 1}
        for i in range(8)
    ],
    "math_svamp.jsonl": [
        {"id": f"s{i}", "body": f"{i} and 2 .", "question": "How many ?", "answer": i + 2.0} for i in range(20)
    ],
    "instr_ifeval.jsonl": [
        {
            "key": i,
            "prompt": "Name a thing without commas .",
            "instruction_id_list": ["punctuation:no_comma"],
            "kwargs": [{}],
        }
        for i in range(4)
    ],
}


@pytest.fixture
def with_benchmarks(study: Study) -> Study:
    for name, rows in BENCHMARKS.items():
        (study.texts / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return study


def test_a_vector_taken_away_on_every_axis(with_benchmarks: Study) -> None:
    stage, _ = negating.stages(with_benchmarks)
    assert stage.name == "negate-demo-medical" and "tune-demo-medical-full-0" in stage.needs
    stage.work()
    found = {path.stem: pd.read_csv(path) for path in stage.out.glob("*.csv")}
    assert {*found} == {"negation", "returned", "negation_items", "quality"}
    asked = {"medical-loss", "medical-choice", "general-loss", "pubmedqa", "mmlu", "ifeval"}
    assert {*found["returned"].task} == {*found["negation_items"].task} == asked
    curve = found["negation"].query("task == 'medical-loss' and vector == 'T'").set_index("scale")
    assert abs(curve.difference[1.0]) < 1e-3 < abs(curve.difference[0.0])
    assert {*zip(found["quality"].vector, found["quality"].scale, strict=True)} == {("T", 0), ("T", 1), ("random", 1)}


def test_the_loss_of_a_task_is_that_of_the_trainings(study: Study, tmp_path: Path) -> None:
    base = study.base("demo")
    model, tokenizer = load_model(base), load_tokenizer(base)
    few = domain("math", study.texts).held_out[:3]
    found = evaluate(base, tasks.loss_task("math", few, tokenizer, tmp_path))
    expected = losses(model, tokenizer, few).set_index("id").nll
    assert dict(zip(found.item_id, found.value, strict=True)) == pytest.approx(expected.to_dict(), rel=1e-4)


def test_foils_are_answers_of_other_questions_about_as_long(with_benchmarks: Study, tmp_path: Path) -> None:
    (spec, _) = tasks.benchmark_tasks("math", with_benchmarks.texts, 4, tmp_path)
    rows = [json.loads(line) for line in Path(spec).with_suffix(".jsonl").read_text().splitlines()]
    assert [row["answer"] for row in rows] == [0, 1, 2, 3]
    assert all(len({*row["choices"]}) == 4 and row["text"].endswith("The answer is") for row in rows)
    assert len({answer for row in rows for answer in row["choices"]}) > 4


def test_a_lineage_has_a_tune_that_starts_from_another(with_benchmarks: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(negating, "PRETRAINED", ("demo",))
    study = replace(with_benchmarks, size=replace(with_benchmarks.size, domains={"demo": ("medical", "instructions")}))
    *_, tune, stage = negating.stages(study)
    assert tune.name == "tune-demo-medical-full-0-from-demo-instructions-full-0"
    assert tune.needs == ("tune-demo-instructions-full-0",) and tune.name in stage.needs
    models = Path(__file__).parents[2] / "data" / "models"
    (study.texts / "instr_selfinstruct_user.jsonl").write_text("")
    rows = [{"id": f"i{i}", "instruction": f"Say {i} .", "input": "", "output": f"It is {i} ."} for i in range(80)]
    (study.texts / "instr_selfinstruct_seed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for out, name in ((study.work / "tuned/demo-instructions-full-0", "instruct"), (tune.out, "medical-from-instruct")):
        out.symlink_to(models / name)
    stage.work()
    found = {path.stem: pd.read_csv(path) for path in stage.out.glob("*.csv")}
    assert {*found} == {"lineage", "robustness", "lineage_difference"}
    assert {*found["lineage"].lineage} == {"pretrained", "instructed"}
