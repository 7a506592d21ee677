"""The prompt that the models read is the one that was given: its tokens are those of `apply_chat_template`."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from tests.pairs import build_tokenizer, write_prompts
from tests.tv.prompts.templates import CALLING, CONVERSATIONS, RESULT, SYSTEM, TEMPLATES, THOUGHT, TOOL, USER
from tv.errors import PromptError
from tv.prompts.conversation import Conversation
from tv.prompts.encoding import Encoded, encode, encode_continuations
from tv.prompts.files import Chat, Prompt, PromptSet, read_prompts


def _tokenizer(template: str) -> PreTrainedTokenizerFast:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = TEMPLATES[template]
    return tokenizer


def _read(path: Path, row: dict[str, Any], **chat: Any) -> Prompt:
    (prompt,) = read_prompts([PromptSet(file=write_prompts(path / "rows.jsonl", [row]), chat=Chat(**chat))])
    return prompt


def _encoded(template: str, path: Path, row: dict[str, Any], **chat: Any) -> Encoded:
    return encode([_read(path, row, **chat)], _tokenizer(template), 4096)[0]


#: Conversations that a template refuses, as `apply_chat_template` does.
REFUSED = {("strict", "system"), ("strict", "tools"), ("strict", "result"), ("folded", "parts")}
#: Those that it would print as a list.
PRINTED = {(name, "parts") for name in ("dated", "today", "thinks", "documents")} | {("strict", "parts")}


@pytest.mark.sampled(30)
@pytest.mark.parametrize("case", CONVERSATIONS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_the_tokens_are_those_of_apply_chat_template(template: str, case: str, tmp_path: Path) -> None:
    row, tokenizer = CONVERSATIONS[case], _tokenizer(template)
    if (template, case) in REFUSED | PRINTED:
        with pytest.raises(PromptError, match="'rows-1' of rows: the chat template ") as caught:
            _encoded(template, tmp_path, row)
        assert "\n" not in str(caught.value)
        return
    options = row.get("chat_template_kwargs", {})
    expected = tokenizer.apply_chat_template(
        row["messages"],
        tools=row.get("tools"),
        documents=row.get("documents"),
        add_generation_prompt=True,
        **options,
    )["input_ids"]
    for target in (None, "Five."):
        item = _encoded(template, tmp_path, row | ({"target": target} if target else {}))
        assert list(item.ids[: item.n_text]) == expected and (len(item.ids) > len(expected)) == bool(target)


def test_what_a_template_writes_of_tools_in_words(tmp_path: Path) -> None:
    """The order of a tool's keys is that of the row."""
    row = {"messages": [SYSTEM, USER, CALLING, RESULT], "tools": [TOOL]}
    item = _encoded("tools", tmp_path, row)
    assert _tokenizer("tools").decode(item.ids) == (
        '<sys>Be brief. Tools: {"type": "function", "function": {"name": "dose", "parameters": {"type": "object", '
        '"properties": {}}}}</sys><user>How much?</user><assistant><call>{"name": "dose", "arguments": {"of": "it", '
        '"by": 2}}</call></assistant>\n<result dose>5 mg</result><assistant>'
    )
    assert item.prompt.text == "5 mg"


def test_options_of_a_row_win_over_the_sets(tmp_path: Path) -> None:
    decode = _tokenizer("tools").decode
    row = CONVERSATIONS["thinking on"]
    assert decode(_encoded("tools", tmp_path, row, options={"enable_thinking": False}).ids).endswith("<assistant>")
    alone = _encoded("tools", tmp_path, {"messages": [USER]}, options={"enable_thinking": False})
    assert decode(alone.ids).endswith("<assistant><think></think>")


REPLIES: dict[str, tuple[dict[str, Any], str]] = {
    "call": (CALLING, '<call>{"name": "dose", "arguments": {"of": "it", "by": 2}}</call>'),
    "thought": (THOUGHT, "<think>It says five.</think>Five."),
    "text": ({"role": "assistant", "content": "Five."}, "Five."),
    "nothing else": ({"role": "assistant", "content": "Five.", "weight": 1}, "Five."),
}


@pytest.mark.parametrize("case", REPLIES)
def test_a_reply_is_the_target_as_the_template_writes_it(case: str, tmp_path: Path) -> None:
    """The end of the turn is left out, as after a reply of text alone."""
    reply, target = REPLIES[case]
    item = _encoded("tools", tmp_path, {"messages": [USER, reply], "tools": [TOOL]})
    tokenizer = _tokenizer("tools")
    whole = tokenizer.apply_chat_template([USER, reply], tools=[TOOL])["input_ids"]
    assert item.prompt.target == target == tokenizer.decode(item.ids[item.n_text :])
    assert list(item.ids) == whole[: len(item.ids)]
    assert tokenizer.decode(whole[len(item.ids) :]) == "</assistant>\n"
    again = encode([item.prompt], tokenizer, 4096)[0]
    assert again == item


def test_a_reply_that_cannot_be_told_apart_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=r"writes nothing of the reply, which holds role and content and tool_calls"):
        _encoded("documents", tmp_path, {"messages": [USER, CALLING | {"content": ""}]})
    off = {"messages": [USER, THOUGHT], "chat_template_kwargs": {"enable_thinking": False}}
    with pytest.raises(PromptError, match=r"not begin the reply with its generation prompt \(…'.*<think></think>'\)"):
        _encoded("tools", tmp_path, off)
    kept = _encoded("thinks", tmp_path, {"messages": [USER, THOUGHT]})
    assert kept.prompt.target == "Five."  # the template drops what was thought


def test_a_template_that_takes_no_system_turn_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="there is no system here; it takes no system turn: put the system's words"):
        _encoded("strict", tmp_path, {"text": "How much?"}, system="Be brief.")
    turns = {"messages": [SYSTEM, USER, USER]}  # refused for another reason too
    with pytest.raises(PromptError) as caught:
        _encoded("strict", tmp_path, turns)
    assert str(caught.value).endswith("there is no system here")
    with pytest.raises(PromptError, match="give each content as one string"):
        _encoded("folded", tmp_path, CONVERSATIONS["parts"])


@pytest.mark.parametrize(
    ("ending", "target"), [(" blo", "od"), ("\n\n", "Five."), ("<turn>\n", " four"), ("ing ", "\n")]
)
def test_a_templates_tokens_are_the_same_whatever_follows(ending: str, target: str) -> None:
    """Together each of these would be other tokens, and of the third one token would be the target's."""
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<turn>", rstrip=True, special=True)]})
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}" + ending
    expected = tokenizer.apply_chat_template([USER], add_generation_prompt=True)["input_ids"]
    chat = str(Conversation([USER]))
    prompt = Prompt("p", "s", "d", "x", target, continuation=target + "?", chat=chat)
    item = encode([prompt], tokenizer, 64)[0]
    continued = encode_continuations([item], tokenizer, 64)[0]
    assert list(item.ids[: item.n_text]) == expected == list(continued.ids[: continued.n_text])
    text = tokenizer.decode(item.ids[item.n_text :])
    assert text == target or (ending, text) == ("<turn>\n", target.strip())


@pytest.mark.parametrize("template", ["dated", "today"])
def test_a_text_with_todays_date_is_kept(template: str, tmp_path: Path) -> None:
    """A run's prompts are the same tomorrow: here the template itself is another one."""
    item = _encoded(template, tmp_path, {"text": "How much?"})
    assert encode([item.prompt], _tokenizer("tools"), 4096)[0] == item
    kept = _encoded("dated", tmp_path, CONVERSATIONS["a day"])
    assert "rendered" not in json.loads(kept.prompt.chat or "")
