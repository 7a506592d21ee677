"""Nothing of a conversation is lost on the way from a row to the chat template, in whatever form the row comes."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.pairs import write_prompts
from tests.tv.prompts.templates import CALLING, RESULT, SYSTEM, TOOL, USER
from tv.errors import PromptError
from tv.prompts.conversation import Conversation
from tv.prompts.files import Chat, Prompt, PromptSet, read_prompts

ROW: dict[str, Any] = {
    "messages": [SYSTEM, USER, CALLING, RESULT],
    "tools": [TOOL],
    "documents": [{"title": "Leaflet", "text": "Five."}],
    "chat_template_kwargs": {"enable_thinking": False, "mood": {"kind": "calm"}},
}


def _one(path: Path, **settings: Any) -> Prompt:
    return read_prompts([PromptSet(file=path, chat=Chat(), **settings)])[0]


def _written(form: str, path: Path) -> Path:
    """ROW in a file: as it is, or as text that is JSON."""
    cells = {name: json.dumps(value) for name, value in ROW.items()}
    if form == "jsonl":
        return write_prompts(path, [ROW])
    if form == "parquet":
        pq.write_table(pa.table({name: [value] for name, value in cells.items()}), path)
        return path
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t" if form == "tsv" else ",")
        writer.writerows([list(cells), list(cells.values())])
    return path


@pytest.mark.parametrize("form", ["jsonl", "csv", "tsv", "parquet"])
def test_everything_is_kept_and_json_in_a_cell_is_read(form: str, tmp_path: Path) -> None:
    conversation = Conversation.of(_one(_written(form, tmp_path / f"p.{form}")).chat or "")
    assert conversation.messages == ROW["messages"] and list(conversation.messages[3]) == list(RESULT)
    assert (conversation.tools, conversation.documents) == (ROW["tools"], ROW["documents"])
    assert list(conversation.tools[0]["function"]) == ["name", "parameters"]  # type: ignore[index]
    assert conversation.options == ROW["chat_template_kwargs"] and conversation.reply is None


def test_a_typed_table_gives_no_message_the_keys_of_another(tmp_path: Path) -> None:
    """There a struct has every key in every row; a template would take a null for a value."""
    pq.write_table(
        pa.table({"messages": [ROW["messages"]], "documents": [[{"a": 1}, {"b": 2}]]}), tmp_path / "p.parquet"
    )
    kept = Conversation.of(_one(tmp_path / "p.parquet").chat or "")
    assert kept.documents == [{"a": 1}, {"b": 2}]
    assert kept.messages[0] == SYSTEM and kept.messages[3] == RESULT
    assert kept.messages[2] == {key: value for key, value in CALLING.items() if value is not None}


def test_a_text_has_tools_too_and_columns_of_other_names(tmp_path: Path) -> None:
    path = write_prompts(tmp_path / "p.jsonl", [{"q": "How much?", "functions": [TOOL], "t": "Five."}])
    found = _one(path, columns={"text": "q", "tools": "functions", "target": "t"})
    assert Conversation.of(found.chat or "") == Conversation([USER], tools=[TOOL]) and found.target == "Five."
    assert read_prompts([PromptSet(file=path, columns={"text": "q", "tools": "functions"})])[0].chat is None


REPLIES: dict[str, tuple[dict[str, Any], str, bool]] = {
    "call": (CALLING, json.dumps({"tool_calls": CALLING["tool_calls"]}), True),
    "parts": (
        {"role": "assistant", "content": [{"type": "text", "text": "Fi"}, {"type": "text", "text": "ve"}]},
        "Five",
        True,
    ),
    "thought": ({"role": "assistant", "content": "Five", "thinking": "Well"}, "Five", True),
    "nothing else": ({"role": "assistant", "content": "Five", "tool_calls": [], "name": None}, "Five", False),
}


@pytest.mark.parametrize("case", REPLIES)
def test_a_reply_that_is_more_than_its_text_is_kept_whole(case: str, tmp_path: Path) -> None:
    reply, target, kept = REPLIES[case]
    found = _one(write_prompts(tmp_path / "p.jsonl", [{"messages": [USER, reply]}]))
    assert found.target == target and Conversation.of(found.chat or "").reply == (reply if kept else None)


def test_the_text_of_a_prompt_is_the_last_that_was_said(tmp_path: Path) -> None:
    silent = RESULT | {"content": ""}
    found = _one(write_prompts(tmp_path / "p.jsonl", [{"messages": [USER, CALLING, silent]}]))
    assert found.text == "How much?"


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "tools": ({"tools": {"a": 1}}, "tools is a list of tools, not dict"),
    "a tool": ({"tools": ["dose"]}, "item 1 of tools is str, not a mapping"),
    "tools as text": ({"tools": "dose"}, "tools is a list of tools, and this text is not JSON"),
    "documents": ({"documents": 3}, "documents is a list of documents, not int"),
    "options": ({"chat_template_kwargs": [1]}, "chat_template_kwargs is a mapping of the template's options, not list"),
    "an option of ours": ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs cannot set 'tokenize'"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_no_template_takes_is_one_line(case: str, tmp_path: Path) -> None:
    row, said = BAD[case]
    with pytest.raises(PromptError) as caught:
        _one(write_prompts(tmp_path / "p.jsonl", [{"text": "x", **row}]))
    assert str(caught.value).startswith(f"{tmp_path / 'p.jsonl'}: line 1: ") and said in str(caught.value)


def test_a_date_is_no_json(tmp_path: Path) -> None:
    import datetime

    turns = [{"role": "user", "content": "Hi", "at": datetime.date(2003, 2, 1)}]
    pq.write_table(pa.table({"messages": [turns]}), tmp_path / "p.parquet")
    with pytest.raises(PromptError, match="row 1: the conversation holds what JSON does not"):
        _one(tmp_path / "p.parquet")


@pytest.mark.parametrize("name", ["tokenize", "add_generation_prompt", "tools", "messages"])
def test_an_option_of_ours_is_none_of_the_sets(name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}' is no option of the template"):
        Chat(options={name: True})
