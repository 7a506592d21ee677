"""Prompts under two tokenizers: how many become other tokens is counted; a lent template writes as its owner does."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import normalizers
from transformers import PreTrainedTokenizerFast

import tv
from tests.pairs import build_pair, build_tokenizer
from tests.tv.checkpoints.test_tokenizers import edit
from tests.tv.evaluation.test_decoding import task_file
from tv.checkpoints.live import LiveSource
from tv.checkpoints.own_tokenizer import (
    borrow_template,
    encoder,
    lend_template,
    lenders,
    own_notes,
    reading,
    require_meanings,
)
from tv.errors import PromptError
from tv.prompts.encoding import encode
from tv.prompts.files import Prompt, PromptSet, read_prompts
from tv.prompts.sets import Chat

TEMPLATE = (
    "{% for message in messages %}\n  {{ bos_token }}<|{{ message['role'] }}|>{{ message['content'] }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CHAT = '{"messages": [{"role": "user", "content": "The heart"}], "options": {}%s}'


def plain(*texts: str) -> list[Prompt]:
    return [Prompt(f"p{i}", "s", "s", text, " blood", " light") for i, text in enumerate(texts)]


def talk(template: str | None = None) -> list[Prompt]:
    return [Prompt("c", "s", "s", "The heart", chat=CHAT % (f', "template": "{template}"' if template else ""))]


def lowered() -> PreTrainedTokenizerFast:
    tokenizer = build_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer


def with_template(template: str = TEMPLATE, **tokens: str) -> PreTrainedTokenizerFast:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = template
    tokenizer.add_special_tokens(dict(tokens))
    return tokenizer


def test_prompts_that_become_other_tokens_are_counted() -> None:
    prompts = plain("a lamp gives", "The heart pumps", "seven and", "The liver cleans the")
    shared, own = build_tokenizer(), lowered()
    ids = [tuple(side("The heart pumps blood")["input_ids"]) for side in (shared, own)]
    assert own_notes(prompts, shared, reading(own, shared)) == [
        f"2 of 4 prompts become other tokens with its own tokenizer (first prompt 'p1' of s: {len(ids[0])} and "
        f"{len(ids[1])} tokens)"
    ]
    assert len(ids[0]) != len(ids[1]) and own_notes(prompts[::2], shared, reading(own, shared)) == []


def test_what_its_own_tokenizer_cannot_encode_is_said() -> None:
    own = with_template("{{ raise_exception('no turns') }}")
    (note,) = own_notes(talk(), with_template(), reading(own, with_template()))
    assert note.startswith("its own tokenizer cannot encode the prompts: prompt 'c' of s: the chat template refuses it")


def test_an_id_of_another_meaning_refuses_the_prompt_that_has_it() -> None:
    shared, own = build_tokenizer(290), build_tokenizer(290)
    shared.add_tokens(["<|reserved_0|>"], special_tokens=True)
    own.add_tokens(["<|mine|>"], special_tokens=True)
    require_meanings(plain("The heart", "A <|mine|> lamp"), shared, own)  # the shared one reads it as plain text
    with pytest.raises(PromptError, match=r"'p1' of s: id 290 is '<\|reserved_0\|>' .* and '<\|mine\|>' to the tuned"):
        require_meanings(plain("The heart", "A <|reserved_0|> lamp"), shared, own)


@pytest.mark.parametrize("tokens", [{}, {"eos_token": "<pad>"}, {"bos_token": '<|"odd"|>', "eos_token": "<|end|>"}])
def test_a_lent_template_writes_what_its_owner_does(tokens: dict[str, str]) -> None:
    base, tuned = build_tokenizer(), with_template(**tokens)
    lend_template(base, tuned)
    expected = tuned.apply_chat_template(
        [{"role": "user", "content": "The heart"}], tokenize=False, add_generation_prompt=True
    )
    (item,) = encode(talk("tuned"), base, 500)
    assert list(item.ids) == base(expected, add_special_tokens=False)["input_ids"]
    with pytest.raises(PromptError, match=r"has no chat template; chat: tuned takes the tuned model's \(--chat-"):
        encode(talk(), base, 500)


def test_a_base_keeps_its_own_template_beside_the_lent_one() -> None:
    base, tuned = with_template("base: {{ messages[0]['content'] }}"), with_template()
    lend_template(base, tuned)
    own, lent = encode(talk(), base, 500), encode(talk("tuned"), base, 500)
    assert base.decode(own[0].ids) == "base: The heart"
    assert base.decode(lent[0].ids) == "  <bos><|user|>The heart<eos>\n<|assistant|>"


def test_the_template_for_tools_is_lent_too() -> None:
    base, tuned = build_tokenizer(), build_tokenizer()
    tuned.chat_template = {"default": "plain", "tool_use": "with {{ tools[0]['name'] }}"}
    lend_template(base, tuned)
    tools = talk('tuned", "tools": [{"name": "weather"}], "x": "')
    tools = [Prompt("c", "s", "s", "x", chat=tools[0].chat.replace(', "x": ""', ""))]
    assert base.decode(encode(tools, base, 500)[0].ids) == "with weather"
    assert base.decode(encode(talk("tuned"), base, 500)[0].ids) == "plain"


def test_nobody_to_lend_a_template() -> None:
    tokenizer = build_tokenizer()
    borrow_template(tokenizer, {"a": build_tokenizer(), "b": None}, True)
    with pytest.raises(
        PromptError,
        match=r"'c' of s: chat: tuned takes the tuned model's chat template, and no tuned model has one; leave",
    ):
        encode(talk("tuned"), tokenizer, 500)


def test_all_but_the_base_lend_their_template() -> None:
    """It is the first of several, unless it is named; a base has a template of its own often."""
    own = dict.fromkeys(("a", "b", "c"), build_tokenizer())
    sources: dict[str, LiveSource] = {"a": "m/a", "b": "m/b", "c": Path("m/c")}
    assert list(lenders(own, sources, None)) == ["b", "c"] and list(lenders({"b": None}, {"b": "m/b"}, None)) == ["b"]
    assert list(lenders(own, sources, "m/c")) == ["a", "b"] and list(lenders(own, sources, "other")) == ["a", "b", "c"]


def test_the_tuned_models_template_serves_a_base_with_another(pair: tuple[Path, Path], tmp_path: Path) -> None:
    for path, template in zip(pair, ("base: {{ messages[0]['content'] }}", TEMPLATE), strict=True):
        with_template(template).save_pretrained(path)
    sources = dict(zip(("base", "tuned"), pair, strict=True))
    (tmp_path / "p.jsonl").write_text('{"id": "c", "text": "The heart"}\n')

    def written(chat: Chat, tokenizer: Path | None = None) -> list[str]:
        asked = PromptSet(file=tmp_path / "p.jsonl", chat=chat)
        return tv.quality(sources, asked, new_tokens=4, tokenizer=tokenizer).response.tolist()

    assert written(Chat(template="tuned")) == written(Chat(), pair[1]) != written(Chat(), pair[0])
    assert len(tv.evaluate(sources, task_file(tmp_path), limit=1, chat="tuned").variant.unique()) == 2


def test_two_templates_are_one_too_many() -> None:
    owners = {"a": with_template(), "none": None, "b": with_template(TEMPLATE + "!")}
    with pytest.raises(PromptError, match="chat: tuned: the chat templates of a and b differ"):
        borrow_template(build_tokenizer(), owners, True)
    borrow_template(build_tokenizer(), owners, False)  # only named in a message
    borrow_template(build_tokenizer(), {"a": with_template(), "b": with_template()}, True)


def test_words_of_the_template_that_are_no_tokens_of_the_base_are_named() -> None:
    base, tuned = build_tokenizer(), with_template()
    tuned.add_tokens(["<|user|>", "<|unused|>", "<|assistant|>"], special_tokens=True)
    lend_template(base, tuned)
    notes = own_notes(talk("tuned"), base, reading(tuned, base))
    assert notes[0].startswith("1 of 1 prompts become other tokens")
    assert notes[1] == (
        "the chat template writes '<|assistant|>', '<|user|>', which the base's tokenizer reads as plain text"
    )


def test_a_tokenizer_is_left_as_it_was() -> None:
    own, shared = build_tokenizer(), with_template()
    assert reading(own, shared).chat_template == TEMPLATE and own.chat_template is None
    assert reading(shared, own).chat_template.keys() == {"default", "tuned"} and shared.chat_template == TEMPLATE


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return build_pair(tmp_path, "llama")


def test_the_word_tuned_in_a_prompt_set(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"text": "The heart"}\n')
    for given in ("tuned", {"template": "tuned"}, {"template": "tuned", "system": "Be brief."}):
        (prompt,) = read_prompts([PromptSet(file=tmp_path / "p.jsonl", chat=given)])
        assert '"template": "tuned"' in str(prompt.chat)
    (prompt,) = read_prompts([PromptSet(file=tmp_path / "p.jsonl", chat=True)])
    assert "template" not in str(prompt.chat)
    with pytest.raises(ValueError, match="tuned"):
        PromptSet(file=tmp_path / "p.jsonl", chat={"template": "other"})


def test_every_command_on_two_models_says_how_many(pair: tuple[Path, Path]) -> None:
    edit(pair[1], lambda t: t.update(normalizer={"type": "Lowercase"}))
    prompts = plain("a lamp gives", "The heart pumps")
    said = "1 of 2 prompts become other tokens with its own tokenizer (first prompt 'p1' of s: "
    notes = encoder(pair[0], [tv.open_checkpoint(pair[1])], prompts)[1]
    assert notes[0] == "the tokenizers differ in normalizer" and notes[1].startswith(said)
    path = tv.path(*pair, prompts, alphas=(0, 1), draws=2)
    assert path.attrs["notes"][:2] == notes
    matched = tv.align(*pair, on="activations", prompts=prompts)
    assert [note for note in matched.attrs["notes"] if said in note or "differ in" in note] == notes
    items = tv.quality({"a": pair[0], "b": pair[1]}, prompts, new_tokens=1)
    assert [note for note in items.attrs["notes"] if said in note] == [f"b: {notes[1]}"]
    one = tv.quality(pair[1], prompts, new_tokens=1)
    assert not [note for note in one.attrs["notes"] if said in note]
    both = encoder(pair[0], [tv.open_checkpoint(pair[1]), tv.open_checkpoint(pair[0])], prompts)[1]
    assert both == [f"{pair[1]}: {note}" for note in notes]


def test_a_tasks_questions_are_counted(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    edit(pair[1], lambda t: t.update(normalizer={"type": "Lowercase"}))
    items = tv.evaluate({"a": pair[0], "b": pair[1]}, task_file(tmp_path), limit=2)
    (note,) = items.attrs["notes"]
    assert note.startswith("b: 2 of 2 prompts become other tokens with its own tokenizer (first prompt 'written-0' of")
    over = tv.evaluate({"b": pair[1]}, task_file(tmp_path), base=pair[0], limit=1).attrs["notes"]
    assert over[0].startswith("b: 1 of 1 prompts become other tokens")


def test_differing_rules_that_leave_the_prompts_alone(pair: tuple[Path, Path]) -> None:
    edit(pair[1], lambda t: t.update(normalizer={"type": "Lowercase"}))
    notes = encoder(pair[0], [tv.open_checkpoint(pair[1])], plain("a lamp gives"))[1]
    assert notes[1] == "its own tokenizer makes the same tokens of all 1 prompts"
