"""The answer in what a model writes, beside that in the target."""

from pathlib import Path

import pytest

import probes
from probes.capture.final_answers import answer, final_answers
from probes.capture.pair import make_pair
from probes.errors import SuiteError
from tests.pairs import PROMPTS, build_model, build_pair, build_tokenizer, perturb, write_suite
from tv.evaluation.greedy import continue_greedily
from tv.prompts.encoding import encode
from tv.prompts.files import Prompt


def test_the_first_group_or_the_whole_match_of_the_first_place() -> None:
    assert answer(r"#### (\d+)", "1 + 1 #### 2, not #### 3") == "2"
    assert answer(r"\d+", "1 + 1") == "1" and answer("x", "1") is None
    assert answer(r"(?:is|are) (a )?(\w+)", "is four") is None  # a group that takes no part is no answer


def test_models_are_asked_and_told_apart_by_what_they_write() -> None:
    """The base writes its own target, and the tuned model something else."""
    base, tuned, tokenizer = build_model(), build_model(), build_tokenizer()
    perturb(tuned, 0.3, seed=4)
    pair = make_pair(base, tuned, tokenizer)
    texts = encode([Prompt(row["id"], "s", "d", row["text"]) for row in PROMPTS], tokenizer, 64)
    written = continue_greedily(base, [item.ids for item in texts], 3)
    others = continue_greedily(tuned, [item.ids for item in texts], 3)
    asked = [
        Prompt(item.prompt.id, "s", "d", item.prompt.text, tokenizer.decode(ids))
        for item, ids in zip(texts, written, strict=True)
    ]
    encoded = encode(asked, tokenizer, 64)
    rows = final_answers(pair, "new", encoded, r"(?s).+", tokens=3)
    assert rows[rows.model == "base"].value.tolist() == [1.0] * len(asked)
    same = [float(tokenizer.decode(a) == tokenizer.decode(b)) for a, b in zip(written, others, strict=True)]
    assert rows[rows.model == "new"].value.tolist() == same and min(same) == 0
    assert set(final_answers(pair, "new", encoded, ".", tokens=3, with_base=False).model) == {"new"}


def test_a_run_with_a_pattern_has_the_metric_once_a_model(tmp_path: Path) -> None:
    suite = write_suite(
        tmp_path,
        *build_pair(tmp_path),
        measure=["behaviour"],
        attribute=None,
        noise_floor=False,
        answer_pattern=r"[a-z]*o[a-z]*",
        generate={"tokens": 5, "from": "base"},
    )
    run = probes.run(suite, out=tmp_path / "run", stages=["capture"])
    rows = run.df("behaviour", where=[("metric", "==", "final_answer")])
    asked = {row["id"] for row in PROMPTS if "o" in row.get("target", "")}
    assert set(rows.prompt_id) == asked and len(rows) == 2 * len(asked) and set(rows.value) <= {0.0, 1.0}


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("(", r"answer_pattern: '\(' is not a regular expression: missing \), unterminated subpattern"),
        ("0x", r"answer_pattern '0x' matches none of the prompts' 5 targets; change or"),
    ],
)
def test_a_bad_pattern_is_one_line_before_anything_is_loaded(tmp_path: Path, pattern: str, told: str) -> None:
    suite = write_suite(tmp_path, *build_pair(tmp_path), answer_pattern=pattern)
    with pytest.raises(SuiteError, match=told):
        probes.prepare(suite, out=tmp_path / "run")
    with pytest.raises(SuiteError, match="answer_pattern is of behaviour"):
        probes.prepare(suite, out=tmp_path / "run", settings={"answer_pattern": "o", "measure": ["gates"]})
