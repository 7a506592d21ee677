"""A live model moved along tuning vectors in place, θ + Σ λT or as a method merges them, and restored bit for bit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tv.architecture.resolve import resolve
from tv.architecture.trunk import ends_of
from tv.architecture.values import values_of
from tv.arithmetic.methods.compose import check_method, compose
from tv.arithmetic.methods.layout import Piece, layout
from tv.arithmetic.methods.terms import Merge
from tv.arithmetic.selection import select
from tv.checkpoints.ties import is_tied, untied
from tv.checkpoints.vector import TuningVector
from tv.errors import InputError
from tv.runtime.common_rows import common_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def variant(
    model: PreTrainedModel,
    scales: Mapping[TuningVector, float],
    *,
    method: str = "sum",
    only: Sequence[str] = (),
    exclude: Sequence[str] = (),
    seed: int = 0,
    **options: float,
) -> Iterator[PreTrainedModel]:
    """`model` at θ + Σ λT, or at what a method makes of the λT, for as long as the context lasts.

    See `tv.Mover`, which serves a sweep better. Contexts may be nested: the inner one starts at the outer one's
    point. A vector that was extracted from this live model is then read at that point too, so extract from a directory,
    or give both vectors to one context.

    Args:
        model: A live model. It is moved in place, and restored bit for bit afterwards.
        scales: λ by tuning vector.
        method: One of `tv.METHODS`.
        only: Patterns that name what moves, as in `tv.apply`; without any, all of it.
        exclude: Patterns that name what stays as it is.
        seed: Of what the method draws.
        options: Options of the method, such as `density` or `fraction`.

    Yields:
        The model itself, moved.

    Raises:
        InputError: As `tv.Mover` does; the model is then as it was.

    Source: arXiv 2212.04089 §2 (the sum); `tv.METHODS` names those of the other methods.

    Examples:
        >>> from transformers import AutoModelForCausalLM
        >>> model = AutoModelForCausalLM.from_pretrained("data/models/base", dtype="float32")
        >>> medical = tv.extract("data/models/base", "data/models/medical")
        >>> before = model.lm_head.weight.clone()
        >>> with tv.variant(model, {medical: 0.7}):
        ...     bool((model.lm_head.weight == before).all())
        False
        >>> bool((model.lm_head.weight == before).all())
        True
    """
    with Mover(model, list(scales), method=method, only=only, exclude=exclude, seed=seed, **options) as mover:
        mover.to(scales)
        yield model


class Mover:
    """A live model that can be put at any point of θ + Σ λT, or of what a method makes of the λT, by parameter.

    A vector at λ = 0 takes no part in the merge: the others meet as if it had not been given. What a method computes of
    the vectors before their scales is kept for the next point, as float32, a tensor a vector; `sum` keeps nothing and
    reads each T again.

    Sums are formed in float32 and cast to the model's dtype. In bfloat16 a step below 0.2 % of an entry is lost in
    the cast, and λ and λ + 0.1 may be one model: load the model in float32 where points have to be distinguished. Every
    parameter that moves is kept as it was (on its device), so that no point depends on the one before and leaving the
    context restores the bits. Tied weights are one parameter, and of a grown vocabulary the rows in common move.

    Args:
        model: A live model. It is moved in place; nothing moves before `to` is called.
        vectors: The tuning vectors that `to` can move along.
        method: One of `tv.METHODS`.
        only: Patterns that name what moves, as in `tv.apply`; without any, all of it.
        exclude: Patterns that name what stays as it is.
        seed: Of what the method draws.
        options: Options of the method, such as `density` or `fraction`.

    Raises:
        InputError: A vector that does not fit the model, naming the first parameter; an unknown method, an option that
            it does not take, or a pattern that names nothing.

    Source: arXiv 2212.04089 §2 (the sum); `tv.METHODS` names those of the other methods.

    Examples:
        >>> from transformers import AutoModelForCausalLM
        >>> model = AutoModelForCausalLM.from_pretrained("data/models/base", dtype="float32")
        >>> medical = tv.extract("data/models/base", "data/models/medical")
        >>> start, step = model.lm_head.weight.detach().clone(), medical["lm_head.weight"]
        >>> with tv.Mover(model, [medical]) as mover:
        ...     for scale in (0.5, 1.0):
        ...         lost = mover.to({medical: scale})
        ...         print(lost, round(float((model.lm_head.weight.detach() - start).norm() / step.norm()), 3))
        0.0 0.5
        0.0 1.0
    """

    def __init__(
        self,
        model: PreTrainedModel,
        vectors: Sequence[TuningVector],
        *,
        method: str = "sum",
        only: Sequence[str] = (),
        exclude: Sequence[str] = (),
        seed: int = 0,
        **options: float,
    ) -> None:
        """Check that the vectors fit, and the method and its options; nothing moves yet."""
        self.model, self.method, self.seed = model, method, seed
        self.options = check_method(method, options)
        self._places = {vector: _places(model, vector) for vector in vectors}
        self._kept: dict[Tensor, Tensor] = {}
        self._merges: dict[Tensor, tuple[list[TuningVector], Merge]] = {}
        self._plain = method == "sum" and not only and not exclude
        self._pieces = {} if self._plain else _pieces(model, only, exclude)

    def __enter__(self) -> Mover:
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    @torch.no_grad()
    def to(self, scales: Mapping[TuningVector, float]) -> float:
        """Move to θ + Σ λT, from wherever the model is.

        Args:
            scales: λ by tuning vector; a vector that is not named counts as λ = 0.

        Returns:
            What the cast to the model's dtype lost, relative to ‖Σ λT‖: 0 in float32.

        Raises:
            InputError: A vector that the mover was not made for, or a scale that is no finite number.
        """
        for vector, scale in scales.items():
            if vector not in self._places:
                raise InputError("this tuning vector is not among those that the mover was made for; add it there")
            if not math.isfinite(scale):
                raise InputError(f"scale {scale}: a tuning vector is scaled by a finite number")
        step = lost = 0.0
        for parameter in dict.fromkeys(parameter for places in self._places.values() for parameter in places):
            kept = self._kept.setdefault(parameter, parameter.detach().clone())
            parameter.copy_(kept)  # before T is read: a vector of this live model is read from this very parameter
            exact = kept.to(torch.promote_types(kept.dtype, torch.float32), copy=True)
            active = [vector for vector, places in self._places.items() if scales.get(vector) and parameter in places]
            if active:
                self._move(exact, parameter, active, [scales[vector] for vector in active])
            parameter.copy_(exact)
            if exact.dtype != kept.dtype:
                step += _norm2(exact - kept)
                lost += _norm2(parameter - exact)
        return (lost / step) ** 0.5 if step else 0.0

    def _move(self, value: Tensor, parameter: Tensor, active: list[TuningVector], scales: list[float]) -> None:
        """Add what the active vectors make together at these scales to `value`, the parameter as it was."""
        if self._plain:
            total = torch.zeros_like(value)
            for vector, scale in zip(active, scales, strict=True):
                _add(total, vector[self._places[vector][parameter]], scale)
            value += total
            return
        cached = self._merges.get(parameter)
        if cached is None or cached[0] != active:
            deltas = [_rows_of(value, vector[self._places[vector][parameter]]) for vector in active]
            pieces = self._pieces.get(parameter, [])
            merge = compose(self.method, pieces, deltas, value.float(), seed=self.seed, options=self.options)
            cached = self._merges[parameter] = (active, merge)
        value += cached[1](scales)

    @torch.no_grad()
    def restore(self) -> None:
        """Put every parameter back as it was when it first moved, bit for bit."""
        for parameter, kept in self._kept.items():
            parameter.copy_(kept)
        self._kept.clear()
        self._merges.clear()


def of_one_form(model: PreTrainedModel, vectors: Sequence[TuningVector]) -> tuple[PreTrainedModel, list[TuningVector]]:
    """The model and the vectors with the unembedding apart from the embedding, where one vector parts them.

    Args:
        model: A live model, which stays as it is.
        vectors: Tuning vectors that will move it.

    Returns:
        (the model, or a copy that shares all tensors but the unembedding; the vectors, each moving both).
    """
    paths = {id(module): path for path, module in model.named_modules()}
    embed, unembed = (f"{paths.get(id(end), '')}.weight" for end in ends_of(model))
    if not is_tied(model) or not any({embed, unembed} <= vector.shapes.keys() for vector in vectors):
        return model, list(vectors)
    return untied(model), [vector.untied(embed, unembed) for vector in vectors]


def _places(model: PreTrainedModel, vector: TuningVector) -> dict[Tensor, str]:
    """The parameters and buffers that the vector moves, with their names in it. Raises InputError where one misfits."""
    parameters = values_of(model) | dict(model.named_parameters(remove_duplicate=False))
    vocabulary = _vocabulary(model)
    places: dict[Tensor, str] = {}
    for name, shape in vector.shapes.items():
        parameter = parameters.get(name)
        if parameter is None:
            raise InputError(f"the tuning vector moves {name!r}, which this {type(model).__name__} does not have")
        if parameter.is_meta or not parameter.is_floating_point():
            where = "is not in memory (offloaded?)" if parameter.is_meta else f"is stored as {parameter.dtype}"
            raise InputError(f"parameter {name!r} {where} and cannot be moved; load the model whole, in float32")
        model_shape = tuple(parameter.shape)
        grown = parameter in vocabulary and model_shape[1:] == shape[1:]
        if model_shape != shape and not grown:
            raise InputError(
                f"the tuning vector does not fit the model: parameter {name!r} has shape {list(shape)} in the vector "
                f"and {list(model_shape)} in the model"
            )
        if parameter not in places:
            places[parameter] = name
        elif not torch.equal(vector[name], vector[places[parameter]]):
            head = name.removesuffix(".weight")
            raise InputError(
                f"the model ties {places[parameter]!r} and {name!r}, but the tuning vector parts them; untie the model "
                f"first: model.{head}.weight = torch.nn.Parameter(model.{head}.weight.clone())"
            )
    return places


def _pieces(model: PreTrainedModel, only: Sequence[str], exclude: Sequence[str]) -> dict[Tensor, list[Piece]]:
    """The matrices that each parameter consists of, whatever its names; only those that the patterns leave."""
    parameters = values_of(model)
    pieces = layout(resolve(model), {name: tuple(value.shape) for name, value in parameters.items()})
    return {parameters[name]: chosen for name, chosen in select(pieces, only, exclude).items()}


def _rows_of(value: Tensor, delta: Tensor) -> Tensor:
    """T as float32 of the value's shape: of a vocabulary that grew, T's rows, zeros elsewhere."""
    if delta.shape == value.shape:
        return delta.to(value.device, torch.float32)
    fitted = torch.zeros_like(value, dtype=torch.float32)
    _add(fitted, delta, 1.0)
    return fitted


def _vocabulary(model: PreTrainedModel) -> set[nn.Parameter]:
    """The parameters with a row a token."""
    return {parameter for end in ends_of(model) if isinstance(end, nn.Module) for parameter in end.parameters()}


def _add(value: Tensor, delta: Tensor, scale: float) -> None:
    """Add scale·delta in place, in the rows that both have."""
    value, delta = common_rows(value, delta)
    value += scale * delta.to(value)


def _norm2(value: Tensor) -> float:
    return float(torch.linalg.vector_norm(value, dtype=torch.float64)) ** 2
