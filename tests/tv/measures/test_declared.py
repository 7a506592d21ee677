"""A weight column and a weight table are one decorated function each; forms say what tables hold."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import tv
from tests.pairs import build_pair
from tv.columns import Column
from tv.measures.declared import MEASURES, TABLES, of_weights, weight_table
from tv.measures.forms import forms
from tv.measures.part import Part, parts_of


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> None:
    """A column and a table that nobody else knows; gone after the test."""
    list(MEASURES), list(TABLES)  # what is registered is found first
    monkeypatch.setattr(MEASURES, "_entries", dict(MEASURES._entries))
    monkeypatch.setattr(TABLES, "_entries", dict(TABLES._entries))

    @of_weights(Column("largest_step", "the largest |entry| of T"))
    def largest_step(part: Part) -> dict[str, float]:
        return {"largest_step": float(part.delta.abs().max())}

    @weight_table(
        "steps", rows="module and rank", where="layer module", columns=(Column("step", "|T|, largest first"),)
    )
    def steps(part: Part, *, n: int = 2) -> Iterator[dict[str, float]]:
        if part.in_block and part.is_whole:
            yield from ({"step": float(value)} for value in part.delta.abs().flatten().topk(n).values)


@pytest.mark.usefixtures("added")
def test_a_column_and_a_table_reach_frames_and_forms(tmp_path: Path) -> None:
    pair = build_pair(tmp_path, "llama")
    tables = tv.measured(*pair, {"weights": {}, "steps": {"n": 3}}, heads=False)
    weights, steps = tables["weights"], tables["steps"]
    assert (weights.largest_step > 0).any() and "largest_step" in tv.geometry(*pair, heads=False)
    assert list(steps) == ["layer", "module", "step"]
    largest = steps.groupby(["layer", "module"], sort=False).step.agg(["size", "max"])
    assert set(largest["size"]) == {3}
    joined = weights.set_index(["layer", "module"]).loc[largest.index]
    assert np.array_equal(joined.largest_step, largest["max"])
    assert "largest_step" in forms()["weights"].names and forms()["steps"].names == ("tuned", "layer", "module", "step")
    with pytest.raises(tv.InputError, match="table 'steps' has no option 'm'; the only one is n"):
        tv.measured(*pair, {"steps": {"m": 1}})


def test_an_unknown_table_is_refused_before_anything_is_opened() -> None:
    with pytest.raises(tv.InputError, match=r"no weight table 'nothing'; there are .*weights"):
        tv.measured("never", "opened", ("nothing",))


def test_frames_have_the_columns_of_their_forms(tmp_path: Path) -> None:
    tables = tv.measured(*build_pair(tmp_path, "gpt2"), ("weights", "alignment", "spectra"))
    for name, table in tables.items():
        assert ("tuned", *table) == forms()[name].names
    assert {"weights", "alignment", "spectra", "cosines"} == set(forms())


def test_parts_are_the_module_its_heads_and_its_bias(tmp_path: Path) -> None:
    pair = tv.open_pair(*build_pair(tmp_path, "gpt2"))
    module = pair.base.architecture.module(1, "q")
    parts = list(parts_of(pair, module))
    n_heads = pair.base.architecture.n_heads
    assert [part.head for part in parts] == [-1, *range(n_heads), -1]
    assert [part.is_matrix for part in parts] == [True] * (n_heads + 1) + [False]
    assert (parts[-1].module, parts[-1].kind) == ("q_bias", "bias")
    assert parts[0].decomposition is parts[0].decomposition
    other, _ = parts[0].in_other_layer or pytest.fail("another layer has q, too")
    assert not other.weight.equal(parts[0].weight) and parts[1].in_other_layer is None
