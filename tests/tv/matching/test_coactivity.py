"""Sums over tokens equal what all tokens at once give, and padding is no token."""

import json

import pytest
import torch

from tests.pairs import PROMPTS, build_model, build_tokenizer, perturb
from tv.matching.coactivity import Correlations, HeadProducts, gather_sums
from tv.prompts.behaviour import batched
from tv.prompts.encoding import Batch, batches as make_batches, encode
from tv.prompts.files import Prompt


def batches(size: int) -> list[Batch]:
    rows = [Prompt(row["id"], "s", "d", row["text"]) for row in PROMPTS]
    return batched(rows, build_model(), build_tokenizer(), size)


def test_correlations_are_those_of_all_tokens_at_once() -> None:
    torch.manual_seed(0)
    base = torch.randn(300, 12) * torch.logspace(-2, 2, 12) + 100
    tuned = base.flip(1) * 0.3 + torch.randn(300, 12)
    base[:, 3] = 100.25  # says nothing
    sums = Correlations()
    for part in zip(base.split(37), tuned.split(37), strict=True):
        sums.add(*part)
    found = sums.correlation()
    expected = torch.corrcoef(torch.cat([base, tuned], 1).double().T)[:12, 12:]
    assert bool((found[3] == 0).all()) and sums.tokens == 300
    expected[3] = 0
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=0)


def test_head_products() -> None:
    torch.manual_seed(0)
    base, tuned = torch.randn(2, 50, 12)
    sums = HeadProducts(3)
    for part in zip(base.split(20), tuned.split(20), strict=True):
        sums.add(*part)
    left, right = base.unflatten(1, (3, 4)), tuned.unflatten(1, (3, 4))
    torch.testing.assert_close(sums.cross, torch.einsum("tha,tgb->hagb", left, right))
    torch.testing.assert_close(sums.own, torch.einsum("tha,thb->hab", left, left))
    torch.testing.assert_close(sums.tuned_own, torch.einsum("tha,thb->hab", right, right))


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_both_models_see_the_same_tokens_and_no_padding(architecture: str) -> None:
    base, tuned = build_model(architecture), build_model(architecture)
    perturb(tuned, 0.2, seed=1)
    path = {"llama": "model.layers.1.mlp.down_proj", "gpt2": "transformer.h.1.mlp.c_proj"}[architecture]
    alone, together = Correlations(), Correlations()
    for size, sums in ((1, alone), (4, together)):
        gather_sums(base, tuned, batches(size), {path: sums})
    assert alone.tokens == together.tokens == sum(int(batch.attention_mask.sum()) for batch in batches(4))
    torch.testing.assert_close(alone.correlation(), together.correlation(), atol=1e-4, rtol=0)
    assert 0.3 < float(alone.correlation().diagonal().mean()) < 0.999
    assert not base.get_submodule(path)._forward_pre_hooks  # nothing is left behind


def test_the_template_of_a_conversation_is_not_counted() -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = "The liver cleans the blood. {% for m in messages %}[{{ m.content }}]{% endfor %}"
    prompts = [
        Prompt(text, "s", "s", text, chat=json.dumps({"messages": [{"role": "user", "content": text}]}))
        for text in ("A lamp gives light", "The heart pumps")
    ]
    encoded = encode(prompts, tokenizer, 64)
    sums, path = Correlations(), "model.layers.1.mlp.down_proj"
    gather_sums(build_model(), build_model(), make_batches(encoded, 2, 2), {path: sums})
    assert sums.tokens == sum(len(item.ids) - item.user_pos for item in encoded) < sum(len(i.ids) for i in encoded) / 2
