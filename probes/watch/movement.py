"""T of a model in training, one matrix at a time: norms, ranks, noise share, and cosines with named vectors.

A LoRA's T is never formed: norm, rank and cosine come out of its factors. Of a full fine-tune, one base matrix is read
from disk at a time. No second model is in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from tv.architecture.anatomy import Architecture, Module
from tv.architecture.resolve import resolve
from tv.checkpoints.adapters.layers import Layers, layers_of
from tv.checkpoints.adapters.live import holds_adapter, without_adapter
from tv.checkpoints.checkpoint import Checkpoint
from tv.checkpoints.noise import ROUNDING, Noise
from tv.checkpoints.opening import open_checkpoint
from tv.checkpoints.parameters import DTYPES
from tv.checkpoints.vector import TuningVector

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Larger Grams are not formed: embeddings of wide models.
_LARGEST_GRAM = 8192
_EXACT = 128  # rows of a Gram whose eigenvalues are all computed
_ITERATIONS = 30


@dataclass(frozen=True)
class Product:
    """T = left · right, which is not multiplied out."""

    left: Float[Tensor, "m r"]
    right: Float[Tensor, "r n"]

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.left.shape[0], self.right.shape[1])


#: T of one module, (out, in).
Delta = Tensor | Product


@dataclass(frozen=True)
class Size:
    """How large T of one module is, and over how many directions it is spread."""

    norm: float
    stable_rank: float  # ‖T‖²/‖T‖₂²; NaN where T is 0, no matrix, or too large
    participation_ratio: float  # (Σσ²)²/Σσ⁴


@dataclass
class Movement:
    """Where T of a live model comes from: its adapters, or the difference from a base on disk."""

    core: PreTrainedModel
    base: Checkpoint | None  # None: the model without its adapters
    vectors: Mapping[str, TuningVector] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.adapted = holds_adapter(self.core)
        #: The model without adapters, sharing every tensor.
        self.plain = without_adapter(self.core) if self.adapted else self.core
        self.architecture: Architecture = resolve(self.plain)
        self.parameters: dict[str, Tensor] = dict(self.plain.named_parameters())
        self._norms: dict[Hashable, float] = {}  # of what does not change: W of the base, the vectors
        self._modules: dict[str, list[Module]] = {}
        others = (one for one in self.architecture.others if one.kind == "vector")
        for module in (*self.architecture.modules, *others):
            if not module.tied:
                self._modules.setdefault(module.parameter, []).append(module)

    def rows(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Rows of `weights` and of `cosines`: the whole model first, as module `all`, then each module that moved."""
        weights: list[dict[str, Any]] = []
        cosines: list[dict[str, Any]] = []
        total = _Total()
        for name, noise, delta, weight in self._moved():
            read = {label: vector[name] for label, vector in self.vectors.items() if name in vector.shapes}
            for module, part in self._parts(name, delta):
                size, place = size_of(part), self._place(name, module)
                held = self._norm((name, *place.values()), lambda m=module, w=weight: _of(m, w()))  # type: ignore[misc]
                share = noise.share(held, size.norm) if not math.isnan(held) else noise.share(0.0, size.norm)
                total.add(size.norm, held, share)
                weights.append(
                    place
                    | {"norm": size.norm, "relative_norm": size.norm / held if held else math.nan, "noise_share": share}
                    | {"stable_rank": size.stable_rank, "participation_ratio": size.participation_ratio}
                )
                for label, value in read.items():
                    other = _of(module, value)
                    dot, norm = dot_of(part, other), self._norm((label, *place.values()), lambda v=other: v)  # type: ignore[misc]
                    null = size.norm * norm / math.sqrt(other.numel())
                    total.dot(label, dot, null)
                    cosines.append(place | _cosine(label, dot, null, size.norm * norm))
        for label, vector in self.vectors.items():  # what did not move lies in the way of the cosine all the same
            if label not in self._norms:
                self._norms[label] = vector.norm()
        return [total.weights(), *weights], [*total.cosines(self._norms), *cosines]

    def steps(self) -> Iterator[tuple[str, float]]:
        """‖T‖ of every parameter that moved."""
        for name, _, delta, _ in self._moved():
            yield name, size_of(delta, ranks=False).norm

    def base_value(self, name: str) -> Tensor:
        """A parameter of the base."""
        return self.parameters[name].detach() if self.base is None else self.base.tensor(name)

    def _moved(self) -> Iterator[tuple[str, Noise, Delta, Callable[[], Tensor]]]:
        """(parameter, rounding in T, T as stored or as factors in the module's order, the base's value)."""
        if not self.adapted:
            assert self.base is not None
            for name, parameter in self.parameters.items():
                held = self.base.tensor(name)
                common = min(len(held), len(parameter)) if held.ndim else None  # a vocabulary that grew
                weight = held.to(parameter.device, torch.float32)[:common] if held.ndim else held.float()
                delta = (parameter.detach()[:common] if held.ndim else parameter.detach()).float() - weight
                noise = Noise(of_weight=ROUNDING.get(DTYPES.get(parameter.dtype, ""), 0.0))
                yield name, noise, delta, lambda weight=weight: weight  # type: ignore[misc]
            return
        quick: set[str] = set()
        for one in layers_of(self.core, read=True) if self.base is None else []:
            name = f"{one.path}.weight"
            if name in self.parameters and (factors := factors_of(one)) is not None:
                quick.add(name)
                left, right, noise = factors
                value = self.parameters[name].detach()
                yield name, noise, Product(left, right), lambda value=value: value  # type: ignore[misc]
        whole = open_checkpoint(self.core, base=self.base)
        under = whole.base
        for name in whole.moved if under is not None else ():
            if name not in quick:
                assert under is not None
                read = partial(under.tensor, name)
                yield name, whole.noise(name), whole.delta(name, under), read

    def _parts(self, name: str, delta: Delta) -> Iterator[tuple[Module | None, Delta]]:
        """The modules that a parameter consists of, with T of each; a bias is of no module."""
        modules = self._modules.get(name, [])
        if not modules:
            yield None, delta
        for module in modules:
            if isinstance(delta, Product):
                yield module, Product(module.outputs(delta.left, dim=0), delta.right)
            else:
                yield module, _of(module, delta)

    def _place(self, name: str, module: Module | None) -> dict[str, Any]:
        if module is not None:
            return {"layer": module.layer, "module": module.name, "expert": module.expert}
        layer, _ = self.architecture.component_of(name)
        path, _, leaf = name.rpartition(".")
        owner = next((one for one in self.architecture.modules if one.path == path), None)
        return {"layer": layer, "module": f"{owner.name if owner else path.rpartition('.')[2]}_{leaf}", "expert": -1}

    def _norm(self, key: Hashable, value: Callable[[], Tensor]) -> float:
        """The norm of what does not change, computed once; NaN of a weight that is packed in four bits."""
        if key not in self._norms:
            tensor = value()
            self._norms[key] = _norm(tensor) if tensor.is_floating_point() else math.nan
        return self._norms[key]


def size_of(delta: Delta, ranks: bool = True) -> Size:
    """Norm and ranks of T, from the Gram of its smaller side; of a product from r × r matrices.

    Examples:
        >>> size = size_of(torch.diag(torch.tensor([2.0, 1.0, 0.0])))
        >>> round(size.norm**2, 4), round(size.stable_rank, 4), round(size.participation_ratio, 4)
        (5.0, 1.25, 1.4706)
    """
    if isinstance(delta, Product):
        # The eigenvalues of L R Rᵀ Lᵀ are those of (LᵀL)(RRᵀ); with LᵀL = CCᵀ, of CᵀRRᵀC, which is symmetric.
        root = torch.linalg.qr(delta.left.double(), mode="r").R
        gram = root @ (delta.right.double() @ delta.right.double().T) @ root.T
        total = float(gram.trace())
    else:
        total = float(torch.linalg.vector_norm(delta, dtype=torch.float64)) ** 2 if delta.numel() else 0.0
        if not ranks or delta.ndim != 2 or min(delta.shape) < 2 or min(delta.shape) > _LARGEST_GRAM or not total:
            return Size(math.sqrt(total), math.nan, math.nan)
        near = delta if delta.shape[0] <= delta.shape[1] else delta.T
        near = near / math.sqrt(total)  # first: squares may underflow
        gram = (near @ near.T) * total
    if not total > 0:
        return Size(0.0, math.nan, math.nan)
    scaled = gram / total
    return Size(math.sqrt(total), 1 / _largest(scaled), 1 / float(scaled.pow(2).sum(dtype=torch.float64)))


def dot_of(delta: Delta, other: Tensor) -> float:
    """⟨T, V⟩."""
    if isinstance(delta, Product):
        other = other.to(delta.left.device, delta.left.dtype)
        return float(((delta.left.T @ other) * delta.right).sum(dtype=torch.float64))
    rows = min(len(delta), len(other)) if delta.ndim else None
    left, right = (delta[:rows], other[:rows]) if delta.ndim else (delta, other)
    return float((left * right.to(left.device)).sum(dtype=torch.float64))


def factors_of(one: Layers) -> tuple[Tensor, Tensor, Noise] | None:
    """(left, right, rounding) of T of a module under plain LoRA, all active adapters side by side; None for others."""
    lefts, rights, dtypes = [], [], set()
    for layer in one.layers:
        if one.parameter is not None or not hasattr(layer, "lora_A") or getattr(layer, "lora_bias", {}) is None:
            return None
        for adapter in layer.active_adapters:
            if getattr(layer, "lora_variant", {}).get(adapter) or getattr(layer, "lora_bias", {}).get(adapter):
                return None  # DoRA and its like
            if adapter in layer.lora_A:
                left, right = layer.lora_B[adapter].weight, layer.lora_A[adapter].weight
                if left.ndim != 2 or right.ndim != 2:
                    return None
            elif adapter in layer.lora_embedding_A:
                left, right = layer.lora_embedding_A[adapter].T, layer.lora_embedding_B[adapter].T
            else:
                continue
            if layer.merged:
                return None
            dtypes |= {DTYPES.get(left.dtype, "F32"), DTYPES.get(right.dtype, "F32")}
            lefts.append(left.detach().float() * layer.scaling[adapter])
            rights.append(right.detach().float())
    if not lefts:
        return None
    coarsest = max(ROUNDING[dtype] for dtype in dtypes)
    return torch.cat(lefts, 1), torch.cat(rights, 0), Noise(of_delta=math.sqrt(2) * coarsest)


@dataclass
class _Total:
    """Sums over the model."""

    squares: float = 0.0
    held: float = 0.0
    noise: float = 0.0
    dots: dict[str, float] = field(default_factory=dict)
    nulls: dict[str, float] = field(default_factory=dict)  # squared

    def add(self, norm: float, held: float, share: float) -> None:
        self.squares += norm**2
        self.held += held**2
        self.noise += 0.0 if math.isnan(share) else share * norm**2

    def dot(self, label: str, dot: float, null: float) -> None:
        self.dots[label] = self.dots.get(label, 0.0) + dot
        self.nulls[label] = self.nulls.get(label, 0.0) + null**2

    def weights(self) -> dict[str, Any]:
        norm = math.sqrt(self.squares)
        return {
            **_ALL,
            "norm": norm,
            "relative_norm": norm / math.sqrt(self.held) if self.held > 0 else math.nan,
            "noise_share": self.noise / self.squares if self.squares else math.nan,
            "stable_rank": math.nan,
            "participation_ratio": math.nan,
        }

    def cosines(self, norms: Mapping[Hashable, float]) -> list[dict[str, Any]]:
        return [
            _ALL | _cosine(label, dot, math.sqrt(self.nulls[label]), math.sqrt(self.squares) * norms[label])
            for label, dot in self.dots.items()
        ]


#: Where rows of the whole model stand.
_ALL: dict[str, Any] = {"layer": -2, "module": "all", "expert": -1}


def _cosine(label: str, dot: float, null: float, norms: float) -> dict[str, Any]:
    """`cosine_null` is the standard deviation of the cosine of a T of the same norms that has no direction."""
    shown = {"cosine": dot / norms, "cosine_null": null / norms} if norms else {}
    return {"vector": label, "cosine": math.nan, "cosine_null": math.nan} | shown


def _of(module: Module | None, stored: Tensor) -> Tensor:
    return stored if module is None or module.kind == "vector" else module.matrix(stored)


def _norm(value: Tensor) -> float:
    return float(torch.linalg.vector_norm(value, dtype=torch.float64))


def _largest(gram: Float[Tensor, "r r"]) -> float:
    """The largest eigenvalue of a positive matrix: all of them where it is small, else power iteration."""
    if len(gram) <= _EXACT:
        return float(torch.linalg.eigvalsh(gram)[-1])
    vector = gram[:, int(gram.diagonal().argmax())]
    for _ in range(_ITERATIONS):
        vector = gram @ (vector / vector.norm())
    return float(vector.norm())
