"""Continuations of the prompts, by one of the models or given, for runs that read both models over them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from probes.capture.pair import Pair
from probes.suite import Generation
from tv.architecture.trunk import ends_of
from tv.errors import PromptError
from tv.evaluation.greedy import continue_greedily
from tv.prompts.behaviour import require_rows
from tv.prompts.encoding import Encoded, encode_continuations
from tv.runtime.common_rows import common_rows


def with_continuations(
    pair: Pair, encoded: Sequence[Encoded], generation: Generation, ends: Collection[int] = ()
) -> list[Encoded]:
    """The prompts' texts, each followed by its continuation in place of its target; the order stays.

    A generated continuation is greedy up to a token of `ends`, and its tokens are used as they are; a given one is
    encoded with the text. Raises PromptError naming a prompt that has no continuation, or no room for one.
    """
    context = pair.architecture.context
    shared = len(common_rows(*(ends_of(m)[0].weight for m in (pair.base, pair.tuned)))[0])
    if generation.source == "given":
        given = encode_continuations(encoded, pair.tokenizer, context, generation.tokens)
        require_rows(given, pair.tokenizer, shared)
        return given
    tokens = generation.tokens or 0
    for item in encoded:
        if item.n_text + tokens > context:
            raise PromptError(
                f"prompt {item.prompt.id!r} of {item.prompt.set}: {item.n_text} tokens and {tokens} to generate, and "
                f"the models take {context}; generate fewer, or shorten or remove it"
            )
    model = pair.base if generation.source == "base" else pair.tuned
    texts = [item.ids[: item.n_text] for item in encoded]
    continuations = continue_greedily(model, texts, tokens, ends=ends, vocab_size=shared)
    return [item.followed_by(ids) for item, ids in zip(encoded, continuations, strict=True)]
