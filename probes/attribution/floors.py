"""The noise floor of behaviour: what a run measured of it, by domain and metric."""

from __future__ import annotations

from collections.abc import Sequence

from probes.attribution.forwards import values
from probes.attribution.metric import Metric
from probes.capture.behaviour_floor import floors_of_changes
from probes.capture.noise_floor import twin_of
from probes.capture.pair import Pair
from probes.store.run import Run
from tv.prompts.encoding import Batch


def floors_of(run: Run, metric: str) -> dict[str, float]:
    """How far rounding alone moves the mean of a metric in each domain; nothing of a run that did not measure it.

    Args:
        run: A run, as far as it has come.
        metric: A behaviour metric.

    Returns:
        The floors by domain, `all` among them, in the metric's unit.
    """
    return {domain: floor for (domain, name), floor in all_floors(run).items() if name == metric}


def floors_read(pair: Pair, metric: Metric, batches: Sequence[Batch]) -> dict[str, float]:
    """The same of a metric that no run has measured: from the base beside itself in the other precision.

    Args:
        pair: Whose base it is.
        metric: Any metric of effects.
        batches: The prompts.

    Returns:
        The floors by domain, `all` among them, in the metric's unit.
    """
    with twin_of(pair) as (both, _):
        before, after = (values(model, batches, metric) for model in (both.base, both.tuned))
    encoded = [item for batch in batches for item in batch.encoded]
    moved = dict(zip((item.prompt.id for item in encoded), (after - before).tolist(), strict=True))
    return floors_of_changes(encoded, moved)


def all_floors(run: Run) -> dict[tuple[str, str], float]:
    """The noise floors of behaviour by domain and metric; nothing of a run that did not measure them."""
    if "behaviour_floor" not in run.tables:
        return {}
    rows = run.df("behaviour_floor", columns=["domain", "metric", "floor"])
    return {(str(row.domain), str(row.metric)): float(row.floor) for row in rows.itertuples()}
