"""Both models read what one of them said after the text, or what is given."""

from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from probes.capture.continuations import with_continuations
from probes.capture.pair import Pair
from probes.suite import Generation
from tests.pairs import PROMPTS, build_model, build_tokenizer, perturb
from tests.tv.evaluation.test_greedy import argmax_loop
from tv.architecture.resolve import resolve
from tv.errors import PromptError
from tv.prompts.encoding import Encoded, batches, encode, positions
from tv.prompts.files import Prompt


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture(scope="module")
def pair(tokenizer: PreTrainedTokenizerFast) -> Pair:
    base, tuned = build_model(), build_model()
    perturb(tuned, 0.3, seed=1)
    return Pair(base, tuned, tokenizer, resolve(base), {})


@pytest.fixture(scope="module")
def encoded(tokenizer: PreTrainedTokenizerFast) -> list[Encoded]:
    rows = [Prompt(r["id"], "s", "d", r["text"], r.get("target"), r.get("foil"), " the body") for r in PROMPTS]
    return encode(rows, tokenizer, 64)


@pytest.mark.parametrize("source", ["base", "tuned"])
def test_both_models_read_the_tokens_that_one_said(source: str, pair: Pair, encoded: list[Encoded]) -> None:
    found = with_continuations(pair, encoded, Generation(tokens=4, source=source), {1})
    model = getattr(pair, source)
    assert [item.prompt for item in found] == [item.prompt for item in encoded]
    for item, plain in zip(found, encoded, strict=True):
        text = plain.ids[: plain.n_text]
        said = argmax_loop(model, text, 4, {1})
        assert item.ids == text + said and item.n_text == len(text) and item.continued
        assert (
            list(item.generated) == list(range(len(text) - 1, len(item.ids) - 1)) == list(positions(item, "generated"))
        )
        assert not item.scored and positions(item, "target") == positions(item, "last")
        assert (item.answer_pos, item.target_id, item.foil_id) == (plain.answer_pos, plain.target_id, plain.foil_id)
    # The positions that predict the continuation do so, in one forward over a padded batch.
    for batch in batches(found, 4, 2):
        with torch.inference_mode():
            logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
        for item, row in zip(batch.encoded, logits, strict=True):
            assert tuple(row[list(item.generated)].argmax(-1).tolist()) == item.ids[item.n_text :]


def test_base_and_tuned_say_different_things(pair: Pair, encoded: list[Encoded]) -> None:
    ids = [
        [item.ids for item in with_continuations(pair, encoded, Generation(tokens=6, source=source))]
        for source in ("base", "tuned")
    ]
    assert ids[0] != ids[1]


def test_a_given_continuation_is_encoded_with_its_text(
    pair: Pair, encoded: list[Encoded], tokenizer: PreTrainedTokenizerFast
) -> None:
    whole = with_continuations(pair, encoded, Generation(source="given"))
    for item in whole:
        assert item.ids == tuple(tokenizer(item.prompt.text + " the body")["input_ids"])
        assert tokenizer.decode(item.ids[item.n_text :]) == " the body" and item.continued
    cut = with_continuations(pair, encoded, Generation(tokens=1, source="given"))
    assert all(len(c.ids) == c.n_text + 1 and c.ids == w.ids[: len(c.ids)] for c, w in zip(cut, whole, strict=True))
    without = [replace(encoded[0], prompt=replace(encoded[0].prompt, continuation=None))]
    with pytest.raises(PromptError, match="'a1' of s: no continuation is given"):
        with_continuations(pair, without, Generation(source="given"))
    long = replace(encoded[0], prompt=replace(encoded[0].prompt, continuation=" the body" * 40))
    with pytest.raises(PromptError, match=r"'a1' of s: \d+ tokens, and the models take 64"):
        with_continuations(pair, [long], Generation(source="given"))


def test_no_room_to_generate_is_said_before_anything_runs(pair: Pair, encoded: list[Encoded]) -> None:
    with pytest.raises(PromptError, match=r"'a1' of s: \d+ tokens and 62 to generate, and the models take 64"):
        with_continuations(pair, encoded, Generation(tokens=62))
