"""Token losses in pieces, against the definitions over whole logits."""

import pytest
import torch

from probes.measures import losses
from probes.measures.losses import token_losses
from probes.measures.places import Places, places_of
from tests.pairs import PROMPTS, build_tokenizer
from tv.prompts.behaviour import kl_divergence, token_nll
from tv.prompts.encoding import Batch, batches, encode
from tv.prompts.files import Prompt


def batch_of_all() -> Batch:
    rows = [Prompt(row["id"], "s", "d", row["text"], row.get("target")) for row in PROMPTS]
    return batches(encode(rows, build_tokenizer(), 64), 8, 0)[0]


@pytest.mark.parametrize("piece", [2**19, 700])
@pytest.mark.parametrize("which", ["all", "target", "last"])
@pytest.mark.parametrize("grown", [0, 5])
def test_losses_are_their_definitions(which: str, grown: int, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "_PIECE", piece)
    batch = batch_of_all()
    generator = torch.Generator().manual_seed(0)
    base = 3 * torch.randn(*batch.input_ids.shape, 307, generator=generator)
    tuned = torch.cat([base, torch.randn(*batch.input_ids.shape, grown, generator=generator)], -1)
    tuned = tuned + 0.3 * torch.randn(tuned.shape, generator=generator)
    places = places_of(batch, which)
    found = token_losses(base, tuned, batch.input_ids, places)
    for i, item in enumerate(batch.encoded):
        own = places.row == i
        at, ids = places.pos[own], torch.tensor(item.ids)
        for name, logits in (("nll_base", base), ("nll_tuned", tuned)):
            expected = token_nll(logits[i, : len(ids)], ids)[at]
            torch.testing.assert_close(getattr(found, name)[own], expected, atol=1e-5, rtol=1e-5, equal_nan=True)
        assert torch.equal(found.greedy_base[own], base[i, at].argmax(-1))
        assert torch.equal(found.greedy_tuned[own], tuned[i, at].argmax(-1))
        torch.testing.assert_close(found.kl[own], kl_divergence(base[i, at], tuned[i, at]), atol=1e-5, rtol=1e-4)


def test_the_first_token_has_no_loss_and_a_model_no_distance_from_itself() -> None:
    logits = 5 * torch.randn(1, 4, 11, generator=torch.Generator().manual_seed(1))
    everywhere = Places(torch.zeros(4, dtype=torch.long), torch.arange(4), (1, 4))
    found = token_losses(logits, logits, torch.tensor([[3, 1, 0, 9]]), everywhere)
    assert found.nll_base.isnan().tolist() == [True, False, False, False]
    assert torch.equal(found.nll_base[1:], found.nll_tuned[1:]) and float(found.kl.max()) < 1e-6
