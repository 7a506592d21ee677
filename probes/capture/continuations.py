"""What the models are read over when a run asks for it: a continuation of every prompt, by one of them or given."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from probes.capture.pair import Pair
from probes.suite import Generation
from tv.errors import PromptError
from tv.prompts.encoding import Encoded, encode_continuations
from tv.runtime.common_rows import common_rows

#: Prompts that are continued together: not the suite's batch size, so that a run of other batches has the same tokens.
TOGETHER = 16


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
    found = continue_greedily(model, texts, tokens, ends=end_ids(model, pair.tokenizer), vocab_size=shared)
    return [item.followed_by(ids) for item, ids in zip(encoded, found, strict=True)]


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens that end what a model says: of its generation settings or configuration, and the tokenizer's own."""
    found: set[int] = set()
    for own in (model.generation_config or model.config, tokenizer):
        ids = getattr(own, "eos_token_id", None)
        if ids is not None:
            found.update(ids if isinstance(ids, list | tuple) else [ids])
    return found


@torch.inference_mode()
def continue_greedily(
    model: PreTrainedModel,
    texts: Sequence[Sequence[int]],
    tokens: int,
    *,
    ends: Collection[int] = (),
    vocab_size: int | None = None,
) -> list[tuple[int, ...]]:
    """The model's likeliest next token, up to `tokens` times, after each text; in the order of the texts.

    A continuation ends with the first token of `ends`, which is part of it. Ids from `vocab_size` on are never chosen.
    Texts go through the model together without padding, which no architecture could then take amiss: a longer text
    has its own next token fed where a shorter one has the model's.
    """
    found: dict[int, tuple[int, ...]] = {}
    for group in _groups(texts, tokens):
        found |= zip(group, _together(model, [texts[i] for i in group], tokens, ends, vocab_size), strict=True)
    return [found[i] for i in range(len(texts))]


def _groups(texts: Sequence[Sequence[int]], tokens: int) -> Iterator[list[int]]:
    """Indices of texts of like length; no group takes more than twice the steps of its shortest text alone."""
    group: list[int] = []
    for i in sorted(range(len(texts)), key=lambda i: len(texts[i])):
        if group and (len(group) == TOGETHER or len(texts[i]) - len(texts[group[0]]) > tokens):
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def _together(
    model: PreTrainedModel,
    texts: Sequence[Sequence[int]],
    tokens: int,
    ends: Collection[int],
    vocab_size: int | None,
) -> list[tuple[int, ...]]:
    device = model.device
    lengths = torch.tensor([len(text) for text in texts], device=device)
    shortest, longest = int(lengths.min()), int(lengths.max())
    ids: Int[Tensor, "text pos"] = torch.zeros(len(texts), longest + tokens, dtype=torch.long, device=device)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text)] = torch.tensor(text)
    stops = lengths + tokens  # where each row ends; brought forward by a token of `ends`
    ending = torch.tensor(sorted(ends), dtype=torch.long, device=device)
    seen = torch.ones_like(ids)
    cache = None
    if shortest > 1:  # what all texts have but for the token whose logits are wanted: without any logits
        before = shortest - 1
        cache = model.base_model(
            input_ids=ids[:, :before], attention_mask=seen[:, :before], use_cache=True
        ).past_key_values
    for pos in range(shortest - 1, longest + tokens - 1):
        out = model(
            input_ids=ids[:, pos : pos + 1],
            attention_mask=seen[:, : pos + 1],
            past_key_values=cache,
            use_cache=True,
        )
        cache = out.past_key_values
        chosen = out.logits[:, -1, :vocab_size].argmax(-1).to(device)
        free = (pos + 1 >= lengths) & (pos + 1 < stops)
        ids[:, pos + 1] = torch.where(free, chosen, ids[:, pos + 1])
        stops = torch.where(free & torch.isin(chosen, ending), pos + 2, stops)
        if bool((stops <= pos + 2).all()):
            break
    return [
        tuple(row[length:stop].tolist())
        for row, length, stop in zip(ids, lengths.tolist(), stops.tolist(), strict=True)
    ]
