"""What the neurons that flip most respond to, read once more on a finished run's models."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pandas as pd

from probes.capture.noise_floor import some_of_each_domain
from probes.directions.neuron_tokens import neuron_tokens
from probes.errors import RunError
from probes.job.further import Tables, add, encoded_of, named, reopened
from probes.store.neurons import flipped_most
from probes.store.run import Run
from tv.runtime.compute import Compute

#: Prompts that are read unless a call says otherwise.
PROMPTS = 96


def neurons(
    run: Run,
    *,
    tuned: str | Sequence[str] | None = None,
    prompts: int = PROMPTS,
    compute: Compute = Compute(),
) -> pd.DataFrame:
    """The tokens at which the neurons that flip most are most open, in the base and in the tuned model.

    Adds the table `neuron_tokens` to the run, in place of an earlier one of the same models. The neurons are those that
    the report lists: whose gate differs on most tokens of a domain.

    Args:
        run: A finished run that measured `gates`.
        tuned: One or several of its tuned models; all without it.
        prompts: How many prompts are read, drawn in turn from every domain.
        compute: The device and dtype that models compute in, and the progress callback.

    Returns:
        The table `neuron_tokens`: of each neuron and model the largest values of its gate, in context.

    Raises:
        RunError: No such model, no prompts, a run without gates, no neuron outside of experts that flips, or a
            checkpoint that is no longer what the run read.

    Examples:
        >>> run = probes.load("reports/demo")
        >>> tokens = probes.neurons(run, tuned="medical", prompts=6)
        >>> first = tokens[tokens["rank"] == 1]
        >>> sorted(set(first.model)), "neuron_tokens" in run.tables
        (['base', 'medical'], True)
    """
    names = named(run, tuned)
    if prompts < 1:
        raise RunError(f"neurons: {prompts} prompts; give at least 1")
    if "neurons" not in run.tables:
        raise RunError(f"{run.path}: neurons: the run did not measure gates; run the suite with gates in `measure`")
    listed = {name: flipped_most(run.df("neurons", where=[("tuned", "==", name)])) for name in names}
    listed = {name: rows[rows.expert < 0] for name, rows in listed.items()}
    if empty := [name for name, rows in listed.items() if rows.empty]:
        raise RunError(f"{run.path}: neurons: none outside of experts flipped in {', '.join(empty)}")
    models = reopened(run, compute)
    by_name: dict[str, Tables] = {}
    for name in names:
        encoded = some_of_each_domain(encoded_of(run, models, name), prompts, models.suite.seed)
        told = partial(compute.tell, f"neurons {name}")
        size = models.suite.batch_size
        rows = neuron_tokens(models.pair(name), encoded, listed[name], name, batch_size=size, told=told)
        by_name[name] = {"neuron_tokens": rows}
    add(run, by_name)
    return run["neuron_tokens"]
