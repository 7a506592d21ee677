"""Attribution of a run again, from the checkpoints that it names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from probes.attribution.attributor import attribution_tables
from probes.attribution.metric import require_answers, require_metric
from probes.capture.loading import attributing
from probes.discovery.finding import require_finding, require_readable
from probes.discovery.found import with_a_finding
from probes.job.effects import effects_of
from probes.job.further import reopened
from probes.store.manifest import stages_of
from probes.store.prompts import prompts_of
from probes.store.run import Run
from probes.suite import with_attribution
from tv.runtime.compute import Compute


def attribute(
    run: Run,
    *,
    method: str | Sequence[str] | None = None,
    metric: str | None = None,
    granularity: str | Sequence[str] | None = None,
    compute: Compute = Compute(),
    **settings: Any,
) -> pd.DataFrame:
    """Attribute a run's behaviour change again, from the checkpoints that it names, and replace its effect tables.

    What is not given is as in the run's suite. `probes.run` with that suite then treats it as another run, and
    replaces it only with `force`.

    Args:
        run: A finished run. Tables of methods that are not asked for again are dropped.
        method: One or several, such as "graft", "revert" or "path".
        metric: The behaviour that effects are measured on, such as "logit_diff", or `module:function`.
        granularity: The kinds of unit, one or several: "component", "module", "head", "kv_head", "expert" or "neuron".
        compute: The device and dtype that models compute in, and the progress callback.
        settings: Other keys of the suite's `attribute` section: `controls`, `curves`, and the methods' options.

    Returns:
        The table `effects`: a row per tuned model, unit, domain and method.

    Raises:
        SuiteError: An unknown method, metric or setting.
        RunError: A metric that no prompt can answer, a dtype in which a method cannot be computed, or a checkpoint that
            is no longer what the run read (a live model's name leads to what it was loaded from).

    Examples:
        >>> run = probes.load("reports/demo")
        >>> effects = probes.attribute(run, method="graft", controls=[], curves=False)
        >>> effects.method.unique().tolist(), "effects" in run.tables
        (['graft'], True)
    """
    given = {"methods": method, "metric": metric, "granularity": granularity, **settings}
    suite = with_attribution(run.manifest["suite"], given)
    assert suite.attribute is not None
    require_metric(suite.attribute.metric)
    require_finding(suite, stages_of(run.manifest))
    require_answers(prompts_of(run), suite.attribute.metric)
    models = reopened(run, attributing(compute, suite.attribute), suite)
    require_readable(suite, models.tokenizer)
    by_name, _ = with_a_finding(suite.tuned, lambda name: effects_of(models, run, name, compute))
    by_pair = list(by_name.values())
    run.manifest.pop("identity", None)  # its tables are no longer those of its identity
    for table in attribution_tables() - {name for tables in by_pair for name in tables}:
        run.drop(table)  # of methods that were not asked for again
    for table in dict.fromkeys(name for tables in by_pair for name in tables):
        run.add(table, pd.concat([tables[table] for tables in by_pair if table in tables], ignore_index=True))
    return run["effects"]
