"""Behaviour of a live model over prompts: what is gathered, and that the loss is what its definition says."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import tv
from tests.pairs import PROMPTS, build_model, build_tokenizer, write_prompts
from tv.prompts.behaviour import batched, behaviour, gather, measures
from tv.prompts.files import Prompt


def test_gather_takes_files_and_prompts(tmp_path: Path) -> None:
    file = write_prompts(tmp_path / "mixed.jsonl")
    own = Prompt("own", "mine", "mine", "The heart pumps")
    assert [prompt.id for prompt in gather([file, own])] == [*(row["id"] for row in PROMPTS), "own"]
    assert gather(file) == gather(str(file)) == gather([file]) and gather(own) == [own]
    with pytest.raises(tv.InputError, match="no prompts"):
        gather([])
    with pytest.raises(tv.InputError, match="'own' is taken twice"):
        gather([own, own])
    unnamed = write_prompts(tmp_path / "own.jsonl", [{"text": "A lamp"}])
    taken = Prompt("own-1", "mine", "mine", "The heart pumps")
    assert [prompt.id for prompt in gather([taken, unnamed])] == ["own.2-1", "own-1"]
    with pytest.raises(tv.InputError, match=r"nowhere\.jsonl"):
        gather(tmp_path / "nowhere.jsonl")


def test_batches_the_model_can_take() -> None:
    model, tokenizer = build_model(), build_tokenizer()
    long = Prompt("long", "s", "s", "The heart pumps blood. " * 20)
    with pytest.raises(tv.InputError, match="the models take 64"):
        batched([long], model, tokenizer, 4)
    with pytest.raises(tv.InputError, match="batch size 0"):
        batched([Prompt("x", "s", "s", "The heart")], model, tokenizer, 0)


def test_the_loss_is_a_mean_over_the_targets_tokens_else_over_the_texts() -> None:
    model, tokenizer = build_model(), build_tokenizer()
    with_target = Prompt("a", "s", "s", "Seven and", " five make")
    text, single = Prompt("b", "s", "s", "The capital of France is Paris."), Prompt("c", "s", "s", "Q")
    batches = batched([with_target, text, single], model, tokenizer, 3)
    order = [item.prompt.id for batch in batches for item in batch.encoded]
    found = behaviour(model, batches)
    assert set(found) == set(measures()) and all(len(values) == 3 for values in found.values())
    for prompt in (with_target, text, single):
        ids = tokenizer(prompt.text + (prompt.target or ""))["input_ids"]
        first = len(tokenizer(prompt.text)["input_ids"]) if prompt.target else 1
        with torch.inference_mode():
            logp = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        losses = [-float(logp[i - 1, ids[i]]) for i in range(first, len(ids))]
        at = order.index(prompt.id)
        assert found["loss"][at] == pytest.approx(np.mean(losses), abs=1e-5)
        if prompt.target:
            assert len(losses) > 1
            assert found["target_nll"][at] == pytest.approx(sum(losses), abs=1e-5)
        else:
            assert math.isnan(found["target_nll"][at]) and math.isnan(found["exact_match"][at])


def test_a_prompt_of_one_token_has_no_loss() -> None:
    model, tokenizer = build_model(), build_tokenizer()
    tokenizer._tokenizer.post_processor = None  # no <bos> before the text
    batches = batched([Prompt("q", "s", "s", "Q"), Prompt("t", "s", "s", "The heart")], model, tokenizer, 2)
    assert list(np.isnan(behaviour(model, batches)["loss"])) == [True, False]


def test_a_conversation_is_read_from_the_users_words_on(tmp_path: Path) -> None:
    """What the template and the system say is the same before every prompt, and the loss is not of it."""
    model, tokenizer = build_model(), build_tokenizer()
    tokenizer.chat_template = (
        "{{ bos_token }}The liver cleans the blood. {% for m in messages %}[{{ m.content }}]{% endfor %}"
    )
    file = write_prompts(tmp_path / "p.jsonl", [{"text": "A lamp gives light"}, {"text": "The heart pumps"}])
    chats = batched(gather(tv.PromptSet(file=file, chat=True)), model, tokenizer, 2)
    losses = behaviour(model, chats)["loss"]
    for item, loss in zip(chats[0].encoded, losses, strict=True):
        ids = torch.tensor([item.ids])
        begin = len(tokenizer("The liver cleans the blood. [")["input_ids"])
        with torch.inference_mode():
            logs = model(ids).logits[0].log_softmax(-1)
        nll = [-float(logs[pos - 1, item.ids[pos]]) for pos in range(begin, len(item.ids))]
        assert loss == pytest.approx(np.mean(nll), rel=1e-5) and len(nll) < len(item.ids) - 8
