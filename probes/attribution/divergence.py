"""Prompts cut where the two models first choose different tokens, for behaviour without a given target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from probes.attribution.metric import answers
from probes.capture.continuations import with_continuations
from probes.capture.pair import Pair
from probes.errors import RunError
from probes.suite import Generation
from tv.architecture.trunk import ends_of
from tv.prompts.encoding import Encoded, batches
from tv.runtime.common_rows import common_rows

#: How many tokens of the base's continuation are compared.
TOKENS = 32


def parted(pair: Pair, encoded: Sequence[Encoded], batch_size: int, tokens: int = TOKENS) -> list[Encoded]:
    """The prompts where greedy decoding diverges within `tokens` tokens, each with the tokens that both models share.

    The tokens are counted from the answer on. The tuned model's next choice is the target and the base's the foil.
    Prompts keep their order; those where the models do not diverge are left out. Raises RunError if none is left.
    """
    followed = with_continuations(pair, encoded, Generation.model_validate({"tokens": tokens, "from": "base"}))
    cut: dict[str, Encoded] = {}
    shared = len(common_rows(*(ends_of(model)[1].weight for model in (pair.base, pair.tuned)))[0])
    for batch in batches(followed, batch_size, pair.pad_id):
        with torch.inference_mode():
            choices = answers(pair.tuned, batch)[..., :shared].argmax(-1).cpu()
        for item, said in zip(batch.encoded, choices.tolist(), strict=True):
            at = next((pos for pos in item.generated if said[pos] != item.ids[pos + 1]), None)
            if at is not None:
                cut[item.prompt.id] = replace(
                    item,
                    ids=item.ids[: at + 1],
                    n_text=at + 1,
                    answer_pos=at,
                    target_id=said[at],
                    foil_id=item.ids[at + 1],
                    continued=False,
                )
    if not cut:
        raise RunError(
            f"first_divergence: both models say the same {tokens} tokens after every prompt; nothing to explain"
        )
    return [cut[item.prompt.id] for item in encoded if item.prompt.id in cut]
