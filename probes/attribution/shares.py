"""The shares that `path` finds, prompt by prompt, and how they add up by component, module, head, expert and neuron."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from probes.attribution.effects import FORWARD, Effects, changed, floor_of
from probes.attribution.forwards import Floats
from probes.attribution.units import Granularity, Unit, head_granularity
from probes.store.schemas import ALL_DOMAINS
from tv.architecture.anatomy import Architecture, Module
from tv.stats.change import LEAST_FLOOR


#: What a prompt's vector of shares holds, in order: the kind (a field of `Shares`), the key, and how many numbers; 0 for
#: as many as the prompt has tokens.
Layout = tuple[tuple[int, Any, int], ...]
_NEURONS, _WHOLES = 2, 3


@dataclass
class Shares:
    """What the weights added to the metric, by place: of a batch of prompts, or of one, without the axis `batch`."""

    modules: dict[Module, Float[Tensor, "batch pos"]] = field(default_factory=dict)
    heads: dict[Module, Float[Tensor, "batch head"]] = field(default_factory=dict)
    neurons: dict[tuple[int, int], Float[Tensor, "batch d_ff"]] = field(default_factory=dict)  # by layer, expert
    wholes: dict[Module, Float[Tensor, " batch"]] = field(default_factory=dict)  # of parameters that tokens do not cut

    def put(self, other: Shares) -> None:
        """Add the other's, in place."""
        for kept, added in zip(self._all, other._all, strict=True):
            for key, value in added.items():
                kept[key] = kept[key] + value if key in kept else value

    def flat(self, lengths: Sequence[int]) -> tuple[Layout, list[Float[Tensor, " size"]]]:
        """One vector for each prompt of a batch, which have these numbers of tokens, in host memory."""
        n = len(lengths)
        keys = [(kind, key, value) for kind, own in enumerate(self._all) for key, value in own.items()]
        layout = tuple((kind, key, value[0].numel() if kind else 0) for kind, key, value in keys)
        tokens = torch.stack(list(self.modules.values()), 1).cpu() if self.modules else torch.zeros(n, 0)
        others = [value.reshape(n, -1).cpu() for own in self._all[1:] for value in own.values()]
        rest = torch.cat(others, 1).cpu() if others else torch.zeros(n, 0)
        return layout, [torch.cat([tokens[i, ..., :k].flatten(), rest[i]]) for i, k in enumerate(lengths)]

    @classmethod
    def of(cls, layout: Layout, vector: Float[Tensor, " size"], n_tokens: int) -> Shares:
        """What `flat` made a vector of: views of it."""
        shares, start = cls(), 0
        for kind, key, size in layout:
            size = size if kind else n_tokens
            value = vector[start : start + size]
            shares._all[kind][key] = value if kind < _WHOLES else value[0]
            start += size
        return shares

    def alone(self) -> Shares:
        """One prompt's shares as those of a batch of one."""
        return Shares(*({key: value[None] for key, value in own.items()} for own in self._all))

    def total(self) -> float:
        """Σ over every module and token."""
        return sum(float(value.double().sum()) for value in (*self.modules.values(), *self.wholes.values()))

    @property
    def _all(self) -> tuple[dict[Any, Tensor], ...]:
        return self.modules, self.heads, self.neurons, self.wholes


@dataclass(frozen=True)
class Integrated:
    """The finished integral of one prompt, as data that can be stored and given back."""

    prompt: str
    nodes: int
    n_tokens: int
    layout: Layout
    vector: Float[Tensor, " size"]

    @property
    def shares(self) -> Shares:
        """Its shares."""
        return Shares.of(self.layout, self.vector, self.n_tokens)

    def arrays(self, architecture: Architecture) -> dict[str, NDArray[Any]]:
        """As arrays: `nodes`, `n_tokens`, `layout` (kind, place of the module or layer, expert, size), `values`."""
        place = {module: i for i, module in enumerate((*architecture.modules, *architecture.others))}
        rows = [
            (kind, *(key if kind == _NEURONS else (place[key], -1)), size)  # by layer and expert
            for kind, key, size in self.layout
        ]
        layout = np.array(rows, np.int32).reshape(-1, 4)
        return {
            "nodes": np.array(self.nodes),
            "n_tokens": np.array(self.n_tokens),
            "layout": layout,
            "values": self.vector.numpy(),
        }

    @classmethod
    def of(cls, prompt: str, arrays: Mapping[str, NDArray[Any]], architecture: Architecture) -> Integrated:
        """What `arrays` was made of."""
        modules = (*architecture.modules, *architecture.others)
        layout = tuple(
            (kind, (place, expert) if kind == _NEURONS else modules[place], size)
            for kind, place, expert, size in arrays["layout"].tolist()
        )
        vector = torch.from_numpy(np.array(arrays["values"], np.float32))
        return cls(prompt, int(arrays["nodes"]), int(arrays["n_tokens"]), layout, vector)


@dataclass(frozen=True)
class PathEffects:
    """Every prompt's shares, and the change that they must add up to."""

    prompts: tuple[str, ...]
    shares: tuple[Shares, ...]
    base: Floats  # the metric of each prompt
    tuned: Floats
    nodes: NDArray[np.int64]  # of each prompt's integral

    @property
    def gap(self) -> float:
        """The completeness gap, see `gap_of`."""
        return gap_of(self.shares, self.change, LEAST_FLOOR)

    @property
    def change(self) -> Floats:
        """How much the metric of each prompt changed."""
        return self.tuned - self.base

    def effects(self, architecture: Architecture) -> Iterator[Effects]:
        """The effects at every granularity that the model has."""
        for granularity in ("component", "module", "head", "kv_head", "expert"):
            summed = [dict(_summed(shares, granularity, architecture)) for shares in self.shares]
            units = tuple(dict.fromkeys(unit for by_unit in summed for unit in by_unit))
            if units:
                values = np.array([[by_unit.get(unit, 0.0) for by_unit in summed] for unit in units])
                yield Effects("path", FORWARD, units, self.prompts, values, change=self.change)

    def unchanged(self, domains: Mapping[str, str], floors: Mapping[str, float]) -> set[str]:
        """The domains, `all` among them, in which there is no change to share out: none above the noise floor."""
        names = {ALL_DOMAINS, *(domains[prompt] for prompt in self.prompts)}
        inside = {name: [name in (ALL_DOMAINS, domains[prompt]) for prompt in self.prompts] for name in names}
        return {name for name, at in inside.items() if not changed(self.change[at], floor_of(floors, name))}

    def tokens(self) -> pd.DataFrame:
        """`prompt_id pos layer component effect`: what the weights of a component did at each token."""
        parts = []
        for prompt, shares in zip(self.prompts, self.shares, strict=True):
            by_component: dict[tuple[int, str], Tensor] = {}
            for module, value in shares.modules.items():
                place = module.layer, module.component
                by_component[place] = by_component[place] + value if place in by_component else value
            table = np.stack([value.double().cpu().numpy() for value in by_component.values()])
            places = pd.MultiIndex.from_tuples(by_component, names=["layer", "component"])
            long = pd.DataFrame(table, places, pd.RangeIndex(table.shape[1], name="pos")).stack().rename("effect")
            parts.append(long.reset_index().assign(prompt_id=prompt))
        return pd.concat(parts, ignore_index=True)

    def neurons(self, domains: Mapping[str, str]) -> pd.DataFrame:
        """`domain layer expert neuron n effect se`: means over prompts with their standard errors."""
        parts = []
        for domain in (ALL_DOMAINS, *dict.fromkeys(domains[name] for name in self.prompts)):
            in_domain = [
                shares
                for name, shares in zip(self.prompts, self.shares, strict=True)
                if domain in (ALL_DOMAINS, domains[name])
            ]
            for layer, expert in dict.fromkeys(place for shares in in_domain for place in shares.neurons):
                wide = next(shares.neurons[layer, expert] for shares in in_domain if (layer, expert) in shares.neurons)
                table = np.stack(
                    [shares.neurons.get((layer, expert), 0 * wide).double().cpu().numpy() for shares in in_domain]
                )
                se = (
                    table.std(0, ddof=1) / np.sqrt(len(in_domain))
                    if len(in_domain) > 1
                    else np.full(table.shape[1], np.nan)
                )
                columns = {"neuron": np.arange(table.shape[1]), "effect": table.mean(0), "se": se}
                labels = {"domain": domain, "layer": layer, "expert": expert, "n": len(in_domain)}
                parts.append(pd.DataFrame({**labels, **columns}))
        names = ("domain", "layer", "expert", "n", "neuron", "effect", "se")
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=names)


def total_of(layout: Layout, vector: Float[Tensor, " size"], n_tokens: int) -> float:
    """Σ over every module and token of a prompt's vector."""
    of_tokens = n_tokens * sum(kind == 0 for kind, *_ in layout)
    wholes = sum(kind == _WHOLES for kind, *_ in layout)
    return float(vector[:of_tokens].double().sum() + vector[len(vector) - wholes :].double().sum())


def gap_of(shares: Sequence[Shares], change: Floats, floor: float) -> float:
    """Σ_prompts |Σ shares − change| over Σ_prompts |change|, or over what rounding alone can make, if that is more."""
    off = np.abs(np.array([prompt_shares.total() for prompt_shares in shares]) - change).sum()
    return float(off / max(np.abs(change).sum(), floor * len(change))) if len(change) else 0.0


def _summed(shares: Shares, granularity: Granularity, architecture: Architecture) -> Iterator[tuple[Unit, float]]:
    """One prompt's shares by unit of one granularity. Norms and biases of o belong to no head."""
    sums: dict[Unit, float] = defaultdict(float)
    if granularity in ("head", "kv_head"):
        for module, values in shares.heads.items():
            if head_granularity(module, architecture) == granularity:
                for head, value in enumerate(values.tolist()):
                    sums[Unit(granularity, module.layer, module.component, head=head)] += value
    else:
        for module, tokens in (*shares.modules.items(), *shares.wholes.items()):
            place = module.layer, str(module.component)
            if granularity == "component":
                unit = Unit("component", *place)
            elif granularity == "module":
                if module.kind == "group":
                    continue
                unit = Unit("module", *place, module.name, expert=module.expert)
            elif module.expert >= 0:
                unit = Unit("expert", *place, expert=module.expert)
            else:
                continue
            sums[unit] += float(tokens.double().sum())
    yield from sorted(sums.items(), key=lambda item: item[0].layer)
