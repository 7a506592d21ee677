"""The tokens at which listed neurons' gates are largest, in either model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd
import torch

from probes.capture.hooks.plan import Read, Seen, plan
from probes.capture.hooks.torch_backend import lockstep
from probes.capture.pair import Pair
from tv.prompts.encoding import Encoded, batches

#: Tokens that are kept of each neuron and model, at most one of a prompt, and tokens of context on either side.
TOKENS, AROUND = 5, 8


def neuron_tokens(
    pair: Pair,
    encoded: Sequence[Encoded],
    neurons: pd.DataFrame,
    name: str,
    *,
    batch_size: int = 16,
    told: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """The table `neuron_tokens`.

    Args:
        pair: Both models.
        encoded: The prompts. What all texts of a set begin with alike does not count.
        neurons: `layer` and `neuron` of each; none of an expert.
        name: The tuned model's, as the table names it.
        batch_size: Prompts of a forward pass.
        told: Called with (prompts read, all).

    Returns:
        Of every neuron and model the largest values, largest first. A value is the gate's before its activation
        function; of an MLP without a gate it is the pre-activation.
    """
    wanted = {int(layer): sorted(set(rows.neuron)) for layer, rows in neurons.groupby("layer")}
    reads = [read for read in plan(pair.architecture, ["gate"]) if any(site.layer in wanted for site in read.sites)]
    found: list[pd.DataFrame] = []
    done = 0
    for batch in batches(encoded, batch_size, pair.pad_id):
        length = batch.input_ids.shape[1]
        counted = torch.zeros(len(batch.encoded), length, dtype=torch.bool)
        for i, item in enumerate(batch.encoded):
            counted[i, item.user_pos : len(item.ids)] = True

        def reduce(
            read: Read, base: Seen, tuned: Seen, items: Sequence[Encoded] = batch.encoded, there: torch.Tensor = counted
        ) -> None:
            for site in read.sites:
                if site.name != "gate":
                    continue
                listed = wanted[site.layer]
                both = [seen.at(site)[..., listed].float().cpu() for seen in (base, tuned)]
                for model, values in zip(("base", name), both, strict=True):
                    at = values.masked_fill(~there[..., None], -torch.inf).argmax(1)  # (batch, neurons)
                    row = torch.arange(len(items))[:, None].expand_as(at)
                    column = torch.arange(len(listed)).expand_as(at)
                    base_there, tuned_there = (side[row, at, column].flatten().numpy() for side in both)
                    found.append(
                        pd.DataFrame(
                            {
                                "layer": site.layer,
                                "expert": -1,
                                "neuron": [listed[i] for i in column.flatten().tolist()],
                                "model": model,
                                "prompt_id": [items[i].prompt.id for i in row.flatten().tolist()],
                                "pos": at.flatten().numpy(),
                                "value_base": base_there,
                                "value_tuned": tuned_there,
                            }
                        )
                    )

        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        lockstep(pair.base, pair.tuned, reads, inputs, reduce)
        done += len(batch.encoded)
        if told:
            told(done, len(encoded))
    return _in_words(pair, _largest(pd.concat(found, ignore_index=True)), encoded)


def _largest(rows: pd.DataFrame) -> pd.DataFrame:
    """The first `TOKENS` of each neuron and model by that model's value, ranked."""
    key = ["layer", "neuron", "model"]
    size = rows.value_base.where(rows.model == "base", rows.value_tuned)
    rows = rows.assign(size=size).sort_values([*key, "size"], ascending=[True, True, True, False], kind="stable")
    rows["rank"] = rows.groupby(key).cumcount() + 1
    return rows[rows["rank"] <= TOKENS].drop(columns="size").reset_index(drop=True)


def _in_words(pair: Pair, rows: pd.DataFrame, encoded: Sequence[Encoded]) -> pd.DataFrame:
    """The rows with each token and the text around it."""
    ids = {item.prompt.id: item.ids for item in encoded}
    parts: dict[str, list[str]] = {"before": [], "token": [], "after": []}
    for prompt, pos in zip(rows.prompt_id, rows.pos, strict=True):
        own = ids[prompt]
        around = (own[max(0, pos - AROUND) : pos], own[pos : pos + 1], own[pos + 1 : pos + 1 + AROUND])
        for column, tokens in zip(parts.values(), around, strict=True):
            column.append(str(pair.tokenizer.decode(tokens)))
    return rows.assign(**parts)
