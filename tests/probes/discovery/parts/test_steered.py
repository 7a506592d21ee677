"""The base says what a vector adds to its states, as long as the vector is there."""

from __future__ import annotations

import pytest
import torch

from probes.discovery.differences import Sums
from probes.discovery.parts.steered import SteeredWords
from probes.discovery.sides import ROUNDED, TUNED, Side
from probes.discovery.steering import SCALES, length_of, steered
from tests.probes.discovery.conftest import context_of as demo_context, demo_pair
from tests.probes.discovery.planted import context_of, planted_pair
from tv.architecture.values import values_of


def test_steering_is_a_forward_pass_with_the_vector_added_and_ends() -> None:
    context = context_of(planted_pair())
    base, (batch, _) = context.sides.base_model, context.texts.batches[0]
    vector = torch.randn(48, generator=torch.Generator().manual_seed(0))
    plain = base.read(batch)
    with steered(base, vector, 0):
        moved = base.read(batch)
    bias = base.live.transformer.wpe.weight  # what is added at every place before the first block
    kept = bias.detach().clone()
    with torch.no_grad():
        bias += vector
        by_hand = base.read(batch)
        bias.copy_(kept)
    torch.testing.assert_close(moved.logits, by_hand.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(base.read(batch).logits, plain.logits)
    assert not torch.allclose(moved.logits, plain.logits)


def test_the_length_is_where_as_much_kl_is_done_and_within_what_was_tried() -> None:
    lengths = [0.5, 1.0, 2.0]
    assert abs(length_of([0.01, 0.04, 0.16], lengths, 0.08) - 2**0.5) < 1e-9
    assert length_of([0.01, 0.02, 0.03], lengths, 1.0) == 2.0 and length_of([3, 4, 5], lengths, 1.0) == 0.5


def test_the_base_says_the_token_that_it_is_steered_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("probes.discovery.parts.steered.KL", 2.0)  # so that few texts tell it
    pair = demo_pair()
    context = demo_context(pair)
    part = SteeredWords(context)
    part.depth = pair.architecture.n_layers - 1  # what is added there is read by the unembedding nearly as it is
    token = pair.tokenizer(" river", add_special_tokens=False)["input_ids"][0]
    rows = values_of(pair.base)[f"{pair.architecture.unembed}.weight"].detach()
    states = context.sides.base(context.texts.batches[0][0]).resid[part.depth]
    other = torch.randn(len(rows[0]), generator=torch.Generator().manual_seed(0))
    for side, vector in ((Side(TUNED), rows[token] - rows.mean(0)), (Side(ROUNDED), other)):
        sums = Sums.none(pair.architecture.n_layers + 1, len(vector))
        sums.apart[..., part.depth, :], sums.n[:] = vector, 1
        sums.base += states.norm(dim=1).mean() * sums.n.sum()
        context.differences.sums = {"far": sums}
        part.close(side, context.sides.base_model)
    tables = dict(part.results())
    words = tables["discovered_words"]
    first = words.iloc[0]
    assert first.token_id == token and first.value > first.floor > 0
    assert not words.stands_out.any()  # without a sham nothing does
    (steering,) = tables["steering"].itertuples()
    assert SCALES[0] <= steering.length <= SCALES[-1] and 1 < steering.kl < 4
    assert set(tables["samples"].model) == {"base", "tuned"}
