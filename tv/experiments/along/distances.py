"""How far apart the checkpoints of a training lie, module by module.

All of it follows from one small matrix a module, the inner products ⟨T_s, T_t⟩ of the checkpoints' tuning vectors. They
are summed a few rows of a matrix at a time: no two checkpoints are ever in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from tv.architecture.anatomy import Module
from tv.checkpoints.opening import open_checkpoint
from tv.checkpoints.vector import TuningVector
from tv.errors import InputError
from tv.experiments.along.places import Floats, Place, crossing
from tv.runtime.compute import Compute

_ENTRIES = 2**22  # of one piece of a matrix, all checkpoints together


@dataclass
class Gram:
    """⟨T_s, T_t⟩ of one module, W's norm, and the rounding in each T, squared."""

    module: Module | None
    products: Floats
    weight: float
    noise: Floats


def grams_of(base: str | Path, vectors: Sequence[TuningVector], compute: Compute) -> list[Gram]:
    """The inner products of all T, module by module; a parameter that is no module's is one by itself."""
    opened = open_checkpoint(base)
    modules: dict[str, list[Module]] = {}
    others = [one for one in opened.architecture.others if one.kind == "vector"]
    for module in (*opened.architecture.modules, *others):
        if not module.tied:
            modules.setdefault(module.parameter, []).append(module)
    names = list(dict.fromkeys(name for vector in vectors for name in vector.shapes))
    odd = next((name for name in names for one in vectors if name not in one.shapes), None)
    if odd is not None:
        raise InputError(f"checkpoints of different models: parameter {odd!r} is not in all of them")
    grams: list[Gram] = []
    for i, name in enumerate(names):
        of = modules.get(name, [])
        experts = sorted({module.expert for module in of}) or [-1]
        for expert in experts:
            here = [module for module in of if module.expert == expert]
            grams += _of_parameter(
                name, expert, here, opened.read(name, expert) if name in opened.values else None, vectors
            )
        compute.tell("distances", i + 1, len(names), name)
    return grams


def _of_parameter(
    name: str, expert: int, modules: list[Module], weight: Tensor | None, vectors: Sequence[TuningVector]
) -> Iterator[Gram]:
    """The modules of one parameter. Rows of all vectors are read side by side, a few at a time."""
    shape = vectors[0].shapes[name][1:] if expert >= 0 else vectors[0].shapes[name]
    n_rows = min((one.shapes[name][1:] if expert >= 0 else one.shapes[name])[0] if shape else 1 for one in vectors)
    width = max(1, math.prod(shape[1:]))
    owner = torch.zeros(n_rows, dtype=torch.long)
    parts: list[Module | None] = list(modules) or [None]
    for i, one in enumerate(modules):
        if one.ranges and not one.transposed:
            owner[one.rows] = i
    split_columns = any(module.ranges and module.transposed for module in modules)
    products = np.zeros((len(parts), len(vectors), len(vectors)))
    readers = [one.rows(name, expert) for one in vectors] if shape else []
    step = max(1, _ENTRIES // (width * len(vectors)))
    for start in range(0, n_rows, step):
        stop = min(n_rows, start + step)
        read = [reader(start, stop) for reader in readers] if shape else [v[name].reshape(1) for v in vectors]
        pieces = torch.stack(
            [piece.double().flatten(1) if piece.ndim > 1 else piece.double()[:, None] for piece in read]
        )
        for i, module in enumerate(parts):
            if split_columns and module is not None:
                chosen = torch.cat([pieces[:, :, a : b : module.step] for a, b in module.ranges], 2).flatten(1)
            elif len(parts) > 1:
                chosen = pieces[:, owner[start:stop] == i].flatten(1)
            else:
                chosen = pieces.flatten(1)
            products[i] += (chosen @ chosen.T).numpy()
    for i, module in enumerate(parts):
        held = 0.0
        if weight is not None:
            matrix = (
                weight
                if module is None or module.kind == "vector"
                else module.outputs(weight.T if module.transposed else weight, dim=0)
            )
            held = float(torch.linalg.vector_norm(matrix.float(), dtype=torch.float64))
        size = np.diagonal(products[i])
        noises = [v.noise(name) for v in vectors]
        noise = [noise.of_delta**2 * t + (noise.of_weight * held) ** 2 for noise, t in zip(noises, size, strict=True)]
        yield Gram(module, products[i], held, np.minimum(noise, size))


def distances(places: list[Place], grams: list[Gram]) -> dict[str, pd.DataFrame]:
    """`checkpoints` and `directions`."""
    k = len(places)
    gram = np.zeros((k + 1, k + 1))  # the base, at T = 0, first
    gram[1:, 1:] = np.sum([one.products for one in grams], 0)
    noise = np.concatenate([[0.0], np.sum([one.noise for one in grams], 0)])
    weight = math.sqrt(sum(one.weight**2 for one in grams))
    size = np.sqrt(np.maximum(np.diagonal(gram), 0))
    turn = np.diff(np.eye(k + 1), axis=0)  # each step as a difference of checkpoints
    between = turn @ gram @ turn.T  # inner products of steps
    length = np.sqrt(np.maximum(np.diagonal(between), 0))
    step_noise = np.sqrt(noise[1:] + noise[:-1])
    above = np.sqrt(np.maximum(length**2 - step_noise**2, 0))
    rows: list[dict[str, Any]] = [_EMPTY | {"checkpoint": "base", "step": 0.0, "norm": 0.0, "relative_norm": 0.0}]
    for i, place in enumerate(places):
        last = _ratio(gram[i + 1, k], size[i + 1] * size[k])
        row = {"checkpoint": place.name, "step": place.step, "norm": size[i + 1]}
        row |= {"relative_norm": _ratio(size[i + 1], weight), "length": length[i], "noise": step_noise[i]}
        row |= {"path": length[: i + 1].sum(), "path_above_noise": above[: i + 1].sum(), "chord": size[i + 1]}
        row |= {"straightness": _ratio(length[: i + 1].sum(), size[i + 1])}
        row |= {"straightness_walk": _ratio(length[: i + 1].sum(), math.sqrt((length[: i + 1] ** 2).sum()))}
        if i:
            both = length[i] * length[i - 1]
            row |= {
                "cosine_previous": _ratio(between[i, i - 1], both),
                "cosine_previous_noise": -_ratio(noise[i], both),
            }
        row |= {
            "cosine_last": last,
            "angle_last": math.degrees(math.acos(min(1.0, max(-1.0, last)))) if last == last else last,
        }
        rows.append(_EMPTY | row)
    return {"checkpoints": pd.DataFrame(rows), "directions": _directions(places, gram, length)}


_EMPTY: dict[str, Any] = dict.fromkeys(
    (
        *("checkpoint", "step", "norm", "relative_norm", "length", "noise", "path", "path_above_noise", "chord"),
        *("straightness", "straightness_walk", "cosine_previous", "cosine_previous_noise", "cosine_last", "angle_last"),
    ),
    math.nan,
)


def _directions(places: list[Place], gram: Floats, length: Floats) -> pd.DataFrame:
    """Principal directions of base and checkpoints about their mean, from inner products alone."""
    squares = np.concatenate([[0.0], np.cumsum(length**2)])
    walk = np.minimum(squares[:, None], squares[None])  # ⟨T_s, T_t⟩ of a walk with independent steps
    (values, vectors), (null, _) = _principal(gram), _principal(walk)
    scale = math.sqrt(gram[-1, -1]) or 1.0
    names = ["base", *(place.name for place in places)]
    rows = []
    for i in range(min(3, len(values))):
        along = vectors[:, i] * math.sqrt(max(values[i], 0.0)) / scale
        row = {"direction": i + 1, "explained": _ratio(values[i], values.sum())}
        row |= {"explained_walk": _ratio(null[i], null.sum())}
        rows += [row | {"checkpoint": name, "coordinate": float(x)} for name, x in zip(names, along, strict=True)]
    return pd.DataFrame(rows)


def _principal(gram: Floats) -> tuple[Floats, Floats]:
    """Eigenvalues, largest first, and vectors of a Gram about the mean; the last lies on the positive side."""
    centre = np.eye(len(gram)) - 1 / len(gram)
    values, vectors = np.linalg.eigh(centre @ gram @ centre)
    vectors = vectors * np.where(vectors[-1] < 0, -1.0, 1.0)
    return np.maximum(values[::-1], 0), vectors[:, ::-1]


def modules_of(places: list[Place], grams: list[Gram]) -> pd.DataFrame:
    rows = []
    for one in grams:
        module = one.module
        if module is None:
            continue
        size = np.sqrt(np.maximum(np.diagonal(one.products), 0))
        for place, norm, noise in zip(places, size, np.sqrt(one.noise), strict=True):
            row = {"layer": module.layer, "module": module.name, "expert": module.expert, "checkpoint": place.name}
            row |= {"step": place.step, "norm": norm, "relative_norm": _ratio(norm, one.weight), "noise": noise}
            rows.append(row | {"share": _ratio(norm, size[-1])})
    return pd.DataFrame(rows)


def turned_modules(modules: pd.DataFrame) -> list[dict[str, Any]]:
    """When half of the last ‖T‖ was reached."""
    rows: list[dict[str, Any]] = []
    for (layer, module, expert), of in modules.groupby(["layer", "module", "expert"], sort=False):
        what = f"layer {layer} {module}" + (f" expert {expert}" if expert >= 0 else "")
        steps, share = np.append(0.0, of.step), np.append(0.0, of.share)
        last = of.iloc[-1]
        row = {"kind": "module", "what": what, "change": last.norm, "step": math.nan}
        if not last.norm:
            rows.append(row | {"said": "did not move"})
        elif last.noise**2 > 0.5 * last.norm**2:
            rows.append(row | {"said": "cannot tell: rounding explains most of it"})
        else:
            rows.append(row | {"step": float(crossing(steps, share[None])[0]), "said": "turned"})
    return rows


def _ratio(value: float, of: float) -> float:
    return float(value / of) if of else math.nan
