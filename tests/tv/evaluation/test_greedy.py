"""Greedy decoding is what the argmax says after each text alone, whatever else is continued beside it."""

from collections.abc import Collection, Sequence

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM, PreTrainedModel

from tests.pairs import MEASURED, build_model, build_tokenizer
from tv.evaluation.greedy import continue_greedily, end_ids, groups_of

TEXTS = [(7,), (3, 40, 41), (5, 6, 90, 91, 92, 200, 201, 17), (9, 8), (100, 101, 102, 103, 104, 105), (3, 40, 41)]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return build_model()


def argmax_loop(
    model: PreTrainedModel, text: Sequence[int], tokens: int, ends: Collection[int] = ()
) -> tuple[int, ...]:
    """Greedy decoding as it is defined: the whole text again for every token, no cache."""
    ids = list(text)
    while len(ids) < len(text) + tokens and not (len(ids) > len(text) and ids[-1] in ends):
        with torch.inference_mode():
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return tuple(ids[len(text) :])


@pytest.mark.sampled(5)
@pytest.mark.parametrize("architecture", MEASURED)
def test_texts_of_other_lengths_change_nothing(architecture: str) -> None:
    model = build_model(architecture)
    assert continue_greedily(model, TEXTS, 6) == [argmax_loop(model, text, 6) for text in TEXTS]


@pytest.mark.parametrize("together", [1, 2, 16])
def test_the_same_whatever_runs_together(together: int, model: PreTrainedModel) -> None:
    expected = [argmax_loop(model, text, 5) for text in TEXTS]
    assert len(set(expected)) > 3
    assert continue_greedily(model, TEXTS, 5, together=together) == expected
    assert continue_greedily(model, TEXTS[::-1], 5, together=together) == expected[::-1]


def test_a_model_without_keys_and_values_reads_the_text_again() -> None:
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=307, hidden_size=48, num_hidden_layers=2, state_size=8, initializer_range=0.5)
    model = MambaForCausalLM(config).eval()
    found = continue_greedily(model, TEXTS, 4)
    assert found == [argmax_loop(model, text, 4) for text in TEXTS] and len(set(found)) > 2


def test_an_end_token_is_the_last(model: PreTrainedModel) -> None:
    free = [argmax_loop(model, text, 8) for text in TEXTS]
    ends = {free[0][2], free[2][4]}
    found = continue_greedily(model, TEXTS, 8, ends=ends)
    assert found == [argmax_loop(model, text, 8, ends) for text in TEXTS]
    assert found[0][-1] in ends and len(found[0]) < 8
    assert all(not ends & set(ids[:-1]) for ids in found)


def test_ids_beyond_the_shared_vocabulary_are_never_chosen(model: PreTrainedModel) -> None:
    found = continue_greedily(model, TEXTS, 8, vocab_size=20)
    assert max(max(ids) for ids in found) < 20


def test_a_group_is_of_like_length() -> None:
    texts = [(1,) * n for n in (1, 30, 2, 31, 4, 9)]
    groups = list(groups_of(texts, 5, 16))
    assert groups == [[0, 2, 4], [5], [1, 3]]
    assert list(groups_of([], 5, 16)) == [] and continue_greedily(build_model(), [], 5) == []


def test_nothing_is_left_on_the_model(model: PreTrainedModel) -> None:
    before = continue_greedily(model, TEXTS[:2], 3)
    assert continue_greedily(model, TEXTS[:2], 3) == before
    assert not any(module._forward_hooks for module in model.modules())
    assert all(p.requires_grad for p in model.parameters()) and not model.training


def test_end_ids_of_model_and_tokenizer() -> None:
    model, tokenizer = build_model(), build_tokenizer()
    assert end_ids(model, tokenizer) == {1}
    model.generation_config.eos_token_id = [5, 6]
    assert end_ids(model, tokenizer) == {1, 5, 6}
    model.generation_config = None
    model.config.eos_token_id = None
    assert end_ids(model, tokenizer) == {1}
