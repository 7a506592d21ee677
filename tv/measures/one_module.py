"""Every weight-space measure of one module: rows of the tables `weights`, `alignment`, `spectra` and `curve`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeAlias

from jaxtyping import Float
from torch import Tensor

from tv.architecture.anatomy import Module
from tv.checkpoints.pairing import WeightPair
from tv.measures.cache import Decompose, DecompositionCache
from tv.measures.decomposition import Decomposition, Energies, decompose, energies_along
from tv.measures.geometry import entries_of, ranks_of
from tv.measures.nulls import NULLS, Draws, Side
from tv.measures.spectra import spectra_of
from tv.measures.ssa import Cut, align_energies, curves
from tv.measures.subspaces import change_of

Row: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Wanted:
    """What to measure of every module, and where to compute it; picklable, so that any process can do it."""

    tables: frozenset[str]  # of weights, alignment, spectra, curve
    cuts: tuple[Cut, ...] = ()
    null: str = "rotation"
    draws: Draws = field(default_factory=Draws)
    swap: bool = False
    heads: bool = True
    device: str = "cpu"
    cache: Path | None = None


@dataclass(frozen=True)
class Rows:
    """What was found, by table."""

    weights: list[Row] = field(default_factory=list)
    alignment: list[Row] = field(default_factory=list)
    spectra: list[Row] = field(default_factory=list)
    curve: list[Row] = field(default_factory=list)

    def extend(self, rows: Rows) -> None:
        """Add what was found of another module."""
        for table in fields(self):
            getattr(self, table.name).extend(getattr(rows, table.name))


def measure_module(pair: WeightPair, module: Module, wanted: Wanted) -> Rows:
    """All that is wanted of one module: itself (head −1), its heads, and its bias."""
    rows = Rows()
    weight, delta = pair.weight(module).to(wanted.device), pair.delta(module).to(wanted.device)
    aligned = bool(wanted.tables & {"alignment", "spectra", "curve"}) and _in_block(module)
    weighed = "weights" in wanted.tables
    swapped = _swapped(pair, module, delta, wanted) if aligned and wanted.swap else None
    with _decomposer(pair, module, wanted) as decomposer:
        for head, w, t in _slices(module, weight, delta, wanted.heads):
            where = {"layer": module.layer, "module": module.name, "head": head, "expert": module.expert}
            measured = _entries(pair, module, w, t) if weighed else {}
            if w.ndim == 2 and (weighed or aligned):
                decomposition = decomposer(str(head), w)
                energies = energies_along(decomposition, t)
                if weighed:
                    measured |= _spectral(decomposition, energies, wanted, whole=head < 0)
                if aligned:
                    sides = _sides(module, head)
                    rows.alignment.extend(
                        where | row for row in _aligned(decomposition, t, energies, wanted, sides, swapped)
                    )
                    if "spectra" in wanted.tables and head < 0:
                        rows.spectra.extend(_spectra(module, decomposition, energies))
                    if "curve" in wanted.tables:
                        rows.curve.extend(where | row for row in _curve(decomposition, energies, sides))
                swapped = None  # the control is for whole modules
            if weighed:
                rows.weights.append(where | {"kind": module.kind, "tied": module.tied} | measured)
    if weighed and (bias := _bias(pair, module)) is not None:
        rows.weights.append(bias)
    return rows


def _in_block(module: Module) -> bool:
    return module.kind == "linear" and module.component not in ("embed", "unembed")


def _slices(
    module: Module, weight: Float[Tensor, "..."], delta: Float[Tensor, "..."], heads: bool
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(head, W, T): the whole module as head −1, then its heads."""
    yield -1, weight, delta
    if heads and module.kind == "linear":
        for head, (w, t) in enumerate(zip(module.heads(weight), module.heads(delta), strict=True)):
            yield head, w, t


def _sides(module: Module, head: int) -> Sequence[Side]:
    """A head's slice is as wide as d_head on one side: only its long side says anything."""
    if head < 0:
        return ("left", "right", "two_sided")
    return ("left",) if module.name == "o" else ("right",)


def _decomposer(pair: WeightPair, module: Module, wanted: Wanted) -> AbstractContextManager[Decompose]:
    """How the parts of a module are decomposed: out of the cache, where there is one."""
    if wanted.cache is None:
        return nullcontext(lambda part, weight: decompose(weight))
    cache = DecompositionCache(wanted.cache, pair.base.fingerprint()["content"])
    return cache.module(f"{module.layer}-{module.name}-{module.expert}")


def _entries(pair: WeightPair, module: Module, weight: Float[Tensor, "..."], delta: Float[Tensor, "..."]) -> Row:
    measured = asdict(entries_of(weight, delta, pair.dtype(module)))
    share = pair.noise_share(module, measured["weight_norm"], measured["delta_norm"])
    return measured | {"noise_share": share}


def _spectral(decomposition: Decomposition, energies: Energies, wanted: Wanted, *, whole: bool) -> Row:
    """Ranks of T and of W, and the energy on the diagonal; of a whole module also how its subspaces change."""
    measured: Row = asdict(ranks_of(energies.spectrum.sqrt()))
    measured |= {f"weight_{name}": value for name, value in asdict(ranks_of(decomposition.sigma)).items()}
    measured["diagonal_energy"] = float(energies.both.diagonal().sum())
    measured["diagonal_energy_null"] = len(decomposition.sigma) / decomposition.weight.numel()
    if whole:
        measured |= asdict(change_of(decomposition, energies, seed=wanted.draws.seed))
    return measured


def _aligned(
    decomposition: Decomposition,
    delta: Float[Tensor, "m n"],
    energies: Energies,
    wanted: Wanted,
    sides: Sequence[Side],
    swapped: tuple[Decomposition, Energies] | None,
) -> Iterator[Row]:
    found = align_energies(decomposition, delta, energies, wanted.cuts, NULLS[wanted.null], wanted.draws, sides=sides)
    others = align_energies(swapped[0], delta, swapped[1], wanted.cuts, sides=sides) if swapped else None
    for i, row in enumerate(found):
        control = {"ssa_swap": others[i].ssa, "ssa_swap_null": others[i].ssa_null} if others else {}
        yield asdict(row) | {"null": wanted.null} | control


def _spectra(module: Module, decomposition: Decomposition, energies: Energies) -> Iterator[Row]:
    where = {"layer": module.layer, "module": module.name, "expert": module.expert}
    for row in spectra_of(decomposition, energies):
        yield where | asdict(row)


def _curve(decomposition: Decomposition, energies: Energies, sides: Sequence[Side]) -> Iterator[Row]:
    for curve in curves(decomposition, energies, sides):
        at = {"side": curve.side, "dim": curve.dim, "area": curve.area}
        for k, ssa, null in zip(curve.k, curve.ssa, curve.ssa_null, strict=True):
            yield at | {"k": k, "ssa": ssa, "ssa_null": null}


def _swapped(
    pair: WeightPair, module: Module, delta: Float[Tensor, "m n"], wanted: Wanted
) -> tuple[Decomposition, Energies] | None:
    """T along the basis of the next layer that has this module in this shape (after the last layer, of the first)."""
    alike = [
        other
        for other in pair.modules
        if (other.name, other.expert, other.shape) == (module.name, module.expert, module.shape)
    ]
    other = alike[(alike.index(module) + 1) % len(alike)]
    if other is module:
        return None
    with _decomposer(pair, other, wanted) as decomposer:
        decomposition = decomposer("-1", pair.weight(other).to(wanted.device))
    return decomposition, energies_along(decomposition, delta)


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
