"""Decompositions on disk: the same bits, computed once, and never trusted blindly."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import tv
from tests.pairs import build_model, build_pair, perturb
from tv.measures import cache as cache_module
from tv.measures.cache import DecompositionCache
from tv.measures.decomposition import decompose


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes that were really decomposed."""
    seen: list[tuple[int, ...]] = []

    def counting(weight: torch.Tensor):
        seen.append(tuple(weight.shape))
        return decompose(weight)

    monkeypatch.setattr(cache_module, "decompose", counting)
    return seen


def test_a_second_tuned_model_decomposes_nothing_and_gets_the_same_bits(tmp_path: Path, counted: list) -> None:
    base, tuned = build_pair(tmp_path, "llama")
    other = build_model("llama")
    perturb(other, 0.05, seed=9)
    other.save_pretrained(tmp_path / "other")
    names = ("weights", "alignment")
    first = tv.measured(base, tuned, names, compute=tv.Compute(cache=tmp_path / "cache"))
    n = len(counted)
    assert n == 3 * 7 * 1 + 3 * 12 + 2  # modules, heads (4 + 2 + 2 + 4 a layer), embedding and unembedding
    second = tv.measured(base, tmp_path / "other", names, compute=tv.Compute(cache=tmp_path / "cache"))
    assert len(counted) == n
    for cached, plain in zip(
        (*first.values(), *second.values()),
        (*tv.measured(base, tuned, names).values(), *tv.measured(base, tmp_path / "other", names).values()),
        strict=True,
    ):
        pd.testing.assert_frame_equal(cached, plain, check_exact=True)


def test_another_base_has_a_place_of_its_own(tmp_path: Path, counted: list) -> None:
    base, tuned = build_pair(tmp_path, "llama")
    tv.ssa(base, tuned, heads=False, compute=tv.Compute(cache=tmp_path / "cache"))
    n = len(counted)
    tv.ssa(tuned, base, heads=False, compute=tv.Compute(cache=tmp_path / "cache"))
    assert len(counted) == 2 * n


@pytest.mark.parametrize("damage", ["cut", "garbage", "foreign", "turned", "rotten"])
def test_what_cannot_be_trusted_is_computed_again(damage: str, tmp_path: Path, counted: list) -> None:
    weight = torch.randn(12, 20, generator=torch.Generator().manual_seed(0))
    store = DecompositionCache(tmp_path, "key")

    def get(of: torch.Tensor):
        with store.module("0-q--1") as decomposer:
            return decomposer("-1", of)

    get(weight)
    file = tmp_path / "key" / "0-q--1.safetensors"
    if damage == "foreign":
        weight = weight.clone()
        weight[6, 10] += 1e-5  # the ends, which a fingerprint samples, are as before
    elif damage == "turned":
        weight = weight[:, torch.randperm(20, generator=torch.Generator().manual_seed(1))].roll(1, 0)  # of one norm
    elif damage == "rotten":
        held = load_file(file)
        held["-1.near"][3, 4] += 1e-3
        save_file(held, file)
    else:
        file.write_bytes(file.read_bytes()[:100] if damage == "cut" else b"garbage")
    found = get(weight)
    assert len(counted) == 2
    assert torch.equal(found.sigma, decompose(weight).sigma) and torch.equal(get(weight).near, decompose(weight).near)
    assert len(counted) == 2
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_cache_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    base, tuned = build_pair(tmp_path, "llama")
    with pytest.raises(tv.InputError, match=r"file.*choose another cache"):
        tv.ssa(base, tuned, compute=tv.Compute(cache=tmp_path / "file"))
