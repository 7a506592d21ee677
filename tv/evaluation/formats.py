"""The files of known benchmarks as tasks: each reads a user's JSONL in the columns that the benchmark publishes.

MedQA arXiv 2009.13081, PubMedQA 1909.06146, MedMCQA 2203.14371, MMLU 2009.03300, GSM8K 2110.14168, IFEval 2311.07911.
No row of theirs is here: a test shows each format on an example of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from tv.errors import InputError
from tv.evaluation.instructions import process_results, verify

Row: TypeAlias = dict[str, Any]
LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Format:
    """How the rows of a file become the harness's."""

    read: Callable[[Row], Row]  # a row of the file → `text` and `choices`, `answer` or what the config needs
    config: Mapping[str, Any]  # the harness's task without its data
    prepare: Callable[[Sequence[Row]], Sequence[Row]] = field(default=list)  # for what depends on the whole file


def medqa(row: Row) -> Row:
    """`question`, `options` {letter: text} and `answer_idx`; or `sent1`, `ending0` … and `label` (from 0)."""
    if "sent1" in row:
        endings = [row[f"ending{i}"] for i in range(len(LETTERS)) if f"ending{i}" in row]
        return _lettered(row["sent1"], endings, int(row["label"]))
    options = dict(sorted(row["options"].items()))
    return _lettered(row["question"], list(options.values()), list(options).index(row["answer_idx"]))


def pubmedqa(row: Row) -> Row:
    """`QUESTION`, `CONTEXTS` (paragraphs) and `final_decision`: yes, no or maybe. In small letters too."""
    lowered = {name.lower(): value for name, value in row.items()}
    contexts = lowered["contexts"] if "contexts" in lowered else lowered["context"]["contexts"]
    answers = ["yes", "no", "maybe"]
    text = "Abstract: {}\nQuestion: {}\nAnswer:".format("\n".join(contexts), lowered["question"])
    return {"text": text, "choices": answers, "answer": answers.index(lowered["final_decision"].lower())}


def medmcqa(row: Row) -> Row:
    """`question`, `opa` … `opd` and `cop`, the right one: from 0, or from 1 in a file that has a 4."""
    return _lettered(row["question"], [row[f"op{letter}"] for letter in "abcd"], int(row["cop"]))


def mmlu(row: Row) -> Row:
    """`question`, `choices` and `answer`: a number from 0, or a letter."""
    answer = row["answer"]
    index = LETTERS.index(answer) if isinstance(answer, str) and answer in LETTERS else int(answer)
    return _lettered(row["question"], list(row["choices"]), index)


def gsm8k(row: Row) -> Row:
    """`question` and `answer`, whose last line is `#### ` and the number."""
    number = str(row["answer"]).rpartition("####")[2].strip().replace(",", "")
    float(number)
    return {"text": f"Question: {row['question']}\nAnswer:", "target": number}


def ifeval(row: Row) -> Row:
    """`key`, `prompt`, `instruction_id_list` and `kwargs`, as many of the one as of the other."""
    names, arguments = list(row["instruction_id_list"]), list(row["kwargs"])
    for name in names:
        verify(name)
    if not names or len(names) != len(arguments):
        raise ValueError(f"{len(names)} instructions with {len(arguments)} sets of arguments")
    return {"text": row["prompt"], "instruction_id_list": names, "kwargs": arguments}


def _lettered(question: str, options: Sequence[str], answer: int) -> Row:
    """A question with its options under letters, answered by a letter."""
    if not 0 <= answer < len(options):
        raise ValueError(f"answer {answer} of {len(options)} options")
    listed = "".join(f"{letter}. {option}\n" for letter, option in zip(LETTERS, options, strict=False))
    return {
        "text": f"Question: {str(question).strip()}\n{listed}Answer:",
        "choices": list(LETTERS[: len(options)]),
        "answer": answer,
    }


def _from_zero(rows: Sequence[Row]) -> Sequence[Row]:
    """MedMCQA's `cop` counted from 0: its first release counts from 1, the one on the hub from 0."""
    if not any(row.get("cop") == 4 for row in rows):
        return rows
    return [row | {"cop": row["cop"] - 1} if isinstance(row.get("cop"), int) else row for row in rows]


_CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "text",
    "doc_to_choice": "choices",
    "doc_to_target": "answer",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
_NUMBER = r"(-?\d[\d,]*(?:\.\d+)?)"
_GSM8K = {
    "output_type": "generate_until",
    "doc_to_text": "text",
    "doc_to_target": "target",
    "generation_kwargs": {"until": ["Question:"], "max_gen_toks": 256, "do_sample": False},
    "filter_list": [
        {
            "name": name,
            "filter": [
                {"function": "regex", "regex_pattern": pattern, "group_select": at},
                {"function": "take_first"},
            ],
        }
        for name, pattern, at in (("strict", rf"#### {_NUMBER}", 0), ("last number", _NUMBER, -1))
    ],
    "metric_list": [
        {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True, "regexes_to_ignore": [",", r"\.0*$"]}
    ],
}
_MANNERS = ("prompt_strict", "prompt_loose", "instruction_strict", "instruction_loose")
_IFEVAL = {
    "output_type": "generate_until",
    "doc_to_text": "text",
    "doc_to_target": "",
    "generation_kwargs": {"until": [], "max_gen_toks": 1280, "do_sample": False},
    "process_results": process_results,
    "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in _MANNERS],
}

#: What a file can be declared as: `NAME=FILE`.
FORMATS: dict[str, Format] = {
    "medqa": Format(medqa, _CHOICE),
    "pubmedqa": Format(pubmedqa, _CHOICE),
    "medmcqa": Format(medmcqa, _CHOICE, _from_zero),
    "mmlu": Format(mmlu, _CHOICE),
    "mmlu-medical": Format(mmlu, _CHOICE),
    "gsm8k": Format(gsm8k, _GSM8K),
    "ifeval": Format(ifeval, _IFEVAL),
}


def read_rows(name: str, rows: Sequence[Row], place: str) -> list[Row]:
    """The rows of a file in format `name`, with their `id` and `cluster`. Raises InputError naming row and column."""
    chosen = FORMATS[name]
    converted = []
    for number, row in enumerate(chosen.prepare(rows), start=1):
        try:
            fields = chosen.read(row)
        except KeyError as error:
            raise InputError(f"{place}, row {number}: no column {error} as {name} has it: {_columns(chosen)}") from None
        except (AttributeError, TypeError, ValueError) as error:
            raise InputError(f"{place}, row {number}: not as {name} has it: {error}") from None
        cluster = {"cluster": str(row["cluster"])} if row.get("cluster") else {}
        converted.append(fields | {"id": str(row.get("id", row.get("key", number - 1)))} | cluster)
    return converted


def _columns(chosen: Format) -> str:
    return " ".join((chosen.read.__doc__ or "").split())
