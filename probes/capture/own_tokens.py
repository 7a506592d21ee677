"""What both models answer, each reading the tokens that its own tokenizer makes of the prompts.

Positions in the text belong to one model only. Those of the answer are compared where both make the same tokens of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from probes.capture.loading import Pairs
from tv.prompts import behaviour
from tv.prompts.encoding import Batch, Encoded, batches, encode, positions
from tv.prompts.files import Prompt

_COLUMNS = ["prompt_id", "model", "metric", "value"]
_Row = tuple[str, str, str, float]


def own_answers(models: Pairs, tuned: str, prompts: Sequence[Prompt], *, with_base: bool) -> pd.DataFrame:
    """The rows of `behaviour` of one pair. `kl` and `first_divergence` (0 is the answer's first token) are the pair's.

    Without `with_base` the base's rows, which are the same for every pair, are left out.
    """
    pair = models.pair(tuned)
    context = pair.architecture.context
    first, second = (encode(prompts, of, context) for of in (models.tokenizer, models.own_tokenizer(tuned)))
    its = {item.prompt.id: item for item in second}
    rows: list[_Row] = []
    for batch in batches(first, models.suite.batch_size, pair.pad_id):
        (other,) = batches([its[item.prompt.id] for item in batch.encoded], len(batch.encoded), pair.pad_id)
        base, own = _logits(pair.base, batch), _logits(pair.tuned, other)
        rows += [*_metrics("base", base, batch)] if with_base else []
        rows += [*_metrics(tuned, own, other)]
        at = {item.prompt.id: (item, logits) for item, logits in zip(other.encoded, own, strict=True)}
        for item, logits in zip(batch.encoded, base, strict=True):
            rows += _compared(tuned, (item, logits), at[item.prompt.id])
    return pd.DataFrame(rows, columns=_COLUMNS)


def _logits(model: PreTrainedModel, batch: Batch) -> Float[Tensor, "batch pos vocab"]:
    ids, mask = batch.input_ids.to(model.device), batch.attention_mask.to(model.device)
    with torch.inference_mode():
        return model(input_ids=ids, attention_mask=mask, use_cache=False).logits.cpu()


def _metrics(model: str, logits: Float[Tensor, "batch pos vocab"], batch: Batch) -> Iterator[_Row]:
    for metric, values in behaviour.metrics(logits, batch).items():
        for item, value in zip(batch.encoded, values.tolist(), strict=True):
            if value == value:
                yield item.prompt.id, model, metric, value


def _compared(tuned: str, base: tuple[Encoded, Tensor], own: tuple[Encoded, Tensor]) -> Iterator[_Row]:
    """Nothing where the two tokenizers part in the answer too."""
    (item, left), (other, right) = base, own
    if item.ids[item.n_text :] != other.ids[other.n_text :]:
        return
    left, right = left[list(positions(item, "target"))], right[list(positions(other, "target"))]
    yield item.prompt.id, tuned, "kl", float(behaviour.kl_divergence(left, right).mean())
    parted = (left.argmax(-1) != right.argmax(-1)).nonzero()
    if len(parted):
        yield item.prompt.id, tuned, "first_divergence", float(parted[0])
