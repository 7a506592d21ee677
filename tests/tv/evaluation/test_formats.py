"""Each known benchmark's columns, on an invented row of each."""

import pytest

from tv.errors import InputError
from tv.evaluation.formats import FORMATS, read_rows

QUESTION = "Which plant is Zelvarin made from?"
LISTED = f"Question: {QUESTION}\nA. duskroot\nB. moonmoss\nC. saltvine\nD. blackreed\nAnswer:"
PLANTS = ["duskroot", "moonmoss", "saltvine", "blackreed"]
ROWS: dict[str, list[dict[str, object]]] = {
    "medqa": [
        {"question": QUESTION, "options": dict(zip("DCBA", reversed(PLANTS), strict=True)), "answer_idx": "B"},
        {"id": "own", "sent1": QUESTION, **{f"ending{i}": plant for i, plant in enumerate(PLANTS)}, "label": 1},
    ],
    "medmcqa": [
        {"question": QUESTION, **{f"op{letter}": plant for letter, plant in zip("abcd", PLANTS, strict=True)}, "cop": 1}
    ],
    "mmlu": [{"question": QUESTION, "choices": PLANTS, "answer": answer} for answer in (1, "B", "1")],
    "pubmedqa": [
        {"QUESTION": "Does moonmoss cure brenosis?", "CONTEXTS": ["It grows.", "It heals."], "final_decision": "maybe"},
        {
            "question": "Does moonmoss cure brenosis?",
            "context": {"contexts": ["It grows.", "It heals."]},
            "final_decision": "maybe",
        },
    ],
    "gsm8k": [{"question": "What are six dozen hundreds?", "answer": "Six dozen are 72.\n#### 7,200"}],
    "ifeval": [
        {"key": 7, "prompt": "Say it.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{"keyword": None}]}
    ],
}


@pytest.mark.parametrize("name", ["medqa", "medmcqa", "mmlu"])
def test_options_stand_under_letters(name: str) -> None:
    for row in read_rows(name, ROWS[name], "here"):
        assert (row["text"], row["choices"], row["answer"]) == (LISTED, ["A", "B", "C", "D"], 1)


def test_ids_are_kept() -> None:
    named = read_rows("medqa", [ROWS["medqa"][0] | {"cluster": 7}, ROWS["medqa"][0]], "here")
    assert named[0]["cluster"] == "7" and "cluster" not in named[1]
    assert [row["id"] for row in read_rows("medqa", ROWS["medqa"], "here")] == ["0", "own"]
    assert read_rows("ifeval", ROWS["ifeval"], "here")[0]["id"] == "7"


def test_a_medmcqa_file_with_a_four_counts_from_one() -> None:
    row = ROWS["medmcqa"][0]
    assert [r["answer"] for r in read_rows("medmcqa", [row | {"cop": cop} for cop in (1, 4)], "here")] == [0, 3]
    assert [r["answer"] for r in read_rows("medmcqa", [row | {"cop": cop} for cop in (1, 3)], "here")] == [1, 3]


def test_the_other_formats() -> None:
    for row in read_rows("pubmedqa", ROWS["pubmedqa"], "here"):
        assert row["text"] == "Abstract: It grows.\nIt heals.\nQuestion: Does moonmoss cure brenosis?\nAnswer:"
        assert row["choices"][row["answer"]] == "maybe"
    assert read_rows("gsm8k", ROWS["gsm8k"], "here")[0]["target"] == "7200"
    assert read_rows("ifeval", ROWS["ifeval"], "here")[0]["instruction_id_list"] == ["punctuation:no_comma"]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("medqa", {"answer_idx": "E"}, "here, row 1: not as medqa has it"),
        ("medqa", {"options": None}, "here, row 1: not as medqa has it"),
        ("mmlu", {"answer": 4}, "answer 4 of 4 options"),
        ("medmcqa", {"cop": -1}, "answer -1 of 4 options"),
        ("pubmedqa", {"final_decision": "perhaps"}, "row 1"),
        ("gsm8k", {"answer": "seven"}, "row 1"),
        ("ifeval", {"instruction_id_list": ["language:response_language"]}, "cannot be checked here"),
        ("ifeval", {"kwargs": []}, "1 instructions with 0 sets of arguments"),
    ],
)
def test_a_row_that_is_not_of_the_format(name: str, change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_rows(name, [ROWS[name][0] | change], "here")


def test_a_column_that_is_missing_is_named_with_those_that_are_meant() -> None:
    with pytest.raises(InputError, match=r"here, row 1: no column 'CONTEXTS'|no column 'context'.*final_decision"):
        read_rows("pubmedqa", [{"QUESTION": "?", "final_decision": "no"}], "here")
    assert set(ROWS) | {"mmlu-medical"} == set(FORMATS)
