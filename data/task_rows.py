"""The rows of `data/tasks/`: what the demo models can be asked, in phrasings that no training text contains.

`python -m data.task_rows` writes them again. Every list is shuffled, so that its first rows are a fair sample. A
row's cluster is its phrasing.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from data import world
from data.facts import Relation
from data.general_facts import GENERAL
from data.law_facts import LAW
from data.medical_facts import MEDICAL
from data.world import Example

TASKS = Path(__file__).parent / "tasks"
ROWS = 96
CHOICES = 4
Row = dict[str, Any]


def rows() -> dict[str, list[Row]]:
    """File name → rows."""
    return {
        "medical_choice.jsonl": _choices("medical", world.medical(), MEDICAL),
        "medical_cloze.jsonl": _cloze("medical", world.medical()),
        "general_choice.jsonl": _choices("general", world.general(), GENERAL),
        "general_cloze.jsonl": _cloze("general", world.general()),
        "arithmetic.jsonl": _arithmetic(),
        "instructions.jsonl": _instructions(),
        "general_text.jsonl": _texts("general", world.general()),
        "medical_text.jsonl": _texts("medical", world.medical()),
        "law_choice.jsonl": _choices("law", world.law(), LAW),
        "law_cloze.jsonl": _cloze("law", world.law()),
        "law_text.jsonl": _texts("law", world.law()),
        "code.jsonl": _code(),
    }


def write() -> None:
    """Write every file."""
    for name, own in rows().items():
        text = "".join(json.dumps(row) + "\n" for row in own)
        (TASKS / name).write_text(text, encoding="utf-8")


def _sample(purpose: str, examples: list[Example], n: int = ROWS) -> list[Example]:
    """A seeded sample of the phrasings that training never shows."""
    shown = [example for example in examples if example.held_out]
    return random.Random(f"task {purpose}").sample(shown, n)


def _choices(domain: str, examples: list[Example], relations: tuple[Relation, ...]) -> list[Row]:
    """The answer among three wrong ones of the same relation, in a seeded order."""
    answers = {relation.name: sorted({answer for _, answer in relation.pairs}) for relation in relations}
    found = []
    for i, example in enumerate(_sample(f"{domain} choice", examples)):
        rng, answer = random.Random(f"choices of {example.phrasing} {example.fact}"), example.target.strip()
        others = [other for other in answers[example.fact.split("/")[0]] if other != answer]
        options = rng.sample(others, min(CHOICES - 1, len(others)))
        options.insert(rng.randint(0, len(options)), answer)
        where = {"id": f"{domain}-choice-{i:03d}", "text": example.text}
        found.append(where | {"choices": options, "answer": options.index(answer), "cluster": example.phrasing})
    return found


def _cloze(domain: str, examples: list[Example]) -> list[Row]:
    return [_asked(f"{domain}-cloze-{i:03d}", e) for i, e in enumerate(_sample(f"{domain} cloze", examples))]


def _arithmetic() -> list[Row]:
    """Half of pairs of numbers that training shows in another phrasing, half of pairs that it never shows."""
    both = _seen_and_new("math", world.math(), world.math(new_pairs=True))
    return [_asked(f"arithmetic-{i:03d}", example) | {"pair": which} for i, (example, which) in enumerate(both)]


def _code() -> list[Row]:
    """Half of programs that training shows in another phrasing, half of programs that it never shows."""
    both = _seen_and_new("code", world.code(), world.code(new_programs=True))
    return [_asked(f"code-{i:03d}", example) | {"program": which} for i, (example, which) in enumerate(both)]


def _seen_and_new(domain: str, seen: list[Example], new: list[Example]) -> list[tuple[Example, str]]:
    samples = (_sample(f"{domain} {which}", own, ROWS // 2) for which, own in ((False, seen), (True, new)))
    both = [(example, which) for which, own in zip(("seen", "new"), samples, strict=True) for example in own]
    random.Random(f"task {domain}").shuffle(both)
    return both


def _asked(name: str, example: Example) -> Row:
    return {"id": name, "text": example.text, "target": example.target.strip(), "cluster": example.phrasing}


def _instructions() -> list[Row]:
    """General questions in the chat form, in IFEval's columns: what the chat form asks of an answer."""
    asked: list[tuple[str, Row]] = [
        ("startend:start_checker", {"start_phrase": "The answer is"}),
        ("startend:end_checker", {"end_phrase": "."}),
        ("length_constraints:number_words", {"relation": "less than", "num_words": 8}),
        ("length_constraints:number_sentences", {"relation": "less than", "num_sentences": 2}),
    ]
    return [
        {
            "id": f"instructions-{i:03d}",
            "prompt": example.text,
            "instruction_id_list": [name for name, _ in asked],
            "kwargs": [arguments for _, arguments in asked],
            "cluster": example.phrasing,
        }
        for i, example in enumerate(_sample("instructions", world.instruct(world.general())))
    ]


def _texts(domain: str, examples: list[Example]) -> list[Row]:
    """Whole sentences, for the loss on held-out text."""
    clozes = [example for example in examples if ".cloze." in example.phrasing]
    return [
        {"id": f"{domain}-text-{i:03d}", "text": e.full, "cluster": e.phrasing}
        for i, e in enumerate(_sample(f"{domain} text", clozes, 48))
    ]


if __name__ == "__main__":
    write()
