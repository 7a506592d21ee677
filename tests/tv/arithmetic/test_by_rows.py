"""A sum formed a few rows at a time: the very bits of one that is formed a parameter at a time."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import tv
from tests.pairs import build_model, build_pair, build_tokenizer, perturb
from tv.arithmetic import merging
from tv.arithmetic.merging import Merged
from tv.arithmetic.methods.layout import Piece

SCALES = (0.7, -0.3)


def family(directory: Path, architecture: str, dtype: torch.dtype) -> tuple[Path, Path, Path]:
    base, first = build_pair(directory, architecture, dtype=dtype)
    model = build_model(architecture)
    perturb(model, 0.02, seed=9)
    model.to(dtype).save_pretrained(directory / "second")
    build_tokenizer().save_pretrained(directory / "second")
    return base, first, directory / "second"


def written(path: Path) -> dict[str, torch.Tensor]:
    return {key: value for file in path.glob("*.safetensors") for key, value in load_file(file).items()}


def both_ways(
    monkeypatch: pytest.MonkeyPatch, base: Path, scales: dict[str | Path, float], out: Path, **options: object
) -> tuple[tv.Applied, tv.Applied]:
    """The same merge by rows, with few of them at a time, and whole."""
    monkeypatch.setattr(merging, "PIECE", 7 * 48)
    by_rows = tv.apply(base, scales, out=out / "rows", **options)  # type: ignore[arg-type]
    monkeypatch.setattr(Merged, "_by_rows", lambda *_: None)
    whole = tv.apply(base, scales, out=out / "whole", **options)  # type: ignore[arg-type]
    monkeypatch.undo()
    return by_rows, whole


def assert_same(left: tv.Applied, right: tv.Applied) -> None:
    one, other = written(left.path), written(right.path)
    assert one.keys() == other.keys()
    for key, value in one.items():
        bits = {2: torch.int16, 4: torch.int32}[value.element_size()]
        assert torch.equal(value.view(bits), other[key].view(bits)), key
    assert left.rounding.signal == pytest.approx(right.rounding.signal, rel=1e-12)
    assert left.rounding.error == pytest.approx(right.rounding.error, rel=1e-9)
    for column in left.conflicts.columns[2:]:
        assert left.conflicts[column][0] == pytest.approx(right.conflicts[column][0], rel=1e-9, nan_ok=True), column


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("architecture", "dtype"),
    [
        ("qwen2", torch.bfloat16),  # tied, with biases
        ("phi3", torch.float32),  # q, k and v in one
        ("gpt2", torch.bfloat16),  # the same, transposed
        ("neox", torch.float32),  # the same, head by head
        ("gpt_oss", torch.bfloat16),  # experts, gate and up row by row
        ("mamba", torch.float32),  # kernels
    ],
)
def test_every_layout(architecture: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, *vectors = family(tmp_path, architecture, dtype)
    scales = dict(zip(vectors, SCALES, strict=True))
    assert_same(*both_ways(monkeypatch, base, scales, tmp_path, out_dtype="bfloat16"))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("method", ["ties", "dare"])
@pytest.mark.parametrize("architecture", ["qwen2", "gpt2", "gpt_oss"])
def test_methods_that_look_at_all_of_a_vector_first(
    method: str, architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16 many entries of a T are of one size: the same ones stay."""
    base, *vectors = family(tmp_path, architecture, torch.bfloat16)
    scales = dict(zip(vectors, SCALES, strict=True))
    assert_same(*both_ways(monkeypatch, base, scales, tmp_path, method=method, seed=3))


def test_parts_of_a_fused_matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, *vectors = family(tmp_path, "gpt2", torch.float32)
    scales = dict(zip(vectors, SCALES, strict=True))
    assert_same(*both_ways(monkeypatch, base, scales, tmp_path, only=["q", "v", "bias"]))


def test_a_zero_keeps_its_sign_only_where_nothing_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, *vectors = family(tmp_path, "llama", torch.float32)
    still, moving = "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"
    for path in (base, *vectors):
        tensors = load_file(path / "model.safetensors")
        for name in (still, moving):
            tensors[name][2:50, 3] = -0.0
        tensors[still] = load_file(base / "model.safetensors")[still] if path != base else tensors[still]
        save_file(tensors, path / "model.safetensors", {"format": "pt"})
    left, right = both_ways(monkeypatch, base, dict(zip(vectors, SCALES, strict=True)), tmp_path)
    assert_same(left, right)
    signs = {name: written(left.path)[name][2:50, 3].signbit() for name in (still, moving)}
    assert signs[still].all() and not signs[moving].any()


def test_adapters_files_of_vectors_and_opposite_vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, first, second = family(tmp_path, "llama", torch.bfloat16)
    tv.lora_export(base, second, out=tmp_path / "adapter", rank=4)
    tv.extract(base, first).save(tmp_path / "t.safetensors")
    sources = {tmp_path / "t.safetensors": 0.7, tmp_path / "adapter": -0.3}
    assert_same(*both_ways(monkeypatch, base, sources, tmp_path, out_dtype="bfloat16"))
    cancelled, whole = both_ways(
        monkeypatch, base, {tmp_path / "t.safetensors": 1.0, first: -1.0}, tmp_path, force=True
    )
    assert_same(cancelled, whole)
    assert cancelled.rounding.signal == 0 and cancelled.conflicts.cosine[0] == pytest.approx(1)


def test_a_piece_within_rows() -> None:
    """Every row of every piece is in one share, also where a piece takes every third row."""
    stored = torch.arange(60.0).reshape(20, 3)
    pieces = [
        Piece("w", 0, "q", "attn", ranges=((0, 4), (9, 13))),
        Piece("w", 0, "k", "attn", ranges=((1, 20),), step=3),
        Piece("w", 0, "v", "attn", ranges=((1, 3),), transposed=True),
        Piece("w", 0, "o", "attn"),
    ]
    for piece in pieces:
        whole, joined = torch.zeros(20, 3), torch.zeros(20, 3)
        piece.put(whole, piece.take(stored))
        for start in range(0, 20, 7):
            share = piece.within(start, start + 7)
            if share is not None:
                rows = joined[start : start + 7]
                share.put(rows, share.take(stored[start : start + 7]))
        assert torch.equal(joined, whole) and bool(whole.any())
