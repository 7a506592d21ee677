"""Integrated gradients along the tuning vector: what every weight's step adds to a metric, on every token.

With θ(α) = θ_pre + αT, M(θ_ft) − M(θ_pre) = ∫₀¹ ⟨T, ∂M/∂θ⟩ dα. For a linear module y = Wx + b the integrand is
Σ_tokens δ·(T x + T_b) with δ = ∂M/∂y, so one backward pass to the activations gives the shares of all modules, heads,
neurons and tokens at once, and no weight gradient is formed. Norm gains: δ·(x̂ ∘ T_γ + T_β); embeddings: δ·T[id]; a
tied matrix has one share, the embedding's, of both its places. The integral is by Gauss–Legendre nodes; Sundararajan et
al. 2017 (arXiv 1703.01365) name the method and completeness, which is checked here and not assumed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from probes.attribution.checks import Check, completeness
from probes.attribution.effects import Effects, floor_of
from probes.attribution.forwards import Swap, frozen, swapped, values
from probes.attribution.metric import Metric, answers
from probes.attribution.nodes import MOST_NODES, NODES, TOLERANCE
from probes.attribution.shares import PathEffects, Shares
from probes.attribution.units import Unit
from probes.attribution.work import Rows, Work
from probes.capture.halving import within_memory
from probes.capture.hooks.plan import EXPERTS, MODULE, Read, plan
from probes.capture.hooks.torch_backend import by_position, tensors_of
from probes.capture.pair import Pair
from probes.errors import RunError
from probes.measures import mixture
from probes.store.schemas import ALL_DOMAINS
from tv.architecture.anatomy import Architecture, Module
from tv.architecture.values import values_of
from tv.prompts.encoding import Batch, Encoded
from tv.runtime.common_rows import common_rows
from tv.stats.change import LEAST_FLOOR

Told = Callable[[int, int, str], None]

#: Doubling the nodes must shrink the gap to this part of it, or path stops: no number of nodes integrates a jump.
HELPS = 0.7


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
    integrated = path_effects(
        work.pair,
        work.encoded,
        work.metric,
        batch_size=work.batch_size,
        nodes=nodes,
        most_nodes=most_nodes,
        tolerance=tolerance,
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
    told: Told | None = None,
) -> PathEffects:
    """Every prompt's shares, prompts in the order given.

    Starts with `nodes` Gauss–Legendre nodes; while the gap is above `tolerance`, the prompts that are off by more than
    their part of it are integrated again with twice as many, up to `most_nodes`. Logs a warning if that is not enough.
    A change that is not above `floor`, which rounding alone can make, needs no more nodes: nothing is shared out.
    Costs about 4 forward passes a node. Memory: both models, a third copy of the weights at θ(α), and the activations
    of one batch. Raises RunError for a metric without a gradient and for models that are not float32.
    """
    if not metric.smooth:
        raise RunError(
            f"path: {metric.name} is a step function and has no gradient; use graft and revert, or target_nll"
        )
    if {pair.base.dtype, pair.tuned.dtype} != {torch.float32}:
        raise RunError("path: gradients along the path need float32; leave out --dtype, or use graft and revert")
    sweep = _Sweep(pair, metric)
    ends = [_by_prompt(model, encoded, batch_size, pair.pad_id, metric) for model in (pair.base, pair.tuned)]
    known = [item for item in encoded if not np.isnan(ends[0][item.prompt.id] + ends[1][item.prompt.id])]
    change = {item.prompt.id: ends[1][item.prompt.id] - ends[0][item.prompt.id] for item in known}
    integrals: dict[str, tuple[Shares, int]] = {}
    todo, n, missed = known, nodes, float("inf")
    while todo:
        done = 0
        run = partial(sweep.integrate, nodes=n)
        for batch, shares in within_memory(todo, batch_size, pair.pad_id, run):
            for i, item in enumerate(batch.encoded):
                integrals[item.prompt.id] = shares.prompt(i, len(item.ids)), n
            done += len(batch.encoded)
            if told:
                told(done, len(todo), f"path, {n} nodes")
        off = {name: abs(shares.total() - change[name]) for name, (shares, _) in integrals.items()}
        whole = max(sum(map(abs, change.values())), floor * len(known))
        allowed = tolerance * whole
        if sum(off.values()) <= allowed or whole <= floor * len(known):
            break
        missed, last = sum(off.values()), missed
        n *= 2
        mixes = any(module.name == "router" for module in pair.architecture.modules)
        if n > most_nodes or missed > HELPS * last:
            logging.getLogger(__name__).warning(
                "path: shares miss %.1f%% of the change with %d nodes (wanted: %.1f%%)%s",
                100 * missed / whole,
                n // 2,
                100 * tolerance,
                "; a router's choice jumps along the path" if mixes else "",
            )
            break
        todo = [item for item in known if off[item.prompt.id] > allowed / len(known) / 2]
    ids = tuple(item.prompt.id for item in known)
    before, after = (np.array([end[name] for name in ids], np.float64) for end in ends)
    return PathEffects(
        ids,
        tuple(integrals[name][0] for name in ids),
        before,
        after,
        np.array([integrals[name][1] for name in ids], np.int64),
    )


def _by_prompt(
    model: nn.Module, encoded: Sequence[Encoded], batch_size: int, pad_id: int, metric: Metric
) -> dict[str, float]:
    by_prompt: dict[str, float] = {}
    for batch, value in within_memory(encoded, batch_size, pad_id, lambda batch: values(model, [batch], metric)):
        by_prompt |= {item.prompt.id: float(v) for item, v in zip(batch.encoded, value, strict=True)}
    return by_prompt


class _Sweep:
    """One pair and metric, to integrate along the path."""

    def __init__(self, pair: Pair, metric: Metric) -> None:
        self.pair, self.metric = pair, metric
        self.architecture = pair.architecture
        self.before = {name: p.detach() for name, p in values_of(pair.base).items()}
        after = {name: p.detach() for name, p in values_of(pair.tuned).items()}
        _require_in_memory(self.before, after)
        self.after = after
        self.reads = plan(self.architecture, (MODULE, EXPERTS))
        self.direct = _direct(self.architecture, self.before)
        self.sharing = True  # whether a backward pass is the one that hooks share out

    def integrate(self, batch: Batch, nodes: int) -> Shares:
        """The integral over the path, of every prompt of a batch."""
        integral = Shares()
        for x, weight in zip(*np.polynomial.legendre.leggauss(nodes), strict=True):  # on [−1, 1]
            with self._at(float(x + 1) / 2) as model:
                integral.add(self._gradients(model, batch), float(weight) / 2)
        return integral

    @contextmanager
    def _at(self, alpha: float) -> Iterator[PreTrainedModel]:
        """The base at θ(α)."""
        model = self.pair.base
        moved = Swap(lambda: {name: self._moved(name, alpha) for name in self.before}, first=-1)
        with swapped(model, moved), frozen(model):
            yield model

    def _moved(self, name: str, alpha: float) -> Tensor:
        before, after = self.before[name], self.after[name].to(self.before[name].device)
        if before.shape == after.shape:
            return torch.lerp(before, after, alpha)
        moved = before.clone()
        there, after = common_rows(moved, after)
        there.lerp_(after, alpha)
        return moved

    def delta(self, name: str) -> Tensor | None:
        """T of one parameter, in the base's shape; None where there is no such parameter."""
        if name not in self.before:
            return None
        before, after = self.before[name], self.after[name].to(self.before[name].device)
        if before.shape == after.shape:
            return after - before
        delta = torch.zeros_like(before)
        left, right = common_rows(before, after)
        delta[: len(left)] = right - left
        return delta

    def _gradients(self, model: PreTrainedModel, batch: Batch) -> Shares:
        """The integrand at one α."""
        integrand = Shares()
        moved = {name: delta for name in self.direct if (delta := self._step(name)) is not None}
        ids = batch.input_ids.to(self.pair.base.device)
        extra = {}
        if any(module.name == "pos_embed" for module in self.architecture.modules):
            # otherwise all prompts share one row of positions, and its gradient is that of all together
            extra["position_ids"] = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        parameters = values_of(model)
        leaves = {name: parameters[name].requires_grad_() for name in moved}
        with torch.enable_grad():
            with ExitStack() as hooks:
                for read in self.reads:
                    hook = self._hook(read, (ids.shape[0], ids.shape[1]), integrand)
                    handle = model.get_submodule(read.path).register_forward_hook(hook, with_kwargs=True)
                    hooks.callback(handle.remove)
                logits = answers(model, batch, self.metric.reads, **extra)
            value = self.metric.values(logits, batch)
            known = ~value.isnan()
            if moved and bool(known.any()):
                integrand.add(self._by_gradient(value, leaves, moved))
            if bool(known.any()):
                value[known].sum().backward()
        for leaf in leaves.values():
            leaf.grad = None
            leaf.requires_grad_(False)
        return integrand

    def _step(self, name: str) -> Tensor | None:
        """T of a parameter; None where it did not move."""
        delta = self.delta(name)
        return delta if delta is not None and bool(delta.any()) else None

    def _by_gradient(
        self, value: Float[Tensor, " batch"], leaves: Mapping[str, Tensor], moved: Mapping[str, Tensor]
    ) -> Shares:
        """The shares of parameters whose output is no product of theirs: ⟨T, ∂M/∂θ⟩, prompt by prompt."""
        modules = dict.fromkeys(module for name in moved for module in self.direct[name])
        rows = {module: [0.0] * len(value) for module in modules}
        self.sharing = False
        try:
            for i, one in enumerate(value):
                if one.isnan():
                    continue
                gradients = torch.autograd.grad(one, list(leaves.values()), retain_graph=True, allow_unused=True)
                for (name, delta), gradient in zip(moved.items(), gradients, strict=True):
                    if gradient is not None:
                        for module in self.direct[name]:
                            rows[module][i] += float(_own(module, name, gradient * delta).double().sum())
        finally:
            self.sharing = True
        return Shares(wholes={module: torch.tensor(shares) for module, shares in rows.items()})

    def _hook(self, read: Read, shape: tuple[int, int], integrand: Shares) -> Callable[..., Tensor | None]:
        def hook(owner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Tensor | None:
            out = output[0] if isinstance(output, tuple) else output
            first = not out.requires_grad  # the first operation on the tokens
            if first:
                out.requires_grad_()
            value, _, others = tensors_of(args, kwargs, out, shape)
            x, rest = value.detach(), tuple(other.detach() for other in others)

            def receive(gradient: Tensor) -> None:
                if not self.sharing:
                    return
                with torch.no_grad():
                    delta = by_position(gradient, shape)
                    for site in read.sites:
                        if site.name == EXPERTS:
                            self._experts(owner, site.layer, x, rest, delta, shape, integrand)
                        elif site.module is not None and site.module.parameter not in self.direct:
                            self._module(owner, site.module, x, delta, integrand)

            out.register_hook(receive)
            return out.clone() if first and out is output else None  # a model may change it in place

        return hook

    def _module(self, owner: nn.Module, module: Module, x: Tensor, delta: Tensor, integrand: Shares) -> None:
        module_delta = module.outputs(delta)
        bias = self._bias(module)
        if module.kind == "embed":
            tokens = (module_delta * self._looked_up(owner, module, x)).sum(-1)
            integrand.add(Shares({module: tokens}))
        elif module.kind == "norm":
            form = self.pair.norms[module.path]
            step = form.normalised(x.float()) * self._weight(module)
            shares = (module_delta * (step if bias is None else step + bias)).sum(-1)
            dims = [d for d in range(1, shares.ndim) if d != form.position_dim]
            integrand.modules[module] = shares.sum(dims) if dims else shares
        else:
            self._linear(module, module.matrix(self._weight(module)), bias, x, module_delta, integrand)

    def _linear(
        self,
        module: Module,
        matrix: Float[Tensor, "rows cols"],
        bias: Float[Tensor, " rows"] | None,
        x: Float[Tensor, "batch pos cols"],
        delta: Float[Tensor, "batch pos rows"],
        integrand: Shares,
    ) -> None:
        """δ·(Tx + T_b), cut by rows (q, k, v, gate, up) or by columns (o, down) where heads or neurons are."""
        if module.component == "unembed":  # most positions' logits are never read
            at = delta.ne(0).any(-1)
            tokens = delta.new_zeros(at.shape)
            step = linear(x[at], matrix, bias)
            tokens[at] = (delta[at] * step).sum(-1)
            integrand.add(Shares({self.architecture.owner(module): tokens}))  # a tied one's are the embedding's
            return
        if module.from_heads or module.name in ("down", "shared_down"):
            parts = (delta @ matrix) * x
            tokens = parts.sum(-1) if bias is None else parts.sum(-1) + delta @ bias
        else:
            parts = delta * linear(x, matrix, bias)
            tokens = parts.sum(-1)
        integrand.modules[module] = tokens
        if module.n_heads:
            integrand.heads[module] = parts.sum(1).unflatten(-1, (module.n_heads, -1)).sum(-1)
        elif module.name.removeprefix("shared_") in ("gate", "up", "down"):
            integrand.add(Shares(neurons={(module.layer, module.expert): parts.sum(1)}))

    def _experts(
        self,
        owner: nn.Module,
        layer: int,
        x: Tensor,
        rest: tuple[Tensor, ...],
        delta: Tensor,
        shape: tuple[int, int],
        integrand: Shares,
    ) -> None:
        """Run each expert again, alone, and take its gradient."""
        routing = mixture.Routed.of(x, rest, shape, lambda value: value.flatten(0, 1))
        n, length = shape
        prompt = torch.arange(n, device=x.device).repeat_interleave(length)
        at_outputs = delta.reshape(-1, n * length, delta.shape[-1])
        for matrices in mixture.experts_of(self.architecture, layer):
            routed = routing.chosen(matrices.expert).nonzero()[:, 0]
            at_output = at_outputs[matrices.expert if routing.index is None else 0]
            if not len(routed):
                continue
            with torch.enable_grad():
                entering = routing.into(matrices.expert, routed).requires_grad_()
                expert = mixture.run_expert(owner, matrices, entering, routing.share(matrices.expert, routed))
                entered, out = torch.autograd.grad(expert.contribution, (expert.entered, expert.out), at_output[routed])
            for module in (*matrices.entering, matrices.down):
                matrix, bias = module.matrix(self._weight(module)), self._expert_bias(module)
                if module is matrices.down:
                    parts, gradient = (out @ matrix) * expert.hidden.detach(), out
                else:
                    gradient = module.outputs(entered)
                    parts = gradient * linear(entering.detach(), matrix, bias)
                of_bias = gradient @ bias if module is matrices.down and bias is not None else 0.0
                tokens = parts.new_zeros(n * length).index_copy_(0, routed, parts.sum(-1) + of_bias).view(n, length)
                integrand.modules[module] = tokens
                neurons = parts.new_zeros(n, parts.shape[-1]).index_add_(0, prompt[routed], parts)
                integrand.add(Shares(neurons={(layer, module.expert): neurons}))

    def _weight(self, module: Module) -> Tensor:
        """T of the parameter that holds the module, as stored."""
        delta = self.delta(module.parameter)
        assert delta is not None
        return delta

    def _expert_bias(self, module: Module) -> Tensor | None:
        bias = self.delta(f"{module.parameter}_bias")
        return None if bias is None else module.outputs(bias[module.expert])

    def _bias(self, module: Module) -> Tensor | None:
        bias = self.delta(f"{module.path}.bias")
        return None if bias is None else module.outputs(bias, dim=0)

    def _looked_up(self, owner: nn.Module, module: Module, ids: Tensor) -> Tensor:
        """T's rows of these tokens, as the module scales them."""
        ends = []
        for weights in (self.after, self.before):
            with _lent(owner, weights[module.parameter].to(ids.device)):
                ends.append(type(owner).forward(owner, ids))
        return ends[0] - ends[1]


@contextmanager
def _lent(owner: nn.Module, weight: Tensor) -> Iterator[None]:
    parameter = owner.get_parameter("weight")
    kept, parameter.data = parameter.data, weight
    try:
        yield
    finally:
        parameter.data = kept


def _require_in_memory(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
    for name, value in before.items():
        if value.is_meta or after[name].is_meta:
            raise RunError(f"path: parameter {name!r} is not in memory (offloaded?); give the models one device")


def _direct(architecture: Architecture, parameters: Mapping[str, Tensor]) -> dict[str, list[Module]]:
    """The parameters whose shares come of their own gradient, with the modules or other rows that they are.

    They are those that are not the weight, or bias, of a product that a hook reads.
    """
    by_parameter: dict[str, list[Module]] = {}
    read: dict[str, bool] = {}
    for module in architecture.modules:
        bias = f"{module.path}.bias" if module.expert < 0 else f"{module.parameter}_bias"
        for name in (module.parameter, bias):
            if not module.tied or name == bias:  # an unembedding that shares its matrix may have a bias of its own
                by_parameter.setdefault(name, []).append(module)
            read[name] = read.get(name, True) and module not in architecture.unread
    for module in architecture.others:
        if module.kind != "group" and not read.get(module.parameter):
            by_parameter[module.parameter] = [module]
    groups = architecture.groups
    for name in parameters.keys() - by_parameter.keys():
        by_parameter[name] = [next(group for group in groups if name.startswith(f"{group.parameter}."))]
    return {name: by_parameter[name] for name in parameters if not read.get(name, False)}


def _own(module: Module, name: str, product: Tensor) -> Tensor:
    """A module's part of an array like its parameter, or its bias."""
    if name != module.parameter or module.kind in ("vector", "group"):
        return module.outputs(product, 0) if name == f"{module.path}.bias" else product
    return module.matrix(product) if product.ndim > 1 else product
