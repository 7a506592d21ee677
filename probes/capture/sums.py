"""How the terms of a block explain the stream after it: the factor that each is multiplied by.

Factors are solved for by least squares over all entries of the stream, so that they are known far better than a
rounded sum shows: in bfloat16 a small component with a wrong factor would pass a test of the sum alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

#: A number, or a value per dimension of the stream.
Factor = float | Tensor
#: A factor below it is none: what the stream gets is not this term.
NOTHING = 1e-4
#: What is left must also be so small a part of the smallest term, or rounding.
UNEXPLAINED = 0.02
#: A factor is a known number where that lies within so many standard errors of it, or this close.
_ERRORS, _CLOSE = 5.0, 2e-6
#: Terms, each of length 1, that come closer to dependence than this give no factors.
_DEPENDENT = 1e-5


@dataclass(frozen=True)
class Fit:
    """Factors of the stream before a block and of each term, and the relative error that they leave."""

    carry: Factor
    factors: tuple[Factor, ...]
    error: float
    explains: bool


@dataclass(frozen=True)
class Sums:
    """The streams before and behind a block, on two prompts or more.

    Attributes:
        pre: The stream before.
        post: The stream behind.
        tolerance: The relative error that still is rounding.
        known: Numbers that a factor may be, from the configuration: an estimate next to one is that number.
    """

    pre: Float[Tensor, "prompt pos d_model"]
    post: Float[Tensor, "prompt pos d_model"]
    tolerance: float
    known: tuple[float, ...] = (1.0,)

    def ones(self, terms: Sequence[Tensor]) -> Fit:
        """Factors of 1, which least squares must not contradict."""
        fit = self._fit(1.0, [1.0] * len(terms), terms)
        if not fit.explains:
            return fit
        estimates, errors = _solved([term for term in terms if bool(term.any())], self.post - self.pre)
        told = all(abs(f - 1) <= max(_ERRORS * e, 1e-3) for f, e in zip(estimates, errors, strict=True))
        return Fit(fit.carry, fit.factors, fit.error, told)

    def scalars(self, terms: Sequence[Tensor]) -> Fit:
        """A number for each term; where that does not do, one for the stream before too."""
        estimates, errors = _solved(terms, self.post - self.pre)
        factors = [self._named(f, e) for f, e in zip(estimates, errors, strict=True)]
        columns = [term.flatten()[None] for term in (self.pre, *terms)]
        fit = self._fit(1.0, factors, terms)
        if fit.explains:
            return self._determined(fit, columns)
        estimates, errors = _solved([self.pre, *terms], self.post)
        carry, *factors = (self._named(f, e) for f, e in zip(estimates, errors, strict=True))
        return self._determined(self._fit(carry, factors, terms), columns)

    def vectors(self, terms: Sequence[Tensor]) -> Fit:
        """A number for each term and dimension, solved for on the first prompt and tested on all."""
        columns = [term[0].T for term in (self.pre, *terms)]
        fit = self._fit(1.0, _by_dimension(terms, self.post - self.pre), terms)
        if fit.explains:
            return self._determined(fit, columns)
        carry, *factors = _by_dimension([self.pre, *terms], self.post)
        return self._determined(self._fit(carry, factors, terms), columns)

    @staticmethod
    def _determined(fit: Fit, columns: Sequence[Float[Tensor, "dim value"]]) -> Fit:
        """The fit, which explains nothing where the stream or a term is made of the others: any factors would do."""
        a = torch.stack([column for column in columns if bool(column.any())], -1).double().cpu()
        spectra = torch.linalg.svdvals(a / a.norm(dim=1, keepdim=True).clamp(min=torch.finfo(a.dtype).tiny))
        return replace(fit, explains=fit.explains and bool(spectra[:, -1].median() > _DEPENDENT))

    def _named(self, estimate: float, error: float) -> float:
        """The known number that an estimate is, or the number itself."""
        near = max(_ERRORS * error, _CLOSE * abs(estimate))
        nearest = min(self.known, key=lambda number: abs(number - estimate))
        return nearest if abs(nearest - estimate) <= near else snapped(estimate)

    def _fit(self, carry: Factor, factors: Sequence[Factor], terms: Sequence[Tensor]) -> Fit:
        made = self.pre * carry
        for factor, term in zip(factors, terms, strict=True):
            made = made + factor * term
        left, whole = float((made - self.post).norm()), float(self.post.norm())
        sizes = [
            float((factor * term).norm())
            for factor, term in zip(factors, terms, strict=True)
            if not is_nothing(factor) and bool(term.any())
        ]
        fine = left <= UNEXPLAINED * min(sizes, default=0.0) or left <= self.tolerance * whole / 10
        error = left / whole if whole else 0.0
        # A carry of nothing: a term that is the stream itself explains it, and no component.
        return Fit(carry, tuple(factors), error, error <= self.tolerance and fine and not is_nothing(carry))


def is_nothing(factor: Factor) -> bool:
    """Whether a factor is as good as 0."""
    return float(torch.as_tensor(factor).abs().max()) < NOTHING


def multiple(left: Tensor, right: Tensor) -> tuple[float, float]:
    """The number that makes `left` of `right`, and the relative error that it leaves."""
    scale = float((left * right).sum() / right.square().sum().clamp(min=torch.finfo(right.dtype).tiny))
    return scale, float((left - scale * right).norm() / left.norm().clamp(min=torch.finfo(left.dtype).tiny))


def snapped(value: float) -> float:
    """`value`, or the number of few digits that it is next to."""
    rounded = float(f"{value:.4g}")
    near = abs(value - rounded) <= _CLOSE * max(abs(value), 1e-3)
    return rounded if near else float(f"{value:.7g}")


def _solved(terms: Sequence[Tensor], goal: Tensor) -> tuple[list[float], list[float]]:
    """The numbers with Σ number · term nearest to `goal`, and their standard errors."""
    if not terms:
        return [], []
    a = torch.stack([term.flatten() for term in terms], 1).double().cpu()
    b = goal.flatten().double().cpu()
    gram = a.T @ a
    inverse = torch.linalg.pinv(gram, hermitian=True)
    numbers = inverse @ (a.T @ b)
    spread = (b - a @ numbers).square().sum() / max(1, len(b) - len(terms))
    errors = (spread * inverse.diagonal().clamp(min=0)).sqrt()
    return numbers.tolist(), errors.tolist()


def _by_dimension(terms: Sequence[Tensor], goal: Tensor) -> list[Tensor]:
    a = torch.stack([term[0].T for term in terms], -1).double().cpu()  # (d_model, pos, terms)
    b = goal[0].T[..., None].double().cpu()
    numbers = torch.linalg.lstsq(a, b).solution[..., 0].float()
    return list(numbers.to(goal.device).unbind(-1))
