"""The world: enough facts and phrasings, sound foils, and nothing held out in any training text."""

from __future__ import annotations

import io
import re
from collections import Counter
from contextlib import redirect_stdout
from functools import cache
from itertools import islice

import pytest

from data import corpus, world
from data.facts import HELD_OUT
from data.general_facts import GENERAL
from data.law_facts import LAW
from data.medical_facts import MEDICAL
from data.programs import programs


def everything() -> list[world.Example]:
    """Every plain example but those of pairs of numbers and programs that are held out."""
    return world.general() + world.medical() + world.law() + world.math() + world.code() + further()


def further() -> list[world.Example]:
    """Every example in the phrasings that only prompts use."""
    return [example for say in (world.medical, world.law, world.math, world.code) for example in say(further=True)]


def test_enough_facts() -> None:
    assert len({e.fact for e in world.general()}) >= 300
    assert 80 <= len({e.fact for e in world.medical()}) <= 150
    assert 80 <= len({e.fact for e in world.law()}) <= 150
    assert len({e.fact for e in world.code()}) >= 800


@pytest.mark.parametrize("relation", GENERAL + MEDICAL + LAW, ids=lambda relation: relation.name)
def test_enough_phrasings(relation) -> None:
    assert len(relation.cloze) + len(relation.question) - 2 * HELD_OUT >= 6
    assert len({subject for subject, _ in relation.pairs}) == len(relation.pairs)
    assert all(template.count("{s}") == 1 for template in relation.cloze + relation.question)


def test_every_foil_begins_differently() -> None:
    for example in everything() + world.math(new_pairs=True) + world.code(new_programs=True):
        assert example.text == example.text.strip()
        assert example.target[0] == example.foil[0] == " "
        assert example.target[1] != example.foil[1]


def test_further_phrasings_are_new_and_held_out() -> None:
    """No phrasing stands twice, in the lists or in what they say, and each relation has three or four."""
    known = world.medical() + world.law() + world.math() + world.code()
    assert all(example.held_out for example in further())
    assert not {example.phrasing for example in known} & {example.phrasing for example in further()}
    texts = [example.text for example in known + further()]
    assert len(texts) == len(set(texts))
    counts = Counter(phrasing.rsplit(".", 2)[0] for phrasing in {example.phrasing for example in further()})
    assert set(counts) == {example.phrasing.rsplit(".", 2)[0] for example in known}
    assert set(counts.values()) == {3, 4, 10}


def test_arithmetic_is_right() -> None:
    for example in world.math() + world.math(new_pairs=True) + world.math(further=True):
        sign, pair = example.fact.split("/")
        a, b = map(int, pair.split(","))
        assert int(example.target) == (a + b if sign == "add" else a - b)


def test_programs_print_what_they_say() -> None:
    for program in programs():
        printed = io.StringIO()
        with redirect_stdout(printed):
            exec(program.code, {})
        assert printed.getvalue().strip() == program.value
        assert program.value in program.others


def test_the_same_share_of_every_kind_of_program_is_held_out() -> None:
    every, unseen = (Counter(p.kind for p in some) for some in (programs(), world.held_out_programs()))
    assert unseen == {kind: round(world.HELD_OUT_PAIRS * n) for kind, n in every.items()}


def test_chat_form_of_a_question() -> None:
    question = next(e for e in world.general() if e.phrasing == "capital.question.0")
    (chat,) = world.instruct([question])
    assert chat.text == "User: What is the capital of France?\nAssistant:"
    assert (chat.target, chat.foil) == (" The answer is Paris", " Paris")


@cache
def known_and_hidden() -> tuple[set[str], set[str]]:
    """The texts that training may show, and those that it never may."""
    examples, new = everything(), world.math(new_pairs=True) + world.code(new_programs=True)
    texts = [(e.text.replace("\nAnswer:", ""), e.held_out) for e in examples + new]
    return tuple({text for text, held_out in texts if held_out == which} for which in (False, True))


@pytest.mark.parametrize("name", corpus.MIXTURES)
def test_training_text_shows_nothing_held_out(name) -> None:
    """A held-out text begins no line of 3,000 documents, in plain or chat form."""
    text = "\n" + "\n".join(islice(corpus.documents(name, 1), 3000))
    plain = text.replace("User:", "Question:").replace("\nAssistant: The answer is", "\nAnswer:")
    lines = plain.replace("\nAnswer:", "")
    shown = {line.rsplit(" ", 1)[0] for line in lines.split("\n")}
    known, hidden = known_and_hidden()
    assert not shown & hidden
    assert shown & known  # the comparison can find what is there


@pytest.mark.parametrize("name", ("base", "instruct"))
def test_general_models_read_no_medical_fact_and_no_sum(name) -> None:
    text = "\n".join(islice(corpus.documents(name, 2), 6000))
    assert not any(e.full in text for e in world.medical() + world.law())
    assert not [word for word in ("plus", "minus", "+", "print(") if word in text]


def test_base_meets_every_medical_word() -> None:
    text = "\n".join(islice(corpus.documents("base", 3), 20000))
    assert not [word for word in world.medical_words() if word not in text]


def test_mixtures_are_shares() -> None:
    for mixture in corpus.MIXTURES.values():
        assert sum(share for share, _ in mixture) == pytest.approx(1)


def test_held_out_phrasings_use_known_words() -> None:
    """A held-out phrasing is a new sentence, not a new vocabulary: training shows each of its words in others."""
    examples = everything()
    shown = {word for e in examples if not e.held_out for word in _words(e.full)}
    assert not {word for e in examples if e.held_out for word in _words(e.full)} - shown


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+|[0-9]", text.lower())
