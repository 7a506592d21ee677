"""Behaviour of a live model over prompts: what it would answer and how sure it is, prompt by prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from tv.errors import InputError, PromptError
from tv.prompts.encoding import Batch, Encoded, Prompt, PromptSet, batches, encode, positions, read_prompts
from tv.prompts.files import Prompts
from tv.prompts.metric import METRICS, BehaviourMetric
from tv.prompts.placeholders import require_text
from tv.prompts.read_logits import ReadLogits
from tv.prompts.template import place
from tv.runtime.common_rows import common_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: Prompt files, prompt sets with their settings, or prompts themselves.
PromptSource: TypeAlias = str | Path | PromptSet | Prompt


def measures() -> tuple[str, ...]:
    """What `behaviour` measures of every prompt, by name.

    Examples:
        >>> measures()[:3]
        ('loss', 'target_nll', 'logit_diff')
    """
    return ("loss", *METRICS)


def metrics(logits: Float[Tensor, "batch pos vocab"], batch: Batch) -> dict[str, Float[Tensor, " batch"]]:
    """Every registered metric of every prompt.

    Args:
        logits: Of one forward pass over the batch, right-padded.
        batch: The prompts.

    Returns:
        Per metric and prompt, float64; NaN where the prompt lacks what the metric needs. See `tv.prompts.metrics`.
    """
    return {name: metric_values(METRICS[name], logits, batch) for name in METRICS}


def metric_values(
    metric: BehaviourMetric, logits: Float[Tensor, "batch pos vocab"] | ReadLogits, batch: Batch
) -> Float[Tensor, " batch"]:
    """One metric of every prompt, float64; NaN where the prompt lacks what the metric needs."""
    values = torch.full((len(batch.encoded),), float("nan"), dtype=torch.float64)
    # Rows are taken all at once: a row alone would have a gradient as large as all logits.
    for i, (row, item) in enumerate(zip(logits, batch.encoded, strict=True)):
        if metric.has(item):
            values[i] = metric.of(row, item)
    return values


def token_nll(logits: Float[Tensor, "pos vocab"], ids: Tensor) -> Float[Tensor, " pos"]:
    """−log p of each token given those before it, nats; NaN for the first, which nothing predicts."""
    nll = -logits[:-1].float().log_softmax(-1).gather(-1, ids[1:, None])[:, 0]
    return torch.cat([nll.new_full((1,), float("nan")), nll])


def kl_divergence(base: Float[Tensor, "n vocab"], tuned: Float[Tensor, "n vocab"]) -> Float[Tensor, " n"]:
    """KL(base ‖ tuned) of the next-token distributions, nats. Of two vocabularies, the rows in common are compared."""
    p, q = (logits.float().log_softmax(-1) for logits in common_rows(base, tuned, dim=-1))
    return (p.exp() * (p - q)).sum(-1).clamp(min=0)


def gather(prompts: PromptSource | Sequence[PromptSource]) -> Prompts:
    """The prompts of files and sets, then single ones. Raises PromptError where there is none, or a bad row."""
    sources = [prompts] if isinstance(prompts, str | Path | PromptSet | Prompt) else list(prompts)
    single = [source for source in sources if isinstance(source, Prompt)]
    sets = [_as_set(source) for source in sources if not isinstance(source, Prompt)]
    read = read_prompts(sets, taken=[prompt.id for prompt in single])
    all_prompts = Prompts([*read, *single], read.notes)
    if not all_prompts:
        raise PromptError("no prompts; give at least one file of prompts")
    twice = next((name for name, n in Counter(prompt.id for prompt in all_prompts).items() if n > 1), None)
    if twice is not None:
        raise PromptError(f"prompt id {twice!r} is taken twice; ids are unique")
    return all_prompts


def _as_set(source: str | Path | PromptSet) -> PromptSet:
    return source if isinstance(source, PromptSet) else PromptSet(file=Path(source))


def batched(
    prompts: Sequence[Prompt], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int
) -> list[Batch]:
    """The prompts in right-padded batches. Raises PromptError for a prompt that the model cannot take."""
    if batch_size < 1:
        raise InputError(f"batch size {batch_size}: a batch holds at least one prompt")
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**31 - 1
    encoded = encode(prompts, tokenizer, context)
    require_rows(encoded, tokenizer, model.get_input_embeddings().weight.shape[0])
    require_text(encoded, tokenizer, model.config)
    return batches(encoded, batch_size, tokenizer.pad_token_id or 0)


def require_rows(encoded: Sequence[Encoded], tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """Raise PromptError naming the first prompt with a token that an embedding of so many rows does not have."""
    for item in encoded:
        if beyond := beyond_rows((*item.ids, item.foil_id), tokenizer, rows):
            raise PromptError(f"{place(item.prompt)}: {beyond}")


def beyond_rows(ids: Iterable[int], tokenizer: PreTrainedTokenizerBase, rows: int) -> str | None:
    """What is wrong with the first id that an embedding of so many rows does not have; None where it has all."""
    first = next((i for i in ids if i >= rows), None)
    if first is None:
        return None
    return (
        f"id {first} is token {tokenizer.convert_ids_to_tokens(first)!r} of the tokenizer's {len(tokenizer)}, and the "
        f"model's embedding has {rows} rows; resize the embedding, or leave this token out of the prompt"
    )


def behaviour(model: PreTrainedModel, batches: Sequence[Batch]) -> dict[str, NDArray[np.float64]]:
    """Each of `measures` for every prompt, in the order of the batches; NaN where a prompt lacks what it needs.

    loss: mean −log p of a token, nats: of the target's tokens where the prompt has a target, else of all its tokens but
    the first, which nothing predicts; of a conversation those from the user's own words on. The others are those of
    `metrics`.
    """
    batch_values: dict[str, list[NDArray[np.float64]]] = {name: [] for name in measures()}
    with torch.inference_mode():
        for batch in batches:
            ids, mask = batch.input_ids.to(model.device), batch.attention_mask.to(model.device)
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            values = metrics(logits, batch)
            losses = values["target_nll_per_token"].clone()
            for i, item in enumerate(batch.encoded):
                if not len(item.scored):
                    places = positions(item, "after template")
                    nll = token_nll(logits[i, : places.stop], ids[i, : places.stop])
                    losses[i] = nll[max(places.start, 1) :].double().mean()
            for name, value in {"loss": losses, **values}.items():
                batch_values[name].append(value.numpy())
    return {name: np.concatenate(parts) for name, parts in batch_values.items()}
