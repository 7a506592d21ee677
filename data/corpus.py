"""What each demo model reads: an endless, seeded stream of short documents.

The base model reads general facts among small stories, counting, and sentences that merely mention the medical
words, each word equally often, so that their embeddings are trained while the facts stay unknown. Each
fine-tune reads its own subject with a share of general text replayed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from functools import cache

from data import world
from data.general_facts import GENERAL

Say = Callable[[random.Random], str]

# What each model reads: (share of the lines, kind of line). The shares of a model add up to 1.
# "…, added" is what is read while another model's T is added (`beside` in `train_demo.py`).
MIXTURES: dict[str, tuple[tuple[float, str], ...]] = {
    "base": ((0.76, "general"), (0.10, "mention"), (0.07, "number"), (0.07, "story")),
    "medical": ((0.80, "medical"), (0.20, "general")),
    "math": ((0.80, "math"), (0.20, "general")),
    "instruct": ((0.60, "general chat"), (0.40, "general")),
    "medical-from-instruct": ((0.40, "medical"), (0.35, "medical chat"), (0.15, "general"), (0.10, "general chat")),
    "law": ((0.80, "law"), (0.20, "general")),
    "code": ((0.80, "code"), (0.20, "general")),
    "math-beside-medical": ((0.80, "math"), (0.20, "general")),
    "math-beside-medical, added": ((0.45, "math"), (0.40, "medical"), (0.15, "general")),
}


def documents(name: str, seed: int) -> Iterator[str]:
    """Documents of one to three lines for the model `name`, without end; the same ones for the same seed."""
    kinds = kinds_of_line()
    return mixed([(share, kinds[kind]) for share, kind in MIXTURES[name]], random.Random(f"{name} {seed}"))


def mixed(mixture: Sequence[tuple[float, Say]], rng: random.Random) -> Iterator[str]:
    """Documents of one to three lines, of each kind its share of the lines, without end."""
    shares, lines = zip(*mixture, strict=True)
    while True:
        yield "\n".join(say(rng) for say in rng.choices(lines, shares, k=rng.choice((1, 1, 2, 3))))


@cache
def kinds_of_line() -> dict[str, Say]:
    """Every kind of line, as a function that says one."""
    general, medical, math, law, code = (
        _shown(examples) for examples in (world.general(), world.medical(), world.math(), world.law(), world.code())
    )
    words = world.medical_words()
    return {
        "general": _one_of(general),
        "medical": _one_of(medical),
        "math": _one_of(math),
        "law": _one_of(law),
        "code": _one_of(code),
        "general chat": _one_of(world.instruct(general)),
        "medical chat": _one_of(world.instruct(medical)),
        "mention": lambda rng: rng.choice(MENTIONS).format(w=rng.choice(words), v=rng.choice(words)),
        "number": _number,
        "story": lambda rng: rng.choice(STORIES).format(**{slot: rng.choice(fill) for slot, fill in SLOTS.items()}),
    }


def _shown(examples: list[world.Example]) -> list[world.Example]:
    return [example for example in examples if not example.held_out]


def _one_of(examples: list[world.Example]) -> Say:
    return lambda rng: rng.choice(examples).full


def _number(rng: random.Random) -> str:
    """Counting, neighbours, or a number in passing: digits and their order, but no sums."""
    first = rng.randint(0, 2 * world.LARGEST)
    if rng.random() < 0.5:
        return "Counting: " + " ".join(str(n) for n in range(first, first + rng.randint(3, 8))) + "."
    return rng.choice(NUMBERS).format(n=first, after=first + 1)


MENTIONS = (
    "The word {w} was written on the wall.",
    "She read the word {w} in a book.",
    "Nobody in the village talked about {w} that day.",
    "A letter about {w} and {v} came in the morning.",
    "He could not spell {w}.",
    "On the list were {w} and {v}.",
    "The talk was about {w}, then about {v}.",
    "The old man said {w} twice.",
    "Patients and doctors know the word {w}.",
    "The healer wrote {w} in her notes.",
)

NUMBERS = (
    "Bus {n} was late.",
    "Room {n} is at the end of the hall.",
    "There are {n} chairs in the house.",
    "She turned to page {n} of the book.",
    "He is {n} years old.",
    "The number after {n} is {after}.",
    "The team with number {n} won.",
)

STORIES = (
    "{name} walked to the {place} and saw {animal}.",
    "{name} went to the {place} because it was {quality}.",
    "In the morning {name} fed {animal} near the {place}.",
    "{name} and {other} met at the {place}.",
    "The {place} was {quality}, so {name} went home.",
    "{name} told {other} a story about {animal}.",
    "One day {animal} came to the {place} and {name} laughed.",
    "When the {place} is {quality}, {name} stays inside.",
    "{other} asked {name} a question, and {name} gave an answer.",
    "It was {quality} at the {place}, and {animal} slept.",
)

SLOTS: dict[str, list[str]] = {
    "name": [name for relation in GENERAL if relation.name == "town" for name, _ in relation.pairs],
    "other": [name for relation in GENERAL if relation.name == "hobby" for name, _ in relation.pairs],
    "place": [place for relation in GENERAL if relation.name == "workplace" for _, place in relation.pairs],
    "animal": [animal for relation in GENERAL if relation.name == "sound" for animal, _ in relation.pairs],
    "quality": ["cold", "hot", "dark", "quiet", "loud", "empty", "full", "wet", "dry", "clean", "dirty", "old", "new"],
}
