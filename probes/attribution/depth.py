"""At which depth it happens: the first l layers of one model followed by the rest of the other.

Two checkpoints of one lineage can be joined so because their residual streams are near enough for either to read.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from probes.attribution.exact import prompts_of
from probes.attribution.forwards import Told, from_model, values_under
from probes.attribution.metric import Metric
from probes.attribution.units import components
from probes.capture.pair import Pair
from tv.prompts.encoding import Batch


def depth(pair: Pair, batches: Sequence[Batch], metric: Metric, told: Told | None = None) -> pd.DataFrame:
    """The metric with upstream from one model and late layers from the other: `cut upstream late prompt_id value`.

    `cut` l from 0 to n_layers: the embedding and the layers before l are `upstream`'s, the others and the unembedding
    `late`'s. At every cut the four rows base/base, base/tuned, tuned/base, tuned/tuned make a 2 × 2 table: where the
    upstream change alone moves the metric, the base can already read it.
    """
    architecture, prompts = pair.architecture, prompts_of(batches)
    units = components(architecture)
    cuts = range(architecture.n_layers + 1)
    # Late layers from the other model leave everything before the cut to be reused.
    late = [[unit for unit in units if unit.layer >= cut] for cut in cuts]
    base, base_then_tuned = values_under(
        pair.base,
        architecture,
        [from_model(pair.base, pair.tuned, architecture, own) for own in late],
        batches,
        metric,
        told,
    )
    tuned, tuned_then_base = values_under(
        pair.tuned,
        architecture,
        [from_model(pair.tuned, pair.base, architecture, own) for own in late],
        batches,
        metric,
        told,
    )
    rows = []
    for cut in cuts:
        for upstream, last, value in (
            ("base", "base", base),
            ("base", "tuned", base_then_tuned[cut]),
            ("tuned", "base", tuned_then_base[cut]),
            ("tuned", "tuned", tuned),
        ):
            columns = {"cut": cut, "upstream": upstream, "late": last, "prompt_id": prompts, "value": value}
            rows.append(pd.DataFrame(columns))
    return pd.concat(rows, ignore_index=True).dropna(subset="value")
