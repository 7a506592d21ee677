"""What a reader should know of how the models read the prompts: a line for each kind of trouble, with its count."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from tv.prompts.conversation import Conversation, Message, besides, text_of
from tv.prompts.encoding import Encoded, encode
from tv.prompts.files import Prompt, Prompts
from tv.prompts.template import before_reply, dates, place, write

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def prompt_notes(prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Notes of how prompts are read, from their columns to their tokens.

    Args:
        prompts: As `read_prompts` or `gather` gives them, or any others.
        tokenizer: The models' tokenizer.

    Returns:
        A line each: columns that were understood by their names; then, each with how many prompts it is true of and
        with the first, a doubled BOS, and text and answer that run together; and of conversations what changes nothing
        in what the template writes, turns that were written by hand, a template that begins a reply otherwise than the
        target does, tokens across the start of the reply, and today's date.

    Raises:
        PromptError: A prompt that cannot be encoded.
    """
    encoded = encode(prompts, tokenizer, sys.maxsize)
    opening = _opening(tokenizer)
    chats = [item.prompt.chat for item in encoded if item.prompt.chat is not None]
    marks = _marks(tokenizer, Conversation.of(chats[0]).template) if chats else []
    found: dict[str, list[Encoded]] = {}
    for item in encoded:
        said = [*_doubled(item, opening, tokenizer), *_run_together(item), *_of_template(item, tokenizer, marks)]
        for note in dict.fromkeys(said):
            found.setdefault(note, []).append(item)
    read = prompts.notes if isinstance(prompts, Prompts) else ()
    return [
        *read,
        *(f"{note} ({len(of)} of {len(encoded)}, first {place(of[0].prompt)})" for note, of in found.items()),
    ]


def _opening(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The special tokens that the tokenizer puts before a text; its BOS where it puts none."""
    out = tokenizer("a", return_special_tokens_mask=True, return_offsets_mapping=True)
    before: list[int] = []
    for token, special, (begin, end) in zip(*(out[name] for name in _PARTS), strict=True):
        if not special or begin != end:
            break
        before.append(token)
    return tuple(before or [token for token in [tokenizer.bos_token_id] if token is not None])


_PARTS = ("input_ids", "special_tokens_mask", "offset_mapping")


def _doubled(item: Encoded, opening: tuple[int, ...], tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    if opening and item.ids[: 2 * len(opening)] == opening * 2:
        token = "".join(tokenizer.convert_ids_to_tokens(list(opening)))
        adds = "the tokenizer" if item.prompt.chat is None else "the template or the tokenizer"
        yield f"{token} stands twice at the start: {adds} puts one before a text that has its own; remove that one"


def _run_together(item: Encoded) -> Iterator[str]:
    if item.prompt.runs_together:
        yield (
            "the text ends without a space and the target begins without one, and the models read them as one word; "
            'separator: " " of the prompt set puts a space between them'
        )


def _marks(tokenizer: PreTrainedTokenizerBase, template: str | None) -> list[str]:
    """What the template writes around a user's words: its special tokens there, and the line before them."""
    turn = Conversation([{"role": "user", "content": "\ue000"}], template=template)
    try:
        text = write(turn, tokenizer)
    except Exception:  # a template is a program and may raise anything
        return []
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    line = text.partition("\ue000")[0].removeprefix(tokenizer.bos_token or "").strip().rpartition("\n")[2]
    return [*(token for token in special if token in text), *([line] if line else [])]


def _of_template(item: Encoded, tokenizer: PreTrainedTokenizerBase, marks: Sequence[str]) -> Iterator[str]:
    if item.prompt.chat is None:
        return
    conversation = replace(Conversation.of(item.prompt.chat), rendered=None)
    whole, today = _writes(conversation, tokenizer), dates(conversation, tokenizer)
    if whole is None:  # kept from another template
        return
    for name, without in _less(conversation):
        if _writes(without, tokenizer) == whole and dates(without, tokenizer) == today:
            yield f"{name} changes nothing in what the chat template writes"
    words = [text_of(message) for message in conversation.messages]
    for mark in [mark for mark in marks if any(mark in one for one in words)][:1]:
        yield f"a turn's text contains {mark!r}, which the chat template writes itself; leave it out of the text"
    if "None" in whole and "None" not in (_writes(_changed(conversation, _filled), tokenizer) or "None"):
        yield "the chat template writes a content of null as 'None'; give an empty string"
    before = before_reply(item.prompt, tokenizer)
    ids = tuple(tokenizer(before, add_special_tokens=False, verbose=False)["input_ids"])
    if item.ids[: len(ids)] != ids:
        yield "a token reaches across the end of the chat template into the answer"
    if conversation.reply is None and item.prompt.target is not None:
        target = item.prompt.target
        replies = [{"role": "assistant", "content": words} for words in (target, target.strip())]
        written = [_writes(replace(conversation, reply=reply), tokenizer) for reply in replies]
        wanted = (before + target, before + target.lstrip())
        if written[0] is not None and not any(one is not None and one.startswith(wanted) for one in written):
            opening = before.rpartition(words[-1].strip() or "\n")[2] if words else before  # the same for every prompt
            yield (
                f"the target follows the generation prompt (…{opening[-16:]!r}), and the chat template itself writes a "
                "reply otherwise; an option such as enable_thinking: false may bring the two together"
            )
    for date in today:
        variable = re.search(r"\b(\w*date\w*) is (?:not )?defined", str(tokenizer.chat_template))
        keeps = f'; chat: {{options: {{{variable[1]}: "{date}"}}}} keeps it' if variable else ""
        yield f"the chat template writes today's date, {date}: a run of another day reads other tokens{keeps}"


def _less(conversation: Conversation) -> Iterator[tuple[str, Conversation]]:
    """Each thing that a template may pass over, and the conversation without it."""
    for name in conversation.options:
        kept = {key: value for key, value in conversation.options.items() if key != name}
        yield f"the option {name}", replace(conversation, options=kept)
    if conversation.tools:
        yield "the list of tools", replace(conversation, tools=None)
    if conversation.documents:
        yield "the list of documents", replace(conversation, documents=None)
    messages = [*conversation.messages, *([conversation.reply] if conversation.reply else [])]
    for role in dict.fromkeys(message["role"] for message in conversation.messages):
        others = [message for message in conversation.messages if message["role"] != role]
        if others and role not in ("user", "assistant"):
            yield f"a turn of the role {role!r}", replace(conversation, messages=others)
    for key in dict.fromkeys(key for message in messages for key in besides(message)):
        yield f"{key} of a message", _changed(conversation, partial(_dropped, key))


def _changed(conversation: Conversation, change: Callable[[Message], Message]) -> Conversation:
    reply = conversation.reply and change(conversation.reply)
    return replace(conversation, messages=[change(message) for message in conversation.messages], reply=reply)


def _dropped(key: str, message: Message) -> Message:
    return {name: value for name, value in message.items() if name != key}


def _filled(message: Message) -> Message:
    return message | {"content": message.get("content") or ""}


def _writes(conversation: Conversation, tokenizer: PreTrainedTokenizerBase) -> str | None:
    try:
        return write(conversation, tokenizer)
    except Exception:
        return None
