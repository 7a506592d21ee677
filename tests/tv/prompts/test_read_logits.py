"""Logits that are there where they are read are indexed as if all were."""

import pytest
import torch

from tv.prompts.read_logits import ReadLogits

LOGITS = torch.arange(2 * 5 * 3.0).view(2, 5, 3)
AT = torch.tensor([[0, 1, 0, 1, 1], [0, 0, 0, 0, 1]]).bool()
READ = ReadLogits(LOGITS[AT], AT)


def test_positions_are_those_of_the_whole_prompt() -> None:
    first, second = READ
    assert torch.equal(first[3], LOGITS[0, 3]) and torch.equal(second[-1], LOGITS[1, 4])
    assert torch.equal(first[3:5], LOGITS[0, 3:5]) and torch.equal(first[[4, 1]], LOGITS[0, [4, 1]])
    assert torch.equal(first[[4, 1], :2], LOGITS[0, [4, 1], :2])
    assert first[2:2].shape == (0, 3) and torch.equal(first[1:5:2], LOGITS[0, 1:5:2])


def test_a_range_has_a_gradient_where_it_lies() -> None:
    rows = LOGITS[AT].requires_grad_()
    first, _ = ReadLogits(rows, AT)
    first[3:5].sum().backward()
    assert rows.grad is not None and rows.grad[:, 0].tolist() == [0, 1, 1, 0]


def test_among_zeros_all_are_there() -> None:
    assert torch.equal(READ.among_zeros(), torch.where(AT[..., None], LOGITS, 0))


@pytest.mark.parametrize("at", [0, slice(2, 4), [1, 2]])
def test_what_is_not_read_is_not_there(at: int | slice | list[int]) -> None:
    first, _ = READ
    with pytest.raises(IndexError, match="not among those that it says it reads"):
        first[at]
