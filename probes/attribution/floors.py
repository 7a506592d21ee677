"""The noise floor of the metric that effects are measured on: what a run measured of it, by domain."""

from __future__ import annotations

from probes.store.run import Run


def floors_of(run: Run, metric: str) -> dict[str, float]:
    """How far rounding alone moves the mean of a metric in each domain; nothing of a run that did not measure it.

    Args:
        run: A run, as far as it has come.
        metric: A behaviour metric.

    Returns:
        The floors by domain, `all` among them, in the metric's unit.
    """
    if "behaviour_floor" not in run.tables:
        return {}
    rows = run.df("behaviour_floor", columns=["domain", "floor"], where=[("metric", "==", metric)])
    return {str(domain): float(floor) for domain, floor in rows.groupby("domain").floor.max().items()}
