"""The noise floor of behaviour: what a run measured of it, by domain and metric."""

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
    return {domain: floor for (domain, name), floor in all_floors(run).items() if name == metric}


def all_floors(run: Run) -> dict[tuple[str, str], float]:
    """The noise floors of behaviour by domain and metric; nothing of a run that did not measure them."""
    if "behaviour_floor" not in run.tables:
        return {}
    rows = run.df("behaviour_floor", columns=["domain", "metric", "floor"])
    return {(str(row.domain), str(row.metric)): float(row.floor) for row in rows.itertuples()}
