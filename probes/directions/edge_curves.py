"""Whether the leading edges matter: the tuned model with these edges alone, every other one the base's."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from probes.attribution.forwards import Floats
from probes.attribution.metric import Metric
from probes.capture.editing import entering
from probes.capture.pair import Pair
from probes.capture.sums import Factor
from probes.directions.edge_wiring import Receiver, Sender, Wiring
from tv.prompts.encoding import Batch, Encoded, batches

#: An edge between a component and what reads it.
Edge = tuple[Sender, Receiver]
#: Random orders that a ranking is compared with.
ORDERS = 8
#: The ranking itself; others are random orders.
RANKED, RANDOM = "edges", "random"


@dataclass(frozen=True)
class Curve:
    """The metric of the tuned model as more edges are left in it, in the order of a ranking."""

    ranking: str
    draw: int
    n: tuple[int, ...]  # edges that are left
    values: Floats  # (len(n), prompts)


def all_edges(wiring: Wiring) -> list[Edge]:
    """Every edge between a component (not a head) and a reader of the stream behind it."""
    return [
        (sender, receiver)
        for sender in wiring.senders
        if sender.head < 0
        for receiver in wiring.receivers
        if receiver.at >= sender.at
    ]


def curves(
    pair: Pair,
    wiring: Wiring,
    encoded: Sequence[Encoded],
    metric: Metric,
    ranked: Sequence[Edge],
    *,
    orders: int = ORDERS,
    seed: int = 0,
    batch_size: int = 16,
    told: Callable[[int, int], None] | None = None,
) -> list[Curve]:
    """The first n edges of a ranking left in the tuned model, beside random orders of the same edges.

    Of an edge that is not left, the receiver reads what the sender writes in the base. What is written downstream is
    computed anew, so that paths of several edges are there where all of their edges are. With all edges the model is
    the tuned one; with none, every component and the logits read the base's stream.

    Args:
        pair: Both models.
        wiring: Who writes and who reads.
        encoded: Prompts that did not make the ranking.
        metric: Any metric.
        ranked: All edges, the first to matter first.
        orders: Random orders.
        seed: Of the orders.
        batch_size: Prompts of a pass.
        told: Called with (passes over the prompts done, all).

    Returns:
        The ranking's curve, and one of each random order.
    """
    ns = counts(len(ranked))
    found = []
    orderings = [(RANKED, 0, list(ranked))]
    for draw in range(orders):
        drawn = np.random.default_rng([seed, draw]).permutation(len(ranked)).tolist()
        orderings.append((RANDOM, draw, [ranked[i] for i in drawn]))
    made = batches(encoded, batch_size, pair.pad_id)
    written = [_written(pair.base, wiring, batch, metric) for batch in made]
    total = len(orderings) * len(ns)
    for i, (name, draw, order) in enumerate(orderings):
        values = []
        for k, n in enumerate(ns):
            kept = frozenset(order[:n])
            values.append(
                np.concatenate(
                    [_value(pair, wiring, batch, metric, kept, own) for batch, own in zip(made, written, strict=True)]
                )
            )
            if told:
                told(i * len(ns) + k + 1, total)
        found.append(Curve(name, draw, tuple(ns), np.stack(values)))
    return found


def counts(n: int) -> list[int]:
    """How many edges are left at each point of a curve: none, 1, 2, 4, … and all.

    Examples:
        >>> counts(10)
        [0, 1, 2, 4, 8, 10]
    """
    return [0, *(2**k for k in range(n.bit_length()) if 2**k < n), n]


Written = dict[tuple[int, str], Tensor]


@torch.no_grad()
def _written(model: PreTrainedModel, wiring: Wiring, batch: Batch, metric: Metric) -> Written:
    """What every component of a model writes on a batch."""
    found: Written = {}
    with _noting(model, wiring, found):
        metric.of(model, batch)
    return found


@torch.no_grad()
def _value(pair: Pair, wiring: Wiring, batch: Batch, metric: Metric, kept: Collection[Edge], base: Written) -> Floats:
    """The metric of a batch's prompts under the tuned model with these edges alone."""
    model, now = pair.tuned, Written()
    with ExitStack() as hooks:
        hooks.enter_context(_noting(model, wiring, now))
        for receiver in wiring.receivers:
            cut = [
                (sender.layer, sender.component)
                for sender in wiring.senders
                if sender.head < 0 and sender.at <= receiver.at and (sender, receiver) not in kept
            ]

            def edit(value: Tensor, cut: Sequence[tuple[int, str]] = tuple(cut)) -> Tensor:
                for key in cut:
                    value = value + (base[key].to(value) - now[key].to(value))
                return value

            for path in receiver.paths:
                module = model.get_submodule(path)
                hooks.callback(module.register_forward_pre_hook(entering(edit), with_kwargs=True).remove)
        found: Floats = metric.of(model, batch).double().cpu().numpy()
    return found


@contextmanager
def _noting(model: PreTrainedModel, wiring: Wiring, into: Written) -> Iterator[None]:
    """What every component writes goes into a dict, while this lasts."""
    with ExitStack() as hooks:

        def on_writer(key: tuple[int, str], factor: Factor) -> Callable[..., None]:
            def hook(_module: object, _args: object, output: object) -> None:
                value = output[0] if isinstance(output, tuple) else output
                assert isinstance(value, Tensor)
                into[key] = value * (factor.to(value) if isinstance(factor, Tensor) else factor)

            return hook

        def on_embed(value: Tensor) -> Tensor:
            into[-1, "embed"] = value.clone()
            return value

        for key, (path, factor) in wiring.outputs.items():
            hooks.callback(model.get_submodule(path).register_forward_hook(on_writer(key, factor)).remove)
        first = model.get_submodule(wiring.first)
        hooks.callback(first.register_forward_pre_hook(entering(on_embed), with_kwargs=True).remove)
        yield
