"""What a reader should know of how prompts are read is said once, with its count and the first prompt."""

import datetime
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.pairs import build_tokenizer
from tests.tv.prompts.templates import CALLING, RESULT, SYSTEM, TEMPLATES, THOUGHT, TOOL, USER
from tv.prompts.conversation import Conversation
from tv.prompts.files import Prompt, Prompts
from tv.prompts.notes import prompt_notes


def _tokenizer(template: str | None = None) -> PreTrainedTokenizerFast:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = TEMPLATES[template] if template else None
    return tokenizer


def _plain(text: str, target: str | None = None, name: str = "p") -> Prompt:
    return Prompt(name, "s", "d", text, target)


def _chat(messages: list[dict[str, Any]], target: str | None = None, **given: Any) -> Prompt:
    return Prompt("c", "s", "d", "x", target, chat=str(Conversation(messages, **given)))


def test_healthy_prompts_have_no_notes() -> None:
    assert prompt_notes([_plain("The heart pumps", " blood"), _plain("The heart")], _tokenizer()) == []
    assert prompt_notes([_chat([SYSTEM, USER], "Five.")], _tokenizer("tools")) == []
    assert prompt_notes([], _tokenizer()) == []


def test_notes_of_reading_come_first() -> None:
    prompts = Prompts([_plain("<bos>The heart")], ["p.csv: read with columns: {text: question}"])
    notes = prompt_notes(prompts, _tokenizer())
    assert notes[0] == prompts.notes[0] and notes[1].startswith("<bos> stands twice") and len(notes) == 2


def test_a_doubled_bos_is_counted_once_for_all() -> None:
    texts = ["The heart", "<bos>The liver", "<bos>A lamp", "A <bos> inside"]
    (note,) = prompt_notes([_plain(text, name=f"p{i}") for i, text in enumerate(texts)], _tokenizer())
    assert note.startswith("<bos> stands twice at the start: the tokenizer puts one before a text that has its own")
    assert note.endswith("(2 of 4, first prompt 'p1' of s)")


def test_a_doubled_bos_of_a_template_or_of_a_tokenizer_that_adds_none() -> None:
    tokenizer = _tokenizer()
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    notes = prompt_notes([_chat([{"role": "user", "content": "<bos>The heart"}])], tokenizer)
    assert any(note.startswith("<bos> stands twice at the start: the template or") for note in notes)
    tokenizer.backend_tokenizer.post_processor = None
    assert prompt_notes([_plain("<bos>The heart")], tokenizer) == []
    assert len(prompt_notes([_plain("<bos><bos>The heart")], tokenizer)) == 1


def test_several_tokens_at_the_start_can_be_doubled_too() -> None:
    from tokenizers import processors

    tokenizer = _tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<pad> <bos> $A", special_tokens=[("<pad>", 2), ("<bos>", 0)]
    )
    (note,) = prompt_notes([_plain("<pad><bos>The heart"), _plain("The heart")], tokenizer)
    assert note.startswith("<pad><bos> stands twice") and "(1 of 2," in note


JOINED = {
    "words": ("The heart pumps", "blood", True),
    "a colon": ("Answer:", "four", True),
    "a space before": ("Answer:", " four", False),
    "a space after": ("Answer: ", "four", False),
    "a quote": ("He said '", "four", False),
    "punctuation": ("The heart pumps", ".", False),
    "no spaces between words": ("心臓は", "血液", False),
    "no target": ("Answer:", None, False),
}


@pytest.mark.parametrize("case", JOINED)
def test_text_and_answer_that_run_together(case: str) -> None:
    text, target, told = JOINED[case]
    notes = prompt_notes([_plain(text, target)], _tokenizer())
    assert [note.startswith("the text ends without a space and the target begins") for note in notes] == [True] * told


SAID: dict[str, tuple[str, Prompt, list[str]]] = {
    "all is written": ("tools", _chat([SYSTEM, USER, CALLING, RESULT], tools=[TOOL]), ["tool_call_id of a message"]),
    "tools": ("documents", _chat([SYSTEM, USER], tools=[TOOL]), ["the list of tools"]),
    "documents": ("tools", _chat([USER], documents=[{"text": "x"}]), ["the list of documents"]),
    "thought of an earlier turn": ("tools", _chat([USER, THOUGHT, USER]), ["reasoning_content of a message"]),
    "name": ("strict", _chat([USER | {"name": "Ann"}]), ["name of a message"]),
    "option": ("strict", _chat([USER], options={"enable_thinking": False}), ["the option enable_thinking"]),
    "turn": (
        "folded",
        _chat([USER, RESULT]),
        ["a turn of the role 'tool'", "name of a message", "tool_call_id of a message"],
    ),
}


@pytest.mark.parametrize("case", SAID)
def test_what_a_template_passes_over_is_named(case: str) -> None:
    template, prompt, names = SAID[case]
    notes = prompt_notes([prompt, _chat([USER])], _tokenizer(template))
    ending = "changes nothing in what the chat template writes (1 of 2, first prompt 'c' of s)"
    assert notes == [f"{name} {ending}" for name in names]


def test_turns_that_were_written_by_hand() -> None:
    notes = prompt_notes(
        [_chat([{"role": "user", "content": "[Q]How much?[/Q]"}]), _chat([USER])], _tokenizer("folded")
    )
    assert notes == [
        "a turn's text contains '[Q]', which the chat template writes itself; leave it out of the text "
        "(1 of 2, first prompt 'c' of s)"
    ]
    tokenizer = _tokenizer("folded")
    tokenizer.add_special_tokens({"additional_special_tokens": ["[/Q]"]})
    (note,) = prompt_notes([_chat([{"role": "user", "content": "How much?[/Q]"}])], tokenizer)
    assert "contains '[/Q]'" in note


def test_a_reply_that_the_template_begins_otherwise() -> None:
    other = {"role": "user", "content": "Two?"}
    (note,) = prompt_notes([_chat([USER], "Five."), _chat([other], "Two.")], _tokenizer("thinks"))
    assert note.endswith("(2 of 2, first prompt 'c' of s)")
    assert note.startswith("the target follows the generation prompt (…'") and "<think>\\n')" in note
    assert prompt_notes([_chat([USER], "Five.")], _tokenizer("documents")) == []


def test_a_token_across_the_end_of_the_template() -> None:
    """Only where the answer cannot be encoded apart: here a word alone would get a space before it."""
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "▁blo": 1, "▁blood": 2, "▁od": 3}, unk_token="[UNK]"))
    words.pre_tokenizer, words.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    whole, apart = PreTrainedTokenizerFast(tokenizer_object=words), _tokenizer()
    for tokenizer, told in ((whole, [True]), (apart, [])):
        tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %} blo"
        notes = prompt_notes([_chat([USER], "od")], tokenizer)
        assert [True for note in notes if note.startswith("a token reaches across the end of the chat templ")] == told


@pytest.mark.parametrize(("template", "form"), [("dated", "%d %b %Y"), ("today", "%Y-%m-%d")])
def test_todays_date_is_told_with_the_line_that_keeps_it(template: str, form: str) -> None:
    today = datetime.datetime.now().strftime(form)
    (note,) = prompt_notes([_chat([USER])], _tokenizer(template))
    assert note.startswith(f"the chat template writes today's date, {today}: a run of another day reads other tokens")
    assert (f'; chat: {{options: {{date_string: "{today}"}}}} keeps it' in note) == (template == "dated")
    asked = [{"role": "user", "content": f"Is it {today}?"}]
    assert prompt_notes([_chat(asked)], _tokenizer(template)) == [note]
    if template == "dated":
        assert prompt_notes([_chat(asked, options={"date_string": today})], _tokenizer(template)) == []
