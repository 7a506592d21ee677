"""What a person sees, and what a program reads."""

import json
import math
from collections.abc import Iterator
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from tv.cli.terminal import (
    Shown,
    Stages,
    bar,
    begin,
    end,
    fail,
    interval,
    number,
    plain,
    print_notes,
    print_table,
    remark,
    say,
    wrote,
)


@pytest.fixture(autouse=True)
def _afterwards() -> Iterator[None]:
    yield
    begin(quiet=False, json=False)


def test_brackets_of_a_token_are_shown_and_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("a [red]title[/red]", ["a token, as the model has it"], [["[bold]"], ["[/b]"], [0.12345]])
    shown = capsys.readouterr().out
    assert "[bold]" in shown and "[/b]" in shown and "[red]title" in shown and "0.123" in shown


def test_a_long_cell_is_shown_whole(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("", ["id", "text"], [["a", "the heart beats " * 20]])
    assert capsys.readouterr().out.count("heart") == 20


def test_a_table_wider_than_the_screen_loses_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("", ["name", *(f"heading {i}" for i in range(20))], [["medical", *(0.123 + i for i in range(20))]])
    heading, _, row = capsys.readouterr().out.strip().splitlines()
    assert row.split()[0] == "medical" and row.split()[-1] == "19.1" and heading.split()[-1] == "19"


def test_numbers_have_three_digits_and_nan_is_a_dash() -> None:
    assert [number(value) for value in (1234.5, 0.000123456, math.nan)] == ["1.23e+03", "0.00012", "–"]
    assert [number(value, digits=5) for value in (1234.5, 0.000123456)] == ["1234.5", "0.0001235"]


#: Cell → on the screen, in JSON.
CELLS = [
    pytest.param(np.array([]), "[]", [], id="no entry"),
    pytest.param(np.array([0.12345]), "[0.123]", [0.12345], id="one entry"),
    pytest.param(np.array([1.0, math.nan]), "[1, –]", [1.0, None], id="two entries"),
    pytest.param(np.float32(0.5), "0.5", 0.5, id="numpy"),
    pytest.param(Decimal(10**30), str(10**30), 10**30, id="a sum of whole numbers"),
    pytest.param(Decimal("0.12345"), "0.123", 0.12345, id="a decimal"),
    pytest.param(math.inf, "inf", None, id="infinite"),
    pytest.param(b"\x00\xff", "00ff", "00ff", id="bytes"),
    pytest.param({"a": [math.nan]}, "{'a': [nan]}", {"a": [None]}, id="a struct"),
    pytest.param(Shown([1 / 3, math.nan], "a third"), "a third", [1 / 3, None], id="two forms"),
    pytest.param(interval(1 / 3, 0.5), "[0.333, 0.5]", [1 / 3, 0.5], id="an interval"),
    *(pytest.param(missing, "–", None, id=repr(missing)) for missing in (None, math.nan, pd.NaT, pd.NA)),
]


@pytest.mark.parametrize(("cell", "shown", "value"), CELLS)
def test_a_cell_has_two_forms(cell: object, shown: str, value: object, capsys: pytest.CaptureFixture[str]) -> None:
    print_table("", ["x"], [[cell]])
    assert capsys.readouterr().out.split("\n")[3].strip() == shown
    assert json.loads(json.dumps(plain(cell), allow_nan=False)) == value


def test_nothing_is_said_that_a_terminal_obeys(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "a\x1b[2Jb\ud800"
    print_table(hostile, [hostile], [[hostile], [Shown(1, hostile)], [[hostile]], ["two\nlines"]])
    say(hostile)
    print_notes([hostile])
    remark(hostile)
    fail(hostile, 2)
    with Stages() as stages:
        stages.update(f"[red]{hostile}", 1, 1)
    told = capsys.readouterr()
    assert told.out.count(r"a\x1b[2Jb\ud800") == 7 and told.err.count(r"a\x1b[2Jb\ud800") == 3
    assert "a\x1b" not in told.out + told.err and "[red]" in told.err
    assert [line.strip() for line in told.out.splitlines()].count("lines") == 1


def test_json_can_be_said_in_any_encoding(capsys: pytest.CaptureFixture[str]) -> None:
    begin(quiet=False, json=True)
    say("ε \ud800 \x1b")
    end("tv speak")
    told = capsys.readouterr().out
    assert told.isascii() and json.loads(told)["said"] == ["ε \ud800 \x1b"]


def _speak() -> None:
    remark("opened")
    with Stages() as stages:
        stages.update("capture", 1, 2, "batch 1")
    with bar("link") as progress:
        progress("link", 1, 1, "")
    print_table("sizes", ["name", "size"], [["a", np.float32(0.5)], ["b", math.nan], ["c", np.int64(3)]])
    say("all is well")
    wrote("out.csv", "3 rows")
    print_notes(["rounded"])
    end("tv speak")


def test_results_are_on_stdout_and_the_rest_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    begin(quiet=False, json=False)
    _speak()
    told = capsys.readouterr()
    assert all(words in told.out for words in ("sizes", "all is well", "out.csv: 3 rows", "note: rounded"))
    assert "opened" in told.err and "capture" in told.err and "sizes" not in told.err


def test_quiet_is_the_result_alone(capsys: pytest.CaptureFixture[str]) -> None:
    begin(quiet=True, json=False)
    _speak()
    told = capsys.readouterr()
    assert "sizes" in told.out and "rounded" not in told.out and told.err == ""
    fail("it broke", 2)
    assert capsys.readouterr().err == "error: it broke\n"


def test_json_is_an_object_a_line_on_the_same_streams(capsys: pytest.CaptureFixture[str]) -> None:
    begin(quiet=False, json=True)
    _speak()
    fail("it broke", 2)
    told = capsys.readouterr()
    assert [json.loads(line) for line in told.err.splitlines()] == [
        {"remark": "opened"},
        {"stage": "capture", "done": 1, "total": 2, "label": "batch 1"},
        {"stage": "link", "done": 0, "total": None, "label": ""},
        {"stage": "link", "done": 1, "total": 1, "label": ""},
        {"error": "it broke", "status": 2},
    ]
    assert json.loads(told.out) == {
        "command": "tv speak",
        "status": 0,
        "written": ["out.csv"],
        "tables": [{"title": "sizes", "columns": ["name", "size"], "data": [["a", 0.5], ["b", None], ["c", 3]]}],
        "said": ["all is well", "out.csv: 3 rows"],
        "notes": ["rounded"],
    }
