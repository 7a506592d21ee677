"""A continuation is what the model alone would say after the text, whatever else is continued beside it."""

from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from probes.capture import continuations
from probes.capture.continuations import continue_greedily, end_ids, with_continuations
from probes.capture.pair import Pair
from probes.suite import Generation
from tests.pairs import MEASURED, PROMPTS, build_model, build_tokenizer, perturb
from tv.architecture.resolve import resolve
from tv.errors import PromptError
from tv.prompts.encoding import Encoded, batches, encode, positions
from tv.prompts.files import Prompt

TEXTS = [(7,), (3, 40, 41), (5, 6, 90, 91, 92, 200, 201, 17), (9, 8), (100, 101, 102, 103, 104, 105), (3, 40, 41)]


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


def _alone(model: PreTrainedModel, text: tuple[int, ...], tokens: int, ends: set[int] = frozenset()) -> tuple[int, ...]:
    """Greedy decoding as it is defined: the whole text again for every token, no cache."""
    ids = list(text)
    while len(ids) < len(text) + tokens and not (len(ids) > len(text) and ids[-1] in ends):
        with torch.inference_mode():
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return tuple(ids[len(text) :])


@pytest.mark.parametrize("architecture", MEASURED)
def test_texts_of_other_lengths_change_nothing(architecture: str) -> None:
    model = build_model(architecture)
    assert continue_greedily(model, TEXTS, 6) == [_alone(model, text, 6) for text in TEXTS]


@pytest.mark.parametrize("together", [1, 2, 16])
def test_the_same_whatever_runs_together(together: int, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continuations, "TOGETHER", together)
    expected = [_alone(pair.base, text, 5) for text in TEXTS]
    assert len(set(expected)) > 3
    assert continue_greedily(pair.base, TEXTS, 5) == expected
    backwards = continue_greedily(pair.base, TEXTS[::-1], 5)
    assert backwards == expected[::-1]


def test_an_end_token_is_the_last(pair: Pair) -> None:
    free = [_alone(pair.base, text, 8) for text in TEXTS]
    ends = {free[0][2], free[2][4]}
    found = continue_greedily(pair.base, TEXTS, 8, ends=ends)
    assert found == [_alone(pair.base, text, 8, ends) for text in TEXTS]
    assert found[0][-1] in ends and len(found[0]) < 8
    assert all(not ends & set(ids[:-1]) for ids in found)


def test_ids_beyond_the_shared_vocabulary_are_never_chosen(pair: Pair) -> None:
    found = continue_greedily(pair.base, TEXTS, 8, vocab_size=20)
    assert max(max(ids) for ids in found) < 20


def test_a_group_is_of_like_length() -> None:
    texts = [(1,) * n for n in (1, 30, 2, 31, 4, 9)]
    groups = list(continuations._groups(texts, 5))
    assert groups == [[0, 2, 4], [5], [1, 3]]
    assert list(continuations._groups([], 5)) == [] and continue_greedily(build_model(), [], 5) == []


def test_nothing_is_left_on_the_model(pair: Pair) -> None:
    before = continue_greedily(pair.base, TEXTS[:2], 3)
    assert continue_greedily(pair.base, TEXTS[:2], 3) == before
    assert not any(module._forward_hooks for module in pair.base.modules())
    assert all(p.requires_grad for p in pair.base.parameters()) and not pair.base.training


def test_end_ids_of_model_and_tokenizer(pair: Pair, tokenizer: PreTrainedTokenizerFast) -> None:
    model = build_model()
    assert end_ids(model, tokenizer) == {1}
    model.generation_config.eos_token_id = [5, 6]
    assert end_ids(model, tokenizer) == {1, 5, 6}
    model.generation_config = None
    model.config.eos_token_id = None
    assert end_ids(model, tokenizer) == {1}


@pytest.mark.parametrize("source", ["base", "tuned"])
def test_both_models_read_the_tokens_that_one_said(source: str, pair: Pair, encoded: list[Encoded]) -> None:
    found = with_continuations(pair, encoded, Generation(tokens=4, source=source))
    model = getattr(pair, source)
    assert [item.prompt for item in found] == [item.prompt for item in encoded]
    for item, plain in zip(found, encoded, strict=True):
        text = plain.ids[: plain.n_text]
        said = _alone(model, text, 4, {1})
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
