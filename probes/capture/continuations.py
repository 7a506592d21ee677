"""Continuations of the prompts, by one of the models or given, for runs that read both models over them."""

from __future__ import annotations

from collections.abc import Sequence

from probes.capture.pair import Pair
from probes.suite import Generation
from tv.errors import PromptError
from tv.evaluation.greedy import continue_greedily, end_ids
from tv.prompts.encoding import Encoded, encode_continuations
from tv.runtime.common_rows import common_rows


def with_continuations(pair: Pair, encoded: Sequence[Encoded], generation: Generation) -> list[Encoded]:
    """The prompts' texts, each followed by its continuation in place of its target; the order stays.

    A generated continuation is greedy, and its tokens are used as they are; a given one is encoded with the text.
    Raises PromptError naming a prompt that has no continuation, or no room for one.
    """
    context = pair.architecture.context
    if generation.source == "given":
        return encode_continuations(encoded, pair.tokenizer, context, generation.tokens)
    tokens = generation.tokens or 0
    for item in encoded:
        if item.n_text + tokens > context:
            raise PromptError(
                f"prompt {item.prompt.id!r} of {item.prompt.set}: {item.n_text} tokens and {tokens} to generate, and "
                f"the models take {context}; generate fewer, or shorten or remove it"
            )
    model = pair.base if generation.source == "base" else pair.tuned
    shared = len(common_rows(*(m.get_input_embeddings().weight for m in (pair.base, pair.tuned)))[0])
    texts = [item.ids[: item.n_text] for item in encoded]
    continuations = continue_greedily(model, texts, tokens, ends=end_ids(model, pair.tokenizer), vocab_size=shared)
    return [item.followed_by(ids) for item, ids in zip(encoded, continuations, strict=True)]
