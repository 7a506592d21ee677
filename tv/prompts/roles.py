"""Whose words the tokens of a prompt are: the system's, the user's, the answer's, or the template's."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

from tv.errors import PromptError
from tv.prompts.files import Prompt

Role = Literal["system", "user", "answer", "template"]
#: Makes the text that models read of a prompt, up to where the answer starts.
Render = Callable[[Prompt], str]
#: The keys of a turn that hold its words.
_WORDS = ("content", "reasoning_content", "thinking")
_SYSTEM = ("system", "developer")
#: Stands for the words of a turn: private characters, which no text has and no template changes.
_MARK = "\ue000\ue001\ue000"


def text_roles(
    prompt: Prompt, text: str, ids: Sequence[int], ends: Sequence[int], special: Collection[int], render: Render
) -> tuple[Role, ...]:
    """The role of every token of a prompt's text.

    In a conversation `system` is what its system turns say and `user` what all other turns before the answer say: the
    user's, earlier ones of the assistant, tools' results. The rest is `template`: headers, tool definitions and calls,
    and a system prompt that the template adds. A plain text is the user's. Special tokens are `template`. A token
    that reaches over a border has the role of its last character.

    Args:
        prompt: The prompt.
        text: What `render` makes of it.
        ids: The tokens of the text.
        ends: Where each ends in the text; 0 for special tokens that the tokenizer puts in front.
        special: The ids of special tokens.
        render: How it becomes what the models read, up to where the answer starts.
    """
    owners: list[Role] = ["template"] * len(text)
    whole: Iterable[tuple[int, int, Role]] = [(0, len(text), "user")]
    for start, stop, role in whole if prompt.chat is None else _turns(prompt, text, render):
        owners[start:stop] = [role] * (stop - start)
    return tuple(
        owners[end - 1] if end and token not in special else "template" for token, end in zip(ids, ends, strict=True)
    )


def own_words(sets: Sequence[str], texts: Sequence[tuple[int, ...]], roles: Sequence[Sequence[Role]]) -> Iterator[int]:
    """Where in each text the user's own words begin: the user's first token after those that all of its set share.

    A text's last token where it has none.

    Args:
        sets: The prompt set of each text.
        texts: Tokens.
        roles: Of these tokens.
    """
    shared = {name: _shared([text for of, text in zip(sets, texts, strict=True) if of == name]) for name in set(sets)}
    for name, text, of in zip(sets, texts, roles, strict=True):
        own = (pos for pos in range(shared[name], len(text)) if of[pos] == "user")
        yield next(own, len(text) - 1)


def _shared(texts: Sequence[tuple[int, ...]]) -> int:
    """How many tokens all texts begin with; none where all are the same text."""
    first, last = min(texts), max(texts)  # what these two share, all between them do
    same = [a == b for a, b in zip(first, last, strict=False)]
    return 0 if first == last else [*same, False].index(False)


def _turns(prompt: Prompt, text: str, render: Render) -> Iterator[tuple[int, int, Role]]:
    """(start, stop, role) in `text` of what each turn says.

    The conversation is rendered again with a mark in place of one turn's words: what comes before and after the mark
    is as without it, and between the two are the words, trimmed or cut as the template does. None is given for a turn
    that the template leaves out or writes in another way. A text that was kept may have another date in it than the
    template writes today; there the words are looked for.
    """
    conversation = json.loads(str(prompt.chat))
    kept = conversation.pop("rendered", None) is not None

    def written() -> str:
        try:
            return render(replace(prompt, chat=json.dumps(conversation)))
        except PromptError:
            return ""

    whole, done = written() if kept else text, 0
    for role, holder, key in _words(conversation["messages"]):
        said, holder[key] = holder[key], _MARK
        before, *after = written().split(_MARK)
        holder[key] = said
        start, stop = len(before), len(whole) - len("".join(after))
        if len(after) == 1 and start <= stop and whole.startswith(before) and whole.endswith(after[0]):
            words = whole[start:stop]
        elif not whole:
            words = said.strip()
        else:
            continue
        likely = [start + len(text) - len(whole), start]  # after the date, or before it
        found = next((at for at in likely if at >= 0 and text.startswith(words, at)), text.find(words, done))
        if found >= 0:
            done = found + len(words)
            yield found, done, role


def _words(messages: Sequence[dict[str, Any]]) -> Iterator[tuple[Role, dict[str, Any], str]]:
    """Every turn's words: their role, and the mapping and key that hold them."""
    for message in messages:
        role: Role = "system" if message.get("role") in _SYSTEM else "user"
        parts = message.get("content")
        holders = [(message, key) for key in _WORDS]
        holders += [(part, "text") for part in (parts if isinstance(parts, list) else ())]
        for holder, key in holders:
            if isinstance(holder, dict) and isinstance(holder.get(key), str) and holder[key].strip():
                yield role, holder, key
