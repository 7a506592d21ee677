"""The demo world as examples: a text, how it goes on, a wrong continuation, and whether training may show it.

Facts come from `general_facts.py`, `medical_facts.py` and `law_facts.py`, programs from `programs.py`; arithmetic is
made here. Held out are phrasings (every domain), pairs of numbers (arithmetic) and programs (code), so that a test can
ask for what no training text contains. `further` gives the phrasings of `phrasings.py`, which only prompts use.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from data.facts import Relation
from data.general_facts import GENERAL
from data.law_facts import LAW
from data.medical_facts import MEDICAL
from data.phrasings import phrasings
from data.programs import PROGRAM, Program, programs

LARGEST = 20  # operands run from 0 to here; a difference is never negative
HELD_OUT_PAIRS = 0.1  # share of the operand pairs, and of the programs, that no training text contains

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
    domain: str  # "general", "medical", "law", "math", "code" or "instruct"
    fact: str  # "capital/France": the same in every phrasing
    phrasing: str  # "capital.cloze.0"
    held_out: bool  # True if no training text contains this phrasing (or this pair of numbers, or this program)

    @property
    def full(self) -> str:
        """The whole text, as a training document says it."""
        return f"{self.text}{self.target}."


def general() -> list[Example]:
    """Every general fact in every phrasing."""
    return [example for relation in GENERAL for example in said(relation, further=False)]


def medical(*, further: bool = False) -> list[Example]:
    """Every medical fact in every phrasing, or in every further one."""
    return [example for relation in MEDICAL for example in said(relation, further=further)]


def law(*, further: bool = False) -> list[Example]:
    """Every fact of the law in every phrasing, or in every further one."""
    return [example for relation in LAW for example in said(relation, further=further)]


def code(*, new_programs: bool = False, further: bool = False) -> list[Example]:
    """What programs print, in every phrasing: of programs that training may show, or of those held out."""
    unseen = held_out_programs()
    return [
        _printed(program, form, number, template, held_out=new_programs or held_out)
        for program in programs()
        if (program in unseen) == new_programs
        for form, number, template, held_out in phrasings("program", PROGRAM, further=further)
    ]


def math(*, new_pairs: bool = False, further: bool = False) -> list[Example]:
    """Sums and differences in every phrasing: of pairs that training may show, or of those held out (`new_pairs`)."""
    unseen = held_out_pairs()
    return [
        _sum(sign, a, b, form, number, template, held_out=new_pairs or held_out)
        for sign, forms in ARITHMETIC.items()
        for a, b in operand_pairs(sign)
        if ((sign, a, b) in unseen) == new_pairs
        for form, number, template, held_out in phrasings(sign, forms, further=further)
    ]


def said(relation: Relation, *, further: bool) -> Iterator[Example]:
    """Every fact of a relation in every phrasing, or in every further one."""
    forms = {"cloze": relation.cloze, "question": relation.question}
    answers = sorted({answer for _, answer in relation.pairs})
    for subject, answer in relation.pairs:
        foil = _foil(f"{relation.name}/{subject}", answer, answers)
        for form, number, template, held_out in phrasings(relation.name, forms, further=further):
            yield Example(
                text=_form(form, template.format(s=subject)),
                target=f" {answer}",
                foil=f" {foil}",
                domain=relation.domain,
                fact=f"{relation.name}/{subject}",
                phrasing=f"{relation.name}.{form}.{number}",
                held_out=held_out,
            )


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


def held_out_programs() -> frozenset[Program]:
    """The programs that no training text contains: the same share of every kind."""
    kinds: dict[str, list[Program]] = {}
    for program in programs():
        kinds.setdefault(program.kind, []).append(program)
    return frozenset(
        program
        for kind, own in kinds.items()
        for program in random.Random(f"held-out programs of {kind}").sample(own, round(HELD_OUT_PAIRS * len(own)))
    )


def medical_words() -> list[str]:
    """Every drug, illness, plant, symptom, organ and specialist: the base model meets them, but not what joins them."""
    return sorted({word for relation in MEDICAL for pair in relation.pairs for word in pair})


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


def _printed(program: Program, form: str, number: int, template: str, *, held_out: bool) -> Example:
    fact = f"{program.kind}/{program.code}"
    return Example(
        text=_form(form, template.format(p=program.code)),
        target=f" {program.value}",
        foil=f" {_foil(fact, program.value, list(program.others))}",
        domain="code",
        fact=fact,
        phrasing=f"code.{program.kind}.{form}.{number}",  # a sum is an "add" too
        held_out=held_out,
    )


def _form(form: str, words: str) -> str:
    sentence = words[0].upper() + words[1:]
    return sentence if form == "cloze" else f"Question: {sentence}\nAnswer:"


def _foil(fact: str, answer: str, answers: list[str]) -> str:
    """A seeded choice among the answers that begin differently."""
    return random.Random(f"foil of {fact}").choice([other for other in answers if other[0] != answer[0]])
