"""Finished cells: found by all that their values depend on and by nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

import tv
from tests.pairs import build_pair
from tv.arithmetic.controls import control
from tv.experiments.cells import Cells, identity
from tv.experiments.parts import parts_of, restrict

TABLE = pd.DataFrame({"value": [1.0, float("nan")], "response": ["a", None]})


@pytest.mark.parametrize("kept_on_disk", [True, False])
def test_a_cell_is_found_by_its_key(kept_on_disk: bool, tmp_path: Path) -> None:
    cells = Cells(tmp_path / "cells" if kept_on_disk else None)
    key = {"model": "m", "moves": [("v", 0.5)], "limit": None}
    assert cells.find(key) is None
    pd.testing.assert_frame_equal(cells.keep(key, TABLE), TABLE)
    found = cells.find({"limit": None, "moves": [["v", 0.5]], "model": "m"})
    assert found is not None
    pd.testing.assert_frame_equal(found, TABLE)
    assert cells.find(key | {"moves": [("v", 0.6)]}) is None
    if kept_on_disk:
        assert Cells(tmp_path / "cells").find(key) is not None


def test_a_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(tv.InputError, match="file/cells: cannot be created"):
        Cells(tmp_path / "file" / "cells")


def test_a_vector_is_known_wherever_it_lies(tmp_path: Path) -> None:
    base, tuned = build_pair(tmp_path)
    other = build_pair(tmp_path / "other", seed=3)
    own = tv.extract(base, tuned)
    shutil.copytree(tmp_path, tmp_path.with_name("elsewhere"))
    moved = tv.extract(*(tmp_path.with_name("elsewhere") / path.name for path in (base, tuned)))
    shutil.rmtree(tmp_path.with_name("elsewhere"))
    assert identity(own) == identity(moved)
    own.save(tmp_path / "t.safetensors")
    different = [
        own,
        own * 2.0,
        control(own, "random", 0),
        control(own, "random", 1),
        restrict(own, [own.names[0]]),
        tv.extract(*other),
    ]
    assert len({identity(vector) for vector in different}) == len(different)
    assert identity(tv.TuningVector.load(tmp_path / "t.safetensors")) == identity(own)


def test_a_vector_of_no_known_origin_is_known_by_its_entries() -> None:
    def vector(value: float) -> tv.TuningVector:
        return tv.TuningVector({"w": (2, 2)}, lambda _: torch.full((2, 2), value), {})

    assert identity(vector(1.0)) == identity(vector(1.0)) != identity(vector(2.0))


@pytest.mark.parametrize("by", ["component", "layer"])
def test_parts_add_up_to_the_whole(by: str, tmp_path: Path) -> None:
    base, tuned = build_pair(tmp_path)
    vector = tv.extract(base, tuned)
    parts = parts_of(vector, base, by)  # type: ignore[arg-type]
    assert parts.pop("whole") is vector
    middle = ["attn", "mlp"] if by == "component" else ["layer 0", "layer 1", "layer 2"]
    assert list(parts) == ["embed", *middle, "unembed"]
    names = [name for part in parts.values() for name in part.names]
    assert sorted(names) == sorted(vector.names)
    assert sum(part.norm() ** 2 for part in parts.values()) == pytest.approx(vector.norm() ** 2)
    assert parts["embed"].base == vector.base
