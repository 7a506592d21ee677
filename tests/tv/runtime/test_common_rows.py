"""The rows that two tensors of a grown vocabulary have in common: views of their beginnings, along any axis."""

import torch

from tv.runtime.common_rows import common_rows


def test_the_longer_one_is_cut_whichever_it_is() -> None:
    few, more = torch.arange(6.0).view(3, 2), torch.arange(10.0).view(5, 2)
    for pair in ((few, more), (more, few)):
        for whole, rows in zip(pair, common_rows(*pair), strict=True):
            assert torch.equal(rows, whole[:3]) and rows.data_ptr() == whole.data_ptr()


def test_logits_are_cut_along_the_vocabulary() -> None:
    few, more = torch.zeros(4, 3), torch.ones(4, 5)
    assert [rows.shape for rows in common_rows(few, more, dim=-1)] == [(4, 3), (4, 3)]


def test_a_scalar_comes_back_as_it_is() -> None:
    scale, other = torch.tensor(2.0), torch.tensor(3.0)
    assert common_rows(scale, other) == (scale, other)
