"""Changes of basis that leave a model's function as it is, and which one brings tuned matrices closest to the base's.

A head's values may be read in any basis that its output projection undoes, and its keys in any basis that the queries
undo, if rotary position embedding commutes with it: then each pair of rotated dimensions may be turned and scaled.
All of it is computed in float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from scipy.linalg import solve_sylvester
from torch import Tensor

#: A reparametrisation counts where it explains this share of the squared relative distance. By chance a change of basis
#: explains the share of its own dimensions, a few per cent; where one of two factors was trained alone, at most half.
EXPLAINS = 0.8
_STEPS, _CONVERGED = 4, 1e-9  # where the two models compute the same, Gauss–Newton has nothing to do


def basis_change(
    value: Float[Tensor, "d n"],
    output: Float[Tensor, "d m"],
    tuned_value: Float[Tensor, "d n"],
    tuned_output: Float[Tensor, "d m"],
) -> Float[Tensor, "d d"]:
    """The invertible A that minimises ‖V − A V'‖²/‖V‖² + ‖O − A⁻ᵀ O'‖²/‖O‖², by Gauss–Newton from V's own best A.

    `value` are the rows that write d dimensions (V), `output` those that read them (O's columns, transposed), so that
    Oᵀ V is what both do together. The identity where no A can be found.
    """
    eye = torch.eye(len(value), dtype=torch.float64)
    a, b = (1 / matrix.pow(2).sum().clamp(min=1e-300) for matrix in (value, output))
    try:
        change = torch.linalg.solve(tuned_value @ tuned_value.T, tuned_value @ value.T).T
        for _ in range(_STEPS):
            moved, read = change @ tuned_value, torch.linalg.solve(change.T, tuned_output)
            right = a * (value - moved) @ moved.T - b * read @ (output - read).T
            left = (b * read @ read.T).numpy(), (a * moved @ moved.T).numpy()
            step = torch.from_numpy(solve_sylvester(*left, right.numpy()))
            change = change + step @ change
            if float(step.abs().max()) < _CONVERGED:
                break
        inverse = torch.linalg.inv(change)
    except (torch.linalg.LinAlgError, ValueError):
        return eye
    return change if bool(torch.isfinite(change).all() and torch.isfinite(inverse).all()) else eye


def paired_change(
    key: Float[Tensor, "d n"],
    query: Float[Tensor, "d m"],
    tuned_key: Float[Tensor, "d n"],
    tuned_query: Float[Tensor, "d m"],
    pairs: Int[Tensor, "pairs 2"],
    *,
    turns: bool = True,
) -> Float[Tensor, "d d"]:
    """The A for keys, and A⁻ᵀ for queries, that turns and scales each of `pairs` of dimensions and keeps the others.

    A pair of dimensions is a complex number, and A multiplies it by w: the angle is the best for keys and queries
    together, and |w| is the geometric mean of what either side asks for. Without `turns`, w is real.
    """
    own, other = _complex(key, pairs), _complex(tuned_key, pairs)
    queries, tuned_queries = _complex(query, pairs), _complex(tuned_query, pairs)
    of_keys, of_queries = _best(own, other), _best(queries, tuned_queries)
    angle = of_keys * _weight(own, other) + of_queries * _weight(queries, tuned_queries)
    if not turns:
        angle = angle.real.to(angle.dtype)
    factor = (of_keys.abs() / of_queries.abs()).sqrt() * angle / angle.abs()
    factor = torch.where(torch.isfinite(factor.abs()) & (factor.abs() > 0), factor, torch.ones_like(factor))
    change = torch.eye(len(key), dtype=torch.float64)
    first, second = pairs.T
    change[first, first] = change[second, second] = factor.real
    change[first, second], change[second, first] = -factor.imag, factor.imag
    return change


def apart(parts: Sequence[Float[Tensor, "..."]], tuned_parts: Sequence[Float[Tensor, "..."]]) -> tuple[float, float]:
    """(Σ ‖W − W'‖²/‖W‖², the mean of cos(W, W')) over the parts; of parts that are zero only where both are."""
    distance, cosines = 0.0, []
    for own, other in zip(parts, tuned_parts, strict=True):
        size, other_size = float(own.double().norm()), float(other.double().norm())
        if size:
            distance += float((own.double() - other.double()).norm() / size) ** 2
        dot = float((own.double() * other.double()).sum())
        cosines.append(dot / (size * other_size) if size and other_size else float(size == other_size))
    return distance, sum(cosines) / len(cosines)


def explains(before: float, after: float) -> bool:
    """Whether a reparametrisation explains enough of a squared distance to be taken for one."""
    return before > 0 and after <= (1 - EXPLAINS) * before


def spread(change: Float[Tensor, "d d"], rows: Float[Tensor, "d n"]) -> float:
    """What a change of basis multiplies the relative error of `rows` by, where their errors are independent."""
    size = float((change @ rows).norm())
    return float((change.pow(2) @ rows.pow(2).sum(1)).sum().sqrt()) / size if size else 1.0


def _complex(rows: Float[Tensor, "d n"], pairs: Int[Tensor, "pairs 2"]) -> Tensor:
    return torch.complex(rows[pairs[:, 0]], rows[pairs[:, 1]])


def _best(own: Tensor, other: Tensor) -> Tensor:
    """The complex factor of each pair that brings `other` closest to `own`."""
    return (other.conj() * own).sum(1) / other.abs().pow(2).sum(1)


def _weight(own: Tensor, other: Tensor) -> Tensor:
    return other.abs().pow(2).sum(1) / own.abs().pow(2).sum(1).clamp(min=1e-300)
