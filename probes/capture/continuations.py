"""Continuations of the prompts, by one of the models or given, for runs that read both models over them."""

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

#: Prompts continued in one batch; independent of the suite's batch size, so that changing that keeps the tokens.
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
    continuations = continue_greedily(model, texts, tokens, ends=end_ids(model, pair.tokenizer), vocab_size=shared)
    return [item.followed_by(ids) for item, ids in zip(encoded, continuations, strict=True)]


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The end-of-text tokens: those of the generation settings or configuration, and those of the tokenizer."""
    ends: set[int] = set()
    for source in (model.generation_config or model.config, tokenizer):
        ids = getattr(source, "eos_token_id", None)
        if ids is not None:
            ends.update(ids if isinstance(ids, list | tuple) else [ids])
    return ends


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
    Texts run in batches without padding, so no architecture has to handle any: a longer text feeds its next token
    where a shorter one feeds the model's choice.
    """
    continuations: dict[int, tuple[int, ...]] = {}
    for group in _groups(texts, tokens):
        together = _together(model, [texts[i] for i in group], tokens, ends, vocab_size)
        continuations |= zip(group, together, strict=True)
    return [continuations[i] for i in range(len(texts))]


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
    stops = lengths + tokens  # where each row ends; a token of `ends` ends it earlier
    ending = torch.tensor(sorted(ends), dtype=torch.long, device=device)
    seen = torch.ones_like(ids)
    cache = None
    if shortest > 1:  # prefill, without logits, the positions before the shortest text's last token
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
