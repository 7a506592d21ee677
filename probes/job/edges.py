"""Edges between the components of a finished run's models."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from probes.attribution.floors import floors_read
from probes.attribution.halves import halves
from probes.attribution.metric import answerable, metric_of, require_answers, require_metric
from probes.capture.noise_floor import some_of_each_domain
from probes.capture.pair import Pair
from probes.directions.edge_curves import Edge, all_edges, curves
from probes.directions.edge_rows import curve_rows, edge_rows, node_rows
from probes.directions.edge_wiring import wiring_of
from probes.directions.edges import MOST_STEPS, STEPS, Edges, edges_of, require_edges
from probes.directions.nulls import null_pair
from probes.errors import RunError
from probes.job.effects import prompts_of
from probes.job.further import Tables, add, encoded_of, named, reopened
from probes.store.run import Run
from probes.suite import Suite, metric_names
from tv.errors import choices
from tv.prompts.encoding import Encoded, batches
from tv.prompts.metric import METRICS
from tv.runtime.compute import Compute

#: Draws of random T, prompts that are read and random orders of edges, unless a call says otherwise.
DRAWS, PROMPTS, ORDERS = 4, 96, 8


def edges(
    run: Run,
    *,
    tuned: str | Sequence[str] | None = None,
    metric: str | None = None,
    prompts: int = PROMPTS,
    draws: int = DRAWS,
    steps: int = STEPS,
    orders: int = ORDERS,
    compute: Compute = Compute(),
) -> pd.DataFrame:
    """What every component's change does to a metric through every component that reads it.

    Integrated between the two checkpoints, see `probes.directions.edges`. Adds the tables `edges`, `edge_nodes` and
    `edge_curves` to the run, in place of earlier ones of the same models.

    Args:
        run: A finished run.
        tuned: One or several of its tuned models; all without it.
        metric: A metric with a gradient; the suite's, or logit_diff, without it.
        prompts: How many prompts are read, drawn in turn from every domain.
        draws: Draws of random T of T's norms, the null; at least 2.
        steps: Steps of the integral to begin with, an even number.
        orders: Random orders of edges, beside the faithfulness curve of the ranking.
        compute: The device that models compute in, and the progress callback; float32 is needed.

    Returns:
        The table `edges`: a row per tuned model, sender, receiver and domain.

    Raises:
        RunError: No such model or metric, a wrong number, an architecture whose stream is not a plain sum, models that
            are read a layer at a time, or a checkpoint that is no longer what the run read.

    Examples:
        >>> run = probes.load("reports/demo")
        >>> edges = probes.edges(run, tuned="medical", prompts=4, draws=2, orders=2)
        >>> nodes = run["edge_nodes"]
        >>> bool(nodes.gap.max() < 0.01)  # what is sent sums to every node's effect, and to the whole change
        True
    """
    names = named(run, tuned)
    for value, least, what in ((draws, 2, "draws"), (prompts, 2, "prompts"), (orders, 1, "orders")):
        if value < least:
            raise RunError(f"edges: {value} {what} are too few; give at least {least}")
    if steps < 2 or steps % 2:
        raise RunError(f"edges: {steps} steps: give an even number of at least 2")
    wanted = metric or _metric_of(run)
    require_metric(wanted)
    if wanted in METRICS and not METRICS[wanted].smooth:
        raise RunError(f"edges: {wanted} is a step function and has no gradient; use logit_diff or target_nll")
    if wanted not in metric_names() and ":" not in wanted:
        raise RunError(f"edges: no metric {wanted!r}{choices(wanted, metric_names())}, and module:function")
    require_answers(prompts_of(run), wanted)
    compute.require_float32("gradients along the path are taken")
    models = reopened(run, compute)
    by_name: dict[str, Tables] = {}
    for name in names:
        encoded = answerable(encoded_of(run, models, name), wanted)
        encoded = some_of_each_domain(encoded, prompts, models.suite.seed)
        work = _Work(models.pair(name), encoded, wanted, models.suite, name, compute)
        by_name[name] = work.tables(draws, steps, orders)
    add(run, by_name)
    return run["edges"]


def _metric_of(run: Run) -> str:
    """The suite's metric, where it is one that has a gradient by itself."""
    named = (run.manifest["suite"].get("attribute") or {}).get("metric", "logit_diff")
    return str(named) if not str(named).startswith("discovered:") else "logit_diff"


class _Work:
    """The edges of one pair."""

    def __init__(
        self, pair: Pair, encoded: Sequence[Encoded], metric: str, suite: Suite, name: str, compute: Compute
    ) -> None:
        self.pair, self.encoded, self.name, self.suite, self.compute = pair, list(encoded), metric, suite, compute
        self.stage = f"edges {name}"
        self.wiring = wiring_of(pair)
        self.domains = {item.prompt.id: item.prompt.domain for item in encoded}
        self.clusters = {item.prompt.id: item.prompt.cluster or item.prompt.id for item in encoded}

    def tables(self, draws: int, steps: int, orders: int) -> Tables:
        """All tables."""
        size, seed = self.suite.batch_size, self.suite.seed
        made = batches(self.encoded, size, self.pair.pad_id)
        metric = metric_of(self.name, self.pair.tuned, made)
        require_edges(self.pair, metric)
        n = len(self.encoded)
        passes = 1 + draws

        def told(i: int, done: int, _all: int) -> None:
            self.compute.tell(self.stage, i * n + done, passes * n)

        own = edges_of(
            self.pair, self.wiring, self.encoded, metric, batch_size=size, steps=steps, told=partial(told, 0)
        )
        random = []
        for draw in range(draws):
            with null_pair(self.pair, "random", draw, seed) as sham:
                of_sham = metric_of(self.name, sham.tuned, made)
                random.append(
                    edges_of(
                        sham,
                        self.wiring,
                        self.encoded,
                        of_sham,
                        batch_size=size,
                        steps=steps,
                        most_steps=max(steps, MOST_STEPS // 2),
                        told=partial(told, 1 + draw),
                    )
                )
        floors = floors_read(self.pair, metric, made)
        found = {
            "edges": edge_rows(own, random, self.encoded, floors, self.name),
            "edge_nodes": node_rows(own, self.encoded, floors, self.name),
        }
        domain, chosen, rest = self._halved(own, seed)
        if not rest:  # too few clusters to choose on some and to look on others
            return found
        ranked = self._ranked(own, chosen)
        drawn = curves(
            self.pair,
            self.wiring,
            rest,
            metric,
            ranked,
            orders=orders,
            seed=seed,
            batch_size=size,
            told=lambda done, total: self.compute.tell(f"{self.stage}: curves", done, total),
        )
        ordered = [item.prompt.id for batch in batches(rest, size, self.pair.pad_id) for item in batch.encoded]
        rows = curve_rows(drawn, [self.clusters[prompt] for prompt in ordered], self.name)
        found["edge_curves"] = rows.assign(domain=domain)
        return found

    def _halved(self, own: Edges, seed: int) -> tuple[str, NDArray[np.bool_], list[Encoded]]:
        """The domain that changed most, which of its prompts choose a ranking, and the others, which it is held to."""
        domains = np.array([self.domains[prompt] for prompt in own.prompts])
        changes = {str(domain): abs(float(own.change[domains == domain].mean())) for domain in np.unique(domains)}
        domain = max(changes, key=lambda name: changes[name])
        there = domains == domain
        clusters = [self.clusters[prompt] for prompt, here in zip(own.prompts, there.tolist(), strict=True) if here]
        first = next(halves(clusters, seed), None)
        chosen = np.zeros(len(domains), bool)
        if first is None:
            return domain, chosen, []
        chosen[there] = first
        others = {prompt for prompt, other in zip(own.prompts, (there & ~chosen).tolist(), strict=True) if other}
        return domain, chosen, [item for item in self.encoded if item.prompt.id in others]

    def _ranked(self, own: Edges, chosen: NDArray[np.bool_]) -> list[Edge]:
        """All edges, those with the largest mean effect on these prompts first."""
        row = {sender: i for i, sender in enumerate(self.wiring.senders)}
        column = {receiver: j for j, receiver in enumerate(self.wiring.receivers)}
        mean = np.abs(own.values[chosen].mean(0))
        return sorted(all_edges(self.wiring), key=lambda edge: -float(mean[row[edge[0]], column[edge[1]]]))
