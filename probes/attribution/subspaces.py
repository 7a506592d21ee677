"""The part of T, or of a random step of its norm, that lies inside the pretrained subspaces, or outside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from probes.attribution.forwards import Part
from probes.attribution.units import WHOLE, Unit
from probes.capture.pair import Pair
from probes.measures.ledger import OutputBasis
from probes.measures.live_weights import matrix_of
from tv.architecture.anatomy import Module
from tv.architecture.values import values_of

#: The pretrained output subspace of every matrix.
Bases = Mapping[Module, OutputBasis]


def groups_of(modules: Sequence[Module], one_by_one: bool) -> dict[Unit, list[Module]]:
    """All matrices at once, all of one name, and, where wanted, each of them: by the unit that stands for them."""
    groups: dict[Unit, list[Module]] = {WHOLE: list(modules)}
    for module in modules:
        groups.setdefault(Unit("type", -1, module.component, module.name), []).append(module)
    if one_by_one:
        groups |= {Unit("module", m.layer, m.component, m.name, expert=m.expert): [m] for m in modules}
    return groups


def with_parts(
    pair: Pair, bases: Bases, modules: Sequence[Module], part: Part, control: str, seed: int
) -> dict[str, Tensor]:
    """The base's parameters with one part of these modules' T added; biases stay."""
    moved: dict[str, Tensor] = {}
    before = values_of(pair.base)
    for module, step in _parts(pair, bases, modules, part == "inside", control, seed):
        if module.parameter not in moved:
            moved[module.parameter] = before[module.parameter].detach().clone()
        _add(module, moved[module.parameter], step)
    return moved


def _parts(
    pair: Pair, bases: Bases, modules: Sequence[Module], inside: bool, control: str, seed: int
) -> Iterator[tuple[Module, Float[Tensor, "rows cols"]]]:
    for module in modules:
        weight, tuned = (matrix_of(module, model.get_submodule(module.path)) for model in (pair.base, pair.tuned))
        weight, delta = weight.float(), tuned.to(weight.device).float() - weight.float()
        vectors = bases[module].vectors[:, : bases[module].k].to(weight.device)
        basis = vectors if bases[module].wide else weight @ vectors
        part = projected(delta, basis, inside)
        if control:
            generator = torch.Generator().manual_seed(seed + module.layer * 1009 + len(module.name))
            noise = projected(torch.randn(delta.shape, generator=generator).to(delta), basis, inside)
            norm = noise.norm()
            part = noise * (part.norm() / norm) if norm > 0 else noise
        yield module, part


def projected(
    delta: Float[Tensor, "rows cols"], basis: Float[Tensor, "rows k"], inside: bool
) -> Float[Tensor, "rows cols"]:
    """Π T, or (I − Π) T, for orthonormal columns `basis`."""
    within = basis @ (basis.T @ delta)
    return within if inside else delta - within


def _add(module: Module, stored: Tensor, part: Float[Tensor, "rows cols"]) -> None:
    """Add to a module's matrix in the parameter that holds it, fused, transposed or stacked."""
    into = stored[module.expert] if module.expert >= 0 and stored.ndim == 3 else stored
    into = into.T if module.transposed else into
    if module.rows is None:
        into += part.to(into)
    else:
        into.index_add_(0, module.rows.to(into.device), part.to(into))
