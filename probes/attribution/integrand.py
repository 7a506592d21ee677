"""The integrand of `path` at one place between the two models: what every weight's step adds to a metric there.

With θ(α) = θ_pre + αT, the slope of the metric is ⟨T, ∂M/∂θ⟩. For a linear module y = Wx + b that is Σ_tokens
δ·(T x + T_b) with δ = ∂M/∂y, so one backward pass to the activations gives the shares of all modules, heads, neurons
and tokens at once, and no weight gradient is formed. Norm gains: δ·(x̂ ∘ T_γ + T_β); embeddings: δ·T[id]; a tied matrix
has one share, the embedding's, of both its places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probes.attribution.forwards import Swap, frozen, swapped
from probes.attribution.metric import Metric, Reads, positions_read
from probes.attribution.shares import Shares
from probes.capture.hooks.plan import EXPERTS, MODULE, Read, plan
from probes.capture.hooks.torch_backend import by_position, tensors_of
from probes.capture.pair import Pair
from probes.errors import RunError
from probes.measures import mixture
from tv.architecture.anatomy import Architecture, Module
from tv.architecture.values import values_of
from tv.checkpoints.streamed import in_memory, is_streamed, stored_values
from tv.prompts.encoding import Batch
from tv.runtime.common_rows import common_rows
from tv.runtime.products import linear

#: T is kept for all nodes where it takes no more bytes than this; otherwise it is formed for each product.
KEPT = 256 * 2**20
#: Bytes of T of an unembedding at a time: so small a piece fits into memory that the piece before it left.
PIECE = 16 * 2**20
#: Products are made where there is a gradient alone, if that is less than this part of all places.
FEW = 0.8
#: Logits of words with a gradient alone are made, unless these are more than this part of the vocabulary: to gather the
#: rows of nearly all would take longer than their products.
MOST = 0.5


class Integrand:
    """One pair and metric. Memory: both models, θ(α) beside them, T where it is small, the activations of a batch."""

    def __init__(self, pair: Pair, metric: Metric) -> None:
        self.pair, self.metric = pair, metric
        self.architecture = pair.architecture
        self.before, self.after = _both(pair)
        self.moved = {name for name in self.before if not torch.equal(self.before[name], self.after[name])}
        self.direct = _direct(self.architecture, self.before)
        self.reads = plan(self.architecture, (MODULE, EXPERTS))
        self.holds = not is_streamed(pair.base)  # else each look at a matrix reads it anew
        self.keeps = self.holds and sum(self.before[name].nbytes for name in self.moved) <= KEPT
        self.kept: dict[Module, Tensor] = {}
        self.theta: dict[str, Tensor] = {}
        self.shape = (0, 0)  # of the running batch
        self.read = torch.empty(0)  # where the metric may read its logits
        self.found = Shares()
        self.sharing = True  # whether a backward pass is the one that hooks share out

    @contextmanager
    def along(self) -> Iterator[None]:
        """The base can be moved along T while this lasts; then it is as it was, with the same tensors."""
        base = self.pair.base
        self.theta = {name: self.before[name].clone() for name in self.moved}
        try:
            with swapped(base, Swap(lambda: self.theta, first=-1)), frozen(base), self.listening():
                yield
        finally:
            self.theta.clear()
            self.kept.clear()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hooks make shares of what a backward pass through the base gives, while this lasts."""
        with ExitStack() as hooks:
            for read in self.reads:
                owner = self.pair.base.get_submodule(read.path)
                hooks.callback(owner.register_forward_hook(self._hook(read), with_kwargs=True).remove)
            yield

    def move(self, alpha: float) -> None:
        """Put the base at θ(α)."""
        for name, theta in self.theta.items():
            before, after = common_rows(self.before[name], self.after[name])
            torch.lerp(before, after, alpha, out=theta[: len(before)] if theta.ndim else theta)

    def shares(self, batch: Batch) -> tuple[Float[Tensor, " batch"], Shares]:
        """The metric of every prompt where the base is now, and the shares of its slope."""
        model, self.found = self.pair.base, Shares()
        batch = as_far_as_read(batch, self.metric.reads)
        ids = batch.input_ids.to(model.device)
        self.shape = (ids.shape[0], ids.shape[1])
        self.read = positions_read(batch, self.metric.reads).to(model.device)
        extra = {}
        if any(module.name == "pos_embed" for module in self.architecture.modules):
            # otherwise all prompts share one row of positions, and its gradient is that of all together
            extra["position_ids"] = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        parameters = values_of(model) if self.direct else {}
        leaves = {name: parameters[name].requires_grad_() for name in self.direct if name in self.moved}
        try:
            with torch.enable_grad():
                value = self.metric.values(self.metric.logits(model, batch, **extra), batch)
                known = ~value.isnan()
                if bool(known.any()):
                    if leaves:
                        self.found.put(self._by_gradient(value, leaves))
                    value[known].sum().backward()
        finally:
            for leaf in leaves.values():
                leaf.grad = None
                leaf.requires_grad_(False)
        return value.detach(), self.found

    def _by_gradient(self, value: Float[Tensor, " batch"], leaves: Mapping[str, Tensor]) -> Shares:
        """The shares of parameters whose output is no product of theirs: ⟨T, ∂M/∂θ⟩, prompt by prompt."""
        modules = dict.fromkeys(module for name in leaves for module in self.direct[name])
        rows = {module: [0.0] * len(value) for module in modules}
        steps = {name: self._step(name) for name in leaves}
        self.sharing = False
        try:
            for i, one in enumerate(value):
                if one.isnan():
                    continue
                gradients = torch.autograd.grad(one, list(leaves.values()), retain_graph=True, allow_unused=True)
                for (name, delta), gradient in zip(steps.items(), gradients, strict=True):
                    if gradient is not None:
                        for module in self.direct[name]:
                            rows[module][i] += float(_own(module, name, gradient * delta).double().sum())
        finally:
            self.sharing = True
        return Shares(wholes={module: torch.tensor(shares) for module, shares in rows.items()})

    def _hook(self, read: Read) -> Callable[..., Tensor | None]:
        def hook(owner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Tensor | None:
            shape = self.shape
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
                            self._experts(owner, site.layer, x, rest, delta)
                        elif site.module is not None and site.module.parameter not in self.direct:
                            self._module(owner, site.module, x, delta)

            out.register_hook(receive)
            return out.clone() if first and out is output else None  # a model may change it in place

        return hook

    def _module(self, owner: nn.Module, module: Module, x: Tensor, delta: Tensor) -> None:
        delta = module.outputs(delta)
        if module.kind == "embed":
            moves = module.parameter in self.moved
            step = self._looked_up(owner, module, x) if moves else delta.new_zeros(delta.shape[-1:])
            self.found.put(Shares({module: (delta * step).sum(-1)}))
        elif module.kind == "norm":
            self._norm(module, x, delta)
        elif module.component == "unembed":
            self._unembed(module, x, delta)
        else:
            self._linear(module, x, delta)

    def _norm(self, module: Module, x: Tensor, delta: Tensor) -> None:
        gain, bias = self._matrix(module), self._bias(module)
        if gain is None and bias is None:
            self.found.put(Shares({module: delta.new_zeros(self.shape)}))
            return
        form = self.pair.norms[module.path]
        step = delta.new_zeros(()) if gain is None else form.normalised(x.float()) * gain
        step = step if bias is None else step + bias
        shares = torch.linalg.vecdot(delta, step.expand_as(delta))
        dims = [d for d in range(1, shares.ndim) if d != form.position_dim]
        self.found.put(Shares({module: shares.sum(dims) if dims else shares}))

    def _unembed(
        self, module: Module, x: Float[Tensor, "batch pos d_model"], delta: Float[Tensor, "batch pos vocab"]
    ) -> None:
        """Most positions' logits are never read, and of many metrics those of two words alone."""
        at = self.read
        delta, x = delta[0] if self.metric.alone else delta[at], x[at]
        some = delta.ne(0).any(0).nonzero()[:, 0]
        several = max(1, PIECE // (x.shape[-1] * x.itemsize)) if self.holds else delta.shape[1]
        pieces: Sequence[Tensor | slice] = some.split(several)
        if len(some) > MOST * delta.shape[1]:
            pieces = [slice(i, i + several) for i in range(0, delta.shape[1], several)]
        tokens = delta.new_zeros(self.shape)
        for words in pieces:
            tokens[at] += (delta[:, words] * self._logits(module, x, words)).sum(-1)
        self.found.put(Shares({self.architecture.owner(module): tokens}))  # a tied one's are the embedding's

    def _logits(self, module: Module, x: Float[Tensor, "n d_model"], words: Tensor | slice) -> Float[Tensor, "n words"]:
        """T x + T_b of these words."""
        matrix, bias = self._matrix(module, words), self._bias(module)
        own = x.new_zeros(module.shape[0])[words] if bias is None else bias[words]
        return own.expand(len(x), -1) if matrix is None else linear(x, matrix, own)

    def _linear(
        self, module: Module, x: Float[Tensor, "batch pos cols"], delta: Float[Tensor, "batch pos rows"]
    ) -> None:
        """δ·(Tx + T_b), cut by rows (q, k, v, gate, up) or by columns (o, down) where heads or neurons are."""
        (n, length), matrix, bias = self.shape, self._matrix(module), self._bias(module)
        by_columns = module.from_heads or module.name in ("down", "shared_down")
        x, delta = x.flatten(0, 1), delta.flatten(0, 1)
        at = _places(delta)
        if at is not None:
            x, delta = x.index_select(0, at), delta.index_select(0, at)
        if matrix is None:  # only its bias moved, or nothing did
            parts = delta.new_zeros(len(delta), module.shape[1 if by_columns else 0])
            parts += 0.0 if by_columns or bias is None else delta * bias
        elif by_columns:
            parts = linear(delta, matrix.T).mul_(x)
        else:
            parts = linear(x, matrix, bias).mul_(delta)
        found = Shares()
        if module.n_heads:
            parts = parts.unflatten(-1, (module.n_heads, -1)).sum(-1)
            found.heads[module] = _by_prompt(parts, at, n, length)
        elif module.name.removeprefix("shared_") in ("gate", "up", "down"):
            found.neurons[module.layer, module.expert] = _by_prompt(parts, at, n, length)
        tokens = parts.sum(-1)
        if by_columns and bias is not None:
            tokens += delta @ bias
        if at is not None:
            tokens = tokens.new_zeros(n * length).index_put_((at,), tokens)
        found.modules[module] = tokens.view(n, length)
        self.found.put(found)

    def _experts(
        self, owner: nn.Module, layer: int, x: Tensor, rest: tuple[Tensor, ...], delta: Float[Tensor, "batch pos d"]
    ) -> None:
        """Run each expert again, alone, and take its gradient."""
        routing = mixture.Routed.of(x, rest, self.shape, lambda value: value.flatten(0, 1))
        n, length = self.shape
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
                matrix, bias = self._matrix(module), self._expert_bias(module)
                matrix = out.new_zeros(module.shape) if matrix is None else matrix
                if module is matrices.down:
                    parts, gradient = (out @ matrix) * expert.hidden.detach(), out
                else:
                    gradient = module.outputs(entered)
                    parts = gradient * linear(entering.detach(), matrix, bias)
                of_bias = gradient @ bias if module is matrices.down and bias is not None else 0.0
                tokens = parts.new_zeros(n * length).index_copy_(0, routed, parts.sum(-1) + of_bias).view(n, length)
                neurons = _by_prompt(parts, routed, n, length)
                self.found.put(Shares({module: tokens}, neurons={(layer, module.expert): neurons}))

    def _matrix(self, module: Module, rows: Tensor | slice = slice(None)) -> Tensor | None:
        """T of a module, or of some of its rows, in the base's shape; None where its parameter did not move."""
        if module.parameter not in self.moved:
            return None
        before, after = self.before[module.parameter], self.after[module.parameter]
        if before.shape == after.shape and not self.keeps:
            return module.matrix(after)[rows] - module.matrix(before)[rows]
        if module not in self.kept:
            step = module.matrix(self._step(module.parameter))
            if not self.keeps:
                return step[rows]
            self.kept[module] = step
        return self.kept[module][rows]

    def _step(self, name: str) -> Tensor:
        """T of a whole parameter, in the base's shape."""
        before, after = self.before[name], self.after[name]
        if before.shape == after.shape:
            return after - before
        step = torch.zeros_like(before)
        before, after = common_rows(before, after)
        step[: len(before)] = after - before
        return step

    def _bias(self, module: Module) -> Tensor | None:
        name = f"{module.path}.bias"
        return module.outputs(self._step(name), dim=0) if name in self.moved else None

    def _expert_bias(self, module: Module) -> Tensor | None:
        name = f"{module.parameter}_bias"
        return module.outputs(self._step(name)[module.expert]) if name in self.moved else None

    def _looked_up(self, owner: nn.Module, module: Module, ids: Tensor) -> Tensor:
        """T's rows of these tokens, as the module scales them."""
        ends = []
        in_memory(owner)
        for weights in (self.after, self.before):
            with _lent(owner, weights[module.parameter]):
                ends.append(type(owner).forward(owner, ids))
        return ends[0] - ends[1]


def as_far_as_read(batch: Batch, reads: Reads | None) -> Batch:
    """Without the positions after the last that the metric reads, which no gradient reaches."""
    read = positions_read(batch, reads).any(0).nonzero()
    end = int(read.max()) + 1 if len(read) else None
    return replace(batch, input_ids=batch.input_ids[:, :end], attention_mask=batch.attention_mask[:, :end])


def _places(delta: Float[Tensor, "n rows"]) -> Tensor | None:
    """Where there is a gradient, if that is not nearly everywhere.

    There is none on padding, behind the last position that the metric reads, and in the last block but where it reads.
    """
    at = torch.linalg.vector_norm(delta, dim=-1).nonzero()[:, 0]
    return at if len(at) < FEW * len(delta) else None


def _by_prompt(parts: Float[Tensor, "k cols"], at: Tensor | None, n: int, length: int) -> Float[Tensor, "batch cols"]:
    """Sums over the tokens of each prompt, of values at these places."""
    if at is None:
        return parts.unflatten(0, (n, length)).sum(1)
    prompt = at // length
    if parts.device.type == "cpu":
        return parts.new_zeros(n, parts.shape[-1]).index_add_(0, prompt, parts)
    own = parts.new_zeros(n, len(at))  # elsewhere `index_add_` adds in another order each time
    own[prompt, torch.arange(len(at), device=at.device)] = 1.0
    return own @ parts


@contextmanager
def _lent(owner: nn.Module, weight: Tensor) -> Iterator[None]:
    parameter = owner.get_parameter("weight")
    kept, parameter.data = parameter.data, weight
    try:
        yield
    finally:
        parameter.data = kept


def _both(pair: Pair) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """The values of both models, on the base's devices; of a streamed pair read when they are asked for."""
    if is_streamed(pair.base):
        return stored_values(pair.base), stored_values(pair.tuned)
    before, after = ({name: p.detach() for name, p in values_of(model).items()} for model in pair.models)
    for name, value in before.items():
        if value.is_meta or after[name].is_meta:
            raise RunError(f"path: parameter {name!r} is not in memory (offloaded?); give the models one device")
    return before, {name: after[name].to(value.device) for name, value in before.items()}


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
