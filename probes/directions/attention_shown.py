"""Whole attention patterns of the heads that changed most, on the prompts on which they changed most."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from probes.capture.pair import Pair
from probes.directions.attention_heads import HEAD
from probes.directions.attention_patterns import Patterns, each_pattern
from probes.store.schemas import ALL_DOMAINS
from tv.prompts.encoding import Encoded, batches

#: Heads and prompts whose patterns are kept, and tokens of a prompt: its first.
HEADS, PROMPTS, TOKENS = 12, 6, 40

_COLUMNS = ["prompt_id", *HEAD, "query_pos", "key_pos", "weight_base", "weight_tuned"]


def chosen_heads(heads: pd.DataFrame) -> pd.DataFrame:
    """The heads with the largest mean divergence over all prompts, largest first: rows of `attention_heads`."""
    return heads[(heads.domain == ALL_DOMAINS) & heads.js.notna()].nlargest(HEADS, "js")[HEAD]


def chosen_prompts(by_prompt: pd.DataFrame, heads: pd.DataFrame, encoded: Sequence[Encoded]) -> list[Encoded]:
    """The prompts on which these heads diverge most: whole ones first, then those that are cut after `TOKENS`.

    Args:
        by_prompt: The table `attention`.
        heads: Layer, component and head of each.
        encoded: The prompts.

    Returns:
        At most `PROMPTS` of them.
    """
    moved = by_prompt[by_prompt.place == "all"].merge(heads, on=HEAD).groupby("prompt_id").js.mean()
    known = [item for item in encoded if item.prompt.id in moved.index]
    return sorted(known, key=lambda item: (len(item.ids) > TOKENS, -moved[item.prompt.id]))[:PROMPTS]


def pattern_rows(pair: Pair, encoded: Sequence[Encoded], heads: pd.DataFrame) -> pd.DataFrame:
    """The table `attention_patterns`, without tokens: both models' weights on every key that a query sees.

    Args:
        pair: Both models, whole in memory.
        encoded: The prompts, of which the first `TOKENS` tokens are kept.
        heads: Layer, component and head of each.

    Returns:
        A row per prompt, head, query and key; the key of a sink is −1.
    """
    wanted = {place: rows["head"].tolist() for place, rows in heads.groupby(["layer", "component"])}
    found: list[pd.DataFrame] = []
    for batch in batches(encoded, PROMPTS, pair.pad_id):
        length = batch.input_ids.shape[1]

        def receive(seen: Patterns, length: int = length, items: Sequence[Encoded] = batch.encoded) -> None:
            base, tuned = (pattern.weights.float().cpu() for pattern in (seen.base, seen.tuned))
            visible = seen.base.visible.cpu()
            for head in wanted.get((seen.layer, seen.component), ()):
                for i, item in enumerate(items):
                    n = min(len(item.ids), TOKENS)
                    of_head = head if visible.shape[1] > 1 else 0
                    query, key = visible[i, of_head, :n].nonzero(as_tuple=True)
                    found.append(
                        pd.DataFrame(
                            {
                                "prompt_id": item.prompt.id,
                                "layer": seen.layer,
                                "component": seen.component,
                                "head": head,
                                "query_pos": query.numpy(),
                                "key_pos": key.where(key < length, -1).numpy(),
                                "weight_base": base[i, head, query, key].numpy(),
                                "weight_tuned": tuned[i, head, query, key].numpy(),
                            }
                        )
                    )

        each_pattern(pair, batch, receive)
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=_COLUMNS)
