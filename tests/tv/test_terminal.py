"""What a person sees."""

import math

import pytest

from tv.cli.terminal import number, print_table


def test_brackets_of_a_token_are_shown_and_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("a [red]title[/red]", ["a token, as the model has it"], [["[bold]"], ["[/b]"], [0.12345]])
    shown = capsys.readouterr().out
    assert "[bold]" in shown and "[/b]" in shown and "[red]title" in shown and "0.123" in shown


def test_numbers_have_three_digits_and_nan_is_a_dash() -> None:
    assert [number(value) for value in (1234.5, 0.000123456, math.nan)] == ["1.23e+03", "0.00012", "–"]
