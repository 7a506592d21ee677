"""Prompt sets of every kind are read whole or refused in one line that names the file and the row."""

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pydantic import ValidationError

from tests.pairs import PROMPTS, write_prompts
from tv.errors import PromptError
from tv.prompts.files import Chat, Prompt, PromptSet, read_prompts


def test_rows_become_prompts_and_domains_fall_back(tmp_path: Path) -> None:
    prompts = read_prompts([PromptSet(file=write_prompts(tmp_path / "mixed.jsonl"), domain="medicine")])
    assert [p.id for p in prompts] == [row["id"] for row in PROMPTS]
    assert prompts[0] == Prompt("a1", "mixed", "medical", "The heart pumps", " blood", " light")
    assert prompts[-1].domain == "medicine" and prompts[-1].target is None
    bare = read_prompts(
        [PromptSet(file=write_prompts(tmp_path / "bare.jsonl", [{"id": "x", "text": "y", "more": "z"}]))]
    )
    assert bare == [Prompt("x", "bare", "bare", "y")]


def test_only_newlines_end_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes('\ufeff{"id": "1", "text": "a\u2028b"}\r\n\n{"id": "2", "text": "c"}'.encode())
    assert [p.text for p in read_prompts([PromptSet(file=path)])] == ["a\u2028b", "c"]


REFUSED = {
    "not json": ('{"id": "b", ', "line 2: not valid JSON"),
    "deep": ("[" * 100_000, "line 2: not valid JSON"),
    "no object": ("[1]", "line 2: a row is a JSON object with id and text, not list"),
    "no id": ('{"text": "x"}', "line 2: id is missing"),
    "null text": ('{"id": "b", "text": null}', "line 2: text is missing"),
    "blank text": ('{"id": "b", "text": " \\n"}', "line 2: text is blank"),
    "empty target": ('{"id": "b", "text": "x", "target": ""}', "line 2: target is blank"),
    "number": ('{"id": 7.5, "text": "x"}', "line 2: id is float, not a string"),
    "truth": ('{"id": true, "text": "x"}', "line 2: id is bool, not a string"),
    "no text": ('{"id": "b", "said": "x"}', "line 2: text is missing"),
    "surrogate": ('{"id": "b", "text": "\\ud800"}', "line 2: text holds half of a surrogate pair"),
    "same id": ('{"id": "a", "text": "x"}', "line 1; ids are unique"),
    "foil alone": ('{"id": "b", "text": "x", "foil": "y"}', "line 2: a foil without a target"),
    "same foil": ('{"id": "b", "text": "x", "target": "y", "foil": "y"}', "line 2: foil and target are the same"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_row_is_one_line_with_its_number(case: str, tmp_path: Path) -> None:
    row, message = REFUSED[case]
    path = tmp_path / "p.jsonl"
    path.write_text('{"id": "a", "text": "fine"}\n' + row + "\n", encoding="utf-8")
    with pytest.raises(PromptError) as caught:
        read_prompts([PromptSet(file=path)])
    assert str(path) in str(caught.value) and message in str(caught.value) and "\n" not in str(caught.value)


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="no such prompt file"):
        read_prompts([PromptSet(file=tmp_path / "absent.jsonl")])
    (tmp_path / "bytes.jsonl").write_bytes(b'{"id": "a", "text": "x"}\n{"id": "\xff"}')
    with pytest.raises(PromptError, match="line 2: not UTF-8"):
        read_prompts([PromptSet(file=tmp_path / "bytes.jsonl")])
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(PromptError, match=r"empty\.jsonl: no prompts"):
        read_prompts([PromptSet(file=tmp_path / "empty.jsonl")])
    a, b = (write_prompts(tmp_path / f"{n}.jsonl", [{"id": "x", "text": n}]) for n in "ab")
    with pytest.raises(PromptError, match=r"b\.jsonl: line 1: .*a\.jsonl: line 1"):
        read_prompts([PromptSet(file=a), PromptSet(file=b)])


def _expected(name: str) -> list[Prompt]:
    return [Prompt(r["id"], name, r.get("domain", name), r["text"], r.get("target"), r.get("foil")) for r in PROMPTS]


def _write(path: Path, rows: list[dict[str, Any]]) -> Path:
    frame = pd.DataFrame(rows)
    if path.suffix in (".csv", ".CSV", ".tsv"):
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    elif path.suffix in (".parquet", ".Parquet"):
        frame.to_parquet(path, index=False)
    elif path.suffix in (".json", ".JSON"):
        path.write_text(json.dumps(rows, indent=2))
    else:
        write_prompts(path, rows)
    return path


FORMATS = ["jsonl", "json", "csv", "parquet"]


@pytest.mark.parametrize("form", [*FORMATS, "tsv", "JSONL", "JSON", "CSV", "Parquet"])
def test_every_form_gives_the_same_prompts(form: str, tmp_path: Path) -> None:
    path = _write(tmp_path / f"mixed.{form}", PROMPTS)
    assert read_prompts([PromptSet(file=path)]) == _expected("mixed")
    assert [p.id for p in read_prompts([PromptSet(file=path, limit=2)])] == ["a1", "a2"]


@pytest.mark.parametrize("form", FORMATS)
def test_columns_of_other_names(form: str, tmp_path: Path) -> None:
    rows = [{"question": f"Q{i}", "answer": f"A{i}", "text": "not this", "said": " then"} for i in range(3)]
    columns = {"text": "question", "target": "answer", "continuation": "said"}
    found = read_prompts([PromptSet(file=_write(tmp_path / f"qa.{form}", rows), columns=columns)])
    assert [(p.text, p.target, p.continuation) for p in found] == [(f"Q{i}", f"A{i}", " then") for i in range(3)]
    assert [p.id for p in found] == ["qa-1", "qa-2", "qa-3"]


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_column_that_is_not_there(form: str, tmp_path: Path) -> None:
    path = _write(tmp_path / f"qa.{form}", [{"question": "Q", "answer": "A", "said": "S"}])
    with pytest.raises(PromptError, match="no column 'prompt' for text; its columns are question, answer, said"):
        read_prompts([PromptSet(file=path, columns={"text": "prompt"})])
    path = _write(tmp_path / f"qa.{form}", [{"said": "Q", "then": "A"}])
    with pytest.raises(
        PromptError, match=rf"qa\.{form}: no column 'text'; its columns are said, then; say which with "
    ):
        read_prompts([PromptSet(file=path)])
    with pytest.raises(PromptError, match="no column 'reply' for target; its columns are said, then"):
        read_prompts([PromptSet(file=path, columns={"text": "said", "target": "reply"})])


def test_a_long_header_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "wide.csv"
    path.write_text(",".join(["The first row of a file that has no header", *map(str, range(11))]) + "\n")
    with pytest.raises(
        PromptError, match=r"its columns are The first row of a file that …, 0, 1, 2, 3, 4 and 6 more; say"
    ):
        read_prompts([PromptSet(file=path)])
    path.write_text("a,b,c,d,e,f\n")
    with pytest.raises(PromptError, match=r"no column 'g' for text; its columns are a, b, c, d, e, f$"):
        read_prompts([PromptSet(file=path, columns={"text": "g"})])


def test_a_mapped_key_that_a_json_row_lacks(tmp_path: Path) -> None:
    path = write_prompts(tmp_path / "qa.jsonl", [{"question": "Q"}, {"text": "T"}])
    with pytest.raises(PromptError, match=r"line 2: text is missing \(column 'question'\)"):
        read_prompts([PromptSet(file=path, columns={"text": "question"})])
    with pytest.raises(PromptError, match=r"no column 'key' for id; its columns are question, text"):
        read_prompts([PromptSet(file=path, columns={"text": "question", "id": "key"})])


@pytest.mark.parametrize("form", FORMATS)
def test_ids_that_are_whole_numbers(form: str, tmp_path: Path) -> None:
    rows = [{"id": 7, "text": "x", "cluster": 1}, {"id": 8, "text": "y", "cluster": 1}]
    found = read_prompts([PromptSet(file=_write(tmp_path / f"n.{form}", rows))])
    assert [(p.id, p.cluster) for p in found] == [("7", "1"), ("8", "1")]


def test_automatic_ids_never_collide(tmp_path: Path) -> None:
    """Neither with another set of the same name, nor with ids that were given, before or after."""
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
        write_prompts(tmp_path / folder / "p.jsonl", [{"text": f"{folder}{i}"} for i in (1, 2)])
    given = write_prompts(tmp_path / "given.jsonl", [{"id": "p.2-1", "text": "x"}])
    sets = [PromptSet(file=tmp_path / folder / "p.jsonl") for folder in ("a", "b", "c")]
    found = read_prompts([*sets, PromptSet(file=given)])
    assert [p.id for p in found] == ["p-1", "p-2", "p.3-1", "p.3-2", "p.4-1", "p.4-2", "p.2-1"]
    assert [p.id for p in read_prompts(sets[:1], taken=["p-2"])] == ["p.2-1", "p.2-2"]
    assert [p.set for p in found[:4]] == ["p"] * 4


CSVS = {
    "cells": ("id,text\na,x\nb,y, and z\n", "line 3: 3 cells under a header of 2"),
    "quote": ('id,text\na,x\nb,"y\n', "not valid CSV"),
    "after a newline": ('id,text\na,"x\ny"\n\nb,\n', "line 5: text is missing"),
    "twins": ("id,text,text\na,x,y\n", "two columns are named 'text'"),
    "header alone": ("id,text\n", "no prompts"),
    "blank": ("", "no prompts"),
    "same id": ("id,text\na,x\na,y\n", "line 3: id 'a' is already taken by"),
    "blank text": ("id,text\na,x\nb, \n", "line 3: text is blank"),
    "python": ("id,messages\na,[{'role': 'user'}]\n", "messages is a list of turns, each with role and content, and"),
}


@pytest.mark.parametrize("case", CSVS)
def test_a_bad_csv_is_one_line(case: str, tmp_path: Path) -> None:
    text, message = CSVS[case]
    path = tmp_path / "p.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(PromptError) as caught:
        read_prompts([PromptSet(file=path, chat=Chat() if case == "python" else None)])
    assert str(caught.value).startswith(f"{path}: ") and message in str(caught.value) and "\n" not in str(caught.value)


#: Cells as people write them, and what they mean: spaces around quotes are no part of the cell, all others are.
CELLS = {
    "spaces before quotes": ('id, text, target\n"a", "b, c", " d"\n', ("a", "b, c", " d")),
    "spaces after quotes": ('id,text,target\n"a" ,"b" , "d" \n', ("a", "b", "d")),
    "spaces without quotes": ('id,text,target\na, b, d\n"x" , y, z\n', ("a", " b", " d")),
    "a quote in a word": ('id,text,target\na,5" tall, "d"\n', ("a", '5" tall', "d")),
    "quotes that close early": ('id,text,target\na, "b" c, d\n', ("a", ' "b" c', " d")),
    "newlines and doubled quotes": ('id,text,target\na, "b ""c"",\nd", "e"\n', ("a", 'b "c",\nd', "e")),
}


@pytest.mark.parametrize("case", CELLS)
@pytest.mark.parametrize("form", ["csv", "tsv"])
def test_cells_are_read_as_they_are_meant(form: str, case: str, tmp_path: Path) -> None:
    text, expected = CELLS[case]
    path = tmp_path / f"p.{form}"
    if form == "tsv":
        text = text.replace(",", "\t")
        expected = tuple(cell.replace(",", "\t") for cell in expected)
    path.write_text(text, encoding="utf-8")
    found = read_prompts([PromptSet(file=path, limit=1)])[0]
    assert (found.id, found.text, found.target) == expected


def test_a_csv_keeps_what_its_quotes_hold(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_bytes('\ufeffid, text ,target\r\n7,"one, ""two""\r\nthree"," x"\r\n'.encode())
    assert read_prompts([PromptSet(file=path)]) == [Prompt("7", "p", "p", 'one, "two"\r\nthree', " x")]


def test_bad_tables(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    with pytest.raises(PromptError, match="no such prompt file"):
        read_prompts([PromptSet(file=path)])
    path.write_bytes(b"no parquet at all")
    with pytest.raises(PromptError, match=r"p\.parquet: not a Parquet file") as caught:
        read_prompts([PromptSet(file=path)])
    assert "\n" not in str(caught.value)
    _write(path, [{"id": "a", "text": "x", "target": 1}])
    with pytest.raises(PromptError, match="row 1: target is int, not a string"):
        read_prompts([PromptSet(file=path)])
    listed = tmp_path / "p.json"
    listed.write_text('[{"id": "a", "text": "x"},\n {"id": }]')
    with pytest.raises(PromptError, match=r"p\.json: line 2: not valid JSON"):
        read_prompts([PromptSet(file=listed)])
    listed.write_text('[{"id": "a", "text": "x"}, 3]')
    with pytest.raises(PromptError, match="row 2: a row is a JSON object"):
        read_prompts([PromptSet(file=listed)])
    listed.write_text('{"id": "a", "text": "x"}\n')  # lines under the other name
    assert len(read_prompts([PromptSet(file=listed)])) == 1


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_texts_become_turns(form: str, tmp_path: Path) -> None:
    path = _write(tmp_path / f"c.{form}", [{"text": "Two plus two?", "target": "Four"}])
    (found,) = read_prompts([PromptSet(file=path, chat=Chat(system="Be brief.", options={"enable_thinking": False}))])
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Two plus two?"}]
    assert json.loads(found.chat or "") == {"messages": turns, "options": {"enable_thinking": False}}
    assert (found.text, found.target) == ("Two plus two?", "Four")
    assert read_prompts([PromptSet(file=path)])[0].chat is None


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_messages_are_turns_and_the_reply_is_the_target(form: str, tmp_path: Path) -> None:
    def turn(*parts: str) -> list[dict[str, str]]:
        roles = ("system", "user", "assistant")[: len(parts)]
        return [{"role": role, "content": text} for role, text in zip(roles, parts, strict=True)]

    rows = [{"id": "a", "messages": turn("Own.", "Hi", "Hello"), "text": "flat"}]
    rows += [{"id": "b", "messages": turn("Own.", "Bye"), "text": "flat"}]
    path = _write(tmp_path / f"c.{form}", rows)
    a, b = read_prompts([PromptSet(file=path, chat=Chat(system="Be brief."))])
    assert json.loads(a.chat or "")["messages"] == turn("Own.", "Hi") and (a.text, a.target) == ("Hi", "Hello")
    assert (b.text, b.target) == ("Bye", None)
    flat = read_prompts([PromptSet(file=path, chat=Chat(), columns={"text": "text"})])
    assert flat[0].text == "flat" and json.loads(flat[0].chat or "")["messages"] == [
        {"role": "user", "content": "flat"}
    ]


USER = {"role": "user", "content": "Hi"}
TURNS = {
    "no list": ("Hi", "messages is a list of turns"),
    "empty": ([], "messages is a list of turns"),
    "no turn": (["Hi"], "message 1 is str, not a role and its content"),
    "no content": ([USER, {"role": "user"}], "content of message 2 is missing"),
    "no text": (
        [{"role": "user", "content": [{"type": "text"}]}],
        "content of message 1 has a part of type 'text' that",
    ),
    "picture": ([{"role": "user", "content": [{"type": "image"}]}], "content of message 1 has a part of type 'image'"),
    "no part": ([{"role": "user", "content": ["Hi"]}], "content of message 1 has a part of type 'str'"),
    "no words": ([{"role": "user", "content": [{"type": "text", "text": " "}]}], "content of message 1 is blank"),
    "blank": ([{"role": "user", "content": " "}], "content of message 1 is blank"),
    "null": ([{"role": "user", "content": None, "tool_calls": []}], "content of message 1 is missing"),
    "number": ([USER, {"role": "assistant", "content": 4}], "content of message 2 is int, not a string"),
    "no role": ([{"content": "Hi"}], "role of message 1 is missing"),
    "odd role": ([{"role": 1, "content": "Hi"}], "role of message 1 is no name"),
    "text": ("[1", "messages is a list of turns, each with role and content, and this text is not JSON"),
    "nobody": ([{"from": "narrator", "value": "Hi"}], "message 1 is from 'narrator', which is no role"),
    "surrogate": ([{"role": "user", "content": "\ud800"}], "the conversation holds half of a surrogate pair"),
    "reply alone": ([{"role": "assistant", "content": "Hello"}], "no turn before the assistant's reply"),
}


@pytest.mark.parametrize("case", TURNS)
def test_bad_messages_are_one_line(case: str, tmp_path: Path) -> None:
    messages, said = TURNS[case]
    path = tmp_path / "c.jsonl"
    path.write_text(json.dumps({"id": "a", "messages": messages}) + "\n")
    with pytest.raises(PromptError) as caught:
        read_prompts([PromptSet(file=path, chat=Chat())])
    assert str(caught.value).startswith(f"{path}: line 1: ") and said in str(caught.value)


def test_two_replies_and_messages_without_chat(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    row = {"id": "a", "messages": [USER, {"role": "assistant", "content": "Hello"}], "target": "Ho"}
    path.write_text(json.dumps(row))
    with pytest.raises(PromptError, match="line 1: a target, and messages that end with the assistant's reply"):
        read_prompts([PromptSet(file=path, chat=Chat())])
    with pytest.raises(PromptError, match=r"line 1: text is missing; with chat: true \(--chat\) its messages are used"):
        read_prompts([PromptSet(file=path)])


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()
    folder = tmp_path / "quiz"
    folder.mkdir()
    for split in ("train", "test"):
        rows = [{"question": f"{split} {i}", "answer": f"A{i}", "idx": i} for i in range(3)]
        write_prompts(folder / f"{split}.jsonl", rows)
    return folder


def test_a_dataset_is_read_by_split(dataset: Path) -> None:
    chosen = PromptSet(
        dataset=str(dataset), split="test", columns={"id": "idx", "text": "question", "target": "answer"}, limit=2
    )
    assert read_prompts([chosen]) == [
        Prompt("0", "quiz", "quiz", "test 0", "A0"),
        Prompt("1", "quiz", "quiz", "test 1", "A1"),
    ]
    columns = {"text": "question"}
    unnamed = read_prompts([PromptSet(dataset=str(dataset), split="train[1:]", columns=columns)])
    assert [(p.id, p.text) for p in unnamed] == [("quiz-1", "train 1"), ("quiz-2", "train 2")]
    with pytest.raises(PromptError, match="it has the splits train, test; choose one with split"):
        read_prompts([PromptSet(dataset=str(dataset), columns=columns)])
    with pytest.raises(
        PromptError, match=r"quiz \(test\): no column 'q' for text; its columns are question, answer, idx"
    ):
        read_prompts([PromptSet(dataset=str(dataset), split="test", columns={"text": "q"})])
    understood = read_prompts([PromptSet(dataset=str(dataset), split="test", limit=1)])
    assert [(p.text, p.target) for p in understood] == [("test 0", "A0")]
    assert understood.notes == (f"dataset {dataset} (test): read with columns: {{text: question, target: answer}}",)
    with pytest.raises(PromptError, match=r"quiz \(dev\): cannot be loaded: ") as caught:
        read_prompts([PromptSet(dataset=str(dataset), split="dev", columns=columns)])
    assert "\n" not in str(caught.value)
    with pytest.raises(PromptError, match="is a file; give it as file"):
        read_prompts([PromptSet(dataset=str(dataset / "test.jsonl"))])


def test_a_single_split_needs_no_name(dataset: Path) -> None:
    (dataset / "test.jsonl").unlink()
    assert len(read_prompts([PromptSet(dataset=str(dataset), columns={"text": "question"})])) == 3


def test_a_dataset_out_of_reach_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach it\n" + "at length " * 90)

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(PromptError) as caught:
        read_prompts([PromptSet(dataset="org/quiz", config="main", split="test")])
    said = str(caught.value)
    assert said.startswith("dataset org/quiz (main, test): cannot be loaded: Couldn't reach it at") and len(said) < 320
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(PromptError, match=r"dataset org/quiz: .*pip install 'tuning-probes\[datasets\]'"):
        read_prompts([PromptSet(dataset="org/quiz")])


WRONG: dict[str, dict[str, Any]] = {
    "neither": {"domain": "x"},
    "both": {"file": "p.jsonl", "dataset": "org/quiz"},
    "split of a file": {"file": "p.jsonl", "split": "test"},
    "unknown": {"file": "p.jsonl", "name": "x"},
    "key": {"file": "p.jsonl", "columns": {"question": "text"}},
    "limit": {"file": "p.jsonl", "limit": 0},
    "chat": {"file": "p.jsonl", "chat": "yes"},
}


@pytest.mark.parametrize("case", WRONG)
def test_a_set_that_makes_no_sense(case: str) -> None:
    with pytest.raises(ValidationError):
        PromptSet(**WRONG[case])


@pytest.mark.parametrize("key", ["target", "foil", "domain", "cluster"])
@pytest.mark.parametrize("name", ["p.jsonl", "p.json"])
def test_a_mapped_column_that_no_row_has(key: str, name: str, tmp_path: Path) -> None:
    """A target under a misspelt name would be left out, and the loss be of another text."""
    (tmp_path / name).write_text(json.dumps([{"text": "T"}] if name == "p.json" else {"text": "T"}))
    with pytest.raises(PromptError, match=rf"no column 'golld' for {key}; its columns are text"):
        read_prompts([PromptSet(file=tmp_path / name, columns={key: "golld"})])
