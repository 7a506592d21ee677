"""Which scales fit which tensor, and what they do. Whole checkpoints are in test_parameters."""

import pytest
import torch

from tv.checkpoints.quantised.float8 import block_of, dequantise

_CASES = [
    ((300, 200), (), None, (300, 200)),
    ((300, 200), (1,), (128, 128), (300, 200)),
    ((300, 200), (1, 1), None, (300, 200)),
    ((300, 200), (3, 2), (128, 128), (128, 128)),
    ((300, 200), (3, 1), (128, 256), (128, 256)),
    ((300, 200), (300, 1), None, (1, 200)),
    ((300, 200), (300, 1), (128, 128), (1, 200)),  # a row each, whatever the configuration says
    ((300, 200), (3, 2), None, (100, 100)),
    ((300, 200), (4, 3), None, None),
    ((300, 200), (3, 3), (128, 128), None),
    ((300, 200), (3,), (128, 128), None),
    ((300, 200), (400, 1), None, None),
    ((300, 200), (300,), None, (1, 200)),
    ((200,), (), None, (1, 200)),
    ((200,), (200,), None, None),
    ((5, 300, 200), (5,), None, (300, 200)),
    ((5, 300, 200), (5, 1, 1), None, (300, 200)),
    ((5, 300, 200), (5, 3, 2), (128, 128), (128, 128)),
    ((5, 300, 200), (4, 3, 2), (128, 128), None),
]


@pytest.mark.parametrize("shape, scales, declared, expected", _CASES)
def test_blocks(
    shape: tuple[int, ...],
    scales: tuple[int, ...],
    declared: tuple[int, int] | None,
    expected: tuple[int, int] | None,
) -> None:
    assert block_of(shape, scales, declared) == expected
    if expected is None:
        return
    value = torch.randn(shape).to(torch.float8_e4m3fn)
    factors = torch.rand(scales) + 0.5
    rows, cols = (1, *shape)[-2:]
    grid = factors.reshape(*shape[:-2], -(-rows // expected[0]), -(-cols // expected[1]))
    full = grid.repeat_interleave(expected[0], -2).repeat_interleave(expected[1], -1)
    full = full[..., :rows, :cols].reshape(shape)
    found = dequantise(value, factors, expected)
    assert found.dtype == torch.float32 and torch.equal(found, value.float() * full)
