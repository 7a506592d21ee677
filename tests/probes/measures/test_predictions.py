"""The likeliest tokens, found in parts of the vocabulary, against a sort of all of it."""

import pytest
import torch

from probes.measures.predictions import likeliest_tokens


@pytest.mark.parametrize("vocab", [3, 307, 20_011])
def test_they_are_the_first_of_a_sort(vocab: int) -> None:
    logits = 4 * torch.randn(9, vocab, generator=torch.Generator().manual_seed(vocab))
    logits[0] = 0  # all alike
    logits[1] = logits[1].round()  # many alike: the smaller id comes first
    logits[2, vocab // 2 :] = float("-inf")
    found = likeliest_tokens(logits, logits.logsumexp(1))
    values, order = logits.sort(dim=1, descending=True, stable=True)
    assert found.ids.shape == (9, min(5, vocab))
    assert torch.equal(logits.gather(1, found.ids), values[:, :5])
    assert torch.equal(found.ids[3:], order[3:, :5]) and torch.equal(found.ids[1:, 0], order[1:, 0])
    torch.testing.assert_close(found.probabilities, logits.softmax(1).gather(1, found.ids))
