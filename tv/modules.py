"""Every weight-space measure of one module: rows of the tables `weights` and `alignment`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

from jaxtyping import Float
from torch import Tensor

from tv.alignment import align_energies, decompose, energies_along
from tv.architecture import Module
from tv.geometry import entries_of, ranks_of
from tv.pairing import WeightPair

Row: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Wanted:
    """What to measure of every module, and where to compute it; picklable, so that any process can do it."""

    epsilons: tuple[float, ...] = ()
    weights: bool = True
    alignment: bool = True
    heads: bool = True
    device: str = "cpu"


@dataclass(frozen=True)
class Rows:
    """What was found of one module, by table."""

    weights: list[Row] = field(default_factory=list)
    alignment: list[Row] = field(default_factory=list)

    def extend(self, rows: Rows) -> None:
        """Add what was found of another module."""
        self.weights.extend(rows.weights)
        self.alignment.extend(rows.alignment)


def measure_module(pair: WeightPair, module: Module, wanted: Wanted) -> Rows:
    """All that is wanted of one module: itself (head −1), its bias, and its heads."""
    rows = Rows()
    weight, delta = pair.weight(module).to(wanted.device), pair.delta(module).to(wanted.device)
    in_block = module.kind == "linear" and module.component in ("attn", "mlp")
    for head, w, t in _slices(module, weight, delta, wanted.heads):
        where = {"layer": module.layer, "module": module.name, "head": head, "expert": module.expert}
        measured: Row = {}
        if wanted.weights:
            measured = _entries(pair, module, w, t)
        if w.ndim == 2 and (wanted.weights or in_block):
            decomposition = decompose(w)
            energies = energies_along(decomposition, t)
            if wanted.weights:
                measured |= asdict(ranks_of(energies.spectrum.sqrt()))
                measured |= {f"weight_{name}": value for name, value in asdict(ranks_of(decomposition.sigma)).items()}
                measured["diagonal_energy"] = float(energies.both.diagonal().sum())
                measured["diagonal_energy_null"] = min(w.shape) / w.numel()
            if wanted.alignment and in_block:
                found = align_energies(decomposition, energies, wanted.epsilons)
                rows.alignment.extend(where | asdict(row) for row in found if row.side in _sides(module, head))
        if wanted.weights:
            rows.weights.append(where | {"kind": module.kind, "tied": module.tied} | measured)
    if wanted.weights and (bias := _bias(pair, module)) is not None:
        rows.weights.append(bias)
    return rows


def _slices(
    module: Module, weight: Float[Tensor, "..."], delta: Float[Tensor, "..."], heads: bool
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(head, W, T): the whole module as head −1, then its heads."""
    yield -1, weight, delta
    if heads and module.kind == "linear":
        for head, (w, t) in enumerate(zip(module.heads(weight), module.heads(delta), strict=True)):
            yield head, w, t


def _sides(module: Module, head: int) -> Sequence[str]:
    """A head's slice is as wide as d_head on one side: only its long side says anything."""
    if head < 0:
        return ("left", "right", "two_sided")
    return ("left",) if module.name == "o" else ("right",)


def _entries(pair: WeightPair, module: Module, weight: Float[Tensor, "..."], delta: Float[Tensor, "..."]) -> Row:
    measured = asdict(entries_of(weight, delta, pair.dtype(module)))
    share = pair.noise_share(module, measured["weight_norm"], measured["delta_norm"])
    return measured | {"noise_share": share}


def _bias(pair: WeightPair, module: Module) -> Row | None:
    """The row of a module's bias (or of a layer norm's), apart from its matrix."""
    name = f"{module.path}.bias"
    if name not in pair.base.names or module.expert >= 0:
        return None
    bias, delta = (
        module.outputs(tensor, dim=0).float() for tensor in (pair.base.tensor(name), pair.tuned.delta(name, pair.base))
    )
    measured = asdict(entries_of(bias[: len(delta)], delta, pair.tuned.info(name).dtype))
    share = pair.noise(name).share(measured["weight_norm"], measured["delta_norm"])
    where = {"layer": module.layer, "module": f"{module.name}_bias", "head": -1, "expert": -1}
    return where | {"kind": "bias", "tied": module.tied} | measured | {"noise_share": share}
