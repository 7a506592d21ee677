"""Prompts as tokens, in right-padded batches of similar length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from tv.errors import PromptError
from tv.prompts.files import Chat, Prompt, PromptSet, read_prompts
from tv.prompts.roles import Role, own_words, text_roles
from tv.prompts.sets import Positions
from tv.prompts.template import before_reply, place as _place, settled

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "Batch",
    "Chat",
    "Encoded",
    "Positions",
    "Prompt",
    "PromptSet",
    "batches",
    "encode",
    "encode_continuations",
    "positions",
    "read_prompts",
]


@dataclass(frozen=True)
class Encoded:
    """A prompt as tokens. Position p predicts token p + 1."""

    prompt: Prompt
    ids: tuple[int, ...]  # text + target, or text + continuation, with special tokens before them
    n_text: int  # index of the first token after the text; len(ids) where nothing follows it
    answer_pos: int  # its next-token logits separate target and foil; n_text − 1 without a foil
    target_id: int  # the first token in which target and foil differ, or the target's first; −1 without a target
    foil_id: int  # −1 without a foil
    continued: bool = False  # a continuation replaces the target
    text_roles: tuple[Role, ...] = ()  # of the text's tokens
    user_pos: int = 0  # the user's first token after those that all texts of its set share; n_text − 1 without one

    @property
    def roles(self) -> tuple[Role, ...]:
        """Whose words every token is."""
        before = self.text_roles[: self.n_text]
        answer: Role = "answer"
        return (*before, *[answer] * (len(self.ids) - len(before)))

    @property
    def scored(self) -> range:
        """The positions that predict the target's tokens; empty without one, or with a continuation in its place."""
        return range(self.n_text - 1, len(self.ids) - 1) if not self.continued else range(0)

    @property
    def generated(self) -> range:
        """The positions that predict the continuation's tokens; empty without a continuation."""
        return range(self.n_text - 1, len(self.ids) - 1) if self.continued else range(0)

    def followed_by(self, continuation: Sequence[int], text: Sequence[int] | None = None) -> Encoded:
        """The same text (in these tokens, if they are given), followed by a continuation and not by the target.

        Where target and foil differ only after shared tokens, and the continuation does not start with these, no
        position tells the two apart: then there is no foil.
        """
        text = self.ids[: self.n_text] if text is None else text
        ids = (*text, *continuation)
        item = replace(self, ids=ids, n_text=len(text), continued=True)
        if ids[: self.answer_pos + 1] == self.ids[: self.answer_pos + 1]:
            return item
        first = -1 if self.target_id < 0 else self.ids[self.n_text]
        return replace(item, answer_pos=len(text) - 1, target_id=first, foil_id=-1)


@dataclass(frozen=True)
class Batch:
    """Prompts padded on the right, so that no architecture needs position ids."""

    encoded: tuple[Encoded, ...]
    input_ids: Int[Tensor, "batch pos"]
    attention_mask: Int[Tensor, "batch pos"]  # 1 for a token, 0 for padding


def encode(prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, context: int) -> list[Encoded]:
    """Tokens of text + target, encoded together; a token across the boundary counts as the target's.

    Special tokens that the tokenizer puts in front are kept; those that it puts at the end are left out, because what
    follows a prompt is what the model says. A prompt with a `chat` goes through the tokenizer's chat template up to
    where the assistant's reply starts, and gets no special tokens but the template's, which are the same whatever
    follows them; a reply that only the template can write becomes the target. `context` is the longest input the models
    take, in tokens. Raises PromptError naming the prompt.
    """
    if not tokenizer.is_fast:
        raise PromptError(f"{type(tokenizer).__name__} is not a fast tokenizer, so text and target cannot be separated")
    prompts = [settled(prompt, tokenizer) for prompt in prompts]
    starts = [_start(prompt, tokenizer) for prompt in prompts]
    with_target = _tokens([_after(start, p.target or "") for start, p in zip(starts, prompts, strict=True)], tokenizer)
    foils = [_after(start, p.foil) for start, p in zip(starts, prompts, strict=True) if p.foil is not None]
    with_foil = iter(_tokens(foils, tokenizer))
    encoded = [
        _encoded(prompt, start.text, *tokens, next(with_foil)[0] if prompt.foil is not None else None, context)
        for prompt, start, tokens in zip(prompts, starts, with_target, strict=True)
    ]
    return _with_roles(encoded, starts, [ends for _, ends in with_target], tokenizer)


def encode_continuations(
    encoded: Sequence[Encoded], tokenizer: PreTrainedTokenizerBase, context: int, limit: int | None = None
) -> list[Encoded]:
    """Tokens of text + the prompt's continuation, encoded together, cut after `limit` tokens of the continuation.

    Raises PromptError for a prompt without a continuation, and for one that is longer than `context`.
    """
    without = next((item for item in encoded if item.prompt.continuation is None), None)
    if without is not None:
        raise PromptError(
            f"{_place(without.prompt)}: no continuation is given; add the column, or let a model generate"
        )
    starts = [_start(item.prompt, tokenizer) for item in encoded]
    texts = [_after(start, item.prompt.continuation or "") for start, item in zip(starts, encoded, strict=True)]
    continued = []
    for item, start, (ids, ends) in zip(encoded, starts, _tokens(texts, tokenizer), strict=True):
        n_text = _first_after(start.text, ends)
        ids = ids if limit is None else ids[: n_text + limit]
        _require_fit(item.prompt, ids, context)
        if n_text >= len(ids):
            raise PromptError(f"{_place(item.prompt)}: the continuation adds no token to the text")
        if n_text < 1:
            raise PromptError(f"{_place(item.prompt)}: no token of text stands before the continuation")
        continued.append(item.followed_by(ids[n_text:], text=ids[:n_text]))
    return continued


def batches(encoded: Sequence[Encoded], batch_size: int, pad_id: int) -> list[Batch]:
    """Prompts of similar length together, shortest first; equal lengths keep their order.

    A `pad_id` below 0 is none: then a batch has prompts of one length.
    """
    ordered = sorted(encoded, key=lambda item: len(item.ids))
    groups = [list(group) for _, group in groupby(ordered, lambda item: len(item.ids))] if pad_id < 0 else [ordered]
    return [
        _batch(tuple(group[i : i + batch_size]), pad_id) for group in groups for i in range(0, len(group), batch_size)
    ]


def padded_tokens(encoded: Sequence[Encoded], batch_size: int, padded: bool) -> int:
    """Tokens of these prompts with what fills their batches; not `padded`, each batch is of one length."""
    return sum(batch.input_ids.numel() for batch in batches(encoded, batch_size, 0 if padded else -1))


def positions(encoded: Encoded, which: Positions) -> range:
    """The positions to measure: all, the text's last, or those that predict the target or the generated tokens.

    Without a target, or without generated tokens, the text's last position is used. `from user`: all from the user's
    own words on, see `Encoded.user_pos`; `after template`: the same of a conversation, and all of a plain text; `from
    answer`: all from the one that predicts the answer's first token on.
    """
    last = range(encoded.n_text - 1, encoded.n_text)
    user = min(encoded.user_pos, last.start)
    after_template = 0 if encoded.prompt.chat is None else user
    first = {"all": 0, "after template": after_template, "from user": user, "from answer": last.start}
    if which in first:
        return range(first[which], len(encoded.ids))
    return {"last": last, "target": encoded.scored, "generated": encoded.generated}[which] or last


@dataclass(frozen=True)
class _Text:
    text: str
    template: int | None  # how many characters a chat template wrote, special tokens among them; None without one


def _start(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> _Text:
    """The prompt as the models read it, up to where the answer starts."""
    text = before_reply(prompt, tokenizer)
    return _Text(text, None if prompt.chat is None else len(text))


def _after(start: _Text, answer: str) -> _Text:
    return replace(start, text=start.text + answer)


Tokens = tuple[list[int], list[int]]  # ids; where each ends in the string


def _tokens(texts: Sequence[_Text], tokenizer: PreTrainedTokenizerBase) -> list[Tokens]:
    plain = iter(_encode_all([text.text for text in texts if text.template is None], tokenizer, True))
    chats = [text for text in texts if text.template is not None]
    whole = _encode_all([chat.text for chat in chats], tokenizer, False)
    before = _encode_all([chat.text[: chat.template] for chat in chats], tokenizer, False)
    kept = iter([_template_kept(*each, tokenizer) for each in zip(chats, whole, before, strict=True)])
    return [next(plain if text.template is None else kept) for text in texts]


def _template_kept(chat: _Text, whole: Tokens, before: Tokens, tokenizer: PreTrainedTokenizerBase) -> Tokens:
    """The template's own tokens, and those of the answer: its first letters change no token of the template.

    They are encoded apart only where together they would, and where that gives the same text.
    """
    n = len(before[0])
    if whole[0][:n] == before[0]:
        return whole[0], [*before[1], *whole[1][n:]]
    answer, ends = _encode_all([chat.text[chat.template :]], tokenizer, False)[0]
    apart = [*before[0], *answer]
    if tokenizer.decode(apart) != tokenizer.decode(whole[0]):
        return whole
    return apart, [*before[1], *((chat.template or 0) + end for end in ends)]


def _encode_all(texts: list[str], tokenizer: PreTrainedTokenizerBase, special: bool) -> list[Tokens]:
    if not texts:
        return []
    out = tokenizer(
        texts,
        add_special_tokens=special,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        verbose=False,
    )
    encoded = []
    for ids, offsets, mask in zip(out["input_ids"], out["offset_mapping"], out["special_tokens_mask"], strict=True):
        n = len(ids)
        while n and mask[n - 1] and offsets[n - 1][0] == offsets[n - 1][1]:
            n -= 1
        encoded.append((list(ids[:n]), [end for _, end in offsets[:n]]))
    return encoded


def _first_after(text: str, ends: Sequence[int]) -> int:
    """The index of the first token that reaches beyond `text`."""
    return next((i for i, end in enumerate(ends) if end > len(text)), len(ends))


def _require_fit(prompt: Prompt, ids: Sequence[int], context: int) -> None:
    if len(ids) > context:
        raise PromptError(f"{_place(prompt)}: {len(ids)} tokens, and the models take {context}; shorten or remove it")


def _encoded(
    prompt: Prompt, text: str, ids: list[int], ends: list[int], foil: list[int] | None, context: int
) -> Encoded:
    place = _place(prompt)
    _require_fit(prompt, ids, context)
    n_text = len(ids)
    if prompt.target is not None:
        n_text = _first_after(text, ends)
        if n_text == len(ids):
            raise PromptError(f"{place}: the target {prompt.target!r} adds no token to the text")
    if n_text < 1:
        raise PromptError(f"{place}: no token of text stands before the target; make the text longer")
    answer_pos = n_text - 1
    target_id, foil_id = (-1 if prompt.target is None else ids[n_text]), -1
    if foil is not None:
        split = next((i for i, (a, b) in enumerate(zip(ids, foil, strict=False)) if a != b), None)
        if split == 0:
            raise PromptError(f"{place}: the foil changes the first token of the text; make the text longer")
        if split is None:
            raise PromptError(
                f"{place}: in tokens, one of target {prompt.target!r} and foil {prompt.foil!r} begins with the other, "
                "so no token tells them apart; choose another foil"
            )
        answer_pos, target_id, foil_id = split - 1, ids[split], foil[split]
    return Encoded(prompt, tuple(ids), n_text, answer_pos, target_id, foil_id)


def _with_roles(
    encoded: Sequence[Encoded],
    starts: Sequence[_Text],
    ends: Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
) -> list[Encoded]:
    def render(prompt: Prompt) -> str:
        return _start(prompt, tokenizer).text

    special = {*tokenizer.all_special_ids} - {tokenizer.unk_token_id}
    texts = [item.ids[: item.n_text] for item in encoded]
    roles = [
        text_roles(item.prompt, start.text, text, of[: len(text)], special, render)
        for item, start, text, of in zip(encoded, starts, texts, ends, strict=True)
    ]
    begin = own_words([item.prompt.set for item in encoded], texts, roles)
    return [
        replace(item, text_roles=of, user_pos=min(pos, item.answer_pos))
        for item, of, pos in zip(encoded, roles, begin, strict=True)
    ]


def _batch(encoded: tuple[Encoded, ...], pad_id: int) -> Batch:
    lengths = torch.tensor([len(item.ids) for item in encoded])
    longest = int(lengths.max())
    ids = torch.tensor([[*item.ids, *[pad_id] * (longest - len(item.ids))] for item in encoded], dtype=torch.long)
    return Batch(encoded, ids, (torch.arange(longest) < lengths[:, None]).long())
