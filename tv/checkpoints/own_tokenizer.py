"""What a model's own tokenizer makes of prompts that another one encodes; and its chat template, lent to that one."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from tv.checkpoints.tokenizers import other_meanings
from tv.errors import PromptError
from tv.prompts.encoding import Encoded, encode
from tv.prompts.files import Prompt
from tv.prompts.template import before_reply, place


def own_notes(prompts: Sequence[Prompt], shared: PreTrainedTokenizerBase, own: PreTrainedTokenizerBase) -> list[str]:
    """How many prompts a model's own tokenizer makes other tokens of, and what its template writes that are no tokens.

    Args:
        prompts: All of a run.
        shared: The tokenizer that encodes them.
        own: The model's own; where it has no chat template, the shared one's is used.

    Raises:
        PromptError: A prompt that the shared tokenizer cannot encode.
    """
    if not own.chat_template:
        own.chat_template = shared.chat_template
    else:
        lend_template(own, own)
    before = _texts(prompts, shared)
    try:
        after = _texts(prompts, own)
    except PromptError as error:
        return [f"its own tokenizer cannot encode the prompts: {error}", *_unknown(prompts, shared, own)]
    other = [(a, b) for a, b in zip(before, after, strict=True) if a.ids != b.ids]
    if not other:
        return [
            f"its own tokenizer makes the same tokens of all {len(before)} prompts",
            *_unknown(prompts, shared, own),
        ]
    first, its = other[0]
    lengths = f"{len(first.ids)} and {len(its.ids)} tokens"
    return [
        f"{len(other)} of {len(before)} prompts become other tokens with its own tokenizer (first "
        f"{place(first.prompt)}: {lengths})",
        *_unknown(prompts, shared, own),
    ]


def require_meanings(encoded: Sequence[Encoded], shared: PreTrainedTokenizerBase, own: PreTrainedTokenizerBase) -> None:
    """Raise PromptError where a prompt has an id that is another token to the model."""
    other = other_meanings(shared.get_vocab(), own.get_vocab())
    for item in encoded:
        for token in item.ids:
            if token in other:
                before, after = other[token]
                raise PromptError(
                    f"{place(item.prompt)}: id {token} is {before!r} to the tokenizer that encodes it and {after!r} to "
                    "the tuned model; leave the prompt out, or compare what each makes of it with tokenizer: own"
                )


def lend_template(to: PreTrainedTokenizerBase, of: PreTrainedTokenizerBase) -> None:
    """Let `chat: tuned` go through the template of another tokenizer, with that one's special tokens in it."""
    mine, lent = _by_name(to), _by_name(of)
    added = {f"tuned {name}".removesuffix(" default"): _with_tokens(text, of, to) for name, text in lent.items()}
    if added:
        to.chat_template = mine | added


def _by_name(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    templates = tokenizer.chat_template
    return dict(templates) if isinstance(templates, Mapping) else {"default": templates} if templates else {}


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
