"""The reductions of one batch: hook readings of both models become table columns, at chosen places only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from probes.capture.hooks.plan import EXPERTS, MODULE, Read, Seen, Site
from probes.capture.hooks.turns import kept
from probes.capture.pair import Pair
from probes.measures import dla, gates, ledger, mixture, residual
from probes.measures.declared import ActivationMeasure
from probes.measures.live_weights import bias_of, matrix_of
from probes.measures.logit_lens import Reader, compare_lenses
from probes.measures.places import Places
from probes.measures.tall import Tall
from tv.architecture.anatomy import Module
from tv.checkpoints.streamed import is_streamed
from tv.runtime.common_rows import common_rows

#: The key columns of a piece's rows besides their places: a component or a module, an expert.
Labels = Mapping[str, str | int]


@dataclass(frozen=True)
class Piece:
    """Columns of one table for one layer; every column has a value per place, or per place × head."""

    table: str
    layer: int
    labels: Labels
    columns: Mapping[str, Tensor]
    places: Places
    site: Site


@dataclass(frozen=True)
class Fixed:
    """What the reductions of a pair need and no batch changes."""

    grams: Mapping[tuple[int, str], residual.HeadGrams]  # by layer and component
    splits: Mapping[Module, ledger.Split]
    delta_norms: Mapping[Module, float]  # ‖T‖_F
    tall: Mapping[Module, Tall] = field(default_factory=dict)  # modules whose ledger is read in fewer coordinates
    changes: frozenset[str] = frozenset()  # sites of the table `changes`; others may be read for other tables
    readers: Sequence[Reader] = ()  # of both models; none where no lens is asked for
    keep: frozenset[str] = frozenset()  # sites whose vectors are kept
    measures: Mapping[str, Sequence[ActivationMeasure]] = field(default_factory=dict)  # registered ones, by site


@dataclass
class BatchReducer:
    """Reduces the pairs that `lockstep` hands over. `pieces` holds the results in execution order."""

    pair: Pair
    fixed: Fixed
    places: Places
    ledger_places: Places
    lens_places: Places
    following: Int[Tensor, " n"]  # the token after each of `lens_places`, −1 where there is none
    domains: Sequence[str]  # of the prompts of the batch
    read_base: dla.Readout
    read_tuned: dla.Readout
    check_all: bool  # compute every ledger term separately everywhere, not only at each prompt's last place
    pieces: list[Piece] = field(default_factory=list)
    counts: dict[tuple[int, int, str], gates.NeuronCounts] = field(default_factory=dict)  # by layer, expert, domain
    scales: tuple[Tensor, Tensor] | None = None  # of the final norm, at `places`, base and tuned
    waiting: list[tuple[Site, int, Tensor, Tensor, Tensor]] = field(default_factory=list)  # of experts before a norm
    unread: list[tuple[Site, Callable[[], Tensor], Callable[[], Tensor]]] = field(default_factory=list)  # by the lens
    overlaps: dict[int, Tensor] = field(default_factory=dict)  # of the chosen experts, by layer, at `places`

    def __call__(self, read: Read, base: Seen, tuned: Seen) -> None:
        """The reduction of one hook, for every site that it serves."""
        for site in read.sites:
            if site.kind in self.fixed.keep:
                self._vectors(site, base, tuned)
            for measure in self.fixed.measures.get(site.kind, ()):
                self._registered(measure, site, base, tuned)
            if site.name == "gate":
                self._gates(site, base.at(site), tuned.at(site))
            elif site.kind in self.fixed.changes:
                self._changes(read, site, base, tuned)
            elif site.name == "resid_final":
                form = self.pair.norms[self.pair.architecture.final_norm]
                at_base, at_tuned = (x.float() for x in self._take(base.at(site), tuned.at(site)))
                self.scales = form.scale(at_base)[:, 0], form.scale(at_tuned)[:, 0]
            elif site.name == "resid_post" and self.fixed.readers:
                at_base, at_tuned = (self.lens_places.take(seen.at(site)) for seen in (base, tuned))
                self.unread.append((site, kept(at_base), kept(at_tuned)))
                if not is_streamed(self.pair.base):  # of which the unembedding is not in memory here
                    self.read_late()
            elif site.name == EXPERTS:
                self._experts(read, site, base, tuned)
            elif site.name == MODULE and site.module is not None:
                self._ledger(site, site.module, base, tuned)

    def read_late(self) -> None:
        """Read through the lens what still waits for the unembedding, after the forward."""
        for site, base, tuned in self.unread:
            lens = compare_lenses(base(), tuned(), self.fixed.readers, self.following)
            self._add("lens", site, {}, vars(lens), self.lens_places)
        self.unread = []

    def _take(self, base: Tensor, tuned: Tensor, places: Places | None = None, dim: int = 1) -> tuple[Tensor, Tensor]:
        """Both models' values at the places, on the base's device."""
        chosen = self.places if places is None else places
        return chosen.take(base, dim), chosen.take(tuned, dim).to(base.device)

    def _registered(self, measure: ActivationMeasure, site: Site, base: Seen, tuned: Seen) -> None:
        places = self.places if measure.at == "positions" else self.ledger_places
        both = self._take(base.at(site), tuned.at(site), places)
        columns = measure.function(*(x.flatten(1) for x in both))
        self._add(measure.form.name, site, {"site": site.name}, columns, places)

    def _vectors(self, site: Site, base: Seen, tuned: Seen) -> None:
        both = self._take(base.at(site), tuned.at(site))
        columns = {f"vector_{side}": x.flatten(1).half() for side, x in zip(("base", "tuned"), both, strict=True)}
        self._add("vectors", site, {}, columns)

    def _gates(self, site: Site, base: Tensor, tuned: Tensor) -> None:
        bits, bits_tuned = self._take(gates.gate_bits(base), gates.gate_bits(tuned))
        self._patterns(site, -1, bits, bits_tuned, self.places)

    def _patterns(self, site: Site, expert: int, base: Tensor, tuned: Tensor, places: Places) -> None:
        d_ff = base.shape[-1]
        words, words_tuned = gates.words(base), gates.words(tuned)
        patterns = gates.compare_gates(words, words_tuned, d_ff)
        self._add("gates", site, {"expert": expert}, vars(patterns), places)
        for domain in dict.fromkeys(self.domains):
            domain_words, domain_words_tuned = words, words_tuned
            if len(set(self.domains)) > 1:
                of = torch.tensor([name == domain for name in self.domains])[places.row]
                index = of.nonzero()[:, 0].to(words.device)
                domain_words, domain_words_tuned = words[index], words_tuned[index]
            self.counts[site.layer, expert, domain] = gates.count_neurons(domain_words, domain_words_tuned, d_ff)

    def _changes(self, read: Read, site: Site, base: Seen, tuned: Seen) -> None:
        """What a component adds, or its heads."""
        if site.kind == "head_out":
            self._heads(site, base, tuned)
            return
        if self.waiting and site.component == "mlp":
            self._through_norm(read, base, tuned)
        self._contribution(site, base.at(site), tuned.at(site))

    def _contribution(self, site: Site, base: Tensor, tuned: Tensor) -> None:
        at_base, at_tuned = self._take(base, tuned)
        factors = (flow.factor(site.layer, site.component) for flow in self.pair.flows)
        at_base, at_tuned = (scaled(x, factor) for x, factor in zip((at_base, at_tuned), factors, strict=True))
        self._compare(site, site.component, -1, at_base, at_tuned, self.places)

    def _compare(self, site: Site, component: str, expert: int, base: Tensor, tuned: Tensor, places: Places) -> None:
        row = places.rows(base.device)
        contributions = residual.compare_contributions(base, tuned, self.read_base, self.read_tuned, row)
        self._add("changes", site, {"component": component, "expert": expert}, vars(contributions), places)

    def _heads(self, site: Site, base: Seen, tuned: Seen) -> None:
        z, z_tuned = self._take(base.input, tuned.input)
        writer = self.pair.architecture.blocks[site.layer].writer(site.component)
        post_norm = None if writer is None else writer.post_norm
        if post_norm is not None:  # heads are seen through the norm that follows the projection, its scale frozen
            form = self.pair.norms[post_norm]
            out, out_tuned = self._take(base.output, tuned.output)  # of the projection, which the norm reads
            z, z_tuned = z / form.scale(out.float()), z_tuned / form.scale(out_tuned.float())
        row = self.places.rows(z.device)
        grams = self.fixed.grams[site.layer, site.component]
        heads = residual.compare_heads(z, z_tuned, grams, self.read_base, self.read_tuned, row)
        self._add("changes", site, {"component": site.component, "expert": -1}, vars(heads), self.places)

    def _experts(self, read: Read, site: Site, base: Seen, tuned: Seen) -> None:
        """Every expert at the places that chose it, in either model or (gates and ledger) in both."""
        device = base.input.device
        routed, routed_tuned = (
            mixture.Routed.of(seen.input, seen.rest, self.places.shape, self.places.take).to(device)
            for seen in (base, tuned)
        )
        owner, owner_tuned = (model.get_submodule(read.path) for model in self.pair.models)
        all_experts = mixture.experts_of(self.pair.architecture, site.layer)
        others = mixture.passing(self.pair.architecture, site.layer)
        known = [*(matrices.expert for matrices in all_experts), *others]
        self.overlaps[site.layer] = mixture.overlap(routed, routed_tuned, known)
        in_ledger = torch.isin(self.places.flat(device), self.ledger_places.flat(device))
        for matrices in all_experts:
            expert = matrices.expert
            by_base, by_tuned = routed.chosen(expert), routed_tuned.chosen(expert)
            either = (by_base | by_tuned).nonzero()[:, 0]
            if not len(either):
                continue
            here = mixture.run_expert(owner, matrices, routed.into(expert, either), routed.share(expert, either))
            there = mixture.run_expert(
                owner_tuned, matrices, routed_tuned.into(expert, either), routed_tuned.share(expert, either)
            )
            places = self.places[either]
            if "mlp_out" in self.fixed.changes and all(site.layer in flow.experts for flow in self.pair.flows):
                self._add_expert(site, expert, either, here.contribution, there.contribution)
            both = (by_base & by_tuned)[either].nonzero()[:, 0]
            if len(both):
                shown = (matrices.pattern.outputs(e.entered[both]) for e in (here, there))
                bits, bits_tuned = (gates.gate_bits(x) for x in shown)
                self._patterns(site, expert, bits, bits_tuned, places[both])
            accounted = (by_base & by_tuned & in_ledger)[either].nonzero()[:, 0]
            if len(accounted) and self.fixed.delta_norms:
                owners = owner, owner_tuned
                self._expert_ledger(site, matrices, owners, (here, there), accounted, places[accounted])
        for expert in others:
            either = (routed.chosen(expert) | routed_tuned.chosen(expert)).nonzero()[:, 0]
            if len(either) and all(site.layer in flow.experts for flow in self.pair.flows):
                added = (mixture.passed_on(one, expert, either) for one in (routed, routed_tuned))
                self._add_expert(site, expert, either, *added)

    def _add_expert(self, site: Site, expert: int, index: Int[Tensor, " m"], base: Tensor, tuned: Tensor) -> None:
        """What one expert adds: now, or once the norm behind the experts' sum has been seen."""
        added = [scaled(x, flow.experts[site.layer]) for x, flow in zip((base, tuned), self.pair.flows, strict=True)]
        mlp = self.pair.architecture.blocks[site.layer].writer("mlp")
        if mlp is not None and mlp.post_norm is not None:
            self.waiting.append((site, expert, index, added[0], added[1]))
        else:
            self._compare(site, "mlp", expert, added[0], added[1], self.places[index])

    def _through_norm(self, read: Read, base: Seen, tuned: Seen) -> None:
        """The experts that waited for the norm behind their sum, seen through it with its scale frozen."""
        form, waiting, self.waiting = self.pair.norms[read.path], self.waiting, []
        entering = self._take(base.input, tuned.input)
        for site, expert, index, *added in waiting:
            seen = [
                form.less_mean(x.float()) / form.scale(whole[index].float()) * form.gain(norm).to(x.device)
                for x, whole, norm in zip(
                    added, entering, (m.get_submodule(read.path) for m in self.pair.models), strict=True
                )
            ]
            self._compare(site, "mlp", expert, seen[0], seen[1], self.places[index])

    def _expert_ledger(
        self,
        site: Site,
        matrices: mixture.Matrices,
        owners: tuple[nn.Module, nn.Module],
        parts: Sequence[mixture.Expert],
        index: Int[Tensor, " m"],
        places: Places,
    ) -> None:
        for module, enters, leaves in (
            *((module, "x", "entered") for module in matrices.entering),
            (matrices.down, "hidden", "out"),
        ):
            x, x_tuned = (getattr(part, enters)[index] for part in parts)
            y, y_tuned = (module.outputs(getattr(part, leaves)[index]) for part in parts)
            terms = self._linear(module, owners, x, x_tuned, y, y_tuned, None)
            self._add("ledger", site, {"module": module.name, "expert": module.expert}, vars(terms), places)

    def _ledger(self, site: Site, module: Module, base: Seen, tuned: Seen) -> None:
        owners = self.pair.base.get_submodule(module.path), self.pair.tuned.get_submodule(module.path)
        dim = self.pair.norms[module.path].position_dim if module.kind == "norm" else 1
        outputs, outputs_tuned = module.outputs(base.output), module.outputs(tuned.output)
        y, y_tuned = self._take(outputs, outputs_tuned, self.ledger_places, dim)
        if module.kind == "embed":
            terms = ledger.lookup_ledger(y, y_tuned, self.fixed.delta_norms[module], module.shape[0])
        else:
            x, x_tuned = self._take(base.input, tuned.input, self.ledger_places, dim)
            if module.kind == "norm":
                terms = self._gain(module, owners, x, x_tuned, y, y_tuned)
            else:
                checked = None if self.check_all else self.ledger_places.last_of_each().to(x.device)
                terms = self._linear(module, owners, x, x_tuned, y, y_tuned, checked)
        self._add("ledger", site, {"module": module.name, "expert": -1}, vars(terms), self.ledger_places)

    def _gain(
        self,
        module: Module,
        owners: tuple[nn.Module, nn.Module],
        x: Tensor,
        x_tuned: Tensor,
        y: Tensor,
        y_tuned: Tensor,
    ) -> ledger.Ledger:
        form = self.pair.norms[module.path]
        gain, gain_tuned = (form.gain(owner).to(x.device) for owner in owners)
        bias, bias_tuned = (form.bias(owner).to(x.device) for owner in owners)
        x, x_tuned = form.normalised(x.float()), form.normalised(x_tuned.float())
        return ledger.gain_ledger(x, x_tuned, y, y_tuned, gain, gain_tuned, bias_tuned - bias)

    def _linear(
        self,
        module: Module,
        owners: tuple[nn.Module, nn.Module],
        x: Float[Tensor, "n cols"],
        x_tuned: Float[Tensor, "n cols"],
        y: Float[Tensor, "n rows"],
        y_tuned: Float[Tensor, "n rows"],
        checked: Int[Tensor, " c"] | None,
    ) -> ledger.Ledger:
        weight, weight_tuned = (matrix_of(module, owner) for owner in owners)
        return ledger.linear_ledger(
            x,
            x_tuned,
            y,
            y_tuned,
            weight,
            weight_tuned,
            delta_norm=self.fixed.delta_norms[module],
            bias=bias_of(module, owners[0]) if module.expert < 0 else mixture.expert_bias(module, owners[0]),
            bias_change=bias_change(module, *owners),
            split=self.fixed.splits.get(module),
            checked=checked,
            tall=self.fixed.tall.get(module),
        )

    def _add(
        self, table: str, site: Site, labels: Labels, columns: Mapping[str, Tensor], places: Places | None = None
    ) -> None:
        chosen = self.places if places is None else places
        self.pieces.append(Piece(table, site.layer, labels, dict(columns), chosen, site))


def scaled(x: Float[Tensor, "n d_model"], factor: float | Tensor) -> Float[Tensor, "n d_model"]:
    """What a component computed, as it reaches the stream."""
    if isinstance(factor, Tensor):
        return x.float() * factor.to(x.device)
    return x if factor == 1.0 else x.float() * factor


def bias_change(module: Module, base: nn.Module, tuned: nn.Module) -> Float[Tensor, " rows"] | None:
    """Δb of a module, float32, of the rows in common; None where it has no bias."""
    bias = bias_of if module.expert < 0 else mixture.expert_bias
    before, after = bias(module, base), bias(module, tuned)
    if before is None or after is None:
        return None
    before, after = common_rows(before, after)
    return after.float().to(before.device) - before.float()
