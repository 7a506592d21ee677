"""Does the behaviour sit in old directions or in new ones? T grafted only inside W's subspace, or only outside.

Π_k spans the leading left singular vectors of the pretrained matrix (k at ε = 0.05, as in the ledger and in SSA). Each
part is compared with a random step of the same norm in the same subspace, because any larger part moves more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from probes.attribution.effects import FORWARD, Effects
from probes.attribution.forwards import Swap, values_under
from probes.attribution.units import WHOLE, Unit
from probes.attribution.work import Bases, Work
from probes.capture.pair import Pair
from probes.capture.runner import with_bases
from probes.measures.live_weights import matrix_of
from probes.methods import Cost, attribution_method
from tv.architecture.anatomy import Architecture, Module
from tv.architecture.values import values_of

#: Inside the subspace or outside; T, or a control in its place.
_PARTS = [(inside, control) for inside in (True, False) for control in ("", "random")]


def _cost(architecture: Architecture, _units: Sequence[Unit], settings: Any) -> Cost:
    """The base as it is, and with each part of every group of matrices."""
    return Cost(1 + len(_PARTS) * len(_groups(with_bases(architecture), "module" in settings.granularity)))


@attribution_method(
    "split",
    words="split effect",
    explains="Split: graft only the part of T inside, or outside, the pretrained matrix's own subspace.",
    labels={"inside": "T inside W's own subspace", "outside": "T outside W's own subspace"},
    order=40,
    cost=_cost,
)
def split(work: Work, units: Sequence[Unit]) -> Iterator[Effects]:
    """M(θ_pre + part of T) − M(θ_pre): methods `inside`, `outside`, each also with the control `random`.

    Its units are all matrices of the blocks at once, all of one name (granularity "type"), and each of them where
    effects by module are requested.

    Args:
        work: The pair, the prompts and the metric.
        units: None; the method makes them.
    """
    pair, bases = work.pair, work.make_bases()
    groups = _groups(list(bases), "module" in work.granularity)
    swaps = [
        Swap(
            partial(_parameters, pair, bases, group, inside, control, work.seed),
            min(module.layer for module in group),
        )
        for inside, control in _PARTS
        for group in groups.values()
    ]
    start, values = values_under(pair.base, pair.architecture, swaps, work.batches, work.metric, work.told)
    for i, (inside, control) in enumerate(_PARTS):
        part = values[i * len(groups) : (i + 1) * len(groups)] - start
        yield Effects("inside" if inside else "outside", FORWARD, tuple(groups), work.prompts, part, control)


def _groups(modules: Sequence[Module], one_by_one: bool) -> dict[Unit, list[Module]]:
    """All matrices at once, all of one name, and each of them."""
    groups: dict[Unit, list[Module]] = {WHOLE: list(modules)}
    for module in modules:
        groups.setdefault(Unit("type", -1, module.component, module.name), []).append(module)
    if one_by_one:
        groups |= {Unit("module", m.layer, m.component, m.name, expert=m.expert): [m] for m in modules}
    return groups


def _parameters(
    pair: Pair, bases: Bases, modules: Sequence[Module], inside: bool, control: str, seed: int
) -> dict[str, Tensor]:
    """The base's parameters with one part of these modules' T added; biases stay."""
    moved: dict[str, Tensor] = {}
    before = values_of(pair.base)
    for module, part in _parts(pair, bases, modules, inside, control, seed):
        if module.parameter not in moved:
            moved[module.parameter] = before[module.parameter].detach().clone()
        _add(module, moved[module.parameter], part)
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
