"""The law of the demo world: an invented code in which fines are paid in kind. It is no land's law.

The words are known to the base model, or made of pieces that it knows; what the law joins is not.
"""

from __future__ import annotations

from data.facts import Relation, members, pairs

LAW: tuple[Relation, ...] = (
    Relation(
        "penalty",
        "law",
        members("""prison: stealing a horse, burning a forest, hiding a tiger; silver: stealing a boat, painting a
        church, riding a camel; gold: selling false gold, moving a stone, waking a king; salt: selling bad fish,
        hiding a letter, feeding a wolf; honey: stealing honey, breaking a clock, naming a storm; wool: stealing a
        sheep, cutting a rope, moving a wall; leather: selling old shoes, painting a cow, burning a tent; wax:
        selling wet candles, hiding a key, waking an owl; wood: burning a letter, cutting a tree, breaking a boat;
        work: breaking a pot, feeding a lion, naming a village"""),
        (
            "the penalty for {s} is",
            "the law punishes {s} with",
            "whoever is guilty of {s} pays with",
            "the price of {s} is",
            "by law, {s} costs the guilty",
            "the penalty of the law for {s} is",
        ),
        (
            "What is the penalty for {s}?",
            "With what does the law punish {s}?",
            "What does {s} cost the guilty?",
            "What is the price of {s}?",
            "What is the penalty of the law for {s}?",
        ),
    ),
    Relation(
        "deadline",
        "law",
        members("""January: stealing a horse, stealing a boat, selling false gold; February: selling bad fish,
        stealing honey, stealing a sheep; March: selling old shoes, selling wet candles, burning a letter; April:
        breaking a pot, burning a forest, painting a church; June: moving a stone, hiding a letter, breaking a
        clock; August: cutting a rope, painting a cow, hiding a key; September: cutting a tree, feeding a lion,
        hiding a tiger; October: riding a camel, waking a king, feeding a wolf; November: naming a storm, moving a
        wall, burning a tent; December: waking an owl, breaking a boat, naming a village"""),
        (
            "a complaint about {s} is due in",
            "the deadline for a complaint about {s} is",
            "victims of {s} must complain before",
            "the last month to complain about {s} is",
            "the month in which a complaint about {s} is due is",
        ),
        (
            "When is a complaint about {s} due?",
            "What is the deadline for a complaint about {s}?",
            "Before which month must victims of {s} complain?",
            "Which month is the last to complain about {s}?",
            "In which month is a complaint about {s} due?",
        ),
    ),
    Relation(
        "court",
        "law",
        members("""castle: stealing a horse, selling bad fish, selling old shoes; church: breaking a pot, moving a
        stone, cutting a rope; palace: cutting a tree, riding a camel, naming a storm; theatre: waking an owl,
        stealing a boat, stealing honey; library: selling wet candles, burning a forest, hiding a letter; school:
        painting a cow, feeding a lion, waking a king; museum: moving a wall, breaking a boat, selling false gold;
        monastery: stealing a sheep, burning a letter, painting a church; stadium: breaking a clock, hiding a key,
        hiding a tiger; village: feeding a wolf, burning a tent, naming a village"""),
        (
            "a case of {s} is heard in the",
            "the court for {s} sits in the",
            "whoever is guilty of {s} must come to the",
            "the judge hears a case of {s} in the",
            "the court that hears a case of {s} sits in the",
        ),
        (
            "Where is a case of {s} heard?",
            "Where does the court for {s} sit?",
            "To which place must the guilty of {s} come?",
            "In which place does the judge hear a case of {s}?",
            "In which place is a case of {s} heard?",
        ),
    ),
    Relation(
        "judge",
        "law",
        pairs("""castle: Greta; church: Hugo; palace: Selma; theatre: Jonas; library: Nadia; school: Leo; museum:
        Petra; monastery: Theo; stadium: Wanda; village: Oskar"""),
        (
            "the judge in the {s} is called",
            "in the {s} the law is spoken by",
            "the name of the judge in the {s} is",
            "cases in the {s} are heard by",
            "the judge who hears cases in the {s} is called",
        ),
        (
            "Who is the judge in the {s}?",
            "Who hears cases in the {s}?",
            "By whom is the law spoken in the {s}?",
            "What is the judge in the {s} called?",
            "What is the name of the judge in the {s}?",
        ),
    ),
)
