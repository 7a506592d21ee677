"""The fuzz targets, a bounded number of times: whatever the bytes, a reader reads them or raises an InputError."""

from __future__ import annotations

import importlib
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from fuzz import NAMES
from fuzz.oracle import is_read

TARGETS: dict[str, Any] = {name: importlib.import_module(f"fuzz.{name}") for name in NAMES}
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
_SUITE_KEYS = st.sampled_from(["name", "base", "tuned", "prompts", "measure", "attribute", "seed", "epsilons"])
_PROMPT_KEYS = st.sampled_from(["id", "text", "target", "foil", "domain", "messages", "cluster"])
_LM_EVAL_KEYS = st.sampled_from(["doc_id", "target", "resps", "filtered_resps", "metrics", "filter", "doc_hash"])
_INSPECT_KEYS = st.sampled_from(
    ["id", "epoch", "messages", "choices", "target", "error", "metadata", "output", "scores"]
)
_ENTRY = st.fixed_dictionaries({"dtype": _VALUES, "shape": _VALUES, "data_offsets": _VALUES | st.lists(st.integers())})


def _dumped(values: st.SearchStrategy[object]) -> st.SearchStrategy[bytes]:
    return values.map(lambda value: json.dumps(value).encode())


def _scored(row: dict[str, object], value: object) -> dict[str, object]:
    asked = {"doc_id": 0, "doc": {}, "arguments": [["x", " a"], ["x", " b"]], "metrics": ["acc"], "acc": value}
    return {**asked, **row}


def _inspected(sample: dict[str, object]) -> dict[str, object]:
    whole = {"id": "s", "input": "x", "scores": {"match": {"value": "C"}}, **sample}
    return {"version": 2, "eval": {"task": "t"}, "samples": [whole]}


def _tensors(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


#: Bytes of the right form with the wrong things in it, which changed bytes seldom are.
WELL_FORMED = {
    "suite": _dumped(st.dictionaries(_SUITE_KEYS, _VALUES)),
    "prompts": st.builds(
        bytes.__add__,
        st.sampled_from([bytes([kind, way]) for kind in range(4) for way in range(3)]),
        _dumped(st.dictionaries(_PROMPT_KEYS, _VALUES) | st.lists(st.dictionaries(_PROMPT_KEYS, _VALUES), max_size=3)),
    ),
    "logs": st.builds(
        bytes.__add__,
        st.sampled_from([b"\0", b"\1"]),
        _dumped(st.fixed_dictionaries({"doc_id": _VALUES, "doc": _VALUES, "arguments": _VALUES, "target": _VALUES}))
        | _dumped(st.builds(_scored, st.dictionaries(_LM_EVAL_KEYS, _VALUES), _VALUES))
        | _dumped(st.builds(_inspected, st.dictionaries(_INSPECT_KEYS, _VALUES))),
    ),
    "index": _dumped(st.fixed_dictionaries({"weight_map": _VALUES}) | _VALUES),
    "header": _dumped(_VALUES | st.dictionaries(st.text(max_size=5), _ENTRY, max_size=3)).map(_tensors),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", NAMES)
def test_well_formed(name: str) -> None:
    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(WELL_FORMED[name] | st.binary(max_size=100))
    def read(data: bytes) -> None:
        TARGETS[name].target(data)

    read()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", NAMES)
def test_seeds_and_what_becomes_of_them(name: str) -> None:
    """Cut, doubled, spliced and overwritten: some are still read and some no longer, and nothing else happens."""
    target, seeds, draw = TARGETS[name].target, TARGETS[name].SEEDS, random.Random(name)
    assert target(seeds[0])
    outcomes = [target(_changed(draw.choice(seeds), draw.choice(seeds), draw)) for _ in range(120)]
    assert 5 < sum(outcomes) < 115


def _changed(seed: bytes, other: bytes, draw: random.Random) -> bytes:
    at, to = sorted(draw.choices(range(len(seed) + 1), k=2))
    cut = draw.randrange(len(other))
    piece = draw.choice([b"", draw.randbytes(draw.randrange(4)), seed[at:to] * 2, other[cut : cut + 9]])
    return seed[:at] + piece + seed[draw.choice([at, to, at + 1]) :]


def test_anything_but_an_input_error_is_a_finding() -> None:
    def read(here: Path) -> None:
        (here / "a").read_bytes().decode()

    assert is_read({"a": b"a"}, read)
    with pytest.raises(UnicodeDecodeError):
        is_read({"a": b"\xff"}, read)
