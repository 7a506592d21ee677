"""Integrated gradients along the tuning vector: what every weight's step adds to a metric, on every token.

With θ(α) = θ_pre + αT, M(θ_ft) − M(θ_pre) = ∫₀¹ ⟨T, ∂M/∂θ⟩ dα: `integrand` has the shares of the integrand, and
`quadrature` the nodes of every prompt's integral. Sundararajan et al. 2017 (arXiv 1703.01365) name the method and
completeness, which is checked here and not assumed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from probes.attribution.checks import Check, completeness
from probes.attribution.effects import Effects, floor_of
from probes.attribution.forwards import Floats, Model, Variant, values
from probes.attribution.integrand import Integrand
from probes.attribution.metric import Metric
from probes.attribution.nodes import MOST_NODES, NODES, TOLERANCE
from probes.attribution.quadrature import Integral
from probes.attribution.shares import Integrated, Layout, PathEffects, Shares, gap_of, total_of
from probes.attribution.units import Unit
from probes.attribution.work import Rows, Work
from probes.capture.halving import within_memory
from probes.capture.pair import Pair
from probes.errors import RunError
from probes.store.schemas import ALL_DOMAINS
from tv.prompts.encoding import Encoded
from tv.stats.change import LEAST_FLOOR

Told = Callable[[int, int, str], None]

#: So many batches of prompts are integrated side by side, so that those that need the same node share a forward.
WINDOW = 4


def path(
    work: Work,
    units: Sequence[Unit],
    *,
    nodes: int = NODES,
    most_nodes: int = MOST_NODES,
    tolerance: float = TOLERANCE,
) -> Iterator[Effects | Rows | Check]:
    """Shares of every granularity at once, of tokens and neurons too, and whether they add up; see `path_effects`.

    Args:
        work: The pair, the prompts and the metric.
        units: None; the method gives the shares of all.
        nodes: Gauss–Legendre nodes to begin with.
        most_nodes: Nodes at most.
        tolerance: The completeness gap that is good enough.

    Raises:
        RunError: The metric has no gradient, or the models are not float32.
    """
    _require_gradients(work.pair, work.metric)
    integrated = path_effects(
        work.pair,
        work.encoded,
        work.metric,
        batch_size=work.batch_size,
        nodes=nodes,
        most_nodes=most_nodes,
        tolerance=tolerance,
        ends=(_end(work, "base"), _end(work, "tuned")),
        floor=floor_of(work.floors, ALL_DOMAINS),
        told=work.progress,
    )
    yield from completeness(integrated, work.domains, tolerance, work.floors)
    still = integrated.unchanged(work.domains, work.floors)
    tokens, neurons = integrated.tokens(), integrated.neurons(work.domains)
    tokens.loc[tokens.prompt_id.map(work.domains).isin(still), "effect"] = np.nan
    neurons.loc[neurons.domain.isin(still), ["effect", "se"]] = np.nan
    yield Rows("token_effects", tokens.assign(method="path"))
    if len(neurons):  # a model without an MLP has none
        yield Rows("neuron_effects", neurons.assign(method="path"))
    yield from integrated.effects(work.pair.architecture)


def path_effects(
    pair: Pair,
    encoded: Sequence[Encoded],
    metric: Metric,
    *,
    batch_size: int,
    nodes: int = NODES,
    most_nodes: int = MOST_NODES,
    tolerance: float = TOLERANCE,
    floor: float = LEAST_FLOOR,
    ends: tuple[Floats, Floats] | None = None,
    done: Mapping[str, Integrated] | None = None,
    keep: Callable[[Integrated], None] | None = None,
    told: Told | None = None,
) -> PathEffects:
    """Every prompt's shares, prompts in the order given.

    Each prompt begins with `nodes` Gauss–Legendre nodes and gets another where its integrand bends until it misses no
    more than `tolerance` of the mean change, or has `most_nodes`; see `Integral`. Logs a warning where the shares of
    all do not add up to within `tolerance`. A change that is not above `floor`, which rounding alone can make, needs no
    more nodes: nothing is shared out. Costs about 3.5 forward passes a node. Memory: both models, a third copy of the
    weights that moved at θ(α), T where it is small, and the activations of one batch.

    Args:
        pair: The two models.
        encoded: The prompts.
        metric: The metric.
        batch_size: Prompts in one forward pass.
        nodes: Of each prompt, to begin with.
        most_nodes: Of each prompt, at most.
        tolerance: What the shares may miss, as a part of the change.
        floor: The size of a change that rounding alone can make.
        ends: The metric of every prompt under the base and under the tuned model, where it is known.
        done: By prompt, integrals that are there already.
        keep: Called with every integral as soon as it is finished.
        told: Called with (prompts done, all, a label).

    Raises:
        RunError: The metric has no gradient, or the models are not float32.
    """
    _require_gradients(pair, metric)
    if ends is None:
        base, tuned = (_by_prompt(model, encoded, batch_size, pair.pad_id, metric) for model in (pair.base, pair.tuned))
    else:
        base, tuned = ends
    at = np.flatnonzero(~np.isnan(base + tuned))
    known, base, tuned = [encoded[i] for i in at.tolist()], base[at], tuned[at]
    whole = float(np.abs(tuned - base).sum())
    still = whole <= floor * len(known)
    allowed = np.inf if still else tolerance * whole / len(known)
    integrals = dict(done or {})
    todo = [
        _Prompt(item, Integral(before, after, nodes, most_nodes, allowed, floor))
        for item, before, after in zip(known, base.tolist(), tuned.tolist(), strict=True)
        if item.prompt.id not in integrals
    ]
    todo.sort(key=lambda prompt: len(prompt.item.ids))
    integrand = Integrand(pair, metric)
    for first in range(0, len(todo), WINDOW * batch_size):
        for integrated in _integrated(integrand, todo[first : first + WINDOW * batch_size], batch_size):
            integrals[integrated.prompt] = integrated
            if keep:
                keep(integrated)
            if told:
                told(len(known) - len(todo) + len(integrals) - len(done or {}), len(known), "path")
    found = [integrals[item.prompt.id] for item in known]
    n_nodes = np.array([integrated.nodes for integrated in found], np.int64)
    ids = tuple(item.prompt.id for item in known)
    effects = PathEffects(ids, tuple(integrated.shares for integrated in found), base, tuned, n_nodes)
    gap = gap_of(effects.shares, effects.change, floor)
    if not still and gap > tolerance:
        mixes = any(module.name == "router" for module in pair.architecture.modules)
        logging.getLogger(__name__).warning(
            "path: shares miss %.1f%% of the change with up to %d nodes (wanted: %.1f%%)%s",
            100 * gap,
            n_nodes.max(),
            100 * tolerance,
            "; a router's choice jumps along the path" if mixes else "",
        )
    return effects


def _require_gradients(pair: Pair, metric: Metric) -> None:
    if not metric.smooth:
        raise RunError(
            f"path: {metric.name} is a step function and has no gradient; use graft and revert, or target_nll"
        )
    if {pair.base.dtype, pair.tuned.dtype} != {torch.float32}:
        raise RunError("path: gradients along the path need float32; leave out --dtype, or use graft and revert")


def _end(work: Work, name: Model) -> Floats:
    """The metric of every prompt under one model as it is, which other methods may have read."""
    own = Variant(name)
    if not work.known.has(own, work.prompts):
        model = work.pair.base if name == "base" else work.pair.tuned
        value = _by_prompt(model, work.encoded, work.batch_size, work.pair.pad_id, work.metric)
        work.known.keep(work.prompts, {own: value})
    return work.known.of(own, work.prompts)


def _by_prompt(model: nn.Module, encoded: Sequence[Encoded], batch_size: int, pad_id: int, metric: Metric) -> Floats:
    by_prompt: dict[str, float] = {}
    for batch, value in within_memory(encoded, batch_size, pad_id, lambda batch: values(model, [batch], metric)):
        by_prompt |= {item.prompt.id: float(v) for item, v in zip(batch.encoded, value, strict=True)}
    return np.array([by_prompt[item.prompt.id] for item in encoded], np.float64)


@dataclass
class _Prompt:
    """One prompt on the way, with the shares of its integrand at every node."""

    item: Encoded
    integral: Integral
    found: dict[float, tuple[Layout, Tensor]] = field(default_factory=dict)

    def add(self, alpha: float, metric: float, layout: Layout, vector: Tensor) -> None:
        """What a pass at a node gave."""
        slope = total_of(layout, vector, len(self.item.ids))
        self.integral.known[alpha] = metric, slope
        self.found[alpha] = layout, vector

    def integrated(self) -> Integrated:
        """The sum over its nodes."""
        weights, n = self.integral.weights(), len(self.item.ids)
        layouts = {layout for layout, _ in self.found.values()}
        if len(layouts) > 1:  # an expert that no token chose has no share at that node
            whole = Shares()
            for alpha, (layout, vector) in self.found.items():
                whole.put(Shares.of(layout, weights[alpha] * vector, n))
            layout, (vector,) = whole.alone().flat([n])
        else:
            layout = layouts.pop()
            weight = torch.tensor([weights[alpha] for alpha in self.found])
            vector = weight @ torch.stack([vector for _, vector in self.found.values()])
        return Integrated(self.item.prompt.id, len(self.found), n, layout, vector)


def _integrated(integrand: Integrand, prompts: Sequence[_Prompt], size: int) -> Iterator[Integrated]:
    """The integrals of these prompts, each as soon as it is finished."""
    waiting = list(prompts)
    with integrand.along():
        while waiting:
            by_node: dict[float, list[_Prompt]] = {}
            for prompt in waiting:
                for alpha in prompt.integral.wanted():
                    by_node.setdefault(alpha, []).append(prompt)
            going_on = {id(prompt) for at_node in by_node.values() for prompt in at_node}
            yield from (prompt.integrated() for prompt in waiting if id(prompt) not in going_on)
            waiting = [prompt for prompt in waiting if id(prompt) in going_on]
            for alpha, at_node in by_node.items():
                integrand.move(alpha)
                size = _evaluate(integrand, alpha, {prompt.item.prompt.id: prompt for prompt in at_node}, size)


def _evaluate(integrand: Integrand, alpha: float, prompts: Mapping[str, _Prompt], size: int) -> int:
    """One node of these prompts. Returns how many went into a batch, fewer than `size` where memory ran out."""
    largest, pad_id = 0, integrand.pair.pad_id
    items = [prompt.item for prompt in prompts.values()]
    for batch, (metric, shares) in within_memory(items, size, pad_id, integrand.shares):
        layout, vectors = shares.flat([len(item.ids) for item in batch.encoded])
        for item, value, vector in zip(batch.encoded, metric.tolist(), vectors, strict=True):
            prompts[item.prompt.id].add(alpha, value, layout, vector)
        largest = max(largest, len(batch.encoded))
    return largest if pad_id >= 0 and largest < min(size, len(items)) else size
