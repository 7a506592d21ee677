"""Samples as lm-evaluation-harness writes them: genuine files, and rows of every kind of task."""

import json
from pathlib import Path
from typing import Any

import pytest

from tv.errors import PromptError
from tv.prompts.files import PromptSet, read_prompts
from tv.prompts.logs.lm_eval import read_samples
from tv.prompts.logs.reading import read_log

LOGS = Path(__file__).resolve().parents[4] / "data" / "logs" / "lm-eval"


def sample(number: int = 0, **row: Any) -> dict[str, Any]:
    """A row of a task in which a model writes."""
    asked = {"gen_args_0": {"arg_0": "Two and two make", "arg_1": {"until": ["."]}}}
    doc = {"question": f"sum {number}", "subject": "sums", "level": 3}
    written = {"doc_id": number, "doc": doc, "target": "four", "arguments": asked, "resps": [["four"]]}
    scored = {"filter": "none", "metrics": ["exact_match"], "exact_match": 1.0, "doc_hash": f"h{number}"}
    return {**written, **scored, **row}


def choices(texts: list[str], target: Any, logs: list[float], context: str = "Is it?", **row: Any) -> dict[str, Any]:
    asked = {f"gen_args_{i}": {"arg_0": context, "arg_1": text} for i, text in enumerate(texts)}
    said = [[[str(log), "False"]] for log in logs]
    return sample(target=target, arguments=asked, resps=said, metrics=["acc"], acc=1.0, **row)


def write(folder: Path, *rows: Any, name: str = "samples_sums_2026-01-02T03-04-05.678.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_genuine_file_says_what_the_harness_printed() -> None:
    means = {}
    for model in ("base", "medical"):
        for log in read_log(LOGS / model):
            (metric,) = log.items[0].scores
            means[model, log.task] = round(sum(item.scores[metric] for item in log.items) / len(log.items), 4)
    assert means == {
        ("base", "general_choice"): 1.0,
        ("base", "medical_choice"): 0.1667,
        ("base", "medical_cloze"): 0.0,
        ("medical", "general_choice"): 1.0,
        ("medical", "medical_choice"): 0.9792,
        ("medical", "medical_cloze"): 1.0,
    }


def test_likelihoods_agree_with_the_accuracy() -> None:
    for model in ("base", "medical"):
        for log in read_log(LOGS / model):
            if log.task != "medical_cloze":
                assert all((item.response == item.target) == item.scores["acc"] for item in log.items)


def test_an_item_is_a_prompt_with_its_target_and_the_best_wrong_choice(tmp_path: Path) -> None:
    file = write(tmp_path, choices([" no", " yes", " perhaps"], "1", [-3.0, -1.0, -2.0]))
    (prompt,) = read_prompts([PromptSet(file=file)])
    assert (prompt.id, prompt.domain) == ("sums-0", "sums")
    assert (prompt.text, prompt.target, prompt.foil) == ("Is it?", " yes", " perhaps")


@pytest.mark.parametrize("target", ["1", 1, " yes", "yes", "[1, 2]", ["yes"]])
def test_the_right_choice_is_named_by_number_or_text(target: Any, tmp_path: Path) -> None:
    (item,) = read_samples(write(tmp_path, choices([" no", " yes"], target, [-1.0, -2.0]))).items
    assert (item.target, item.foil, item.response) == (" yes", " no", " no")


def test_requests_without_the_prompt_are_no_choices(tmp_path: Path) -> None:
    row = choices([" no", " yes"], "0", [-1.0, -2.0, -9.0, -8.0])
    row["arguments"] |= {f"gen_args_{2 + i}": {"arg_0": "", "arg_1": text} for i, text in enumerate([" no", " yes"])}
    (item,) = read_samples(write(tmp_path, row)).items
    assert (item.text, item.target, item.foil) == ("Is it?", " no", " yes")


def test_two_filters_are_two_metrics_of_one_item(tmp_path: Path) -> None:
    strict, loose = sample(filter="strict", exact_match=0.0), sample(filter="loose")
    log = read_samples(write(tmp_path, strict, sample(1, filter="strict"), loose, sample(1, filter="loose")))
    assert log.items[0].scores == {"exact_match, strict": 0.0, "exact_match, loose": 1.0}
    assert len(read_prompts([PromptSet(file=Path(log.place))])) == 2


@pytest.mark.parametrize(
    ("value", "read"), [("True", 1.0), ("0.25", 0.25), (False, 0.0), ([1, 0], 0.5), (float("nan"), None), ("?", None)]
)
def test_a_score_is_a_number_however_it_is_written(value: Any, read: float | None, tmp_path: Path) -> None:
    log = read_samples(write(tmp_path, sample(exact_match=value)))
    assert log.items[0].scores.get("exact_match") == read
    assert len(log.notes) == (read is None)


def test_a_text_that_is_read_has_its_loss_by_word(tmp_path: Path) -> None:
    row = sample(arguments=[["A whole text."]], metrics=["word_perplexity"], word_perplexity=[-12.0, 3], target="")
    (item,) = read_samples(write(tmp_path, row)).items
    assert (item.text, item.target, item.scores) == ("A whole text.", None, {"nll_word": 4.0})


def test_older_logs_have_lists_and_no_hashes(tmp_path: Path) -> None:
    rows = [sample(i, arguments=[["Two and two make", {"until": []}]]) for i in range(2)]
    for row in rows:
        del row["doc_hash"], row["metrics"]
    one, two = read_samples(write(tmp_path, *rows)).items
    assert one.key != two.key and one.scores == {"exact_match": 1.0} and one.text == "Two and two make"


def test_the_space_before_a_written_answer(tmp_path: Path) -> None:
    spaced = {"gen_args_0": {"arg_0": "Q\nA: ", "arg_1": {}}}
    file = write(tmp_path, sample(), sample(1, arguments=spaced))
    assert [prompt.target for prompt in read_prompts([PromptSet(file=file)])] == [" four", "four"]


def test_columns_of_a_set_name_fields_of_the_document(tmp_path: Path) -> None:
    file = write(tmp_path, sample(), sample(1))
    prompts = read_prompts([PromptSet(file=file, columns={"cluster": "subject", "domain": "level"}, limit=1)])
    assert [(prompt.cluster, prompt.domain) for prompt in prompts] == [("sums", "3")]
    with pytest.raises(PromptError, match="no column 'topic' for cluster"):
        read_prompts([PromptSet(file=file, columns={"cluster": "topic"})])


def test_the_newest_of_several_logs_of_a_task_is_read(tmp_path: Path) -> None:
    write(tmp_path, sample(exact_match=0.0), name="samples_sums_2026-01-02T03-04-05.6.jsonl")
    write(tmp_path, sample(), name="samples_sums_2026-02-02T03-04-05.6.jsonl")
    (tmp_path / "results_2026-01-02T03-04-05.6.json").write_text("{}")
    (log,) = read_log(tmp_path)
    assert log.items[0].scores == {"exact_match": 1.0} and "the newest of 2 logs of sums" in log.notes[0]


def test_a_folder_of_two_models_is_refused(tmp_path: Path) -> None:
    for model in ("one", "two"):
        (tmp_path / model).mkdir()
        write(tmp_path / model, sample())
    with pytest.raises(PromptError, match=r"logs of 2 models \(one, two\)"):
        read_log(tmp_path)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"doc_id": 1, "doc": {}', "not valid JSON.*is the file whole"),
        ("[" * 100_000, "not valid JSON"),
        ('{"doc_id": 1, "doc": 2, "arguments": []}', "not a sample of lm-evaluation-harness"),
        ('{"doc_id": 1, "doc": {}, "arguments": []}', "its arguments are no requests"),
        ('{"doc_id": 1, "doc": {}, "arguments": [[7]]}', "its arguments are no requests"),
        (json.dumps(sample(metrics=["f1"])), "names the metric 'f1' and has no value"),
        (json.dumps(sample()), "item 0 stands twice"),
    ],
)
def test_what_is_no_sample_is_said_with_its_line(line: str, said: str, tmp_path: Path) -> None:
    path = write(tmp_path, sample())
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(PromptError, match=said) as raised:
        read_samples(path)
    assert ": line 2: " in str(raised.value)


def test_a_plain_file_of_prompts_stays_one(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"id": "a", "text": "Two", "doc": {}, "doc_id": 1}\n')
    assert [prompt.text for prompt in read_prompts([PromptSet(file=path)])] == ["Two"]
    with pytest.raises(PromptError, match="no log that can be read"):
        read_log(path)
