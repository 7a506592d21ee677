"""A prompt through the tokenizer's chat template: the text up to the reply, and a reply that only it can write.

The text is that of `tokenizer.apply_chat_template(messages, tools=…, add_generation_prompt=True, **options)`.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tv.errors import PromptError, first_line
from tv.prompts.conversation import Conversation, Message, text_of
from tv.prompts.sets import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARK = "\ue000"  # of private use, so that no template writes it by itself


def settled(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> Prompt:
    """The prompt with what only the tokenizer's template can say of it.

    A reply with tool calls or reasoning becomes the target as the template writes it. A text with today's date in it is
    kept, so that the same prompt is the same tomorrow.

    Args:
        prompt: Any prompt; one without a chat is returned as it is.
        tokenizer: The models' tokenizer.

    Raises:
        PromptError: There is no template, or it refuses the conversation, or it writes a reply that does not follow.
    """
    if prompt.chat is None:
        return prompt
    conversation = Conversation.of(prompt.chat)
    if conversation.rendered is None and dates(conversation, tokenizer):
        rendered = _written(prompt, conversation, tokenizer)
        prompt = replace(prompt, chat=str(replace(conversation, rendered=rendered)))
    if conversation.reply is not None:
        prompt = replace(prompt, target=_reply(prompt, conversation, tokenizer))
    return prompt


def before_reply(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> str:
    """The prompt's text as the models read it, up to where the answer starts."""
    if prompt.chat is None:
        return prompt.text
    conversation = Conversation.of(prompt.chat)
    return conversation.rendered or _written(prompt, conversation, tokenizer)


def write(conversation: Conversation, tokenizer: PreTrainedTokenizerBase) -> str:
    """What the template writes of a conversation: up to the reply, or with it. It may raise anything."""
    if conversation.reply is None:
        return _apply(conversation, conversation.messages, tokenizer, True)
    return _apply(conversation, [*conversation.messages, conversation.reply], tokenizer, False)


def dates(conversation: Conversation, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Today's date, in the forms in which the template writes it into this conversation."""
    source = str(tokenizer.chat_template or "")
    forms = dict.fromkeys(re.findall(r"strftime_now\(\s*['\"](.+?)['\"]\s*\)", source))
    if not forms:
        return []
    try:
        text = write(replace(conversation, reply=None), tokenizer)
    except Exception:  # a template is a program and may raise anything; `before_reply` says what
        return []
    today = [datetime.datetime.now().strftime(form) for form in forms]
    return [date for date in today if text.count(date) > str(conversation).count(date)]


def place(prompt: Prompt) -> str:
    """A prompt's name in messages."""
    return f"prompt {prompt.id!r} of {prompt.set}"


def _apply(
    conversation: Conversation, messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, reply_follows: bool
) -> str:
    options = {
        **conversation.options,
        "tools": conversation.tools,
        "documents": conversation.documents,
        "tokenize": False,
        "add_generation_prompt": reply_follows,
    }
    if conversation.template is not None:
        named = templates_of(tokenizer)
        of_tools = f"{conversation.template} tool_use" if conversation.tools else ""
        options["chat_template"] = named.get(of_tools) or named[conversation.template]
    return str(tokenizer.apply_chat_template(list(messages), **options))


def templates_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """A tokenizer's chat templates by name; the only one is "default"."""
    templates = tokenizer.chat_template
    return dict(templates) if isinstance(templates, Mapping) else {"default": templates} if templates else {}


def _lacking(conversation: Conversation, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Why there is no template for a conversation, and what to do; None where there is one."""
    named = templates_of(tokenizer)
    if conversation.template is not None and conversation.template not in named:
        return (
            f"chat: {conversation.template} takes the tuned model's chat template, and no tuned model has one; leave "
            "out chat, or write the turns into the text"
        )
    if conversation.template is None and "default" not in named:
        remedy = "chat: tuned takes the tuned model's (--chat-template tuned)" if "tuned" in named else "leave out chat"
        return f"the tokenizer has no chat template; {remedy}, or write the turns into the text"
    return None


def _written(prompt: Prompt, conversation: Conversation, tokenizer: PreTrainedTokenizerBase) -> str:
    """What the template writes up to the reply. Raises PromptError where it refuses, and for parts that it prints."""
    if lacking := _lacking(conversation, tokenizer):
        raise PromptError(f"{place(prompt)}: {lacking}")
    asked = replace(conversation, reply=None)
    try:
        text = write(asked, tokenizer)
    except Exception as error:  # a template is a program and may raise anything
        said = first_line(error) + _remedy(asked, tokenizer)
        raise PromptError(f"{place(prompt)}: the chat template refuses it: {said}") from None
    for parts in (message.get("content") for message in asked.messages):
        if isinstance(parts, list) and (str(parts) in text or json.dumps(parts, ensure_ascii=False) in text):
            raise PromptError(f"{place(prompt)}: the chat template knows no parts; give each content as one string")
    return text


def _remedy(conversation: Conversation, tokenizer: PreTrainedTokenizerBase) -> str:
    """What to do, where the template takes the conversation in another form."""
    messages = conversation.messages
    others = [message for message in messages if message["role"] != "system"]
    joined = [message | {"content": text_of(message)} for message in messages]
    if others and others != messages and _takes(others, conversation, tokenizer):
        return (
            "; it takes no system turn: put the system's words before those of the first user turn, or leave them out"
        )
    if joined != messages and _takes(joined, conversation, tokenizer):
        return "; give each content as one string"
    return ""


def _takes(messages: Sequence[Message], conversation: Conversation, tokenizer: PreTrainedTokenizerBase) -> bool:
    try:
        _apply(conversation, messages, tokenizer, True)
    except Exception:
        return False
    return True


def _reply(prompt: Prompt, conversation: Conversation, tokenizer: PreTrainedTokenizerBase) -> str:
    """The reply as the template writes it, without the end of the turn."""
    before = _written(prompt, conversation, tokenizer)
    reply = conversation.reply or {}
    text = {"role": reply["role"], "content": text_of(reply)}
    try:
        whole = write(conversation, tokenizer)
        marked = write(replace(conversation, reply=text | {"content": _MARK}), tokenizer)
        if not whole.startswith(before) and whole == write(replace(conversation, reply=text), tokenizer):
            return text_of(reply)  # nothing else of the reply is written
    except Exception as error:
        raise PromptError(f"{place(prompt)}: the chat template refuses the reply: {first_line(error)}") from None
    if not whole.startswith(before):
        raise PromptError(
            f"{place(prompt)}: the chat template does not begin the reply with its generation prompt "
            f"(…{before[-24:]!r}); leave it out of the messages and give a target"
        )
    target = whole.removeprefix(before).removesuffix(marked.rpartition(_MARK)[2])
    if not target.strip():
        raise PromptError(
            f"{place(prompt)}: the chat template writes nothing of the reply, which holds {' and '.join(reply)}; leave "
            "it out of the messages and give a target"
        )
    return target
