"""Tensors in the files that no module takes, as heads that predict further tokens: rows of `weights`, and no more."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import tv
from tests.pairs import build_pair


def _add(path: Path, seed: int, **more: tuple[int, ...]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in more.items()}
    save_file(load_file(path / "model.safetensors") | tensors, path / "model.safetensors")
    return tensors


HEADS = {
    "mtp.fc.weight": (48, 96),
    "mtp.layers.0.mlp.gate_proj.weight": (80, 48),
    "mtp.norm.weight": (48,),
    "model.layers.61.mlp.up_proj.weight": (80, 48),
}


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return build_pair(tmp_path, "llama")


def test_each_part_is_a_row_with_its_own_t(pair: tuple[Path, Path]) -> None:
    before, after = (_add(path, seed, **HEADS) for seed, path in enumerate(pair))
    weights = tv.geometry(*pair, heads=False)
    rows = weights[weights.kind == "group"].set_index("module")
    assert set(rows.index) == {"mtp", "model.layers.61"} and set(rows.layer) == {3}
    for part, row in rows.iterrows():
        w, t = (
            torch.cat([of(name).flatten().double() for name in HEADS if name.startswith(f"{part}.")])
            for of in (before.__getitem__, lambda name: after[name] - before[name])
        )
        assert (row["rows"], row.numbers) == (sum(name.startswith(f"{part}.") for name in HEADS), len(w))
        assert row.weight_norm == pytest.approx(float(w.norm()), rel=1e-6)
        assert row.delta_norm == pytest.approx(float(t.norm()), rel=1e-6)
    notes = weights.attrs["notes"]
    assert (
        sum(
            "4 of its tensors ('model.layers.61.mlp.up_proj.weight' first)" in note and "outside the forward" in note
            for note in notes
        )
        == 2
    )
    assert tv.open_pair(*pair).facts.coverage.n_unrowed == 0
    listed = tv.info(pair[0]).set_index("module")
    assert listed.loc["mtp", ["kind", "rows", "dtype"]].tolist() == ["group", 3, "F32"]


def test_a_side_without_them_is_named(pair: tuple[Path, Path]) -> None:
    """transformers writes none: a tuned model that it saved has lost them, and nothing is made up."""
    _add(pair[0], 0, **HEADS)
    weights = tv.geometry(*pair, heads=False)
    assert (weights.kind != "group").all()
    told = f"mtp, outside the forward pass: {pair[1]} has none of 3 tensors in {pair[0]}, so no T"
    assert told in weights.attrs["notes"]


def test_a_tuning_vector_leaves_them_as_they_are(pair: tuple[Path, Path], tmp_path: Path) -> None:
    for seed, path in enumerate(pair):
        _add(path, seed, **HEADS)
    tv.extract(*pair).save(tmp_path / "t.safetensors")
    weights = tv.geometry(pair[0], tmp_path / "t.safetensors", heads=False)
    assert weights[weights.kind == "group"].delta_norm.tolist() == [0.0, 0.0]


def test_masks_and_scales_of_old_files_are_no_rows(pair: tuple[Path, Path]) -> None:
    for path in pair:
        _add(path, 0, **{"model.layers.0.self_attn.rotary_emb.inv_freq": (8,)})
    weights = tv.geometry(*pair, heads=False)
    assert (weights.kind != "group").all() and not weights.attrs["notes"]
