"""The shares that `path` finds, prompt by prompt, and how they add up by component, module, head, expert and neuron."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from probes.attribution.effects import FORWARD, Effects, changed, floor_of
from probes.attribution.forwards import Floats
from probes.attribution.units import Granularity, Unit, head_granularity
from probes.store.schemas import ALL_DOMAINS
from tv.architecture.anatomy import Architecture, Module
from tv.stats.change import LEAST_FLOOR

#: What a prompt's vector of shares holds, in order: the kind (a field of `Shares`), the key, how many numbers; 0 for
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
        """One vector for each prompt of a batch, which have these numbers of tokens, in host memory.

        Tokens after the last for which there is a number have no share.
        """
        n = len(lengths)
        keys = [(kind, key, value) for kind, own in enumerate(self._all) for key, value in own.items()]
        layout = tuple((kind, key, value[0].numel() if kind else 0) for kind, key, value in keys)
        tokens = torch.stack(list(self.modules.values()), 1).cpu() if self.modules else torch.zeros(n, 0)
        tokens = pad(tokens, (0, max(0, max(lengths) - tokens.shape[-1])))
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
        return sum(self.by_module().values())

    def totals(self) -> list[float]:
        """Σ over every module and token, of each prompt of a batch."""
        parts = [value.double().sum(-1) for value in self.modules.values()]
        return torch.stack([*parts, *(value.double() for value in self.wholes.values())]).sum(0).tolist()

    @property
    def n_tokens(self) -> int:
        """How many tokens the prompt has."""
        return max((value.shape[-1] for value in self.modules.values()), default=0)

    def by_module(self) -> dict[Module, float]:
        """One prompt's shares summed over its tokens."""
        sums = {module: float(value) for module, value in self.wholes.items()}
        if self.modules:
            of_tokens = torch.stack(list(self.modules.values())).double().sum(1)
            for module, value in zip(self.modules, of_tokens.tolist(), strict=True):
                sums[module] = sums.get(module, 0.0) + value
        return sums

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
        of_modules = [shares.by_module() for shares in self.shares]
        of_heads = [{module: values.tolist() for module, values in shares.heads.items()} for shares in self.shares]
        for granularity in ("component", "module", "head", "kv_head", "expert"):
            if granularity in ("head", "kv_head"):
                found = _of_heads(of_heads, granularity, architecture)
            else:
                found = _of_modules(of_modules, granularity)
            units = tuple(dict.fromkeys(unit for by_unit in found for unit in by_unit))
            if units:
                values = np.array([[by_unit.get(unit, 0.0) for by_unit in found] for unit in units])
                yield Effects("path", FORWARD, units, self.prompts, values, change=self.change)

    def unchanged(self, domains: Mapping[str, str], floors: Mapping[str, float]) -> set[str]:
        """The domains, `all` among them, in which there is no change to share out: none above the noise floor."""
        names = {ALL_DOMAINS, *(domains[prompt] for prompt in self.prompts)}
        inside = {name: [name in (ALL_DOMAINS, domains[prompt]) for prompt in self.prompts] for name in names}
        return {name for name, at in inside.items() if not changed(self.change[at], floor_of(floors, name))}

    def tokens(self) -> pd.DataFrame:
        """`layer component pos effect prompt_id`: what the weights of a component did at each token."""
        places: dict[tuple[int, str], int] = {}
        of_prompt, of_place, of_token, effect = [], [], [], []
        for i, shares in enumerate(self.shares):
            own = [places.setdefault((module.layer, module.component), len(places)) for module in shares.modules]
            used = np.array(list(dict.fromkeys(own)), np.int64)
            table = np.zeros((len(places), shares.n_tokens))
            np.add.at(table, own, torch.stack(list(shares.modules.values())).double().cpu().numpy())
            effect.append(table[used].ravel())
            of_place.append(np.repeat(used, shares.n_tokens))
            of_token.append(np.tile(np.arange(shares.n_tokens), len(used)))
            of_prompt.append(np.full(table[used].size, i))
        place, prompt = np.concatenate(of_place), np.concatenate(of_prompt)
        layers, components = (np.array(names) for names in zip(*places, strict=True))
        return pd.DataFrame(
            {
                "layer": layers[place],
                "component": components.astype(object)[place],
                "pos": np.concatenate(of_token),
                "effect": np.concatenate(effect),
                "prompt_id": np.array(self.prompts, object)[prompt],
            }
        )

    def neurons(self, domains: Mapping[str, str]) -> pd.DataFrame:
        """`domain layer expert n neuron effect se`: means over prompts with their standard errors."""
        of_prompts = np.array([domains[name] for name in self.prompts], object)
        inside = {ALL_DOMAINS: np.ones(len(of_prompts), bool)}
        inside |= {name: of_prompts == name for name in dict.fromkeys(of_prompts.tolist())}
        parts: dict[str, list[pd.DataFrame]] = {name: [] for name in inside}
        for place in dict.fromkeys(place for shares in self.shares for place in shares.neurons):
            own = [shares.neurons.get(place) for shares in self.shares]
            nothing = torch.zeros_like(next(row for row in own if row is not None))
            table = torch.stack([nothing if row is None else row for row in own]).double().cpu().numpy()
            known = np.array([row is not None for row in own])
            for name, at in inside.items():
                if (known & at).any():
                    parts[name].append(_means(table[at], {"domain": name, "layer": place[0], "expert": place[1]}))
        names = ("domain", "layer", "expert", "n", "neuron", "effect", "se")
        every = [part for own in parts.values() for part in own]
        return pd.concat(every, ignore_index=True) if every else pd.DataFrame(columns=names)


def _means(table: Float[NDArray[np.float64], "prompts neurons"], labels: Mapping[str, object]) -> pd.DataFrame:
    n, width = table.shape
    se = table.std(0, ddof=1) / np.sqrt(n) if n > 1 else np.full(width, np.nan)
    return pd.DataFrame({**labels, "n": n, "neuron": np.arange(width), "effect": table.mean(0), "se": se})


def gap_of(shares: Sequence[Shares], change: Floats, floor: float) -> float:
    """Σ_prompts |Σ shares − change| over Σ_prompts |change|, or over what rounding alone can make, if that is more."""
    off = np.abs(np.array([prompt_shares.total() for prompt_shares in shares]) - change).sum()
    return float(off / max(np.abs(change).sum(), floor * len(change))) if len(change) else 0.0


def _of_modules(of_modules: Sequence[Mapping[Module, float]], granularity: Granularity) -> list[dict[Unit, float]]:
    """By prompt, the shares of components, modules or experts, by depth."""
    unit_of = {module: _unit(module, granularity) for module in dict.fromkeys(m for own in of_modules for m in own)}
    return [_by_unit((unit_of[module], value) for module, value in own.items()) for own in of_modules]


def _of_heads(
    of_heads: Sequence[Mapping[Module, Sequence[float]]], granularity: Granularity, architecture: Architecture
) -> list[dict[Unit, float]]:
    """By prompt, the shares of heads, by depth. Norms and biases of o belong to no head."""
    units = {
        module: [Unit(granularity, module.layer, module.component, head=head) for head in range(module.n_heads)]
        for module in dict.fromkeys(module for own in of_heads for module in own)
        if head_granularity(module, architecture) == granularity
    }
    return [
        _by_unit(
            pair for module, row in own.items() if module in units for pair in zip(units[module], row, strict=True)
        )
        for own in of_heads
    ]


def _by_unit(found: Iterable[tuple[Unit | None, float]]) -> dict[Unit, float]:
    sums: dict[Unit, float] = defaultdict(float)
    for unit, value in found:
        if unit is not None:
            sums[unit] += value
    return dict(sorted(sums.items(), key=lambda item: item[0].layer))


def _unit(module: Module, granularity: Granularity) -> Unit | None:
    place = module.layer, str(module.component)
    if granularity == "component":
        return Unit("component", *place)
    if granularity == "module":
        return None if module.kind == "group" else Unit("module", *place, module.name, expert=module.expert)
    return Unit("expert", *place, expert=module.expert) if module.expert >= 0 else None
