"""What of a model can be matched unit by unit: the neurons of an FFN, the heads of an attention layer.

Each finds its match in the tuned model, and puts the tuned tensors in the base's order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tv.architecture.anatomy import Module
from tv.checkpoints.checkpoint import Checkpoint
from tv.checkpoints.pairing import WeightPair
from tv.matching.coactivity import Correlations, HeadProducts, Sums
from tv.matching.permutation import (
    Attention,
    Matching,
    contribution_scores,
    match_heads,
    match_neurons,
    match_plain_neurons,
    match_plain_responses,
    match_responses,
    weight_scores,
)
from tv.matching.reordered import Reordering

#: The modules whose part in a neuron or a head is known. Any other beside them might have an entry for each.
_ROLES = {
    *("q", "k", "v", "qkv", "o", "gate", "up", "down", "router"),
    *("shared_gate", "shared_up", "shared_down", "shared_router"),
    *("attn_norm", "q_norm", "k_norm", "attn_post_norm", "mlp_norm", "mlp_post_norm"),
}


def units_of(pair: WeightPair) -> tuple[list[Neurons | Heads], list[str]]:
    """What can be matched, in execution order, and a line on what cannot."""
    units: list[Neurons | Heads] = []
    notes: list[str] = []
    readable = {(module.layer, module.name, module.expert): module for module in pair.modules}
    for layer, expert in dict.fromkeys((m.layer, m.expert) for m in pair.base.architecture.modules):
        modules = {name: m for (at, name, index), m in readable.items() if (at, index) == (layer, expert)}
        for unit in _of_layer(modules):
            problem = _problem(unit, pair.base)
            if problem is None:
                units.append(unit)
            else:
                notes.append(f"{unit.kinds[0]} of layer {layer} left as they are: {problem}")
    return units, notes


@dataclass(frozen=True)
class Neurons:
    """One FFN: of a layer, of a shared expert, or of one expert that a router chooses."""

    kinds: tuple[str]
    gate: Module | None
    up: Module
    down: Module

    @property
    def layer(self) -> int:
        return self.up.layer

    @property
    def expert(self) -> int:
        return self.up.expert

    @property
    def modules(self) -> tuple[Module, ...]:
        return tuple(module for module in (self.gate, self.up, self.down) if module is not None)

    @property
    def site(self) -> str | None:
        """The module whose input is the neurons' output; None inside a fused tensor of experts."""
        return self.down.path if self.expert < 0 else None

    def sums(self) -> tuple[Sums, int]:
        return Correlations(), self.up.shape[0] ** 2

    def match(self, pair: WeightPair, sums: Sums | None, device: str) -> tuple[Matching]:
        sides = [
            (rows_of(side, self.up, device), side.matrix(self.down).to(device)) for side in (pair.base, pair.tuned)
        ]
        (up, down), (tuned_up, tuned_down) = sides
        if isinstance(sums, Correlations):
            r = sums.correlation()
            if self.gate is None:
                return (match_plain_responses(r, sums.tokens),)
            return (match_responses(r.to(device), sums.tokens, up, down, tuned_up, tuned_down),)
        if self.gate is None:
            return (match_plain_neurons(up, down, tuned_up, tuned_down),)
        gate, tuned_gate = (rows_of(side, self.gate, device) for side in (pair.base, pair.tuned))
        return (match_neurons(gate, up, down, tuned_gate, tuned_up, tuned_down),)

    def misfit(self) -> str | None:
        """Which shapes do not fit one number of neurons; None where all do."""
        sizes = {self.up.shape[0], self.down.shape[1], (self.gate or self.up).shape[0]}
        return None if len(sizes) == 1 else "gate, up and down with different numbers of neurons"

    def reorder(self, order: Reordering, matchings: tuple[Matching, ...]) -> None:
        (matching,) = matchings
        if matching.is_identity:
            return
        if self.gate is not None:
            order.outputs(self.gate, matching.permutation)
        order.outputs(self.up, matching.permutation, None if matching.scale is None else 1 / matching.scale)
        order.inputs(self.down, matching.permutation, matching.scale)


@dataclass(frozen=True)
class Heads:
    """One attention layer."""

    q: Module
    k: Module
    v: Module
    o: Module
    gains: tuple[Module, ...] = ()  # of the norms of q and k
    kinds: tuple[str, str] = field(default=("kv_groups", "queries"))

    expert = -1

    @property
    def layer(self) -> int:
        return self.o.layer

    @property
    def modules(self) -> tuple[Module, ...]:
        return (self.q, self.k, self.v, self.o, *self.gains)

    @property
    def site(self) -> str:
        return self.o.path

    def sums(self) -> tuple[Sums, int]:
        return HeadProducts(self.q.n_heads), self.o.shape[1] ** 2

    def match(self, pair: WeightPair, sums: Sums | None, device: str) -> tuple[Matching, Matching]:
        if isinstance(sums, HeadProducts):
            outputs = [by_head(side.matrix(self.o).T, self.q.n_heads).to(device) for side in (pair.base, pair.tuned)]
            products = [part.to(device) for part in (sums.cross, sums.own, sums.tuned_own)]
            scores = contribution_scores(outputs[0], outputs[1], *products)
        else:
            scores = weight_scores(*(self.attention(side, device) for side in (pair.base, pair.tuned)))
        return match_heads(scores, self.k.n_heads)

    def reorder(self, order: Reordering, matchings: tuple[Matching, ...]) -> None:
        groups, heads = (matching.permutation for matching in matchings)
        if all(matching.is_identity for matching in matchings):
            return
        for module in (self.q, self.k, self.v, *self.gains):
            by_group = module.name in ("k", "v", "k_norm")
            moves, n = (groups, self.k.n_heads) if by_group else (heads, self.q.n_heads)
            if not self._is_shared(module):
                order.outputs(module, whole_heads(moves, module.shape[0] // n))
        order.inputs(self.o, whole_heads(heads, self.o.shape[1] // self.q.n_heads))

    def misfit(self) -> str | None:
        """Which shapes do not fit heads of one width; None where all do."""
        q, k, v, o = self.q, self.k, self.v, self.o
        heads, groups = q.n_heads, k.n_heads
        if not heads or not groups or heads % groups or v.n_heads != groups:
            return "heads that do not divide into key-value groups"
        if q.shape[0] * groups != k.shape[0] * heads or v.shape[0] * heads != o.shape[1] * groups:
            return "matrices that are not cut into heads of one width"
        for gain in self.gains:
            n, rows = (heads, q.shape[0]) if gain.name == "q_norm" else (groups, k.shape[0])
            if gain.shape not in ((rows // n,), (rows,), (n, rows // n)):
                return f"a norm of shape {list(gain.shape)} over heads of width {rows // n}"
        return None

    def _is_shared(self, module: Module) -> bool:
        """Whether it is a gain that all heads share."""
        return module in self.gains and module.shape == (self.q.shape[0] // self.q.n_heads,)

    def attention(self, side: Checkpoint, device: str) -> Attention:
        query, key, value = (by_head(rows_of(side, m, device), m.n_heads) for m in (self.q, self.k, self.v))
        return Attention(query, key, value, by_head(side.matrix(self.o).T.to(device), self.q.n_heads))


def _of_layer(modules: dict[str, Module]) -> Iterator[Neurons | Heads]:
    if {"q", "k", "v", "o"} <= modules.keys():
        gains = tuple(modules[name] for name in ("q_norm", "k_norm") if name in modules)
        yield Heads(modules["q"], modules["k"], modules["v"], modules["o"], gains)
    for prefix, kind in (("", "neurons"), ("shared_", "shared_neurons")):
        if {f"{prefix}up", f"{prefix}down"} <= modules.keys():
            yield Neurons((kind,), modules.get(f"{prefix}gate"), modules[f"{prefix}up"], modules[f"{prefix}down"])


def _problem(unit: Neurons | Heads, base: Checkpoint) -> str | None:
    """Why reordering might change the function; None where it does not."""
    misfit = unit.misfit()
    if misfit is not None:
        return misfit
    if isinstance(unit, Heads) and getattr(base.config.get_text_config(), "alibi", False):
        return "a position bias of its own for each head (ALiBi)"
    down = unit.modules[-1] if isinstance(unit, Neurons) else unit.o
    room = down.path if down.expert >= 0 else down.path.rpartition(".")[0]
    known, foreign = set[str](), set[str]()
    for module in base.architecture.modules:  # a parameter may hold a module of either kind
        (known if module.name in _ROLES else foreign).update((module.parameter, f"{module.path}.bias"))
    known -= foreign
    unknown = next((name for name in base.names if name.startswith(f"{room}.") and name not in known), None)
    return None if unknown is None else f"{unknown!r} may belong to them one by one, and no rule knows it"


def rows_of(side: Checkpoint, module: Module, device: str) -> Float[Tensor, "rows cols"]:
    """A module's matrix, with its bias as a last column where it has one."""
    matrix, bias = side.matrix(module), side.bias(module)
    return (matrix if bias is None else torch.cat([matrix, bias[:, None]], 1)).to(device)


def by_head(rows: Float[Tensor, "rows cols"], heads: int) -> Float[Tensor, "heads d_head cols"]:
    return rows.unflatten(0, (heads, -1))


def whole_heads(permutation: Int[Tensor, " heads"], width: int) -> Int[Tensor, " rows"]:
    return (permutation[:, None] * width + torch.arange(width)).flatten()
