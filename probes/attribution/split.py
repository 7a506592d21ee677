"""Does the behaviour sit in old directions or in new ones? T grafted only inside W's own subspace, or only outside.

Π_k spans the leading left singular vectors of the pretrained matrix (k at ε = 0.05, as in the ledger and in SSA). Each
part stands beside a random step of the same norm in the same subspace, because a larger part moves more whatever it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from probes.attribution.effects import FORWARD, Effects
from probes.attribution.exact import prompts_of
from probes.attribution.forwards import Swap, Told, values_under
from probes.attribution.metric import Metric
from probes.attribution.units import WHOLE, Unit
from probes.capture.pair import Pair
from probes.measures.ledger import OutputBasis
from probes.measures.live_weights import matrix_of
from tv.architecture.anatomy import Module
from tv.prompts.encoding import Batch

Bases = Mapping[Module, OutputBasis]


def split(
    pair: Pair,
    bases: Bases,
    batches: Sequence[Batch],
    metric: Metric,
    *,
    seed: int,
    every_module: bool = False,
    told: Told | None = None,
) -> list[Effects]:
    """M(θ_pre + part of T) − M(θ_pre): methods `inside`, `outside`, each also with the control `random`.

    Units: all matrices of the blocks at once, all of one name (granularity "type"), and, with
    `every_module`, each of them.
    """
    modules = list(bases)
    groups: dict[Unit, list[Module]] = {WHOLE: modules}
    for module in modules:
        groups.setdefault(Unit("type", -1, module.component, module.name), []).append(module)
    if every_module:
        groups |= {Unit("module", m.layer, m.component, m.name, expert=m.expert): [m] for m in modules}
    wanted = [(inside, control) for inside in (True, False) for control in ("", "random")]
    swaps = [
        Swap(partial(_parameters, pair, bases, own, inside, control, seed), min(module.layer for module in own))
        for inside, control in wanted
        for own in groups.values()
    ]
    start, found = values_under(pair.base, pair.architecture, swaps, batches, metric, told)
    return [
        Effects(
            "inside" if inside else "outside",
            FORWARD,
            tuple(groups),
            prompts_of(batches),
            found[i * len(groups) : (i + 1) * len(groups)] - start,
            control,
        )
        for i, (inside, control) in enumerate(wanted)
    ]


def _parameters(
    pair: Pair, bases: Bases, modules: Sequence[Module], inside: bool, control: str, seed: int
) -> dict[str, Tensor]:
    """The base's parameters with one part of these modules' T added; biases stay."""
    found: dict[str, Tensor] = {}
    own = dict(pair.base.named_parameters())
    for module, part in _parts(pair, bases, modules, inside, control, seed):
        if module.parameter not in found:
            found[module.parameter] = own[module.parameter].detach().clone()
        _add(module, found[module.parameter], part)
    return found


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
    start = 0
    for first, stop in module.ranges or ((0, into.shape[0]),):
        into[first:stop] += part[start : start + stop - first].to(into)
        start += stop - first
