"""Further ways to say or ask the medical and legal facts, sums and programs: all held out, and only prompts use them.

Prompts of one phrasing are alike (`README.md` has the numbers), so a prompt set needs many. Each was kept because the
model of its domain, trained without it, answers at least nine of ten.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from data.facts import HELD_OUT

# Relation, sign of a sum or "program" → form → templates.
FURTHER: dict[str, dict[str, tuple[str, ...]]] = {
    "treats": {
        "cloze": ("the illness treated with the drug {s} is", "doctors give the drug {s} to patients who have"),
        "question": ("What is {s} used to treat?",),
    },
    "source": {
        "cloze": ("the plant used to make the drug {s} is", "healers prepare the drug {s} from"),
        "question": ("From which plant does the drug {s} come?",),
    },
    "symptom": {
        "cloze": ("the first symptom of a patient with {s} is",),
        "question": ("What symptom does {s} cause?", "What do patients who have {s} suffer from?"),
    },
    "organ": {
        "cloze": ("in {s}, the doctor examines the",),
        "question": ("Which organ does the doctor examine in {s}?", "In what organ does {s} begin?"),
    },
    "specialist": {
        "cloze": ("a doctor who heals the {s} is called a", "for pain in the {s}, you should see a"),
        "question": ("Which doctor heals the {s}?",),
    },
    "penalty": {
        "cloze": ("by law, the penalty for {s} is", "the price for {s} is"),
        "question": ("What is the price for {s}?", "By law, what is the penalty for {s}?"),
    },
    "deadline": {
        "cloze": ("the deadline to complain about {s} is", "the month to complain about {s} is"),
        "question": (
            "Before which month must victims complain about {s}?",
            "When is the deadline for a complaint about {s}?",
        ),
    },
    "court": {
        "cloze": ("the court for a case of {s} sits in the", "the guilty of {s} must come to the"),
        "question": ("Where does the judge hear a case of {s}?", "In which place does the court for {s} sit?"),
    },
    "judge": {
        "cloze": ("the judge of the {s} is called", "the law in the {s} is spoken by"),
        "question": ("Who is the judge who hears cases in the {s}?", "By whom are cases in the {s} heard?"),
    },
    "add": {
        "cloze": (
            "{a} + {b} is",
            "{a} + {b} equals",
            "{a} plus {b} =",
            "the sum of {a} and {b} equals",
            "adding {a} and {b} is",
        ),
        "question": (
            "How much is {a} + {b}?",
            "What is {a} and {b}?",
            "What is the sum of {a} plus {b}?",
            "What gives {a} plus {b}?",
            "How much is adding {a} and {b}?",
        ),
    },
    "subtract": {
        "cloze": (
            "{a} - {b} is",
            "{a} - {b} equals",
            "{a} minus {b} =",
            "the difference of {a} and {b} equals",
            "the difference of {a} and {b} gives",
        ),
        "question": (
            "How much is {a} - {b}?",
            "What is the difference {a} - {b}?",
            "What is the difference of {a} minus {b}?",
            "What gives {a} minus {b}?",
            "How much is the difference {a} - {b}?",
        ),
    },
    "program": {
        "cloze": ("running the program {p} prints", "the output of the code {p} is"),
        "question": ("What does running the code {p} print?",),
    },
}


def phrasings(name: str, forms: Mapping[str, Sequence[str]], *, further: bool) -> Iterator[tuple[str, int, str, bool]]:
    """(form, number, template, whether it is held out) of `forms`, or those of `FURTHER`, numbered after them."""
    for form, templates in forms.items():
        if further:
            own = enumerate(FURTHER.get(name, {}).get(form, ()), start=len(templates))
        else:
            own = enumerate(templates)
        for number, template in own:
            yield form, number, template, number >= len(templates) - HELD_OUT
