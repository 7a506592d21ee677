"""Whether a tuned model's neurons and heads are in the base's order, and the tuned model put in that order.

Models that were trained from one base keep their order, and the check confirms it. In a model whose neurons were
permuted, or that was trained separately, T is mostly the difference between two orders: match it first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tv.architecture.anatomy import Module
from tv.checkpoints.adapters.live import base_beside
from tv.checkpoints.checkpoint import Checkpoint
from tv.checkpoints.live import LiveSource, load_model
from tv.checkpoints.own_tokenizer import encoder
from tv.checkpoints.pairing import WeightPair, open_pair
from tv.errors import InputError
from tv.matching.coactivity import Correlations, HeadProducts, Sums, gather_sums
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
from tv.prompts.behaviour import PromptSource, batched, gather
from tv.prompts.files import Prompts
from tv.prompts.notes import prompt_notes
from tv.runtime.compute import Compute

On = Literal["weights", "activations"]

#: The modules whose part in a neuron or a head is known. Any other beside them might have an entry for each.
_ROLES = {
    *("q", "k", "v", "qkv", "o", "gate", "up", "down", "router"),
    *("shared_gate", "shared_up", "shared_down", "shared_router"),
    *("attn_norm", "q_norm", "k_norm", "attn_post_norm", "mlp_norm", "mlp_post_norm"),
}
_MEMORY = 2**31  # bytes of sums held at a time; both models pass over the prompts once for each such part


def align(
    base: LiveSource | Checkpoint,
    tuned: LiveSource | Checkpoint,
    *,
    on: On = "weights",
    prompts: PromptSource | Sequence[PromptSource] = (),
    batch_size: int = 16,
    compute: Compute = Compute(),
) -> pd.DataFrame:
    """The check before any comparison: what share of the tuned model's neurons and heads would have to move.

    Every layer's neurons and heads are matched with the base's by linear assignment, those of each expert among
    themselves. For fine-tunes of one base expect the identity: 0 moved, gain 0.

    Args:
        base: Whatever `tv.open_checkpoint` opens; on activations not an open checkpoint, which cannot run.
        tuned: Likewise.
        on: "weights" compares matrices (see `tv.matching.permutation`), "activations" what neurons and heads do over
            `prompts`, both models on the same tokens. Experts that a router chooses are compared by weights in either
            case.
        prompts: JSONL files, `tv.PromptSet`s or `tv.Prompt`s, one or several; for activations only.
        batch_size: Prompts in one forward pass.
        compute: Where models compute, in which dtype, and the callback for progress.

    Returns:
        A row per layer, expert and kind (`neurons`; `shared_neurons` of an expert that every token passes; `kv_groups`;
        `queries`): `layer kind expert n moved_fraction sign_flipped_fraction scale_moved_fraction mean_score
        identity_score gain on`. The fractions of sign and scale are NaN for what has no such symmetry (heads; MLPs
        without a GLU). Scores are means of cosines in [−1, 1], and `gain` = mean_score − identity_score.

    Raises:
        InputError: The two do not belong together, nothing in them can be matched, or `prompts` do not fit `on`.

    Source: arXiv 2209.04836 (weights), arXiv 1511.07543 (activations).

    Examples:
        >>> table = tv.align("data/models/base", "data/models/medical")
        >>> table.groupby("kind").moved_fraction.max().to_dict()
        {'kv_groups': 0.0, 'neurons': 0.0, 'queries': 0.0}
    """
    return match_pair(base, tuned, on=on, prompts=prompts, batch_size=batch_size, compute=compute).table


def matched(
    base: LiveSource | Checkpoint,
    tuned: LiveSource | Checkpoint,
    *,
    on: On = "weights",
    prompts: PromptSource | Sequence[PromptSource] = (),
    batch_size: int = 16,
    compute: Compute = Compute(),
) -> Checkpoint:
    """The tuned side with its neurons and heads in the base's order: the same function, each tensor reordered as read.

    It can be used wherever a tuned side can, as in `tv.ssa(base, tv.matched(base, tuned))`; nothing is written.

    Args:
        base: As in `tv.align`.
        tuned: The side whose neurons and heads are put in the base's order.
        on: As in `tv.align`: "weights" or "activations".
        prompts: As in `tv.align`.
        batch_size: Prompts in one forward pass.
        compute: Where models compute, in which dtype, and the callback for progress.

    Returns:
        An open checkpoint; the tuned one itself where nothing has to move.

    Raises:
        InputError: As `tv.align` does.

    Source: arXiv 2209.04836 (weights), arXiv 1511.07543 (activations).

    Examples:
        >>> tv.matched("data/models/base", "data/models/medical")
        Checkpoint('data/models/medical', 57 tensors)
    """
    return match_pair(base, tuned, on=on, prompts=prompts, batch_size=batch_size, compute=compute).tuned


@dataclass(frozen=True)
class PairMatching:
    """What `align` and `matched` find, from one matching."""

    table: pd.DataFrame
    tuned: Checkpoint  # as `matched` returns it
    is_identity: bool  # nothing had to move


def match_pair(
    base: LiveSource | Checkpoint,
    tuned: LiveSource | Checkpoint,
    *,
    on: On = "weights",
    prompts: PromptSource | Sequence[PromptSource] = (),
    batch_size: int = 16,
    compute: Compute = Compute(),
) -> PairMatching:
    """Match every FFN and every attention layer, one at a time; see `align` and `matched`."""
    _check(on, prompts)
    base = base_beside(base, tuned)
    pair = open_pair(base, tuned)
    units, notes = _units(pair)
    if not units:
        raise InputError(
            f"{pair.tuned.source}: {pair.base.architecture.name} has no FFN or attention whose roles are known, so "
            f"nothing can be matched{': ' + notes[0] if notes else ''}"
        )
    responses: Iterator[Sums | None] = iter([None] * len(units))
    if on == "activations":
        for source in (base, tuned):
            if isinstance(source, Checkpoint):
                raise InputError(f"{source.source}: an open checkpoint does not run; pass its path or a live model")
        assert not isinstance(base, Checkpoint) and not isinstance(tuned, Checkpoint)
        asked = gather(prompts)
        tokenizer, said = encoder(base, [pair.tuned], asked)
        notes += [*(note for note in said if note not in pair.facts.notes), *prompt_notes(asked, tokenizer)]
        responses = _responses(base, tuned, pair, units, asked, tokenizer, batch_size, compute)
    order, rows = Reordering(pair.tuned), []
    for i, (unit, sums) in enumerate(zip(units, responses, strict=True)):
        matchings = unit.match(pair, sums, compute.tensor_device)
        unit.reorder(order, matchings)
        rows += [
            {"layer": unit.layer, "kind": kind, "expert": unit.expert}
            | _row(matching)
            | {"on": "weights" if sums is None else "activations"}
            for kind, matching in zip(unit.kinds, matchings, strict=True)
        ]
        compute.tell("matching", i + 1, len(units), f"{unit.kinds[0].replace('_', ' ')} {unit.layer}")
    table = pd.DataFrame(rows)
    table.attrs["fingerprints"] = {
        "base": pair.base.fingerprint()["content"],
        "tuned": pair.tuned.fingerprint()["content"],
    }
    table.attrs["notes"] = [*pair.facts.notes, *notes]
    tuned_there = order.checkpoint()
    return PairMatching(table, tuned_there, tuned_there is pair.tuned)


@dataclass(frozen=True)
class _Neurons:
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
        sides = [(_rows(side, self.up, device), side.matrix(self.down).to(device)) for side in (pair.base, pair.tuned)]
        (up, down), (tuned_up, tuned_down) = sides
        if isinstance(sums, Correlations):
            r = sums.correlation()
            if self.gate is None:
                return (match_plain_responses(r, sums.tokens),)
            return (match_responses(r.to(device), sums.tokens, up, down, tuned_up, tuned_down),)
        if self.gate is None:
            return (match_plain_neurons(up, down, tuned_up, tuned_down),)
        gate, tuned_gate = (_rows(side, self.gate, device) for side in (pair.base, pair.tuned))
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
class _Heads:
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
            outputs = [_by_head(side.matrix(self.o).T, self.q.n_heads).to(device) for side in (pair.base, pair.tuned)]
            products = [part.to(device) for part in (sums.cross, sums.own, sums.tuned_own)]
            scores = contribution_scores(outputs[0], outputs[1], *products)
        else:
            scores = weight_scores(*(self._attention(side, device) for side in (pair.base, pair.tuned)))
        return match_heads(scores, self.k.n_heads)

    def reorder(self, order: Reordering, matchings: tuple[Matching, ...]) -> None:
        groups, heads = (matching.permutation for matching in matchings)
        if all(matching.is_identity for matching in matchings):
            return
        for module in (self.q, self.k, self.v, *self.gains):
            by_group = module.name in ("k", "v", "k_norm")
            moves, n = (groups, self.k.n_heads) if by_group else (heads, self.q.n_heads)
            if not self._is_shared(module):
                order.outputs(module, _whole_heads(moves, module.shape[0] // n))
        order.inputs(self.o, _whole_heads(heads, self.o.shape[1] // self.q.n_heads))

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

    def _attention(self, side: Checkpoint, device: str) -> Attention:
        query, key, value = (_by_head(_rows(side, m, device), m.n_heads) for m in (self.q, self.k, self.v))
        return Attention(query, key, value, _by_head(side.matrix(self.o).T.to(device), self.q.n_heads))


def _units(pair: WeightPair) -> tuple[list[_Neurons | _Heads], list[str]]:
    """What can be matched, in execution order, and a line on what cannot."""
    units: list[_Neurons | _Heads] = []
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


def _of_layer(modules: dict[str, Module]) -> Iterator[_Neurons | _Heads]:
    if {"q", "k", "v", "o"} <= modules.keys():
        gains = tuple(modules[name] for name in ("q_norm", "k_norm") if name in modules)
        yield _Heads(modules["q"], modules["k"], modules["v"], modules["o"], gains)
    for prefix, kind in (("", "neurons"), ("shared_", "shared_neurons")):
        if {f"{prefix}up", f"{prefix}down"} <= modules.keys():
            yield _Neurons((kind,), modules.get(f"{prefix}gate"), modules[f"{prefix}up"], modules[f"{prefix}down"])


def _problem(unit: _Neurons | _Heads, base: Checkpoint) -> str | None:
    """Why reordering might change the function; None where it does not."""
    misfit = unit.misfit()
    if misfit is not None:
        return misfit
    if isinstance(unit, _Heads) and getattr(base.config.get_text_config(), "alibi", False):
        return "a position bias of its own for each head (ALiBi)"
    down = unit.modules[-1] if isinstance(unit, _Neurons) else unit.o
    room = down.path if down.expert >= 0 else down.path.rpartition(".")[0]
    modules = [module for module in base.architecture.modules if module.name in _ROLES]
    known = {name for module in modules for name in (module.parameter, f"{module.path}.bias")}
    unknown = next((name for name in base.names if name.startswith(f"{room}.") and name not in known), None)
    return None if unknown is None else f"{unknown!r} may belong to them one by one, and no rule knows it"


def _responses(
    base: LiveSource,
    tuned: LiveSource,
    pair: WeightPair,
    units: Sequence[_Neurons | _Heads],
    prompts: Prompts,
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int,
    compute: Compute,
) -> Iterator[Sums | None]:
    """The sums of each unit, in order; one pass takes as many units as fit into memory."""
    load = partial(load_model, dtype=compute.dtype, device=compute.device)
    models = load(base), load(tuned, base=base)
    batches, _ = (batched(prompts, model, tokenizer, batch_size) for model in models)  # both can take the prompts
    waiting: list[Sums | None] = []
    passing: dict[str, Sums] = {}
    held = 0
    for unit in units:
        sums, size = unit.sums()
        if held + 4 * size > _MEMORY and passing:
            gather_sums(*models, batches, passing)
            yield from waiting
            waiting, passing, held = [], {}, 0
        if unit.site is not None:
            passing[unit.site] = sums
            held += 4 * size
        waiting.append(sums if unit.site is not None else None)
    gather_sums(*models, batches, passing)
    yield from waiting


def _row(matching: Matching) -> dict[str, float]:
    glu = matching.scale is not None
    score, identity = _mean(matching.score), _mean(matching.identity_score)
    return {
        "n": len(matching.permutation),
        "moved_fraction": _mean(matching.moved),
        "sign_flipped_fraction": _mean(matching.flipped) if glu else math.nan,
        "scale_moved_fraction": _mean(matching.rescaled) if glu else math.nan,
        "mean_score": score,
        "identity_score": identity,
        "gain": score - identity,
    }


def _mean(values: Tensor) -> float:
    return math.fsum(values.tolist()) / len(values)


def _rows(side: Checkpoint, module: Module, device: str) -> Float[Tensor, "rows cols"]:
    """A module's matrix, with its bias as a last column where it has one."""
    matrix, bias = side.matrix(module), side.bias(module)
    return (matrix if bias is None else torch.cat([matrix, bias[:, None]], 1)).to(device)


def _by_head(rows: Float[Tensor, "rows cols"], heads: int) -> Float[Tensor, "heads d_head cols"]:
    return rows.unflatten(0, (heads, -1))


def _whole_heads(permutation: Int[Tensor, " heads"], width: int) -> Int[Tensor, " rows"]:
    return (permutation[:, None] * width + torch.arange(width)).flatten()


def _check(on: On, prompts: PromptSource | Sequence[PromptSource]) -> None:
    if on not in ("weights", "activations"):
        raise InputError(f"on {on!r}: match on weights or on activations")
    given = isinstance(prompts, str) or not isinstance(prompts, Sequence) or len(prompts) > 0
    if on == "activations" and not given:
        raise InputError("on 'activations': activations come from prompts; give a JSONL file of them")
    if on == "weights" and given:
        raise InputError("on 'weights': prompts would not be read; match on activations, or leave them out")
