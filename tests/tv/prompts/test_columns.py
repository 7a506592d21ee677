"""Columns that can mean one thing only are understood with a note; all others are answered with the line to write."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.pairs import write_prompts
from tv.errors import PromptError
from tv.prompts.files import Chat, PromptSet, read_prompts

Expected = tuple[str, str | None, str | None]
#: Rows as they are published: text, target and foil, and the columns that the note names.
UNDERSTOOD: dict[str, tuple[dict[str, Any], Expected, str]] = {
    "prompt and answer": ({"prompt": "Q", "answer": "A"}, ("Q", "A", None), "text: prompt, target: answer"),
    "question and answer": ({"question": "Q", "answer": "A"}, ("Q", "A", None), "text: question, target: answer"),
    "instruction": ({"instruction": "Q", "output": "A"}, ("Q", "A", None), "text: instruction, target: output"),
    "completion": ({"prompt": "Q", "completion": "A"}, ("Q", "A", None), "text: prompt, target: completion"),
    "input and output": ({"input": "Q", "output": "A"}, ("Q", "A", None), "text: input, target: output"),
    "other case": ({"Text": "Q", "Target": "A", "Id": 3}, ("Q", "A", None), "text: Text, target: Target"),
    "our target": ({"question": "Q", "target": "A", "answer": "B"}, ("Q", "A", None), "text: question"),
    "preferences": (
        {"prompt": "Q", "chosen": "A", "rejected": "B"},
        ("Q", "A", "B"),
        "text: prompt, target: chosen, foil: rejected",
    ),
}


@pytest.mark.parametrize("case", UNDERSTOOD)
@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_a_pair_of_known_names_is_understood(form: str, case: str, tmp_path: Path) -> None:
    row, expected, columns = UNDERSTOOD[case]
    path = tmp_path / f"p.{form}"
    if form == "csv":
        path.write_text(f"{','.join(row)}\n{','.join(map(str, row.values()))}\n")
    else:
        write_prompts(path, [row])
    found = read_prompts([PromptSet(file=path)])
    assert [(p.text, p.target, p.foil) for p in found] == [expected]
    assert found.notes == (f"{path}: read with columns: {{{columns}}}",)
    keys = dict(part.split(": ") for part in columns.split(", "))
    said = read_prompts([PromptSet.model_validate({"file": path, "columns": keys})])
    assert said == found and said.notes == ()  # the note's line is what it says


def test_an_input_follows_the_instruction_where_there_is_one(tmp_path: Path) -> None:
    rows = [{"instruction": "Add.", "input": "2 2", "output": "4"}, {"instruction": "Go.", "input": "", "output": "No"}]
    path = write_prompts(tmp_path / "p.jsonl", rows)
    found = read_prompts([PromptSet(file=path)])
    assert [(p.text, p.target) for p in found] == [("Add.\n\n2 2", "4"), ("Go.", "No")]
    assert found.notes[0].endswith("target: output}; input follows after a blank line, where it is not empty")
    named = read_prompts([PromptSet(file=path, columns={"text": "instruction", "target": "output"})])
    assert [p.text for p in named] == ["Add.", "Go."]


#: Rows that could mean several things, or nothing, and the line to write.
ANSWERED: dict[str, tuple[dict[str, Any], str]] = {
    "two texts": (
        {"prompt": "P", "question": "Q", "answer": "A"},
        "prompt and question could each be the text; say which, for example columns: {text: prompt, target: answer} "
        "(--columns text=prompt,target=answer)",
    ),
    "two targets": ({"question": "Q", "answer": "A", "solution": "S"}, "columns: {text: question, target: answer}"),
    "a context": (
        {"instruction": "Q", "context": "C", "response": "A"},
        "columns: {text: instruction, target: response} (--columns text=instruction,target=response), which leaves out "
        "context, or write a column text",
    ),
    "choices": ({"question": "Q", "choices": ["A", "B"], "answer": 1}, "which leaves out choices, or write a column"),
    "unknown": ({"said": "Q", "then": "A"}, "text is missing; say which with columns: {text: …} (--columns text=…)"),
    "messages": ({"messages": [{"role": "user", "content": "Q"}]}, "with chat: true (--chat) its messages are used"),
    "conversations": (
        {"conversations": [{"from": "human", "value": "Q"}]},
        "with chat: true (--chat) its con",
    ),
    "turns as a prompt": (
        {"prompt": [{"role": "user", "content": "Q"}], "completion": "A"},
        "prompt is a list, not a text; turns are read with chat: true and columns: {messages: prompt} "
        "(--chat --columns messages=prompt)",
    ),
    "a number": ({"question": "Q", "answer": 3}, "target is int, not a string; put it in quotes (column 'answer')"),
}


@pytest.mark.parametrize("case", ANSWERED)
def test_what_could_mean_several_things_is_answered_with_the_line_to_write(case: str, tmp_path: Path) -> None:
    row, line = ANSWERED[case]
    path = write_prompts(tmp_path / "p.jsonl", [row])
    with pytest.raises(PromptError) as caught:
        read_prompts([PromptSet(file=path)])
    assert str(caught.value).startswith(f"{path}: line 1: ") and line in str(caught.value)


def test_a_target_beside_a_text_is_not_taken_but_told(tmp_path: Path) -> None:
    path = write_prompts(tmp_path / "p.jsonl", [{"text": "Q", "answer": "A"}])
    found = read_prompts([PromptSet(file=path)])
    assert found[0].target is None
    setting = "columns: {target: answer} (--columns target=answer)"
    assert found.notes == (f"{path}: answer is not read; {setting} makes it the target",)
    assert read_prompts([PromptSet(file=path, columns={"target": "answer"})])[0].target == "A"
    assert read_prompts([PromptSet(file=path, columns={"text": "text"})]).notes == ()
    write_prompts(path, [{"text": "Q", "answer": "A", "solution": "B"}])
    (note,) = read_prompts([PromptSet(file=path)]).notes
    assert note.endswith(f"answer, solution are not read; {setting} makes answer the target")


@pytest.mark.parametrize("other", [{"messages": [{"role": "user", "content": "Q"}]}, {"text": "Q"}])
def test_rows_of_two_forms(other: dict[str, Any], tmp_path: Path) -> None:
    rows = [other, {"conversations": [{"from": "human", "value": "Q"}]}]
    path = write_prompts(tmp_path / "p.jsonl", rows)
    with pytest.raises(PromptError, match="line 2: text is missing; some rows have conversations, others messages or"):
        read_prompts([PromptSet(file=path, chat=Chat())])


def test_conversations_of_speakers_are_messages(tmp_path: Path) -> None:
    turns = [("system", "Be brief."), ("human", "Two?"), ("gpt", "Four"), ("human", "More?"), ("gpt", "Five")]
    path = write_prompts(tmp_path / "p.jsonl", [{"conversations": [{"from": a, "value": b} for a, b in turns]}])
    found = read_prompts([PromptSet(file=path, chat=Chat())])
    roles = ["system", "user", "assistant", "user"]
    assert json.loads(found[0].chat or "")["messages"] == [
        {"role": role, "content": words} for role, (_, words) in zip(roles, turns, strict=False)
    ]
    assert (found[0].text, found[0].target) == ("More?", "Five")
    assert found.notes == (f"{path}: conversations are messages",)
