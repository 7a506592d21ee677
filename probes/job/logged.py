"""What other evaluations logged of a run's models, as behaviour of the run on the prompts that came from the logs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from probes.errors import RunError
from probes.store.prompts import prompts_of
from probes.store.run import Run
from tv.errors import choices
from tv.evaluation.logs.read import read_logs
from tv.prompts.metric import LOGGED


def logs(run: Run, logs: Mapping[str, str | Path]) -> pd.DataFrame:
    """Add what other evaluations logged to a run's table `behaviour`, for the prompts that came from these logs.

    The suite names a log as a prompt set (`prompts: [{file: LOG}]`), or the file that `tv logs --prompts-out` wrote.
    The report shows the scores beside the run's own metrics. Rows that an earlier call added for the same models go.

    Args:
        run: A finished run.
        logs: By model, "base" or a tuned model's name, what `tv.read_logs` reads.

    Returns:
        The rows that were added: `prompt_id model metric value`. The metric `acc` is `logged:acc`; of several epochs
        the value is the mean.

    Raises:
        InputError: A model that the run lacks, no log of the base, a log that cannot be read, none of whose items is a
            prompt of the run, or one in other words than the run's prompt.

    Examples:
        >>> less = {"measure": ["behaviour"], "attribute": None, "noise_floor": False, "prompts": {"limit": 4}}
        >>> run = probes.run("data/suites/logged.yaml", out="reports/logged", stages=["capture"], settings=less)
        >>> rows = probes.logs(run, {name: f"data/logs/lm-eval/{name}" for name in ("base", "medical")})
        >>> rows[["metric", "model"]].value_counts(sort=False).to_dict()
        {('logged:acc', 'base'): 4, ('logged:acc', 'medical'): 4}
    """
    known = ["base", *run.manifest["suite"]["tuned"]]
    for name in logs:
        if name not in known:
            raise RunError(f"{run.path}: no model {name!r}{choices(name, known)}")
    if "base" not in logs or len(logs) < 2:
        raise RunError(f"{run.path}: logs of two models are needed: base=LOG and one of {', '.join(known[1:])}")
    texts = {prompt.id: prompt.text for prompt in prompts_of(run)}
    new = pd.concat([_rows(run, name, log, texts) for name, log in logs.items()], ignore_index=True)
    there = run["behaviour"] if "behaviour" in run.tables else new.iloc[:0]
    old = there.metric.astype(str).str.startswith(LOGGED) & there.model.isin(list(logs))
    run.add("behaviour", pd.concat([there[~old], new], ignore_index=True))
    return new


def _rows(run: Run, name: str, log: str | Path, texts: Mapping[str, str]) -> pd.DataFrame:
    """The scores of one model on prompts of the run."""
    items = read_logs(log)
    found = items[items.prompt_id.isin(list(texts))]
    if found.empty:
        some, own = (", ".join(list(ids)[:2]) for ids in (items.prompt_id.unique(), texts))
        raise RunError(
            f"{log}: none of its items ({some}, …) is a prompt of {run.path} ({own}, …); name the log as a prompt "
            "set of the suite, and run it"
        )
    for prompt, text in zip(found.prompt_id, found.text, strict=True):
        if text is not None and text != texts[prompt]:
            raise RunError(
                f"{log}: item {prompt} differs in wording from the run's prompt: {text[:60]!r}, not "
                f"{texts[prompt][:60]!r}; evaluate both models on the same prompts"
            )
    means = found.groupby(["prompt_id", "metric"], sort=False, as_index=False).value.mean()
    return means.assign(model=name, metric=LOGGED + means.metric)[["prompt_id", "model", "metric", "value"]]
