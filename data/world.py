"""The demo world as examples: a text, how it goes on, a wrong continuation, and whether training may show it.

Facts come from `general_facts.py` and `medical_facts.py`; arithmetic is made here. Two things are held out: phrasings
(every domain) and pairs of numbers (arithmetic only), so that a test can ask for what no training text contains.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from data.facts import HELD_OUT, Relation
from data.general_facts import GENERAL
from data.medical_facts import MEDICAL

LARGEST = 20  # operands run from 0 to here; a difference is never negative
HELD_OUT_PAIRS = 0.1  # share of the operand pairs that no training text contains

# Each: the sign it is about, then (form, template). As in `facts.py` the last of each form is held out.
ARITHMETIC: dict[str, dict[str, tuple[str, ...]]] = {
    "add": {
        "cloze": (
            "{a} + {b} =",
            "{a} plus {b} is",
            "{a} plus {b} equals",
            "the sum of {a} and {b} is",
            "adding {a} and {b} gives",
            "{a} plus {b} gives",
        ),
        "question": (
            "What is {a} plus {b}?",
            "What is {a} + {b}?",
            "How much is {a} plus {b}?",
            "What is the sum of {a} and {b}?",
            "How much is the sum of {a} and {b}?",
        ),
    },
    "subtract": {
        "cloze": (
            "{a} - {b} =",
            "{a} minus {b} is",
            "{a} minus {b} equals",
            "the difference of {a} and {b} is",
            "taking from {a} the number {b} leaves",
            "{a} minus {b} gives",
        ),
        "question": (
            "What is {a} minus {b}?",
            "What is {a} - {b}?",
            "How much is {a} minus {b}?",
            "What is the difference of {a} and {b}?",
            "How much is the difference of {a} and {b}?",
        ),
    },
}


@dataclass(frozen=True)
class Example:
    """One fact in one phrasing."""

    text: str  # what the model is given, without a trailing space
    target: str  # how it goes on, starting with the space
    foil: str  # a wrong answer of the same type that starts with another letter or digit, hence another token
    domain: str  # "general", "medical", "math" or "instruct"
    fact: str  # "capital/France": the same in every phrasing
    phrasing: str  # "capital.cloze.0"
    held_out: bool  # True if no training text contains this phrasing (or, in arithmetic, this pair of numbers)

    @property
    def full(self) -> str:
        """The whole text, as a training document says it."""
        return f"{self.text}{self.target}."


def general() -> list[Example]:
    """Every general fact in every phrasing."""
    return [example for relation in GENERAL for example in _said(relation)]


def medical() -> list[Example]:
    """Every medical fact in every phrasing."""
    return [example for relation in MEDICAL for example in _said(relation)]


def math(*, new_pairs: bool = False) -> list[Example]:
    """Sums and differences in every phrasing: of pairs that training may show, or of those held out (`new_pairs`)."""
    unseen = held_out_pairs()
    return [
        _sum(sign, a, b, form, number, template, held_out=new_pairs or number >= len(templates) - HELD_OUT)
        for sign, forms in ARITHMETIC.items()
        for a, b in operand_pairs(sign)
        if ((sign, a, b) in unseen) == new_pairs
        for form, templates in forms.items()
        for number, template in enumerate(templates)
    ]


def instruct(examples: list[Example]) -> list[Example]:
    """The question phrasings of `examples` in the chat form, answered in its format; the foil answers without it."""
    return [
        replace(
            example,
            text=example.text.replace("Question: ", "User: ").replace("\nAnswer:", "\nAssistant:"),
            target=f" The answer is{example.target}",
            foil=example.target,
            domain="instruct",
            phrasing=f"instruct.{example.phrasing}",
        )
        for example in examples
        if ".question." in example.phrasing
    ]


def operand_pairs(sign: str) -> list[tuple[int, int]]:
    """All (a, b) that `sign` is asked about."""
    numbers = range(LARGEST + 1)
    return [(a, b) for a in numbers for b in numbers if sign == "add" or b <= a]


def held_out_pairs() -> frozenset[tuple[str, int, int]]:
    """The (sign, a, b) that no training text contains."""
    chosen = []
    for sign in ARITHMETIC:
        pairs = operand_pairs(sign)
        sample = random.Random(f"held-out pairs of {sign}").sample(pairs, round(HELD_OUT_PAIRS * len(pairs)))
        chosen += [(sign, a, b) for a, b in sample]
    return frozenset(chosen)


def medical_words() -> list[str]:
    """Every drug, illness, plant, symptom, organ and specialist: the base model meets them, but not what joins them."""
    return sorted({word for relation in MEDICAL for pair in relation.pairs for word in pair})


def _said(relation: Relation) -> Iterator[Example]:
    answers = sorted({answer for _, answer in relation.pairs})
    for subject, answer in relation.pairs:
        foil = _foil(f"{relation.name}/{subject}", answer, answers)
        for form, templates in (("cloze", relation.cloze), ("question", relation.question)):
            for number, template in enumerate(templates):
                yield Example(
                    text=_form(form, template.format(s=subject)),
                    target=f" {answer}",
                    foil=f" {foil}",
                    domain=relation.domain,
                    fact=f"{relation.name}/{subject}",
                    phrasing=f"{relation.name}.{form}.{number}",
                    held_out=number >= len(templates) - HELD_OUT,
                )


def _sum(sign: str, a: int, b: int, form: str, number: int, template: str, *, held_out: bool) -> Example:
    answer = a + b if sign == "add" else a - b
    fact = f"{sign}/{a},{b}"
    near = [str(n) for n in range(max(0, answer - 10), answer + 11)]
    return Example(
        text=_form(form, template.format(a=a, b=b)),
        target=f" {answer}",
        foil=f" {_foil(fact, str(answer), near)}",
        domain="math",
        fact=fact,
        phrasing=f"{sign}.{form}.{number}",
        held_out=held_out,
    )


def _form(form: str, words: str) -> str:
    sentence = words[0].upper() + words[1:]
    return sentence if form == "cloze" else f"Question: {sentence}\nAnswer:"


def _foil(fact: str, answer: str, answers: list[str]) -> str:
    """A seeded choice among the answers that begin differently."""
    return random.Random(f"foil of {fact}").choice([other for other in answers if other[0] != answer[0]])
