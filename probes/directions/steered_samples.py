"""The continuations of both models, unsteered and steered, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import pandas as pd
from torch import Tensor
from transformers import PreTrainedModel

from probes.attribution.work import Work
from probes.capture.editing import edited
from probes.directions.sources import Making
from probes.directions.steering import Steer, Steers
from tv.architecture.trunk import ends_of
from tv.evaluation.greedy import continue_greedily
from tv.prompts.encoding import Positions
from tv.runtime.common_rows import common_rows
from tv.runtime.seeds import seed_of


def steered_samples(
    work: Work,
    making: Making,
    steers: Sequence[Steers],
    positions: Positions,
    count: int,
    tokens: int,
) -> pd.DataFrame:
    """Greedy continuations of a few prompts of the domain, drawn by their ids.

    Args:
        work: The pair and the prompts.
        making: Who is in which half, and in the domain.
        steers: For the base, then for the tuned model, what each half chose.
        positions: Where vectors were added: at all positions, or from the one that predicts the first token on.
        count: Prompts.
        tokens: Of each continuation, at most.

    Returns:
        A row per prompt, model and whether it was steered.
    """
    own = [i for i in range(len(work.encoded)) if making.inside[i]]
    drawn = sorted(own, key=lambda i: seed_of(f"steered {work.seed} {work.prompts[i]}"))[:count]
    shared = len(common_rows(*(ends_of(model)[0].weight for model in work.pair.models))[0])
    end = work.pair.tokenizer.eos_token_id
    rows = []
    for i in drawn:
        item = work.encoded[i]
        for name, model, chosen in zip(("base", "tuned"), work.pair.models, steers, strict=True):
            half = int(1 - making.half[i])
            for is_steered in (False, True):
                with _steering(work, model, chosen[half], positions) if is_steered else nullcontext():
                    (ids,) = continue_greedily(
                        model,
                        [item.ids[: item.n_text]],
                        tokens,
                        ends=() if end is None else (end,),
                        vocab_size=shared,
                    )
                rows.append(
                    {
                        "prompt_id": item.prompt.id,
                        "model": name,
                        "steered": is_steered,
                        "continuation": work.pair.tokenizer.decode(ids, skip_special_tokens=True),
                    }
                )
    return pd.DataFrame(rows)


def _steering(work: Work, model: PreTrainedModel, steer: Steer, positions: Positions) -> AbstractContextManager[None]:
    """Every pass steered at its last position, or at all of them."""

    def edit(state: Tensor) -> Tensor:
        moved, first = state.clone(), 0 if positions == "all" else -1
        moved[first:] = steer(state[first:]).to(state)
        return moved

    return edited(model, work.pair.architecture, *steer.place, edit)
