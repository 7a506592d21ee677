"""Prompt sets are read whole or refused in one line; encoding knows which token is whose."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from tests.pairs import PROMPTS, build_tokenizer, write_prompts
from tv.errors import PromptError
from tv.prompts import Encoded, Prompt, batches, encode, positions, read_prompts


@dataclass(frozen=True)
class Entry:
    file: Path
    domain: str | None = None


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


def test_rows_become_prompts_and_domains_fall_back(tmp_path: Path) -> None:
    prompts = read_prompts([Entry(write_prompts(tmp_path / "mixed.jsonl"), "medicine")])
    assert [p.id for p in prompts] == [row["id"] for row in PROMPTS]
    assert prompts[0] == Prompt("a1", "mixed", "medical", "The heart pumps", " blood", " light")
    assert prompts[-1].domain == "medicine" and prompts[-1].target is None
    bare = read_prompts([Entry(write_prompts(tmp_path / "bare.jsonl", [{"id": "x", "text": "y", "more": "z"}]))])
    assert bare == [Prompt("x", "bare", "bare", "y")]


def test_only_newlines_end_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes('\ufeff{"id": "1", "text": "a\u2028b"}\r\n\n{"id": "2", "text": "c"}'.encode())
    assert [p.text for p in read_prompts([Entry(path)])] == ["a\u2028b", "c"]


REFUSED = {
    "not json": ('{"id": "b", ', "line 2: not valid JSON"),
    "deep": ("[" * 100_000, "line 2: not valid JSON"),
    "no object": ("[1]", "line 2: a row is a JSON object with id and text, not list"),
    "no id": ('{"text": "x"}', "line 2: id is missing"),
    "null text": ('{"id": "b", "text": null}', "line 2: text is missing"),
    "blank text": ('{"id": "b", "text": " \\n"}', "line 2: text is blank"),
    "empty target": ('{"id": "b", "text": "x", "target": ""}', "line 2: target is blank"),
    "number": ('{"id": 7, "text": "x"}', "line 2: id is int, not a string"),
    "surrogate": ('{"id": "b", "text": "\\ud800"}', "line 2: text holds half of a surrogate pair"),
    "same id": ('{"id": "a", "text": "x"}', "line 1; ids are unique"),
    "foil alone": ('{"id": "b", "text": "x", "foil": "y"}', "line 2: a foil without a target"),
    "same foil": ('{"id": "b", "text": "x", "target": "y", "foil": "y"}', "line 2: foil and target are the same"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_row_is_one_line_with_its_number(case: str, tmp_path: Path) -> None:
    row, message = REFUSED[case]
    path = tmp_path / "p.jsonl"
    path.write_text('{"id": "a", "text": "fine"}\n' + row + "\n", encoding="utf-8")
    with pytest.raises(PromptError) as caught:
        read_prompts([Entry(path)])
    assert str(path) in str(caught.value) and message in str(caught.value) and "\n" not in str(caught.value)


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="no such prompt file"):
        read_prompts([Entry(tmp_path / "absent.jsonl")])
    (tmp_path / "bytes.jsonl").write_bytes(b'{"id": "a", "text": "x"}\n{"id": "\xff"}')
    with pytest.raises(PromptError, match="line 2: not UTF-8"):
        read_prompts([Entry(tmp_path / "bytes.jsonl")])
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(PromptError, match=r"empty\.jsonl: no prompts"):
        read_prompts([Entry(tmp_path / "empty.jsonl")])
    a, b = (write_prompts(tmp_path / f"{n}.jsonl", [{"id": "x", "text": n}]) for n in "ab")
    with pytest.raises(PromptError, match=r"b\.jsonl: line 1: .*a\.jsonl: line 1"):
        read_prompts([Entry(a), Entry(b)])


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
    encoded = encode(read_prompts([Entry(write_prompts(tmp_path / "p.jsonl"))]), tokenizer, 64)
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
