"""Tasks on live models through lm-evaluation-harness: what is logged is what the model does, and nothing is fetched."""

from __future__ import annotations

import json
import socket
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

import tv
from data import task_rows
from tests.command import call
from tests.pairs import build_model, build_tokenizer
from tests.tv.evaluation.test_formats import ROWS
from tv.checkpoints.live import load_model, load_tokenizer
from tv.cli import main
from tv.evaluation.harness import Harness
from tv.evaluation.paired import compare, summarise
from tv.evaluation.tasks import Task, load_tasks

MODELS, TASKS = task_rows.TASKS.parent / "models", task_rows.TASKS


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@cache
def model(name: str) -> PreTrainedModel:
    return load_model(MODELS / name)


@cache
def task(name: str) -> Task:
    return load_tasks(TASKS / f"{name}.yaml")[0]


def accuracy(model_name: str, task_name: str, limit: int = 24) -> float:
    harness = Harness(model(model_name), load_tokenizer(MODELS / model_name))
    items = harness.items(task(task_name), limit)
    own = items[items.metric == next(iter(task(task_name).metrics))]
    assert len(own) == limit
    return float(own.value.mean())


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("name", "task_name", "least", "most"),
    [
        ("base", "general_cloze", 0.9, 1.0),
        ("base", "general_choice", 0.9, 1.0),
        ("base", "medical_cloze", 0.0, 0.05),
        ("base", "medical_choice", 0.0, 0.6),
        ("base", "arithmetic", 0.0, 0.05),
        ("base", "instructions", 0.0, 0.05),
        ("medical", "medical_cloze", 0.85, 1.0),
        ("medical", "medical_choice", 0.9, 1.0),
        ("math", "arithmetic", 0.8, 1.0),
        ("instruct", "instructions", 0.9, 1.0),
    ],
)
def test_the_demo_models_do_what_they_were_trained_for(name: str, task_name: str, least: float, most: float) -> None:
    assert least <= accuracy(name, task_name) <= most


def test_what_is_logged_is_what_the_model_says() -> None:
    tokenizer = load_tokenizer(MODELS / "base")
    harness, task_ = Harness(model("base"), tokenizer), task("general_choice")
    items = harness.items(task_, 4).set_index(["item_id", "metric"])
    assert list(dict.fromkeys(items.index.get_level_values("metric"))) == ["acc", "nll", "margin"]
    for row in task_rows.rows()["general_choice.jsonl"][:4]:
        logs = []
        for choice in row["choices"]:
            start = len(tokenizer(row["text"])["input_ids"])
            ids = torch.tensor([tokenizer(f"{row['text']} {choice}")["input_ids"]])
            with torch.inference_mode():
                scores = model("base")(ids).logits[0].log_softmax(-1)
            logs.append(float(sum(scores[i - 1, ids[0, i]] for i in range(start, ids.shape[1]))))
        right = logs.pop(row["answer"])
        assert items.value[row["id"], "nll"] == pytest.approx(-right, abs=1e-3)
        assert items.value[row["id"], "margin"] == pytest.approx(right - max(logs), abs=1e-3)
        assert items.value[row["id"], "acc"] == (right > max(logs))
        assert items.target[row["id"], "acc"] == row["choices"][row["answer"]]
    text = harness.items(task("general_text"), 2)
    assert text.metric.tolist() == ["nll_byte", "nll_byte"] and text.response.isna().all()
    ids = torch.tensor([tokenizer(text.target[0])["input_ids"]])
    with torch.inference_mode():
        scores = model("base")(ids).logits[0].log_softmax(-1)
    told = -float(scores[:-1].gather(-1, ids[0, 1:, None]).sum()) / len(text.target[0].encode())
    assert text.value[0] == pytest.approx(told, abs=1e-4)


def test_the_log_likelihoods_of_a_bfloat16_model_are_summed_in_float32() -> None:
    """In bfloat16 twelve sums of about 5 nats have a handful of values, and answers tie."""
    narrow = Harness(load_model(MODELS / "base", dtype="bfloat16"), load_tokenizer(MODELS / "base"))
    items = narrow.items(task("general_choice"), 12)
    assert items.value[items.metric == "nll"].nunique() == 12


def test_an_answer_that_is_only_read_has_its_nll(tmp_path: Path) -> None:
    row = task_rows.rows()["general_choice.jsonl"][0]
    answer = row["choices"][row["answer"]]
    (tmp_path / "answers.jsonl").write_text(json.dumps({"text": row["text"], "target": f" {answer}"}) + "\n")
    (tmp_path / "answers.yaml").write_text(
        "task: answers\ndataset_path: json\ndataset_kwargs: {data_files: {test: answers.jsonl}}\ntest_split: test\n"
        "output_type: loglikelihood\ndoc_to_text: text\ndoc_to_target: target\n"
        "metric_list: [{metric: perplexity, aggregation: perplexity, higher_is_better: false}]\n"
    )
    harness = Harness(model("base"), load_tokenizer(MODELS / "base"))
    (found,) = load_tasks(str(tmp_path / "answers.yaml"))
    items = harness.items(found)
    choice = harness.items(task("general_choice"), 1).set_index("metric").value
    assert items.metric.tolist() == ["nll"]
    assert items.value[0] == pytest.approx(choice["nll"], abs=1e-4)


def test_a_moved_model_is_measured_where_it_stands() -> None:
    own = load_model(MODELS / "base")
    harness, vector = Harness(own, load_tokenizer(MODELS / "base")), tv.extract(MODELS / "base", MODELS / "medical")
    before = harness.items(task("medical_choice"), 12)
    with tv.variant(own, {vector: 1.0}):
        moved = harness.items(task("medical_choice"), 12)
    assert harness.items(task("medical_choice"), 12).equals(before)
    tuned = Harness(model("medical"), load_tokenizer(MODELS / "base")).items(task("medical_choice"), 12)
    assert (moved.value - tuned.value).abs().max() < 1e-3 < (moved.value - before.value).abs().max()


def test_models_by_name_and_their_comparison() -> None:
    sources = {"base": MODELS / "base", "medical": MODELS / "medical"}
    items = tv.evaluate(sources, TASKS / "medical_choice.yaml", limit=24)
    assert list(items)[:5] == ["variant", "task", "item_id", "metric", "value"]
    assert set(items.attrs["fingerprints"]) == {"base", "medical"}
    rows = [json.loads(line) for line in (TASKS / "medical_choice.jsonl").read_text().splitlines()[:24]]
    named = items.drop_duplicates("item_id").set_index("item_id").cluster.to_dict()
    assert named == {row["id"]: row["cluster"] for row in rows} and len(set(named.values())) == 8
    means = summarise(items).set_index(["variant", "metric"])
    assert means.lo["medical", "acc"] > means.hi["base", "acc"]
    found = compare(items, "base").set_index("metric")
    assert found.lo["acc"] > 0.2 and found.p["acc"] < 0.01 and found.test["acc"] == "mcnemar"
    vector = tv.evaluate(
        tv.extract(MODELS / "base", MODELS / "medical"), TASKS / "medical_choice.yaml", base=MODELS / "base", limit=3
    )
    assert vector.variant.tolist() == ["model"] * 9


@pytest.mark.parametrize("name", ROWS)
def test_a_users_file_in_a_known_format(name: str, tmp_path: Path) -> None:
    file = tmp_path / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS[name]))
    (loaded,) = load_tasks(f"{name}={file}", new_tokens=8)
    small, words = build_model(), build_tokenizer()
    small.config.max_position_embeddings = 1024
    items = Harness(small, words, batch_size=2).items(loaded)
    assert items.task.unique().tolist() == [name] and items.value.notna().all()
    assert items.item_id.nunique() == len(ROWS[name])
    if name == "gsm8k":
        assert items.metric.tolist() == ["exact_match, strict", "exact_match, last number"]


def test_examples_come_before_the_question_and_never_from_the_items_themselves(tmp_path: Path) -> None:
    with pytest.raises(tv.InputError, match="general_choice: has no examples but its own items"):
        load_tasks(TASKS / "general_choice.yaml", shots=1)
    text = (TASKS / "general_choice.yaml").read_text()
    text = text.replace("{test: general_choice.jsonl}", "{test: items.jsonl, train: examples.jsonl}")
    (tmp_path / "task.yaml").write_text(text + "training_split: train\n")
    rows = (TASKS / "general_choice.jsonl").read_text().splitlines()
    (tmp_path / "items.jsonl").write_text("\n".join(rows[:4]))
    (tmp_path / "examples.jsonl").write_text("\n".join(rows[4:]))
    (loaded,) = load_tasks(tmp_path / "task.yaml", shots=1)
    harness, asked = Harness(model("base"), load_tokenizer(MODELS / "base")), json.loads(rows[0])["text"]
    shown = []
    for _ in range(2):  # two variants, and the same examples
        harness.items(loaded)
        shown.append([instance.args[0] for instance in loaded.harness.instances])
    assert shown[0] == shown[1]
    example, question = shown[0][0].split("\n\n")
    said = [f"{row['text']} {row['choices'][row['answer']]}" for row in map(json.loads, rows[4:])]
    assert question == asked and example in said


def test_prompts_go_through_the_chat_template() -> None:
    tokenizer = load_tokenizer(MODELS / "instruct")
    tokenizer.chat_template = (
        "{% for m in messages %}User: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
    )
    loaded = task("instructions")
    Harness(model("instruct"), tokenizer, chat=True).items(loaded, 2)
    asked = loaded.harness.eval_docs[0]["prompt"]
    assert loaded.harness.instances[0].args[0] == f"User: {asked}\nAssistant:"


def test_a_number_is_found_where_it_stands(tmp_path: Path) -> None:
    file = tmp_path / "g.jsonl"
    file.write_text(json.dumps(ROWS["gsm8k"][0]))
    harness = load_tasks(f"gsm8k={file}")[0].harness
    doc = harness.eval_docs[0]
    strict, last = (ensemble.filters for ensemble in harness._filters)

    def right(filters: list, answer: str) -> float:
        found = [[answer]]
        for each in filters:
            found = list(each().apply(found, [doc]))
        return harness.process_results(doc, found)["exact_match"]

    assert right(strict, "So it is 7200.\n#### 7,200") == right(last, "3 times, and so 7,200.00") == 1
    assert right(strict, "So it is 7200.") == right(last, "7200, or 3") == 0


def test_a_digest_is_of_what_is_asked(tmp_path: Path) -> None:
    text = (TASKS / "general_choice.yaml").read_text()
    rows = (TASKS / "general_choice.jsonl").read_text()

    def digest(name: str, text: str, rows: str) -> str:
        (tmp_path / name).mkdir()
        (tmp_path / name / "general_choice.jsonl").write_text(rows)
        (tmp_path / name / "task.yaml").write_text(text)
        return load_tasks(tmp_path / name / "task.yaml")[0].digest

    assert digest("same", text, rows) == task("general_choice").digest
    assert digest("rows", text, rows.replace("sapphire", "ruby")) != task("general_choice").digest
    assert (
        digest("asked", text.replace("doc_to_text: text", 'doc_to_text: "{{text}} "'), rows)
        != task("general_choice").digest
    )


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ([], "no task; give"),
        ("nowhere.yaml", r"nowhere\.yaml: no such file"),
        ("medqa=nowhere.jsonl", r"nowhere\.jsonl: cannot be read"),
        ("trivia=x.jsonl", "no task format 'trivia'; there are medqa"),
        ([TASKS / "arithmetic.yaml", TASKS / "arithmetic.yaml"], "'arithmetic' is given twice"),
    ],
)
def test_bad_specs_are_named(spec: str | list[str], message: str) -> None:
    with pytest.raises(tv.InputError, match=message):
        load_tasks(spec)


def test_bad_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "nameless.yaml").write_text("dataset_path: json")
    (tmp_path / "dataless.yaml").write_text("task: x\ndataset_path: json")
    (tmp_path / "typo.yaml").write_text("task: x\ndoc_to_txt: a")
    (tmp_path / "bad.jsonl").write_text('{"a": 1}\nnot json\n')
    (tmp_path / "odd.yaml").write_text(
        "task: x\ndataset_path: json\ntest_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{gone'\n"
        "doc_to_target: a\ndataset_kwargs: {data_files: {test: good.jsonl}}"
    )
    (tmp_path / "good.jsonl").write_text('{"a": 1}\n')
    for spec, message in {
        tmp_path / "nameless.yaml": "has no `task`",
        tmp_path / "dataless.yaml": "needs `dataset_kwargs",
        f"medqa={tmp_path / 'bad.jsonl'}": "line 2: no JSON",
        tmp_path / "typo.yaml": "unknown key 'doc_to_txt'; did you mean 'doc_to_text'",
        tmp_path / "odd.yaml": r"odd\.yaml: cannot be loaded",
    }.items():
        with pytest.raises(tv.InputError, match=message):
            load_tasks(spec)
    with pytest.raises(tv.InputError, match="limit 0"):
        Harness(model("base"), load_tokenizer(MODELS / "base")).items(task("arithmetic"), 0)
    with pytest.raises(tv.InputError, match="no chat template"):
        Harness(model("base"), load_tokenizer(MODELS / "base"), chat=True)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("evaluate", MODELS / "base", MODELS / "medical", "--task", TASKS / "medical_choice.yaml", "--limit", 8)
    code, out, err = call(monkeypatch, capsys, main, *arguments, "-o", tmp_path / "items.csv")
    assert code == 0, err
    assert "difference from base on the same items" in out and "items.csv: 48 rows" in out
    code, _, err = call(monkeypatch, capsys, main, *arguments, "--dtype", "float8")
    assert (
        code == 2 and err.startswith("error: --dtype: 'float8' is not one of 'float32'") and len(err.splitlines()) == 1
    )
    assert all(name in err for name in ("float32", "bfloat16", "float16"))
