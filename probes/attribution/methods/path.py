"""Integrated gradients along the tuning vector: what every weight's step adds to a metric, on every token.

With θ(α) = θ_pre + αT, M(θ_ft) − M(θ_pre) = ∫₀¹ ⟨T, ∂M/∂θ⟩ dα: `integrand` has the shares of the integrand, and
`quadrature` the nodes of every prompt's integral. Sundararajan et al. 2017 (arXiv 1703.01365) name the method and
completeness, which is checked here and not assumed.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from probes.attribution.by_block import ByBlock
from probes.attribution.checks import Check, completeness
from probes.attribution.effects import Effects, floor_of
from probes.attribution.forwards import Floats, Model, Variant, values
from probes.attribution.integrand import Integrand
from probes.attribution.metric import Metric
from probes.attribution.nodes import MOST_NODES, NODES, TOLERANCE
from probes.attribution.quadrature import Integral, wanted
from probes.attribution.reading import Each
from probes.attribution.shares import Integrated, Layout, PathEffects, Shares, gap_of
from probes.attribution.units import Unit
from probes.attribution.work import Rows, Work
from probes.capture.halving import within_memory
from probes.capture.pair import Pair
from probes.errors import RunError
from probes.store.schemas import ALL_DOMAINS
from tv.architecture.anatomy import Architecture
from tv.checkpoints.streamed import is_streamed
from tv.prompts.encoding import Batch, Encoded, batches
from tv.stats.change import LEAST_FLOOR

Told = Callable[[int, int, str], None]

#: At a node: a prompt's metric, its slope, and the slope's shares.
Slope = tuple[float, float, Layout, NDArray[np.float32]]
#: So many batches of prompts at least are integrated side by side, so that those that need the same node share a
#: forward; more where the shares of all at one node take no more bytes than this.
WINDOW, SHARES = 4, 4 * 2**20


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
    architecture, label = work.pair.architecture, f"path {nodes} {most_nodes} {tolerance:g}"
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
        done={prompt: Integrated.of(prompt, arrays, architecture) for prompt, arrays in work.known.arrays(label)},
        keep=lambda found: work.known.keep_arrays(
            label, {prompt: integrated.arrays(architecture) for prompt, integrated in found.items()}
        ),
        each=work.each if work.team else None,
        at_once=work.team.size if work.team else 1,
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
    keep: Callable[[Mapping[str, Integrated]], None] | None = None,
    each: Each | None = None,
    at_once: int = 1,
    told: Told | None = None,
) -> PathEffects:
    """Every prompt's shares, prompts in the order given.

    Each prompt begins with `nodes` Gauss–Legendre nodes. The prompts of a domain in one window get more where their
    integrands bend, those that miss most first, until together they miss no more than `tolerance` of the domain's mean
    change a prompt and none more than `OWN` times that, or have `most_nodes`; see `quadrature`. Logs a warning where
    the shares of all do not add up to within `tolerance`. A change that is not above `floor`, which rounding alone can
    make, needs no more nodes: nothing is shared out. Costs about 3 forward passes a node. Memory: both models, a third
    copy of the weights that moved at θ(α), T where it is small, the activations of one batch, and the shares of a
    window of prompts at all their nodes.

    Args:
        pair: The two models.
        encoded: The prompts.
        metric: The metric.
        batch_size: Prompts in one forward pass.
        nodes: Of each prompt, to begin with.
        most_nodes: Of each prompt, at most.
        tolerance: What the shares of a domain may miss, as a part of its change.
        floor: The size of a change that rounding alone can make.
        ends: The metric of every prompt under the base and under the tuned model, where it is known.
        done: By prompt, integrals that are there already.
        keep: Called with the integrals of prompts that went through the models together, by prompt.
        each: Evaluates nodes elsewhere; here without it.
        at_once: So many windows of prompts are on the way at once, so that nobody there has to wait.
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
    moved = np.abs(tuned - base)
    allowed = defaultdict(lambda: np.inf) if still else _allowed(known, moved, tolerance, floor)
    integrals = dict(done or {})
    todo = [
        _Prompt(item, Integral(before, after, nodes, most_nodes, floor))
        for item, before, after in zip(known, base.tolist(), tuned.tolist(), strict=True)
        if item.prompt.id not in integrals
    ]
    todo.sort(key=lambda prompt: len(prompt.item.ids))
    if is_streamed(pair.base):  # every sweep is for all
        at_once = len(todo)
    size = max(WINDOW * batch_size, SHARES // _most_bytes(pair.architecture, known))
    windows = [todo[i : i + size] for i in range(0, len(todo), size)]
    with _here(pair, metric, encoded) if each is None else nullcontext(each) as evaluated:
        for i in range(0, len(windows), at_once):
            some = windows[i : i + at_once]
            together: list[dict[str, Integrated]] = [{} for _ in some]
            tell = partial(_tell, told, len(known) - len(todo) + size * i, len(known))
            for which, integrated in _integrated(some, allowed, batch_size, evaluated, tell):
                integrals[integrated.prompt] = together[which][integrated.prompt] = integrated
                # All at once: prompts that are read beside others are the same to the bit only beside these.
                if keep and len(together[which]) == len(some[which]):
                    keep(together[which])
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


def _allowed(encoded: Sequence[Encoded], moved: Floats, tolerance: float, floor: float) -> dict[str, float]:
    """By domain, what a prompt may miss on average: a part of the mean change there.

    Then the shares of each domain add up, and those of all. A domain that did not move beyond rounding has nothing to
    add up to; there it is a part of the mean change of all.
    """
    whole, domains = float(moved.mean()), np.array([item.prompt.domain for item in encoded])
    means = {str(domain): float(moved[domains == domain].mean()) for domain in np.unique(domains)}
    return {domain: tolerance * (mean if mean > floor else whole) for domain, mean in means.items()}


def _tell(told: Told | None, before: int, n: int, settled: int) -> None:
    if told:
        told(before + settled, n, "path")


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

    def add(self, alpha: float, metric: float, slope: float, layout: Layout, vector: NDArray[np.float32]) -> None:
        """What a pass at a node gave."""
        own = torch.from_numpy(vector if vector.flags.writeable else vector.copy())  # Ray lends its arrays
        self.integral.known[alpha] = metric, slope
        self.found[alpha] = layout, own

    def integrated(self) -> Integrated:
        """The sum over its nodes."""
        weights, n = self.integral.weights(), len(self.item.ids)
        layout = next(iter(self.found.values()))[0]
        if any(
            other != layout for other, _ in self.found.values()
        ):  # an expert that no token chose has no share at that node
            whole = Shares()
            for alpha, (layout, vector) in self.found.items():
                whole.put(Shares.of(layout, weights[alpha] * vector, n))
            layout, (vector,) = whole.alone().flat([n])
        else:
            weight = torch.tensor([weights[alpha] for alpha in self.found])
            vector = weight @ torch.stack([vector for _, vector in self.found.values()])
        return Integrated(self.item.prompt.id, len(self.found), n, layout, vector)


@dataclass(frozen=True)
class Node:
    """A task: the integrand at one place, on prompts."""

    alpha: float
    prompts: tuple[str, ...]
    batch_size: int

    def __call__(self, work: Work) -> Passes:
        integrand = Integrand(work.pair, work.metric)
        with integrand.along():
            return self.on(integrand, work.items)

    def __str__(self) -> str:
        return f"path at {self.alpha:.3g} from prompt {self.prompts[0]!r} on"

    def on(self, integrand: Integrand, items: Mapping[str, Encoded]) -> Passes:
        """What the passes give, with a model that can be moved along T."""
        integrand.move(self.alpha)
        largest, pad_id = 0, integrand.pair.pad_id
        found: dict[str, Slope] = {}
        wanted = [items[prompt] for prompt in self.prompts]
        for batch, (metric, shares) in within_memory(wanted, self.batch_size, pad_id, integrand.shares):
            found |= _by_prompts(batch, metric, shares)
            largest = max(largest, len(batch.encoded))
        fewer = pad_id >= 0 and largest < min(self.batch_size, len(self.prompts))
        return Passes(found, largest if fewer else self.batch_size)


@dataclass(frozen=True)
class Passes:
    """At one node: of each prompt the metric, and the shares of its slope; and how many prompts a batch may have."""

    found: Mapping[str, Slope]
    batch_size: int


def _by_prompts(batch: Batch, metric: Tensor, shares: Shares) -> dict[str, Slope]:
    layout, vectors = shares.flat([len(item.ids) for item in batch.encoded])
    own = zip(batch.encoded, metric.tolist(), shares.totals(), vectors, strict=True)
    return {item.prompt.id: (value, slope, layout, vector.numpy()) for item, value, slope, vector in own}


@contextmanager
def _here(pair: Pair, metric: Metric, encoded: Sequence[Encoded]) -> Iterator[Each]:
    """Nodes are evaluated by this process."""
    items = {item.prompt.id: item for item in encoded}
    if is_streamed(pair.base):
        yield partial(_by_block, ByBlock(pair, metric), items)
        return
    integrand = Integrand(pair, metric)
    with integrand.along():
        yield lambda nodes: ((node, node.on(integrand, items)) for node in nodes)


def _by_block(by_block: ByBlock, items: Mapping[str, Encoded], nodes: Sequence[Node]) -> Iterator[tuple[Node, Passes]]:
    """Nodes of a streamed pair, as many at once as go through it together."""
    pad_id = by_block.pair.pad_id
    of_node = [batches([items[prompt] for prompt in node.prompts], node.batch_size, pad_id) for node in nodes]
    passes = by_block.passes([(node.alpha, batch) for node, some in zip(nodes, of_node, strict=True) for batch in some])
    for node, some in zip(nodes, of_node, strict=True):
        found: dict[str, Slope] = {}
        for one in islice(passes, len(some)):
            found |= _by_prompts(one.batch, one.value, one.shares)
        yield node, Passes(found, node.batch_size)


def _integrated(
    windows: Sequence[Sequence[_Prompt]],
    allowed: Mapping[str, float],
    batch_size: int,
    each: Each,
    settled: Callable[[int], None],
) -> Iterator[tuple[int, Integrated]]:
    """The integrals of these prompts with the number of their window, as soon as those of their domain there are done.

    What shares a forward pass, or what prompts may miss together, is of one window, so it does not matter how many
    there are. `settled` is called with how many prompts need no more nodes, as it stands.
    """
    groups = [(which, group) for which, prompts in enumerate(windows) for group in _by_domain(prompts)]
    sizes, n_prompts = [batch_size] * len(windows), sum(map(len, windows))
    while groups:
        nodes: dict[tuple[int, float], list[_Prompt]] = {}
        going_on = []
        for which, (domain, prompts) in groups:
            places = wanted([prompt.integral for prompt in prompts], allowed[domain])
            for prompt, alphas in zip(prompts, places, strict=True):
                for alpha in alphas:
                    nodes.setdefault((which, alpha), []).append(prompt)
            if any(places):
                going_on.append((which, (domain, prompts)))
            else:
                yield from ((which, prompt.integrated()) for prompt in prompts)
        groups = going_on
        settled(n_prompts - len({id(prompt) for prompts in nodes.values() for prompt in prompts}))
        tasks = {
            Node(alpha, tuple(prompt.item.prompt.id for prompt in prompts), sizes[which]): (which, prompts)
            for (which, alpha), prompts in nodes.items()
        }
        passes = dict(each(list(tasks)))
        for node, (which, prompts) in tasks.items():  # in order, whichever came first: sums depend on it
            for prompt in prompts:
                prompt.add(node.alpha, *passes[node].found[prompt.item.prompt.id])
            sizes[which] = min(sizes[which], passes[node].batch_size)


def _by_domain(prompts: Sequence[_Prompt]) -> list[tuple[str, list[_Prompt]]]:
    groups: dict[str, list[_Prompt]] = {}
    for prompt in prompts:
        groups.setdefault(prompt.item.prompt.domain, []).append(prompt)
    return list(groups.items())


def _most_bytes(architecture: Architecture, encoded: Sequence[Encoded]) -> int:
    """Of a prompt's shares at one node: one number for each module and token, and for each neuron."""
    longest = max((len(item.ids) for item in encoded), default=0)
    neurons = sum(module.shape[1] for module in architecture.modules if module.name in ("down", "shared_down"))
    return 4 * (len(architecture.modules) * longest + neurons) or 1
