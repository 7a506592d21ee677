"""Greedy decoding: the likeliest next token at every step, by the raw logits."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

#: Texts continued in one batch.
TOGETHER = 16


@torch.inference_mode()
def continue_greedily(
    model: PreTrainedModel,
    texts: Sequence[Sequence[int]],
    tokens: int,
    *,
    ends: Collection[int] = (),
    vocab_size: int | None = None,
    together: int = TOGETHER,
) -> list[tuple[int, ...]]:
    """The argmax of the model's logits, up to `tokens` times, after each text; in the order of the texts.

    No setting of the checkpoint's has a say. A continuation ends with the first token of `ends`, which is part of it.
    Ids from `vocab_size` on are never chosen. Texts run in batches of at most `together` without padding, so no
    architecture has to handle any: a longer text feeds its next token where a shorter one feeds the model's choice.
    """
    continuations: dict[int, tuple[int, ...]] = {}
    for group in groups_of(texts, tokens, together):
        found = _continued(model, [texts[i] for i in group], tokens, ends, vocab_size)
        continuations |= zip(group, found, strict=True)
    return [continuations[i] for i in range(len(texts))]


def groups_of(texts: Sequence[Sequence[int]], tokens: int, together: int) -> Iterator[list[int]]:
    """Indices of texts of like length, at most `together` in a group.

    No group takes more than twice the steps of its shortest text alone.
    """
    group: list[int] = []
    for i in sorted(range(len(texts)), key=lambda i: len(texts[i])):
        if group and (len(group) == together or len(texts[i]) - len(texts[group[0]]) > tokens):
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def _continued(
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
    cache, held = None, 0  # the keys and values of the first `held` positions; a state-space model gives none
    if shortest > 1:  # prefill, without logits, the positions before the shortest text's last token
        before = shortest - 1
        out = model.base_model(input_ids=ids[:, :before], attention_mask=seen[:, :before], use_cache=True)
        cache = getattr(out, "past_key_values", None)
        held = 0 if cache is None else before
    for pos in range(shortest - 1, longest + tokens - 1):
        kept = {} if cache is None else {"past_key_values": cache}
        out = model(input_ids=ids[:, held : pos + 1], attention_mask=seen[:, : pos + 1], use_cache=True, **kept)
        cache = getattr(out, "past_key_values", None)
        held = 0 if cache is None else pos + 1
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


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The end-of-text tokens: those of the generation settings or configuration, and those of the tokenizer."""
    return stated_ends(model.generation_config or model.config, tokenizer)


def stated_ends(settings: GenerationConfig | PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The end-of-text tokens that these two state together."""
    ends: set[int] = set()
    for source in (settings, tokenizer):
        ids = getattr(source, "eos_token_id", None)
        if ids is not None:
            ends.update(ids if isinstance(ids, list | tuple) else [ids])
    return ends
