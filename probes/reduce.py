"""The reductions of one batch: what the hooks of both models see becomes table columns, at chosen places only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from probes import gates, ledger, residual
from probes.hooks.plan import MODULE, Read, Seen, Site
from probes.pair import Pair
from tv.architecture import Module


@dataclass(frozen=True)
class Places:
    """Chosen (prompt, position) places of a batch, as two index vectors."""

    row: Int[Tensor, " n"]
    pos: Int[Tensor, " n"]

    def take(self, x: Float[Tensor, "batch pos ..."], position_dim: int = 1) -> Float[Tensor, "n ..."]:
        """The values of x at these places. A batch dimension of 1 (position embeddings) stands for all prompts."""
        x = x.movedim(position_dim, 1)
        return x[self.row if x.shape[0] > 1 else torch.zeros_like(self.row), self.pos]


@dataclass(frozen=True)
class OutputBasis:
    """Leading left singular vectors of a pretrained matrix: the first `k` span Π_k at ε, the first `k10` are 10 %."""

    vectors: Float[Tensor, "rows kmax"]
    k: int
    k10: int


@dataclass(frozen=True)
class Piece:
    """Columns of one table for one layer; every column has a value per place, or per place × head."""

    table: str
    layer: int
    labels: Mapping[str, str | bool]
    columns: Mapping[str, Tensor]
    places: Places
    site: Site


@dataclass
class BatchReducer:
    """Reduces the pairs that `lockstep` hands over. `pieces` holds the results in execution order."""

    pair: Pair
    places: Places
    ledger_places: Places
    read_base: residual.Readout
    read_tuned: residual.Readout
    grams: Mapping[int, residual.HeadGrams]
    bases: Mapping[tuple[int, str], OutputBasis]
    pieces: list[Piece] = field(default_factory=list)
    scales: tuple[Tensor, Tensor] | None = None  # of the final norm, at `places`, base and tuned

    def __call__(self, read: Read, base: Seen, tuned: Seen) -> None:
        """The reduction of one hook, for every site that it serves."""
        for site in read.sites:
            if site.name == "gate":
                self._gates(site, base.at(site), tuned.at(site))
            elif site.name in ("embed_out", "attn_out", "mlp_out"):
                self._contribution(site, base.at(site), tuned.at(site))
            elif site.name == "head_out":
                self._heads(site, base, tuned)
            elif site.name == "resid_final":
                form = self.pair.norms[read.path]
                at_base, at_tuned = (self.places.take(seen.input).float() for seen in (base, tuned))
                self.scales = form.scale(at_base)[:, 0], form.scale(at_tuned)[:, 0]
            elif site.name == MODULE:
                for module in self.pair.architecture.modules:
                    if module.path == read.path:
                        self._ledger(site, module, base, tuned)

    def _gates(self, site: Site, base: Tensor, tuned: Tensor) -> None:
        patterns = gates.compare_gates(self.places.take(base), self.places.take(tuned))
        columns = {
            "gate_base": patterns.base,
            "gate_xor": patterns.xor,
            "n_flips": patterns.n_flips,
            "flip_rate": patterns.flip_rate,
            "jaccard": patterns.jaccard,
            "active_base": patterns.active_base,
            "active_tuned": patterns.active_tuned,
            "chance_flip_rate": patterns.chance_flip_rate,
        }
        self._add("gates", site, {}, columns, self.places)

    def _contribution(self, site: Site, base: Tensor, tuned: Tensor) -> None:
        found = residual.compare_contributions(
            self.places.take(base), self.places.take(tuned), self.read_base, self.read_tuned
        )
        self._add("changes", site, {"component": site.name.removesuffix("_out")}, vars(found), self.places)

    def _heads(self, site: Site, base: Seen, tuned: Seen) -> None:
        z, z_tuned = self.places.take(base.input), self.places.take(tuned.input)
        post_norm = self.pair.architecture.blocks[site.layer].attn_post_norm
        if post_norm is not None:  # heads are seen through the norm that follows the projection, its scale frozen
            form = self.pair.norms[post_norm]
            z = z / form.scale(self.places.take(base.output).float())
            z_tuned = z_tuned / form.scale(self.places.take(tuned.output).float())
        found = residual.compare_heads(z, z_tuned, self.grams[site.layer], self.read_base, self.read_tuned)
        self._add("changes", site, {"component": "attn"}, vars(found), self.places)

    def _ledger(self, site: Site, module: Module, base: Seen, tuned: Seen) -> None:
        owner, owner_tuned = (m.get_submodule(module.path) for m in (self.pair.base, self.pair.tuned))
        dim = self.pair.norms[module.path].position_dim if module.kind == "norm" else 1
        y, y_tuned = (self.ledger_places.take(module.outputs(seen.output), dim).float() for seen in (base, tuned))
        if module.name == "unembed":  # grown vocabularies: the rows in common
            common = min(y.shape[-1], y_tuned.shape[-1])
            y, y_tuned = y[..., :common], y_tuned[..., :common]
        change = y_tuned - y
        if module.kind == "embed":
            terms = ledger.lookup_terms(change)
        else:
            x, x_tuned = (self.ledger_places.take(seen.input, dim).float() for seen in (base, tuned))
            if module.kind == "norm":
                form = self.pair.norms[module.path]
                bias_change = form.bias(owner_tuned) - form.bias(owner)
                x, x_tuned = form.normalised(x), form.normalised(x_tuned)
                terms = ledger.gain_terms(x, x_tuned, form.gain(owner), form.gain(owner_tuned), bias_change)
            else:
                weight, weight_tuned = matrix_of(module, owner), matrix_of(module, owner_tuned)
                rows = y.shape[-1]
                terms = ledger.linear_terms(
                    x, x_tuned, weight[:rows], weight_tuned[:rows], _bias_change(module, owner, owner_tuned, rows)
                )
        flat = ledger.Terms(*(term.flatten(1) for term in (terms.direct, terms.inherited, terms.interaction)))
        self._add(
            "ledger", site, {"module": module.name}, self._entries(module, flat, change.flatten(1)), self.ledger_places
        )

    def _entries(self, module: Module, terms: ledger.Terms, change: Tensor) -> dict[str, Tensor]:
        entries = {
            "delta_norm": change.norm(dim=-1),
            "direct_norm": terms.direct.norm(dim=-1),
            "inherited_norm": terms.inherited.norm(dim=-1),
            "interaction_norm": terms.interaction.norm(dim=-1),
            "closure": terms.closure(change),
        }
        nothing = torch.full_like(entries["delta_norm"], float("nan"))
        splits = dict.fromkeys(("amplified_norm", "new_norm", "new_share", "new_share_null", "new_share_10"), nothing)
        if (basis := self.bases.get((module.layer, module.name))) is not None:
            amplified, new = ledger.split_direct(terms.direct, basis.vectors[:, : basis.k])
            _, new10 = ledger.split_direct(terms.direct, basis.vectors[:, : basis.k10])
            splits |= {
                "amplified_norm": amplified.norm(dim=-1),
                "new_norm": new.norm(dim=-1),
                "new_share": ledger.new_share(new, terms.direct),
                "new_share_null": torch.full_like(nothing, 1 - basis.k / basis.vectors.shape[0]),
                "new_share_10": ledger.new_share(new10, terms.direct),
            }
        return entries | splits

    def _add(
        self, table: str, site: Site, labels: Mapping[str, str | bool], columns: Mapping[str, Tensor], places: Places
    ) -> None:
        self.pieces.append(Piece(table, site.layer, labels, columns, places, site))


def matrix_of(module: Module, owner: nn.Module) -> Float[Tensor, "rows cols"]:
    """The live matrix of `module`, (out, in), a view of the weight of the Hugging Face module that owns it."""
    return module.matrix(owner.get_parameter("weight").detach())


def _bias_change(module: Module, base: nn.Module, tuned: nn.Module, rows: int) -> Tensor | None:
    if getattr(base, "bias", None) is None:
        return None
    both = (m.get_parameter("bias").detach().float() for m in (base, tuned))
    before, after = (module.outputs(bias, dim=0)[:rows] for bias in both)
    return after - before
