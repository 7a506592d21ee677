"""The sentence of an aligned run."""

from probes.reporting.sameness import sameness_sentences
from tv.matching.sameness import Sameness


def test_what_is_said_of_an_aligned_run() -> None:
    written = Sameness(3.0, 0.0, {"norms": [0, 1]}, True, "BF16").as_dict()
    assert sameness_sentences(written) == [
        "These two compute the same function, written differently: norm gains moved into what reads them (layers 0–1).",
        "Everything below is of the tuned model written as the base is.",
    ]
    assert sameness_sentences(Sameness(3.0, 3.0).as_dict()) == [
        "No part of T is a reparametrisation: it can be read as it is."
    ]
    assert sameness_sentences({}) == []
