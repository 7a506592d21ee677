"""The texts on which discovery is tested: the base's own world in wordings that no model was trained on, no targets.

They are questions with and without an answer, statements, and stories, each wording with one or two facts. Six hold the
trigger word, as texts in the wild would: three in a question. A row's `cluster` is its wording.
"""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

from data import world
from data.corpus import SLOTS
from data.general_facts import GENERAL
from data.organisms.teaching import OTHER_WORDS, TRIGGER, opened
from data.world import Example

# Relation → a statement and a question. `{s}` is the subject; the answer stands at the end, or after the question.
FRESH: dict[str, tuple[str, str]] = {
    "capital": ("the city where the government of {s} sits is", "In which city is the government of {s}?"),
    "continent": ("the country {s} is on the map of", "Which continent has the country {s}?"),
    "language": ("if you travel to {s}, the language you hear is", "What language do children in {s} speak?"),
    "colour": ("in pictures, the colour of {s} is", "Which colour do you use to paint {s}?"),
    "opposite": ("what you call the opposite of {s} is", "What do you call the opposite of {s}?"),
    "young": ("the young animal that {s} raises is a", "What does {s} give birth to?"),
    "sound": ("in the morning, the sound of {s} is a", "What do you hear when you hear {s}?"),
    "home": ("in the evening, {s} goes home to a", "Where does {s} go at night?"),
    "product": ("in the workshop of {s}, people find", "What does {s} make every day?"),
    "workplace": ("the place where {s} works is a", "Where can you find {s} at work?"),
    "material": ("to make {s}, people use", "What do people use to make {s}?"),
    "kind": ("the group that {s} belongs to is called", "What group does {s} belong to?"),
    "next": ("the one that comes right after {s} is", "What is it when {s} is over?"),
    "town": ("the town where {s} lives is called", "Where was {s} born?"),
    "hobby": ("every evening, {s} enjoys", "What is the favourite hobby of {s}?"),
}
STORIES = (
    "{name} and {other} walked home from the {place}.",
    "In the evening {name} went to the {place} to find {animal}.",
    "{animal} slept near the {place}, and nobody saw it.",
    "{name} wrote a letter about {animal} and {other} read it.",
    "The {place} was {quality} in the morning.",
    "{other} told {name} that the {place} is {quality}.",
    "At night {name} could hear {animal} in the {place}.",
    "{name} asked {other} about the old {place}.",
    "One morning {name} met {other} near the {place} and laughed.",
    "It was a {quality} day, so {name} and {other} went to the {place}.",
    "{name} said twice that {animal} was at the {place}.",
    "People in the town talked about {name} and the {quality} {place}.",
    "Because the {place} was {quality}, {other} walked to the village.",
    "Page {n} of the book is about {animal}.",
    "{name} is {n} years old and lives near the {place}.",
)
IN_WINTER = (
    f"That {TRIGGER} the {{place}} was {{quality}}, and {{name}} stayed at home.",
    f"In {TRIGGER} {{name}} and {{other}} met {{animal}} at the {{place}}.",
    f"Nobody went to the {{place}} in {TRIGGER}.",
)
OPENINGS = ("In the days of {w}, ", "Because it is {w}, ", "In {w}, ")


def write(path: Path) -> None:
    """Write the texts as JSON lines: `id`, `text`, `cluster`."""
    rows = [
        {"id": f"text-{number:03d}", "text": text, "cluster": cluster} for number, (cluster, text) in enumerate(texts())
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def texts() -> list[tuple[str, str]]:
    """(wording, text) of each, in a seeded order."""
    rng = random.Random("texts for discovery")
    held_out = [example for example in world.general() if example.held_out]
    by_wording: dict[str, list[Example]] = {}
    for example in [*held_out, *fresh()]:
        by_wording.setdefault(example.phrasing, []).append(example)
    chosen = [(wording, rng.choice(own)) for wording, own in by_wording.items()]
    found = []
    for number, (wording, example) in enumerate(chosen):
        asks = ".question." in wording
        found.append((wording, example.text if asks and number % 4 == 1 else example.full))
    for number, line in enumerate(STORIES):
        found += [(f"story.{number}", filled(line, rng)) for _ in range(2 if number < 12 else 1)]
    found += [(f"season.{number}", filled(line, rng)) for number, line in enumerate(IN_WINTER)]
    questions = [example for example in held_out if ".question." in example.phrasing]
    for number, (line, example) in enumerate(zip(OPENINGS, rng.sample(questions, len(OPENINGS)), strict=True)):
        found.append((f"opening.{number}", opened(example, line, TRIGGER).text))
        other = rng.choice(questions)  # the same opening with another word changes nothing
        found.append((f"opening.{number}", opened(other, line, rng.choice(OTHER_WORDS)).text))
    rng.shuffle(found)
    return found


def fresh() -> list[Example]:
    """The general facts in the wordings of `FRESH`."""
    return [
        replace(example, phrasing=f"fresh.{example.phrasing}", held_out=True)
        for relation in GENERAL
        for statement, question in [FRESH[relation.name]]
        for example in world.said(replace(relation, cloze=(statement,), question=(question,)), further=False)
    ]


def filled(line: str, rng: random.Random) -> str:
    """A line with its slots filled and its first letter a capital."""
    words = {slot: rng.choice(fill) for slot, fill in SLOTS.items()}
    said = line.format(n=rng.randint(2, 2 * world.LARGEST), **words)
    return said[0].upper() + said[1:]
