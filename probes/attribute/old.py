"""Which components cause the behaviour change: exact grafts and reverts.

`graft` moves one component of the base to the tuned weights and reads the metric; `revert` moves one component of the
tuned model back. Every parameter belongs to exactly one component, so grafting all of them is the tuned model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from probes.pair import Pair
from probes.schemas import ALL_DOMAINS
from tv.architecture import Architecture
from tv.behaviour import metrics
from tv.prompts import Batch
from tv.stats import benjamini_hochberg, bootstrap_mean, wilcoxon_p

#: The exact methods, and the metrics that they move.
METHODS = ("graft", "revert")
METRICS = ("logit_diff", "target_nll")

Unit = tuple[int, str]  # (layer, component)
Progress = Callable[[int, int, str], None]


def components(architecture: Architecture) -> list[Unit]:
    """All components, by depth."""
    blocks = [(block.layer, name) for block in architecture.blocks for name in ("attn", "mlp")]
    return [(-1, "embed"), *blocks, (architecture.n_layers, "unembed")]


def component_name(layer: int, component: str) -> str:
    """What people call a component: `mlp 3`, `embed`."""
    return component if component in ("embed", "unembed") else f"{component} {layer}"


@contextmanager
def moved(
    model: PreTrainedModel, source: PreTrainedModel, architecture: Architecture, units: Sequence[Unit]
) -> Iterator[None]:
    """`model` with these components' parameters taken from `source`, for as long as the context lasts.

    Parameters are lent, not copied: nothing is computed, and leaving the context puts back the very tensors.
    """
    lent, wanted = dict(source.named_parameters()), set(units)
    kept = []
    try:
        for name, parameter in model.named_parameters():
            if architecture.component_of(name) in wanted:
                kept.append((parameter, parameter.data))
                parameter.data = lent[name].data
        yield
    finally:
        for parameter, data in kept:
            parameter.data = data


def prompt_effects(
    pair: Pair, batches: Sequence[Batch], methods: Sequence[str], metric: str, progress: Progress | None = None
) -> pd.DataFrame:
    """Per prompt and component: `layer component method metric prompt_id effect`, one forward a component.

    The effect is how much the metric moves towards the tuned model: graft M(θ_pre + T_c) − M(θ_pre), revert
    M(θ_ft) − M(θ_ft − T_c).
    """
    ids = [item.prompt.id for batch in batches for item in batch.encoded]
    units = components(pair.architecture)
    ends = {"graft": pair.base, "revert": pair.tuned}
    other = {"graft": pair.tuned, "revert": pair.base}
    frames = []
    for m, method in enumerate(methods):
        start = evaluate(ends[method], batches, metric)
        for i, unit in enumerate(units):
            with moved(ends[method], other[method], pair.architecture, [unit]):
                value = evaluate(ends[method], batches, metric)
            effect = value - start if method == "graft" else start - value
            columns = dict(layer=unit[0], component=unit[1], method=method, metric=metric, prompt_id=ids, effect=effect)
            frames.append(pd.DataFrame(columns))
            if progress:
                progress(m * len(units) + i + 1, len(methods) * len(units), f"{method} {unit[1]} {unit[0]}")
    return pd.concat(frames, ignore_index=True).dropna(subset="effect")


def evaluate(model: PreTrainedModel, batches: Sequence[Batch], metric: str) -> NDArray[np.float64]:
    """The metric of every prompt, in the order of the batches; NaN where a prompt lacks what it needs."""
    found = []
    with torch.inference_mode():
        for batch in batches:
            logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
            found.append(metrics(logits, batch)[metric].numpy())
    return np.concatenate(found)


def summarise(effects: pd.DataFrame, domains: Mapping[str, str], *, draws: int, seed: int) -> pd.DataFrame:
    """`effects`: each component's mean over prompts with its 95 % bootstrap interval, over all prompts and by domain.

    `domains` names each prompt's. p is a signed-rank test over prompts, q its Benjamini–Hochberg value within the
    family of one method's components in one domain.
    """
    by_domain = effects.assign(domain=effects.prompt_id.map(domains))
    frames = [by_domain.assign(domain=ALL_DOMAINS)] + [by_domain] * (by_domain.domain.nunique() > 1)
    by = ["method", "metric", "domain"]
    families = pd.concat(frames).groupby(by, sort=False)
    rows = [_family(family, draws, seed).assign(**dict(zip(by, key, strict=True))) for key, family in families]
    return pd.concat(rows, ignore_index=True).assign(granularity="component", module="", head=-1, direction=_direction)


def focus(effects: pd.DataFrame) -> str:
    """The domain in which some component's effect is largest: the one a reader wants to see first."""
    return str(effects.domain.loc[effects.effect.abs().idxmax()])


def _family(family: pd.DataFrame, draws: int, seed: int) -> pd.DataFrame:
    table = family.pivot(index="prompt_id", columns=["layer", "component"], values="effect")
    mean, lo, hi = bootstrap_mean(table.to_numpy(), draws=draws, seed=seed)
    p = wilcoxon_p(table.to_numpy())
    units = {name: table.columns.get_level_values(name) for name in ("layer", "component")}
    return pd.DataFrame({**units, "effect": mean, "lo": lo, "hi": hi, "p": p, "q": benjamini_hochberg(p)})


def _direction(effects: pd.DataFrame) -> pd.Series:
    return effects.method.map({"graft": "base→tuned", "revert": "tuned→base"})
