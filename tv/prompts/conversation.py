"""What a chat template is given: a row's messages, tools, documents and options, whole, and the reply apart."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from tv.errors import PromptError
from tv.prompts.row import MOST_CHARACTERS
from tv.prompts.sets import CHAT_KEYS, OURS, Chat

Message = dict[str, Any]


@dataclass(frozen=True)
class Conversation:
    """What a chat template is given. Nothing that a row says is left out."""

    messages: list[Message]  # those before the reply
    options: dict[str, Any] = field(default_factory=dict)  # other variables of the template
    tools: list[Any] | None = None
    documents: list[Any] | None = None
    reply: Message | None = None  # the assistant's last message, where only the template can write it as text
    template: str | None = None  # by name: the tuned model's is "tuned"; None: the tokenizer's own
    rendered: str | None = None  # what the template wrote, where it would write something else on another day

    @classmethod
    def of(cls, chat: str) -> Conversation:
        """The conversation of `Prompt.chat`."""
        return cls(**json.loads(chat))

    def __str__(self) -> str:
        """As `Prompt.chat`. The order of keys is kept, because templates write tools as they come."""
        needed = {name: value for name, value in asdict(self).items() if value is not None}
        return json.dumps(needed, ensure_ascii=False)


def read_conversation(values: Mapping[str, Any], chat: Chat, place: str) -> tuple[Conversation, str | None]:
    """The conversation that a row's values make, and the text of the reply that it ends with.

    Args:
        values: By key: messages, or else a text that becomes the user's; tools, documents and chat_template_kwargs.
        chat: The system's words where the messages have none, and the options of the template.
        place: The file and line, or row, for messages.

    Raises:
        PromptError: The first value that cannot be used.
    """
    given = {key: _from_text(values[key], key, place) for key in CHAT_KEYS if values.get(key) is not None}
    if "messages" in given:
        messages = _messages(given["messages"], place)
    else:
        messages = [{"role": "user", "content": values.get("text")}]
    reply, target = None, None
    if messages[-1]["role"] == "assistant":
        reply = messages.pop()
        target = text_of(reply) or json.dumps(besides(reply), ensure_ascii=False)
        if isinstance(reply.get("content"), str) and not besides(reply):
            reply = None  # its text is all that there is to it
    if not messages:
        raise PromptError(f"{place}: messages hold no turn before the assistant's reply")
    if chat.system is not None and messages[0]["role"] not in ("system", "developer"):
        messages = [{"role": "system", "content": chat.system}, *messages]
    options = {**chat.options, **_options(given.get("chat_template_kwargs", {}), place)}
    tools, documents = (_list(given.get(key), key, place) for key in ("tools", "documents"))
    conversation = Conversation(messages, options, tools, documents, reply, chat.template)
    _require_text(conversation, place)
    return conversation, target


def text_of(message: Message) -> str:
    """The text of a message; of several parts, theirs together."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def last_text(messages: list[Message]) -> str | None:
    """The text of the last message that has one."""
    return next((text for text in map(text_of, reversed(messages)) if text.strip()), None)


def _from_text(value: Any, key: str, place: str) -> Any:
    """A value, which a CSV cell or a column of strings holds as JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise PromptError(f"{place}: {key} is {_FORMS[key]}, and this text is not JSON") from None


_FORMS = {
    "messages": "a list of turns, each with role and content",
    "tools": "a list of tools",
    "documents": "a list of documents",
    "chat_template_kwargs": "a mapping of the template's options",
}


def _list(value: Any, key: str, place: str) -> list[Any] | None:
    if value is None:
        return None
    if not isinstance(value, list | tuple):
        raise PromptError(f"{place}: {key} is {_FORMS[key]}, not {type(value).__name__}")
    odd = next((i for i, item in enumerate(value, 1) if not isinstance(item, Mapping)), None)
    if odd is not None:
        raise PromptError(f"{place}: item {odd} of {key} is {type(value[odd - 1]).__name__}, not a mapping")
    return list(value)


def _options(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise PromptError(
            f"{place}: chat_template_kwargs is {_FORMS['chat_template_kwargs']}, not {type(value).__name__}"
        )
    ours = next((name for name in value if name in OURS), None)
    if ours is not None:
        raise PromptError(f"{place}: chat_template_kwargs cannot set {ours!r}; remove it")
    return dict(value)


def _messages(value: Any, place: str) -> list[Message]:
    if not isinstance(value, list | tuple) or not value:
        raise PromptError(f"{place}: messages is {_FORMS['messages']}")
    return [_message(given, i, place) for i, given in enumerate(value, 1)]


def _message(given: Any, number: int, place: str) -> Message:
    """A message as it was given; `from` and `value` are the role and the content."""
    if not isinstance(given, Mapping):
        raise PromptError(f"{place}: message {number} is {type(given).__name__}, not a role and its content")
    message = dict(given)
    if "role" not in message and "from" in message:
        speaker = message.pop("from")
        if not isinstance(speaker, str) or speaker not in _SPEAKERS:
            raise PromptError(f"{place}: message {number} is from {speaker!r}, which is no role; give role and content")
        message = {"role": _SPEAKERS[speaker], "content": message.pop("value", None), **message}
    role, content = message.get("role"), message.get("content")
    if role is None:
        raise PromptError(f"{place}: role of message {number} is missing")
    if not isinstance(role, str) or not role.strip():
        raise PromptError(f"{place}: role of message {number} is no name; use system, user, assistant or tool")
    if isinstance(content, list | tuple):
        _require_parts(content, number, place)
    elif content is None:
        if role != "assistant" or not besides(message):
            raise PromptError(f"{place}: content of message {number} is missing")
    elif not isinstance(content, str):
        kind = type(content).__name__
        raise PromptError(f"{place}: content of message {number} is {kind}, not a string; put it in quotes")
    elif not content.strip() and role != "tool" and not besides(message):
        raise PromptError(f"{place}: content of message {number} is blank")
    return message


#: Who speaks in a message with `from` and `value`, as a role.
_SPEAKERS = {"human": "user", "gpt": "assistant", "observation": "tool"} | {
    role: role for role in ("system", "user", "assistant", "tool")
}


def besides(message: Message) -> dict[str, Any]:
    """What a message has besides its role and content."""
    held = {key: value for key, value in message.items() if key not in ("role", "content")}
    return {key: value for key, value in held.items() if value not in ([], "", None)}


def _require_parts(parts: Any, number: int, place: str) -> None:
    for part in parts:
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise PromptError(
                f"{place}: content of message {number} has a part of type {kind!r} that holds no text; a part is "
                '{"type": "text", "text": …}'
            )
    if not any(part["text"].strip() for part in parts):
        raise PromptError(f"{place}: content of message {number} is blank")


def _require_text(conversation: Conversation, place: str) -> None:
    """Raise PromptError for what no template or tokenizer takes."""
    try:
        chat = str(conversation)
    except TypeError as error:
        raise PromptError(f"{place}: the conversation holds what JSON does not: {error}") from None
    if len(chat) > MOST_CHARACTERS:
        raise PromptError(f"{place}: the conversation has {len(chat):,} characters, more than any model reads; cut it")
    try:
        chat.encode()
    except UnicodeEncodeError:
        raise PromptError(f"{place}: the conversation holds half of a surrogate pair, which is no character") from None
