"""Edges between components, between the two checkpoints: what a sender's change does to a metric through one reader.

Along θ(α) = θ_base + αT, with c_s a sender's contribution to the residual stream, B_r the gradient of the metric M with
respect to the stream as the receiver r alone reads it:

    edge(s → r) = ∫ Σ_tokens ⟨B_r(α), dc_s(α)⟩

The stream is a sum, so at every α the edges of a sender, with that to the logits, sum to ⟨∂M/∂c_s, dc_s⟩, its node
effect; and what flows into a component, with what its own weights add (`path`'s share), flows out of it. Integrals are
Stieltjes sums by the trapezoidal rule over equal steps, and Richardson's extrapolation of two such sums (error O(h⁴)).
Source of the edges: integrated gradients (arXiv 1703.01365) on the edges of edge attribution (arXiv 2310.10348,
2403.17806), here between checkpoints and not between prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probes.attribution.integrand import Integrand
from probes.attribution.metric import Metric
from probes.attribution.shares import Shares
from probes.capture.editing import entering
from probes.capture.pair import Pair
from probes.capture.sums import Factor
from probes.directions.edge_wiring import Receiver, Sender, Wiring
from probes.errors import RunError
from tv.architecture.anatomy import Module
from tv.checkpoints.streamed import is_streamed
from tv.prompts.encoding import Batch, Encoded, batches

Floats = NDArray[np.float64]
#: Steps of the integral to begin with, and at most: doubled while the edges to the logits miss more than TOLERANCE.
STEPS, MOST_STEPS, TOLERANCE = 8, 32, 0.01


@dataclass(frozen=True)
class Edges:
    """Every edge on every prompt, in the metric's unit."""

    prompts: tuple[str, ...]
    senders: tuple[Sender, ...]
    receivers: tuple[Receiver, ...]  # the last is the logits
    values: Floats  # (prompts, senders, receivers); NaN where a receiver reads before the sender writes
    nodes: Floats  # (prompts, senders): ∫ ⟨∂M/∂c_s, dc_s⟩ from the gradient at the sender's output; NaN of heads
    own: Floats  # (prompts, senders): what the component's own weights add, as `path` has it; NaN of heads
    ends: Floats  # (prompts,): what the final norm and the unembedding add themselves
    change: Floats  # (prompts,): M(tuned) − M(base)
    steps: NDArray[np.int64]  # (prompts,)

    @property
    def missed(self) -> Floats:
        """(prompts,): edges to the logits + what the ends add − the change."""
        whole = [i for i, sender in enumerate(self.senders) if sender.head < 0]
        found: Floats = np.nansum(self.values[:, whole, -1], axis=1) + self.ends - self.change
        return found


def require_edges(pair: Pair, metric: Metric) -> None:
    """Raise RunError, before any pass, where edges cannot be integrated."""
    if not metric.smooth:
        raise RunError(f"edges: {metric.name} is a step function and has no gradient; use logit_diff or target_nll")
    if {pair.base.dtype, pair.tuned.dtype} != {torch.float32}:
        raise RunError("edges: gradients along the path need float32; leave out --dtype")
    if is_streamed(pair.base) or is_streamed(pair.tuned):
        raise RunError("edges: both models must be whole in memory, and these are read a layer at a time")


def edges_of(
    pair: Pair,
    wiring: Wiring,
    encoded: Sequence[Encoded],
    metric: Metric,
    *,
    batch_size: int = 16,
    steps: int = STEPS,
    most_steps: int = MOST_STEPS,
    tolerance: float = TOLERANCE,
    told: Callable[[int, int], None] | None = None,
) -> Edges:
    """Every edge on every prompt.

    Args:
        pair: Both models, in float32.
        wiring: Who writes and who reads, see `wiring_of`.
        encoded: Prompts that have what the metric needs.
        metric: One with a gradient.
        batch_size: Prompts of a pass.
        steps: Steps between the models, an even number.
        most_steps: At most; a batch whose edges miss too much of its change gets twice as many.
        tolerance: What may be missed, as a part of the change.
        told: Called with (prompts done, all).

    Returns:
        Edges, prompts in the order of the batches.
    """
    found: list[Edges] = []
    integrand = Integrand(pair, metric)
    done = 0
    with integrand.along():
        for batch in batches(encoded, batch_size, pair.pad_id):
            n = steps
            while True:
                part = _integrated(integrand, wiring, batch, n)
                whole = float(np.abs(part.change).sum())
                if float(np.abs(part.missed).sum()) <= tolerance * whole or 2 * n > most_steps:
                    break
                n *= 2
            found.append(part)
            done += len(batch.encoded)
            if told:
                told(done, len(encoded))
    joined = {
        name: np.concatenate([getattr(part, name) for part in found])
        for name in ("values", "nodes", "own", "ends", "change", "steps")
    }
    ids = tuple(prompt for part in found for prompt in part.prompts)
    return Edges(ids, wiring.senders, wiring.receivers, **joined)


@dataclass
class _Node:
    """One place along the path: what is written, what is read with which gradient, and the slopes of own weights."""

    alpha: float
    metric: Floats
    written: dict[tuple[int, str], Tensor] = field(default_factory=dict)  # by sender: its contribution
    outputs: dict[tuple[int, str], Tensor] = field(default_factory=dict)  # before its factor
    z: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    read: dict[Receiver, Tensor] = field(default_factory=dict)  # gradients
    at_output: dict[tuple[int, str], Tensor] = field(default_factory=dict)  # gradients
    own: dict[tuple[int, str], Floats] = field(default_factory=dict)


@dataclass
class _Sums:
    """One Stieltjes sum on the way."""

    values: Floats
    nodes: Floats
    own: Floats
    last: _Node | None = None


def _integrated(integrand: Integrand, wiring: Wiring, batch: Batch, steps: int) -> Edges:
    n = len(batch.encoded)
    senders, receivers = wiring.senders, wiring.receivers
    fine, coarse = (
        _Sums(np.zeros((n, len(senders), len(receivers))), np.zeros((n, len(senders))), np.zeros((n, len(senders) + 1)))
        for _ in range(2)
    )
    first: Floats | None = None
    for k in range(steps + 1):
        node = _node(integrand, wiring, batch, k / steps)
        first = node.metric if first is None else first
        for sums, every in ((fine, 1), (coarse, 2)):
            if k % every == 0:
                if sums.last is not None:
                    _add(integrand, wiring, sums, sums.last, node)
                sums.last = node
        last = node.metric
    assert first is not None
    values, nodes, own = ((4 * getattr(fine, name) - getattr(coarse, name)) / 3 for name in ("values", "nodes", "own"))
    for i, sender in enumerate(senders):
        for j, receiver in enumerate(receivers):
            if receiver.at < sender.at:
                values[:, i, j] = np.nan
        if sender.head >= 0:
            nodes[:, i] = own[:, i] = np.nan
    embed = next(i for i, sender in enumerate(senders) if sender.component == "embed")
    # a tied matrix has one share, of both its places: what the embedding sends on is not the unembedding's
    ends = own[:, -1] + own[:, embed] - np.nansum(values[:, embed], axis=1)
    ids = tuple(item.prompt.id for item in batch.encoded)
    return Edges(
        ids, senders, receivers, values, nodes, own[:, :-1], ends, last - first, np.full(n, steps, dtype=np.int64)
    )


def _node(integrand: Integrand, wiring: Wiring, batch: Batch, alpha: float) -> _Node:
    """A forward and a backward pass at one place."""
    node = _Node(alpha, np.zeros(0))
    integrand.move(alpha)
    with _listening(integrand, wiring, node):
        value, shares = integrand.shares(batch)
    node.metric = value.double().cpu().numpy()
    node.own = _own(wiring, shares, len(batch.encoded))
    return node


@contextmanager
def _listening(integrand: Integrand, wiring: Wiring, node: _Node) -> Iterator[None]:
    """What is written and read in a pass of the base, and the gradients of both, while this lasts."""
    model = integrand.pair.base

    def kept(into: dict[Any, Tensor], key: Any) -> Callable[[Tensor], None]:
        def receive(gradient: Tensor) -> None:
            if integrand.sharing:  # not where it takes the gradient of single parameters
                into[key] = into[key] + gradient.detach() if key in into else gradient.detach()

        return receive

    with ExitStack() as hooks:

        def on_writer(key: tuple[int, str], factor: Factor) -> Callable[..., None]:
            def hook(_module: object, _args: object, output: object) -> None:
                value = output[0] if isinstance(output, tuple) else output
                assert isinstance(value, Tensor)
                node.outputs[key] = value.detach().clone()
                node.written[key] = _times(node.outputs[key], factor)
                value.register_hook(kept(node.at_output, key))

            return hook

        def on_embed(value: Tensor) -> Tensor:
            key = (-1, "embed")
            node.written[key] = node.outputs[key] = value.detach().clone()
            value.register_hook(kept(node.at_output, key))
            return value

        def on_reader(receiver: Receiver) -> Callable[[Tensor], Tensor]:
            def edit(value: Tensor) -> Tensor:
                own = value.clone()  # its gradient is that of this reader alone
                own.register_hook(kept(node.read, receiver))
                return own

            return edit

        def on_heads(key: tuple[int, str]) -> Callable[[Tensor], Tensor]:
            def edit(value: Tensor) -> Tensor:
                node.z[key] = value.detach().clone()
                return value

            return edit

        def before(path: str, edit: Callable[[Tensor], Tensor]) -> None:
            module = model.get_submodule(path)
            hooks.callback(module.register_forward_pre_hook(entering(edit), with_kwargs=True).remove)

        for key, (path, factor) in wiring.outputs.items():
            hooks.callback(model.get_submodule(path).register_forward_hook(on_writer(key, factor)).remove)
        before(wiring.first, on_embed)
        for key, (path, _) in wiring.heads.items():
            before(path, on_heads(key))
        for receiver in wiring.receivers:
            for path in receiver.paths:
                before(path, on_reader(receiver))
        yield


def _times(value: Tensor, factor: Factor) -> Tensor:
    return value * factor.to(value) if isinstance(factor, Tensor) else value * factor if factor != 1.0 else value


def _add(integrand: Integrand, wiring: Wiring, sums: _Sums, before: _Node, after: _Node) -> None:
    """One step of a sum: mean gradients of its ends, times what changed between them."""
    gradients = {
        receiver: (before.read[receiver] + after.read[receiver]) / 2
        for receiver in wiring.receivers
        if receiver in before.read and receiver in after.read
    }
    for i, sender in enumerate(wiring.senders):
        key = sender.layer, sender.component
        if sender.head >= 0:
            continue
        change = after.written[key] - before.written[key]
        for j, receiver in enumerate(wiring.receivers):
            if receiver.at >= sender.at and receiver in gradients:
                sums.values[:, i, j] += _inner(gradients[receiver], change)
        if key in before.at_output and key in after.at_output:
            at_output = (before.at_output[key] + after.at_output[key]) / 2
            sums.nodes[:, i] += _inner(at_output, after.outputs[key] - before.outputs[key])
        sums.own[:, i] += (before.own[key] + after.own[key]) / 2 * (after.alpha - before.alpha)
    ends = wiring.ends
    sums.own[:, -1] += (before.own[ends] + after.own[ends]) / 2 * (after.alpha - before.alpha)
    for key, (_, module) in wiring.heads.items():
        _add_heads(integrand, wiring, sums, key, module, (before, after), gradients)


def _add_heads(
    integrand: Integrand,
    wiring: Wiring,
    sums: _Sums,
    key: tuple[int, str],
    module: Module,
    nodes: tuple[_Node, _Node],
    gradients: dict[Receiver, Tensor],
) -> None:
    """The edges of a component's heads: each writes W_h z_h, and both may have changed."""
    factor = wiring.outputs[key][1]
    at = {sender.head: i for i, sender in enumerate(wiring.senders) if (sender.layer, sender.component) == key}
    first = at[0]
    matrices = [_matrix(integrand, module, node.alpha) for node in nodes]
    for j, receiver in enumerate(wiring.receivers):
        if receiver.at < wiring.senders[first].at or receiver not in gradients:
            continue
        gradient = _times(gradients[receiver], factor)
        parts = [(gradient @ matrix) * node.z[key] for matrix, node in zip(matrices, nodes, strict=True)]
        change = (parts[1] - parts[0]).unflatten(-1, (module.n_heads, -1)).sum(-1).double()
        sums.values[:, first : first + module.n_heads, j] += change.flatten(1, -2).sum(1).cpu().numpy()


def _matrix(integrand: Integrand, module: Module, alpha: float) -> Tensor:
    before, after = (module.matrix(side[module.parameter]) for side in (integrand.before, integrand.after))
    return torch.lerp(before, after, alpha)


def _inner(left: Tensor, right: Tensor) -> Floats:
    found: Floats = (left.double() * right.double()).flatten(1).sum(1).cpu().numpy()
    return found


def _own(wiring: Wiring, shares: Shares, n: int) -> dict[tuple[int, str], Floats]:
    """The slope of every component's own weights, by prompt; those of final norm and unembedding as the ends'."""
    found = {key: np.zeros(n) for key in (*wiring.outputs, (-1, "embed"), wiring.ends)}
    both = [*((module, value.double().sum(-1)) for module, value in shares.modules.items())]
    both += [(module, value.double()) for module, value in shares.wholes.items()]
    for module, value in both:
        key = (module.layer, module.component)
        if module.layer == -1:
            key = (-1, "embed")
        elif key not in found:
            key = wiring.ends if module.layer == wiring.ends[0] else wiring.beside(module.layer)
        found[key] = found[key] + value.cpu().numpy()
    return found
