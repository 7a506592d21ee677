"""Batches that are put aside come back as they were, whatever was cut short."""

from pathlib import Path

import numpy as np
import pytest
import torch

from probes.capture.batch_files import BatchFiles, stacked
from probes.errors import RunError
from probes.measures.gates import NeuronCounts

PARTS = {
    ("gates", 1, ""): [
        {"pos": np.array([3, 1], np.int32), "gate_base": np.array([[1, 255], [0, 7]], np.uint8)},
        {"pos": np.zeros(0, np.int32), "gate_base": np.zeros((0, 2), np.uint8)},
        {"pos": np.array([4], np.int32), "gate_base": np.array([[1, 2, 3]], np.uint8)[:, ::-1]},
    ],
    ("vectors", 0, "resid_post"): [{"vector_base": np.array([[0.5, -2.0]], np.float16)}],
    ("tokens", None, ""): [{"nll": np.array([np.nan, 1 / 3]), "role": np.array(["a\0", "\ud800", None], object)}],
}


def _counts(seed: int) -> dict[tuple[int, int, str], NeuronCounts]:
    rows = torch.randint(9, (3, 5), generator=torch.Generator().manual_seed(seed), dtype=torch.int32)
    return {(1, -1, "a b"): NeuronCounts(seed, *rows)}


def _written(folder: Path) -> BatchFiles:
    files = BatchFiles(folder)
    files.write(4, PARTS, _counts(4), {"component": ["mlp"]})
    files.write(3, {("gates", 1, ""): PARTS["gates", 1, ""][:1]}, _counts(5), {"component": ["mlp", "attn"]})
    return files


def test_what_was_put_aside_comes_back_bit_for_bit(tmp_path: Path) -> None:
    _written(tmp_path / "of")
    files = BatchFiles(tmp_path / "of")
    assert files.prompts == 7 and files.names == {"component": ["mlp", "attn"]} and files.keys == list(PARTS)
    together = {key: [{name: stacked([piece[name] for piece in of]) for name in of[0]}] for key, of in PARTS.items()}
    expected = {**together, ("gates", 1, ""): [*together["gates", 1, ""], PARTS["gates", 1, ""][0]]}
    for key, pieces in expected.items():
        found = list(files.columns(key))
        assert [list(piece) for piece in found] == [list(piece) for piece in pieces]
        for piece, other in zip(found, pieces, strict=True):
            for name, values in piece.items():
                assert values.dtype == other[name].dtype
                np.testing.assert_array_equal(values, other[name])
    for counts, seed in zip(files.neurons(), (4, 5), strict=True):
        ((key, found_count),) = counts.items()
        wanted = _counts(seed)[key]
        assert found_count.n == seed
        for name in ("base", "tuned", "flips"):
            assert torch.equal(getattr(found_count, name), getattr(wanted, name))


@pytest.mark.parametrize(("lost", "prompts"), [("0000004.json", 4), ("0000004.bin", 4), ("0000000.json", 0)])
def test_batches_count_up_to_the_first_that_is_not_whole(lost: str, prompts: int, tmp_path: Path) -> None:
    _written(tmp_path)
    (tmp_path / lost).unlink()
    assert BatchFiles(tmp_path).prompts == prompts


def test_a_folder_that_cannot_be_made_is_said_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be created: Not a directory"):
        BatchFiles(tmp_path / "file" / "of").write(1, {}, {}, {})
