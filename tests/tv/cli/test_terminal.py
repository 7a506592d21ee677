"""What a person sees, and what a program reads."""

import json
import math
from collections.abc import Callable, Iterator
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from tv.cli.terminal import (
    Shown,
    Stages,
    announce,
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


def test_what_cannot_wait_is_said_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    announce("address", "http://here")
    assert capsys.readouterr().out == "http://here\n"
    begin(quiet=True, json=True)
    announce("address", "http://here")
    assert json.loads(capsys.readouterr().out) == {"address": "http://here"}


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
        stages.update("capture", 2, 2, "batch 2")
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
    lines = [json.loads(line) for line in told.err.splitlines()]
    assert all(line.pop("elapsed") < 60 and (line.pop("left") or 0) < 60 for line in lines if "stage" in line)
    assert lines == [
        {"remark": "opened"},
        {"stage": "capture", "done": 2, "total": 2, "label": "batch 2"},
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


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[list[tuple[float, int]], bool], list[str]]]:
    """What stages of 100 parts say on a stderr that is no terminal, by (seconds, parts done)."""
    begin(quiet=False, json=False)

    def run(steps: list[tuple[float, int]], transient: bool) -> list[str]:
        now = iter([seconds for seconds, _ in steps])
        with Stages(transient=transient, clock=lambda: next(now)) as stages:
            for _, done in steps:
                stages.update("capture", done, 100)
        return capsys.readouterr().err.splitlines()

    yield run


def test_without_a_terminal_a_stage_says_how_long_it_will_take_yet(told: Callable[..., list[str]]) -> None:
    steps = [(0.0, 0), (4.0, 4), (6.0, 6), (12.0, 12), (22.0, 22), (100.0, 100), (100.0, 100)]
    said = ["capture 6/100, 6 s, about 2 min left"]
    said += ["capture 22/100, 22 s, about 78 s left", "capture 100/100, 2 min"]
    assert told(steps, False) == said


def test_what_was_done_before_a_restart_does_not_count_as_speed(told: Callable[..., list[str]]) -> None:
    said = told([(0.0, 50), (20.0, 60), (30.0, 70)], False)
    assert said == ["capture 60/100, 20 s"] and told([(0.0, 50), (2.0, 60), (12.0, 70)], False) == [
        "capture 70/100, 12 s, about 30 s left"
    ]


def test_a_step_of_another_length_has_its_own_pace(capsys: pytest.CaptureFixture[str]) -> None:
    now = iter([0.0, 10.0, 20.0, 100.0, 106.0, 107.0])
    with Stages(clock=lambda: next(now)) as stages:
        for done, total, label in ((0, 4, "path"), (1, 4, "path"), (2, 4, "path"), (1, 9, "graft"), (2, 9, "graft")):
            stages.update("attribute", done, total, label)
        stages.update("attribute", 3, 9, "graft")
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "attribute 1/4 (path), 10 s" and said[1:] == ["attribute 2/9 (graft), 6 s"]


def test_a_short_stage_of_a_small_command_says_nothing(told: Callable[..., list[str]]) -> None:
    assert told([(0.0, 0), (1.0, 100)], True) == [] and told([(0.0, 0), (1.0, 100)], False) == ["capture 100/100, 1 s"]
    assert len(told([(0.0, 0), (30.0, 50), (31.0, 100)], True)) == 2


def test_with_json_every_step_has_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    begin(quiet=False, json=True)
    now = iter([0.0, 2.0, 3.0])
    with Stages(clock=lambda: next(now)) as stages:
        stages.update("capture", 0, 4)
        stages.update("capture", 1, 4, "a")
        stages.update("capture", 2, 4, "b")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["elapsed"], line["left"]) for line in lines] == [(0.0, None), (2.0, None), (3.0, 2.0)]
