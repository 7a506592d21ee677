"""Tiny programs in a Python-like notation, and what they print: a copy, a place, a length, a comparison, a sum.

Every value is one digit, which is one token, or `True` or `False`, which are three.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations, product

NAMES = ("x", "z")  # each its own token, with a space before it and without
DIGITS = range(10)

# As in `facts.py` the last of each form is held out. None starts with the program: a sentence begins with a capital.
PROGRAM: dict[str, tuple[str, ...]] = {
    "cloze": (
        "the code {p} prints",
        "running {p} prints",
        "the program {p} prints",
        "the output of {p} is",
        "running the code {p} prints",
    ),
    "question": (
        "What does {p} print?",
        "What is the output of {p}?",
        "What does the program {p} print?",
        "What does the code {p} print?",
    ),
}


@dataclass(frozen=True)
class Program:
    """One program and its printed value."""

    kind: str  # "variable", "index", "length", "compare" or "add"
    code: str
    value: str
    others: tuple[str, ...]  # values of the same type


def programs() -> list[Program]:
    """Every program of every kind, in a fixed order."""
    return list(dict.fromkeys([*_variables(), *_places(), *_lengths(), *_comparisons(), *_sums()]))


def _variables() -> Iterator[Program]:
    """The one of two variables that is asked for."""
    for (a, b), place in product(permutations(DIGITS, 2), (0, 1)):
        code = f"{NAMES[0]} = {a}; {NAMES[1]} = {b}; print({NAMES[place]})"
        yield _of_digits("variable", code, (a, b)[place])


def _places() -> Iterator[Program]:
    """A place of a list of two, counted from 0."""
    for values, place in product(permutations(DIGITS, 2), (0, 1)):
        yield _of_digits("index", f"n = {list(values)}; print(n[{place}])", values[place])


def _lengths() -> Iterator[Program]:
    """How many values a list has; the values go up in equal steps, without their tens."""
    for size, start, step in product(range(1, 6), DIGITS, DIGITS):
        values = [(start + step * i) % 10 for i in range(size)]
        yield _of_digits("length", f"n = {values}; print(len(n))", size)


def _comparisons() -> Iterator[Program]:
    for sign, a, b in product(("<", ">"), DIGITS, DIGITS):
        value = a < b if sign == "<" else a > b
        yield Program("compare", f"print({a} {sign} {b})", str(value), ("True", "False"))


def _sums() -> Iterator[Program]:
    """A variable and a number, whose sum has one digit."""
    for name, a, b in product(NAMES, DIGITS, DIGITS):
        if a + b < 10:
            yield _of_digits("add", f"{name} = {a}; print({name} + {b})", a + b)


def _of_digits(kind: str, code: str, value: int) -> Program:
    return Program(kind, code, str(value), tuple(map(str, DIGITS)))
