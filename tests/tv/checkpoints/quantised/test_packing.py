"""Numbers out of words: against a stream of bits written the slow way."""

import numpy as np
import pytest
import torch

from tests.tv.checkpoints.quantised.packers import words
from tv.checkpoints.quantised.packing import columns, scaled, unpack


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("n", [1, 31, 32, 107])
def test_unpack(bits: int, n: int) -> None:
    codes = np.random.default_rng(n).integers(0, 2**bits, (3, n))
    codes[:, -1] = 2**bits - 1
    packed = torch.from_numpy(words(codes, bits).view(np.int32))
    assert torch.equal(unpack(packed, bits, n), torch.from_numpy(codes).to(torch.uint8))


def test_scaled() -> None:
    codes = torch.tensor([[0, 3, 9, 15]], dtype=torch.uint8)
    scales, zeros = torch.tensor([[0.5, 2.0]]), torch.tensor([[1, 8]])
    assert scaled(codes, scales, zeros).tolist() == [[-0.5, 1.0, 2.0, 14.0]]
    assert scaled(codes, scales, zeros, torch.tensor([1, 0, 0, 1])).tolist() == [[-16.0, 1.0, 4.0, 14.0]]
    assert scaled(codes, scales, 8).tolist() == [[-4.0, -2.5, 2.0, 14.0]]


def test_the_last_group_of_columns_may_be_smaller() -> None:
    assert columns(5, 2).tolist() == [0, 0, 1, 1, 2]
