"""Parameters as a whole: fused ones in slices, experts one by one, and what is no matrix by the fallback."""

from collections import Counter

import pytest
import torch

import tv
from tests.architectures.tiny import tiny_model
from tests.pairs import CONFIGS, build_model
from tests.tv.arithmetic.methods.test_elementwise import draws
from tv.architecture.resolve import resolve
from tv.arithmetic.methods.compose import check_method, compose
from tv.arithmetic.methods.layout import Piece, layout
from tv.arithmetic.methods.terms import METHODS, Terms

MATRIX = Piece("w", 0, "up", "mlp", is_matrix=True)
GAIN = Piece("g", 0, "mlp_norm", "mlp")


@pytest.mark.parametrize("architecture", CONFIGS)
def test_pieces_cover_every_entry_once(architecture: str) -> None:
    model = build_model(architecture)
    parameters = dict(model.named_parameters())
    found = layout(resolve(model), {name: tuple(value.shape) for name, value in parameters.items()})
    assert found.keys() == parameters.keys()
    for name, pieces in found.items():
        counted = torch.zeros(parameters[name].shape)
        for piece in pieces:
            own = piece.take(counted)
            assert own.ndim == (2 if piece.is_matrix else counted.ndim)
            piece.put(counted, own + 1)
        assert bool((counted == 1).all()), name
        value = parameters[name].detach()
        again = torch.zeros_like(value)
        for piece in pieces:
            piece.put(again, piece.take(value))
        assert torch.equal(again, value)
        for piece in pieces:
            if piece.expert >= 0:  # an expert alone is cut as it is within the whole
                assert torch.equal(piece.take(value[piece.expert]), piece.take(value))
    kinds = Counter(piece.is_matrix for pieces in found.values() for piece in pieces)
    assert kinds[True] and kinds[False]


def test_interleaved_rows_and_stacked_biases_of_experts_are_cut_as_they_lie() -> None:
    """GPT-OSS: gate and up have every other row, and a bias of all experts is two-dimensional but no matrix."""
    model = tiny_model("gpt_oss")
    stack = "model.layers.0.mlp.experts.gate_up_proj"
    parameters = dict(model.named_parameters())
    found = layout(resolve(model), {name: tuple(value.shape) for name, value in parameters.items()})
    value = parameters[stack].detach()
    gate, up = (piece for piece in found[stack] if piece.expert == 1)
    assert torch.equal(gate.take(value), value[1, :, ::2].T) and torch.equal(up.take(value), value[1, :, 1::2].T)
    again = torch.zeros_like(value)
    for piece in found[stack]:
        piece.put(again, piece.take(value))
    assert torch.equal(again, value)
    assert not any(piece.is_matrix for piece in found[f"{stack}_bias"])


def test_a_fused_matrix_is_merged_as_if_it_were_apart() -> None:
    """GPT-2 keeps q, k and v side by side, transposed."""
    model = build_model("gpt2")
    name = "transformer.h.1.attn.c_attn.weight"
    shape = dict(model.named_parameters())[name].shape
    pieces = layout(resolve(model), {name: tuple(shape)})[name]
    assert [piece.name for piece in pieces] == ["q", "k", "v"]
    weight, a, b = draws(3, *shape)
    for method in METHODS:
        found = compose(method, pieces, [a, b], weight)([0.7, 0.4])
        for i in range(3):
            own = slice(48 * i, 48 * (i + 1))
            apart = Terms((a[:, own].T, b[:, own].T), weight[:, own].T, f"0 {name} -1")
            if method != "dare":
                expected = METHODS[method](apart)([0.7, 0.4]).T
                assert torch.allclose(found[:, own], expected, atol=1e-5), method


def test_what_is_no_matrix_falls_back() -> None:
    weight, a, b = draws(3, 40)
    scales, mean, total = [0.7, 0.4], 0.35 * a + 0.2 * b, 0.7 * a + 0.4 * b
    expected = {"tsv-m": mean, "iso-c": mean, "wudi": total, "deflate": total, "split-inside": total, "sum": total}
    for method, value in expected.items():
        assert torch.allclose(compose(method, [GAIN], [a, b], weight)(scales), value, atol=1e-6), method


@pytest.mark.parametrize("method", METHODS)
def test_a_vector_that_does_not_move_a_parameter_takes_no_part_in_it(method: str) -> None:
    weight, a, b = draws(3, 8, 9)
    zero = torch.zeros_like(a)
    with_it = compose(method, [MATRIX], [a, zero, b], weight)([0.7, 3.0, 0.4])
    assert torch.equal(with_it, compose(method, [MATRIX], [a, b], weight)([0.7, 0.4]))
    assert compose(method, [MATRIX], [zero, zero], weight)([1.0, 1.0]).abs().max() == 0


def test_bad_methods_and_options() -> None:
    check_method("ties", {"density": 0.5})
    for method, options, message in [
        ("best", {}, "there are sum, ties"),
        ("sum", {"density": 0.5}, "has no option 'density'"),
        ("ties", {"fraction": 0.5}, "the only one is density"),
        ("ties", {"density": 0.0}, "greater than 0"),
        ("deflate", {"fraction": float("nan")}, "fraction nan should be"),
    ]:
        with pytest.raises(tv.InputError, match=message):
            check_method(method, options)
