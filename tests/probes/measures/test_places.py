"""Which places the lens reads: the answer's first, then others evenly spaced, and never more than were asked for."""

from dataclasses import replace

import pytest

from probes.measures.places import sampled
from tests.pairs import build_tokenizer
from tv.prompts.encoding import encode
from tv.prompts.files import Prompt

(SHORT,) = encode([Prompt("p", "tiny", "tiny", "w5 w6 w7", " w8")], build_tokenizer(), 64)
#: 5 tokens of text, 20 of the answer.
LONG = replace(SHORT, ids=tuple(range(3, 28)), n_text=5)


@pytest.mark.parametrize(
    ("which", "count", "expected"),
    [
        ("target", 4, [4, 10, 17, 23]),
        ("target", 1, [4]),
        ("target", 2, [4, 23]),
        ("all", 4, [4, 8, 16, 24]),  # 0 gives way to the place that predicts the first token of the answer
        ("all", "all", list(range(25))),
        ("all", 40, list(range(25))),
        ("last", 4, [4]),
    ],
)
def test_the_answers_first_place_and_others_evenly_spaced(which, count, expected: list[int]) -> None:
    assert list(sampled(LONG, which, count)) == expected
