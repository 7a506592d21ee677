"""At which depth it happens: the first l layers of one model followed by the rest of the other.

Two checkpoints of one lineage can be joined because their residual streams are close enough for either to read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from probes.attribution.forwards import Variant
from probes.attribution.units import Unit, components
from probes.attribution.work import Rows, Work


def depth(work: Work, units: Sequence[Unit]) -> Iterator[Rows]:
    """Means over prompts of what `cuts` reads: the table `depth`.

    Args:
        work: The pair, the prompts and the metric.
        units: None; the method cuts between layers.
    """
    yield Rows("depth", work.means(cuts(work), ["cut", "upstream", "late"]))


def cuts(work: Work) -> pd.DataFrame:
    """The metric with upstream from one model and late layers from the other: `cut upstream late prompt_id value`.

    `cut` l from 0 to n_layers: the embedding and the layers before l are `upstream`'s, the others and the unembedding
    `late`'s. At every cut the four rows base/base, base/tuned, tuned/base, tuned/tuned make a 2 × 2 table: where the
    upstream change alone moves the metric, the base can already read it.
    """
    architecture = work.pair.architecture
    units = components(architecture)
    layers = range(architecture.n_layers + 1)
    # With the late layers from the other model, everything before the cut is reused.
    late = [[unit for unit in units if unit.layer >= cut] for cut in layers]
    plain, crossed = {}, {}
    plain["base"], crossed["base"] = work.under([Variant("base", tuple(moved)) for moved in late])
    plain["tuned"], crossed["tuned"] = work.under([Variant("tuned", tuple(moved)) for moved in late])
    rows = []
    for cut in layers:
        for upstream, last, value in (
            ("base", "base", plain["base"]),
            ("base", "tuned", crossed["base"][cut]),
            ("tuned", "base", crossed["tuned"][cut]),
            ("tuned", "tuned", plain["tuned"]),
        ):
            columns = {"cut": cut, "upstream": upstream, "late": last, "prompt_id": work.prompts, "value": value}
            rows.append(pd.DataFrame(columns))
    return pd.concat(rows, ignore_index=True).dropna(subset="value")
