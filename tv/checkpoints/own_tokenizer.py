"""What a model's own tokenizer makes of prompts that another one encodes; and its chat template, lent to that one."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tv.checkpoints.checkpoint import Checkpoint
from tv.checkpoints.live import LiveSource, load_tokenizer
from tv.checkpoints.opening import open_checkpoint
from tv.checkpoints.tokenizers import compare_tokenizers, other_meanings, tokenizer_of
from tv.errors import CheckpointError, PromptError
from tv.prompts.conversation import Conversation
from tv.prompts.encoding import Encoded, encode
from tv.prompts.files import Prompt
from tv.prompts.template import before_reply, place, templates_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encoder(
    base: LiveSource, tuned: Sequence[Checkpoint], prompts: Sequence[Prompt]
) -> tuple[PreTrainedTokenizerBase, list[str]]:
    """The base's tokenizer, which encodes prompts for tuned models too, and what these would read otherwise.

    Args:
        base: The base.
        tuned: Those that are read by the same tokens. Their chat template serves `chat: tuned`.
        prompts: All of them.

    Raises:
        PromptError: A prompt that cannot be encoded, or that has an id with another meaning to a tuned model.
    """
    tokenizer, opened = load_tokenizer(base), open_checkpoint(base)
    own = {side.source: tokenizer_of(side) for side in tuned}
    borrow_template(tokenizer, own, asks_for_lent(prompts))
    notes = []
    for side in tuned:
        word, said = compare_tokenizers(opened, side)
        its = own[side.source]
        if word not in ("same", "not compared") and its is not None:
            require_meanings(prompts, tokenizer, its)
            said += own_notes(prompts, tokenizer, reading(its, tokenizer)) or [same_tokens(prompts)]
        whose = f"{side.source}: " if len(tuned) > 1 else ""
        notes += [f"{whose}{note}" for note in said if word != "not compared"]
    return tokenizer, notes


def own_notes(prompts: Sequence[Prompt], shared: PreTrainedTokenizerBase, own: PreTrainedTokenizerBase) -> list[str]:
    """How many prompts a model's own tokenizer makes other tokens of, and what its template writes that are no tokens.

    Args:
        prompts: All of a run.
        shared: The tokenizer that encodes them.
        own: The model's own, as `reading` makes it.

    Raises:
        PromptError: A prompt that the shared tokenizer cannot encode.
    """
    before = _texts(prompts, shared)
    unknown = _unknown(prompts, shared, own)
    try:
        after = _texts(prompts, own)
    except PromptError as error:
        return [f"its own tokenizer cannot encode the prompts: {error}", *unknown]
    other = [(a, b) for a, b in zip(before, after, strict=True) if a.ids != b.ids]
    if not other:
        return unknown
    first, its = other[0]
    lengths = f"{len(first.ids)} and {len(its.ids)} tokens"
    return [
        f"{len(other)} of {len(before)} prompts become other tokens with its own tokenizer (first "
        f"{place(first.prompt)}: {lengths})",
        *unknown,
    ]


def owned(source: LiveSource, base: LiveSource | None) -> PreTrainedTokenizerBase | None:
    """The tokenizer beside a source; None where there is none, and where its weights are not read lazily."""
    try:
        return tokenizer_of(open_checkpoint(source, base=base))
    except CheckpointError:
        return None


def lenders(
    own: Mapping[str, PreTrainedTokenizerBase | None], sources: Mapping[str, LiveSource], base: LiveSource | None
) -> dict[str, PreTrainedTokenizerBase | None]:
    """The own tokenizers of the tuned models: of all but the base, which is named, or else the first of several."""
    if base is None:
        left = list(own)[len(own) > 1 :]
    else:
        left = [name for name, source in sources.items() if source is not base and str(source) != str(base)]
    return {name: own[name] for name in left or own}


def beside_first(
    name: str, prompts: Sequence[Prompt], first: PreTrainedTokenizerBase, own: PreTrainedTokenizerBase | None
) -> list[str]:
    """Of several models on the same prompts: what this one's own tokenizer makes otherwise than the first model's."""
    if own is None or not (first.is_fast and own.is_fast):
        return []
    return [f"{name}: {note}" for note in own_notes(prompts, first, reading(own, first))]


def same_tokens(prompts: Sequence[Prompt]) -> str:
    """The note where the tokenizers differ, but not on these prompts."""
    return f"its own tokenizer makes the same tokens of all {len(prompts)} prompts"


def require_meanings(prompts: Sequence[Prompt], shared: PreTrainedTokenizerBase, own: PreTrainedTokenizerBase) -> None:
    """Raise PromptError where the shared tokenizer writes an id into a prompt that is another token to the model."""
    other = other_meanings(shared.get_vocab(), own.get_vocab())
    for item in _texts(prompts, shared) if other else ():
        for token in item.ids:
            if token in other:
                before, after = other[token]
                raise PromptError(
                    f"{place(item.prompt)}: id {token} is {before!r} to the tokenizer that encodes it and {after!r} to "
                    "the tuned model; leave the prompt out, or let each model read its own tokens (tokenizer: own)"
                )


def reading(own: PreTrainedTokenizerBase, shared: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A model's own tokenizer, ready for prompts with a chat: without a template it takes the shared one's."""
    ready = copy.copy(own)
    if own.chat_template:
        lend_template(ready, own)
    else:
        ready.chat_template = shared.chat_template
    return ready


def borrow_template(
    to: PreTrainedTokenizerBase, owners: Mapping[str, PreTrainedTokenizerBase | None], asked: bool
) -> None:
    """Let `chat: tuned` go through the chat template of the tuned models that have one.

    Raises PromptError where it is asked for and they have several.
    """
    own = {name: of for name, of in owners.items() if of is not None and of.chat_template}
    if not own:
        return
    first, *others = own
    other = next((name for name in others if own[name].chat_template != own[first].chat_template), None)
    if asked and other is not None:
        raise PromptError(
            f"chat: tuned: the chat templates of {first} and {other} differ, and a prompt goes through one; compare "
            "one tuned model at a time"
        )
    lend_template(to, own[first])


def asks_for_lent(prompts: Sequence[Prompt]) -> bool:
    """Whether a prompt goes through the chat template of a tuned model."""
    return any(prompt.chat is not None and Conversation.of(prompt.chat).template is not None for prompt in prompts)


def lend_template(to: PreTrainedTokenizerBase, of: PreTrainedTokenizerBase) -> None:
    """Let `chat: tuned` go through the template of another tokenizer, with that one's special tokens in it."""
    mine, lent = templates_of(to), templates_of(of)
    added = {f"tuned {name}".removesuffix(" default"): _with_tokens(text, of, to) for name, text in lent.items()}
    if added:
        to.chat_template = mine | added


def _with_tokens(template: str, of: PreTrainedTokenizerBase, to: PreTrainedTokenizerBase) -> str:
    """The template with the special tokens set at its top that the other tokenizer would put in otherwise."""
    its, others = of.special_tokens_map, to.special_tokens_map
    names = [name for name in sorted(its.keys() | others.keys()) if its.get(name) != others.get(name)]
    return "".join(f"{{% set {name} = {json.dumps(its.get(name, ''))} %}}\n" for name in names) + template


def _texts(prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase) -> list[Encoded]:
    """Text and target as tokens, of any length."""
    return encode([replace(prompt, foil=None) for prompt in prompts], tokenizer, sys.maxsize)


def _unknown(prompts: Sequence[Prompt], shared: PreTrainedTokenizerBase, own: PreTrainedTokenizerBase) -> list[str]:
    """The special tokens of the model's own that its template writes, and that the shared tokenizer does not have."""
    lacking = own.get_added_vocab().keys() - shared.get_vocab().keys()
    texts = [before_reply(prompt, shared) for prompt in prompts if prompt.chat is not None] if lacking else []
    written = sorted(token for token in lacking if any(token in text for text in texts))
    if not written:
        return []
    return [f"the chat template writes {', '.join(map(repr, written))}, which the base's tokenizer reads as plain text"]
