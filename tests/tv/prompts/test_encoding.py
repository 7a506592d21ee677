"""Encoding knows which token is whose; batches are padded on the right and depend on the prompts alone."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st
from transformers import PreTrainedTokenizerFast

from tests.pairs import PROMPTS, build_tokenizer, write_prompts
from tv.errors import PromptError
from tv.prompts.encoding import Encoded, batches, encode, encode_continuations, positions
from tv.prompts.files import Prompt, PromptSet, read_prompts


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


def _prompt(text: str, target: str | None = None, foil: str | None = None) -> Prompt:
    return Prompt("p", "s", "d", text, target, foil)


def _one(tokenizer: PreTrainedTokenizerFast, *texts: str) -> Encoded:
    return encode([_prompt(*texts)], tokenizer, 64)[0]


def test_a_prompt_without_a_target(tokenizer: PreTrainedTokenizerFast) -> None:
    item = _one(tokenizer, "The heart")
    assert item.ids == tuple(tokenizer("The heart")["input_ids"]) and item.ids[0] == 0
    assert (item.n_text, item.answer_pos, item.target_id, item.foil_id) == (len(item.ids), len(item.ids) - 1, -1, -1)
    assert len(item.scored) == 0
    assert positions(item, "target") == positions(item, "last") == range(len(item.ids) - 1, len(item.ids))


def test_target_and_foil(tokenizer: PreTrainedTokenizerFast) -> None:
    item = _one(tokenizer, "The heart pumps", " blood", " light")
    text = tokenizer("The heart pumps")["input_ids"]
    assert item.n_text == len(text) and item.ids[: item.n_text] == tuple(text)
    assert tokenizer.decode(item.ids[item.n_text :]) == " blood"
    assert list(item.scored) == list(range(len(text) - 1, len(item.ids) - 1)) == list(positions(item, "target"))
    assert (item.target_id, item.foil_id) == tuple(tokenizer(t)["input_ids"][1] for t in (" blood", " light"))
    assert item.answer_pos == len(text) - 1 and positions(item, "all") == range(len(item.ids))


def test_a_shared_start_moves_the_answer_position(tokenizer: PreTrainedTokenizerFast) -> None:
    item = _one(tokenizer, "Answer:", " the blood", " the light")
    shared = len(tokenizer("Answer: the")["input_ids"])
    assert item.answer_pos == shared - 1 > item.n_text - 1
    assert item.ids[item.answer_pos + 1] == item.target_id != item.foil_id


def test_a_token_across_the_boundary_is_the_targets(tokenizer: PreTrainedTokenizerFast) -> None:
    item = _one(tokenizer, "The heart pumps ", "blood")
    assert item.ids == tuple(tokenizer("The heart pumps blood")["input_ids"])
    assert tokenizer.decode(item.ids[item.n_text :]) == " blood"


def test_closing_special_tokens_are_left_out() -> None:
    from tokenizers import processors

    tokenizer = build_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 0), ("<eos>", 1)]
    )
    assert tokenizer("The heart")["input_ids"][-1] == 1
    assert _one(tokenizer, "The heart", " pumps").ids[-1] != 1
    assert _one(tokenizer, "The heart<eos>").ids.count(1) == 1  # one that the text holds itself stays


def test_what_cannot_be_encoded_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(PromptError, match=r"'p' of s: \d+ tokens, and the models take 4"):
        encode([_prompt("The heart pumps blood through the body")], tokenizer, 4)
    for target, foil in ((" blood", " blood light"), (" blood light", " blood")):
        with pytest.raises(PromptError, match="begins with the other"):
            _one(tokenizer, "The heart", target, foil)
    no_bos = build_tokenizer()
    no_bos.backend_tokenizer.post_processor = None
    with pytest.raises(PromptError, match="no token of text stands before the target"):
        _one(no_bos, " ", "blood")
    with pytest.raises(PromptError, match="no token of text"):
        _one(no_bos, "")

    class Slow:
        is_fast = False

    with pytest.raises(PromptError, match="Slow is not a fast tokenizer"):
        encode([_prompt("x")], Slow(), 64)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1, max_size=12), st.text(min_size=1, max_size=8), st.text(min_size=1, max_size=8))
def test_any_text_splits_where_its_target_starts(text: str, target: str, foil: str) -> None:
    tokenizer = build_tokenizer()
    try:
        item = encode([_prompt(text, target, foil)], tokenizer, 256)[0]
    except PromptError as error:
        assert "\n" not in str(error)
        return
    assert 1 <= item.n_text < len(item.ids)
    before = len(tokenizer.decode(item.ids[1 : item.n_text], skip_special_tokens=False).encode(errors="replace"))
    assert before <= len(text.encode(errors="replace")) + 3  # no target token stands before n_text
    assert item.ids[item.answer_pos + 1] == item.target_id != item.foil_id


def test_batches_put_like_lengths_together(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    encoded = encode(read_prompts([PromptSet(file=write_prompts(tmp_path / "p.jsonl"))]), tokenizer, 64)
    found = batches(encoded, 4, pad_id=2)
    assert [len(batch.encoded) for batch in found] == [4, 2]
    lengths = [len(item.ids) for batch in found for item in batch.encoded]
    assert lengths == sorted(lengths)
    for batch in found:
        assert batch.input_ids.dtype == batch.attention_mask.dtype == torch.long
        for item, ids, mask in zip(batch.encoded, batch.input_ids, batch.attention_mask, strict=True):
            n = len(item.ids)
            assert ids[:n].tolist() == list(item.ids) and (ids[n:] == 2).all()
            assert mask[:n].all() and not mask[n:].any()
    assert json.dumps([b.input_ids.tolist() for b in batches(encoded, 4, 2)]) == json.dumps(
        [b.input_ids.tolist() for b in found]
    )
    assert batches([], 4, 2) == []


def test_batches_of_batches_are_the_same(tokenizer: PreTrainedTokenizerFast) -> None:
    """A shard holds prompts in the order of its batches; putting them into batches again changes nothing."""
    encoded = encode([_prompt(row["text"] + " the" * n) for row in PROMPTS for n in (0, 3, 1)], tokenizer, 64)
    found = batches(encoded, 4, 2)
    again = batches([item for batch in found for item in batch.encoded], 4, 0)
    assert [batch.encoded for batch in again] == [batch.encoded for batch in found]
    assert batches(found[2].encoded, 4, 2)[0].encoded == found[2].encoded


TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{{ mood or '' }}{% endif %}"
)


def _chat(*turns: tuple[str, str], **options: str) -> str:
    return json.dumps({"messages": [{"role": r, "content": c} for r, c in turns], "options": options})


@pytest.fixture(scope="module")
def templated() -> PreTrainedTokenizerFast:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def test_a_chat_goes_through_the_template_with_its_special_tokens_once(templated: PreTrainedTokenizerFast) -> None:
    chat = _chat(("system", "Be brief."), ("user", "Two plus two?"))
    item = encode([Prompt("p", "s", "d", "Two plus two?", " four", " twelve", chat=chat)], templated, 128)[0]
    start = "<bos><system>Be brief.\n<user>Two plus two?\n<assistant>"
    assert templated.decode(item.ids) == start + " four" and item.ids.count(0) == 1
    assert templated.decode(item.ids[: item.n_text]) == start
    assert list(item.scored) == list(range(item.n_text - 1, len(item.ids) - 1)) and item.answer_pos == item.n_text - 1
    plain = _prompt("Two plus two?", " four", " twelve")
    mixed = encode([plain, item.prompt, plain], templated, 128)
    assert mixed[1] == item and mixed[0] == mixed[2] == encode([plain], templated, 128)[0]


def test_the_template_gets_its_options(templated: PreTrainedTokenizerFast) -> None:
    item = encode([Prompt("p", "s", "d", "x", chat=_chat(("user", "x"), mood="Well, "))], templated, 64)[0]
    assert templated.decode(item.ids).endswith("<assistant>Well, ")
    forced = Prompt("p", "s", "d", "x", chat=_chat(("user", "x"), tokenize="yes"))
    assert templated.decode(encode([forced], templated, 64)[0].ids) == "<bos><user>x\n<assistant>"


def test_what_no_template_takes_is_refused(
    tokenizer: PreTrainedTokenizerFast, templated: PreTrainedTokenizerFast
) -> None:
    prompt = Prompt("p", "s", "d", "x", chat=_chat(("tool", "x")))
    with pytest.raises(PromptError, match="'p' of s: the tokenizer has no chat template"):
        encode([prompt], tokenizer, 64)
    with pytest.raises(PromptError, match="'p' of s: the chat template refuses it: no tools here"):
        encode([prompt], templated, 64)


def test_a_continuation_takes_the_targets_place(tokenizer: PreTrainedTokenizerFast) -> None:
    plain = _one(tokenizer, "The heart pumps", " blood", " light")
    item = plain.followed_by((50, 51, 52))
    assert item.ids == (*plain.ids[: plain.n_text], 50, 51, 52)
    assert item.generated == range(plain.n_text - 1, plain.n_text + 2) == positions(item, "generated")
    assert not item.scored and not plain.generated
    assert positions(plain, "generated") == positions(plain, "last") == positions(item, "target")
    assert (item.answer_pos, item.target_id, item.foil_id) == (plain.answer_pos, plain.target_id, plain.foil_id)


def test_an_answer_position_that_a_continuation_passes_by_is_no_answer(tokenizer: PreTrainedTokenizerFast) -> None:
    plain = _one(tokenizer, "Answer:", " the blood", " the light")
    shared = plain.ids[plain.n_text : plain.answer_pos + 1]
    assert shared
    same = plain.followed_by((*shared, 50))
    assert (same.answer_pos, same.target_id, same.foil_id) == (plain.answer_pos, plain.target_id, plain.foil_id)
    other = plain.followed_by((50, 51))
    assert (other.answer_pos, other.target_id, other.foil_id) == (plain.n_text - 1, shared[0], -1)


def test_a_given_continuation_may_start_inside_the_text(tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = Prompt("p", "s", "d", "The heart pumps ", "\n", "\t", continuation="blood")
    plain = encode([prompt], tokenizer, 64)[0]
    item = encode_continuations([plain], tokenizer, 64)[0]
    assert tokenizer.decode(item.ids[item.n_text :]) == " blood" and item.n_text < plain.n_text
    assert item.foil_id == -1 and item.answer_pos == item.n_text - 1
    with pytest.raises(PromptError, match="'p' of s: no continuation is given"):
        encode_continuations([replace(plain, prompt=_prompt("x"))], tokenizer, 64)
    with pytest.raises(PromptError, match=r"\d+ tokens, and the models take 3"):
        encode_continuations([plain], tokenizer, 3)
