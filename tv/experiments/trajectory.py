"""The way from a base through a training run's checkpoints: how long, how straight, what turned when.

Everything about distances follows from one small matrix a module, the inner products ⟨T_s, T_t⟩ of all checkpoints'
tuning vectors. They are summed a few rows of a matrix at a time: no two checkpoints are ever in memory.

Sources: linear mode connectivity is arXiv 1912.05671; the barrier is arXiv 2110.06296, definition 1; distances and
angles along a fine-tuning trajectory are the next check that arXiv 2510.09359 names.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from tv.architecture.anatomy import Module
from tv.arithmetic.variants import Mover, of_one_form
from tv.checkpoints.extraction import extract
from tv.checkpoints.live import load_model
from tv.checkpoints.opening import open_checkpoint
from tv.checkpoints.own_tokenizer import encoder
from tv.checkpoints.vector import TuningVector
from tv.errors import InputError
from tv.evaluation.interpolation import barrier_of, rise_of
from tv.experiments.cells import Cells, identity
from tv.experiments.plots import curves
from tv.experiments.result import Result
from tv.prompts.behaviour import PromptSource, batched, behaviour, gather
from tv.prompts.encoding import Batch, positions
from tv.prompts.notes import prompt_notes
from tv.runtime.compute import Compute
from tv.runtime.seeds import require_seed
from tv.stats.means import FEWEST, mean_interval
from tv.stats.resampling import ends, resample_means

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from transformers import PreTrainedModel

Floats = NDArray[np.float64]

#: Points inside each line between neighbours, at which the loss is computed.
ALPHAS = (0.25, 0.5, 0.75)
_ENTRIES = 2**22  # of one piece of a matrix, all checkpoints together
_TOKENS = 20  # that are followed
_LIKELY = 1e-3  # a token that is followed has this probability somewhere in the last checkpoint, at least


def trajectory(
    base: str | Path,
    checkpoints: Sequence[str | Path],
    prompts: PromptSource | Sequence[PromptSource] | None = None,
    *,
    alphas: Sequence[float] = ALPHAS,
    out: str | Path | None = None,
    draws: int = 1000,
    seed: int = 0,
    batch_size: int = 16,
    compute: Compute = Compute(),
) -> Result:
    """Distance, straightness and turning points of a training run, from its saved checkpoints.

    Args:
        base: The model that training began from: whatever `tv.open_checkpoint` opens.
        checkpoints: Two or more: full checkpoints, adapters or tuning vectors, or one directory that holds
            `checkpoint-NUMBER` directories. Where all names end in a number they are put in its order, else as given.
        prompts: Files, sets or prompts, encoded with the base's tokenizer. Without any, only weights are measured.
        alphas: Points between neighbours, within (0, 1).
        out: A directory for tables, figures and finished points; the same call resumes.
        draws: Resamples of the prompts.
        seed: Of the resamples.
        batch_size: Prompts in one forward pass.
        compute: Where to compute, and how to report progress; its dtype is float32.

    Returns:
        A `Result` with the tables

        - `checkpoints`: a row a checkpoint: `step norm relative_norm`, `length` of the step from the one before and
            `noise`, what rounding of the stored weights makes of it; `path`, all lengths so far, and `chord`, ‖T‖;
            `straightness` path/chord (1: straight) beside `straightness_walk`, that of a random walk of these lengths,
            and `path_above_noise`; `cosine_previous` with the step before, `cosine_previous_noise` what rounding alone
            makes of it; `cosine_last` of T with the last T and `angle_last` in degrees
        - `directions`: principal directions of all T: `explained`, beside a random walk's, and each
            checkpoint's `coordinate` along them, in units of ‖T_last‖
        - `modules`: a row per module and checkpoint: `norm` and `share`, of the last ‖T‖
        - `turned`: a row per module, domain and token: the step at which half of its way was gone, interpolated, with
            its interval over prompts; null where the last checkpoint does not differ from the base beyond noise
        - `behaviour`, `connectivity` (the barrier between neighbours, and between base and last) and `tokens` (what the
            last checkpoint favours most: chosen on half of the prompts, measured on the other), where there are prompts

    Raises:
        InputError: Fewer than two checkpoints, bad points or prompts, or a checkpoint of another model.

    Source: arXiv 1912.05671; arXiv 2110.06296, definition 1.

    Examples:
        >>> found = tv.trajectory("data/models/base", ["data/models/medical", "data/models/math"])
        >>> found["checkpoints"][["checkpoint", "norm"]].round(1).values.tolist()
        [['base', 0.0], ['medical', 25.7], ['math', 50.4]]
    """
    compute.require_float32("points of a path can be distinguished")
    require_seed(seed)
    if not all(0 < alpha < 1 for alpha in alphas):
        raise InputError("alphas: points between two checkpoints lie within (0, 1)")
    places = in_order(checkpoints)
    if len(places) < 2:
        named = ", ".join(str(place.source) for place in places) or "no checkpoint"
        raise InputError(
            f"{named}: a trajectory has two checkpoints or more; name them, or the directory of their checkpoint-…"
        )
    rows = gather(prompts) if prompts is not None else []
    vectors = [extract(base, place.source) for place in places]
    grams = _grams(base, vectors, compute)
    tables = _distances(places, grams)
    tables["modules"] = _modules(places, grams)
    turned = _turned_modules(tables["modules"])
    notes: list[str] = []
    if rows:
        cells = Cells(Path(out) / "cells" if out is not None else None)
        run = _Run.of(base, vectors, places, rows, alphas, batch_size, compute, cells)
        notes = run.notes
        tables["behaviour"], of_domains = run.behaviour(draws, seed)
        tables["connectivity"] = run.connectivity(draws, seed)
        tables["tokens"], of_tokens = run.tokens(draws, seed)
        turned += of_domains + of_tokens
    tables["turned"] = pd.DataFrame(turned, columns=_TURNED)
    order = ("checkpoints", "turned", "connectivity", "behaviour", "tokens", "directions", "modules")
    tables = {name: tables[name] for name in order if name in tables}
    tables["checkpoints"].attrs["notes"] = notes
    result = Result("trajectory", tables, _figures(tables))
    if out is not None:
        result.save(out)
    return result


@dataclass(frozen=True)
class Place:
    """A checkpoint on the way."""

    source: str | Path
    name: str
    step: float  # the number that its name ends in, else its place in the order


def in_order(checkpoints: Sequence[str | Path]) -> list[Place]:
    """The checkpoints by step: a directory that holds `checkpoint-…` stands for those.

    Examples:
        >>> [place.name for place in in_order(["runs/checkpoint-20", "runs/checkpoint-5"])]
        ['checkpoint-5', 'checkpoint-20']
    """
    found: list[str | Path] = []
    for one in checkpoints:
        found += ([] if _is_model(Path(one)) else _numbered(Path(one))) or [one]
    numbers = [re.search(r"(\d+)(\.safetensors|\.gguf)?$", Path(one).name) for one in found]
    if found and all(numbers) and len({match[1] for match in numbers if match}) == len(found):
        steps = [float(match[1]) for match in numbers if match]
    else:
        steps = [float(i + 1) for i in range(len(found))]
    names = [Path(one).name for one in found]
    if len(set(names)) < len(names):
        names = [str(one) for one in found]
    return sorted((Place(*one) for one in zip(found, names, steps, strict=True)), key=lambda place: place.step)


def _numbered(run: Path) -> list[Path]:
    """The directories `checkpoint-NUMBER` of a training by their numbers; copies such as `checkpoint-best` are none."""
    inner = [path for path in run.glob("checkpoint-*") if path.is_dir() and path.name.partition("-")[2].isdecimal()]
    return sorted(inner, key=lambda path: int(path.name.partition("-")[2]))


def _is_model(path: Path) -> bool:
    return any((path / name).is_file() for name in ("config.json", "adapter_config.json"))


@dataclass
class _Gram:
    """⟨T_s, T_t⟩ of one module, W's norm, and the rounding in each T, squared."""

    module: Module | None
    products: Floats
    weight: float
    noise: Floats


def _grams(base: str | Path, vectors: Sequence[TuningVector], compute: Compute) -> list[_Gram]:
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
    grams: list[_Gram] = []
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
) -> Iterator[_Gram]:
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
        yield _Gram(module, products[i], held, np.minimum(noise, size))


def _distances(places: list[Place], grams: list[_Gram]) -> dict[str, pd.DataFrame]:
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


def _modules(places: list[Place], grams: list[_Gram]) -> pd.DataFrame:
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


_TURNED = ["kind", "what", "step", "lo", "hi", "change", "change_lo", "change_hi", "said"]


def _turned_modules(modules: pd.DataFrame) -> list[dict[str, Any]]:
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


def crossing(steps: Floats, shares: Floats, level: float = 0.5) -> Floats:
    """Where each curve of shares first reaches a level, interpolated between checkpoints; NaN where it never does.

    Examples:
        >>> crossing(np.array([0.0, 10.0, 20.0]), np.array([[0.0, 0.25, 1.0], [0.0, 0.1, 0.2]])).round(1).tolist()
        [13.3, nan]
    """
    over = shares >= level
    at = over.argmax(1)
    rows = np.arange(len(shares))
    before = np.maximum(at - 1, 0)
    low, high = shares[rows, before], shares[rows, at]
    with np.errstate(invalid="ignore", divide="ignore"):
        part = np.where(at == before, 0.0, (level - low) / (high - low))
    found = steps[before] + part * (steps[at] - steps[before])
    return np.where(over.any(1), found, np.nan)


@dataclass
class _Run:
    """The models on the prompts: every prompt's losses at every point, and what tokens they favour."""

    places: list[Place]
    domains: NDArray[np.str_]
    clusters: list[str]
    losses: dict[tuple[int, int, float], Floats]  # by (from, to, α); checkpoint i is (i, i, 0), and 0 the base
    metrics: dict[int, pd.DataFrame]  # of every checkpoint
    favoured: dict[int, Floats]  # mean log-probabilities of followed tokens: (prompts, tokens)
    names: list[str]
    gains: Floats  # of the followed tokens, where they were chosen
    tested: NDArray[np.bool_]  # the prompts on which tokens are measured
    alphas: tuple[float, ...]
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        base: str | Path,
        vectors: Sequence[TuningVector],
        places: list[Place],
        rows: Sequence[Any],
        alphas: Sequence[float],
        batch_size: int,
        compute: Compute,
        cells: Cells,
    ) -> _Run:
        tokenizer, notes = encoder(base, [], rows)
        marks = [str(open_checkpoint(base).fingerprint()["content"]), *(identity(vector) for vector in vectors)]
        text = hashlib.sha256(repr([(p.id, p.text, p.target, p.foil, p.domain) for p in rows]).encode()).hexdigest()
        model, own = of_one_form(load_model(base, device=compute.device), vectors)
        batches = batched(rows, model, tokenizer, batch_size)
        items = [item for batch in batches for item in batch.encoded]
        clusters = [item.prompt.cluster or item.prompt.id for item in items]
        domains = np.array([item.prompt.domain for item in items])
        k = len(places)
        lines = [(i, i + 1) for i in range(k)] + [(0, k)]
        points = [(i, i, 0.0) for i in range(k + 1)]
        points += [(a, b, float(alpha)) for a, b in lines for alpha in sorted(alphas)]
        losses: dict[tuple[int, int, float], Floats] = {}
        metrics: dict[int, pd.DataFrame] = {}
        tested = _halves(clusters)
        with Mover(model, own) as mover:

            def at(point: tuple[int, int, float]) -> None:
                first, second, alpha = point
                scales = {first: 1 - alpha, second: alpha} if first != second else {first: 1.0}
                mover.to({own[i - 1]: scale for i, scale in scales.items() if i})

            for n, point in enumerate(points):
                key = {"prompts": text, "points": [[marks[i] for i in point[:2]], point[2]], "batch": batch_size}
                held = cells.find(key)
                if held is None:
                    at(point)
                    held = cells.keep(key, pd.DataFrame(behaviour(model, batches)))
                losses[point] = held["loss"].to_numpy(np.float64)
                if point[0] == point[1]:
                    metrics[point[0]] = held
                compute.tell("behaviour", n + 1, len(points), f"{point[2]:g}")
            names, gains, favoured = _followed(model, batches, tokenizer, at, k, tested, cells, [text, *marks], compute)
        notes = [*notes, *prompt_notes(rows, tokenizer)]
        return cls(
            places, domains, clusters, losses, metrics, favoured, names, gains, tested, tuple(sorted(alphas)), notes
        )

    @property
    def steps(self) -> Floats:
        return np.array([0.0, *(place.step for place in self.places)])

    def _each_domain(self) -> Iterator[tuple[str, NDArray[np.bool_], list[str]]]:
        names = list(dict.fromkeys(self.domains))
        for name in ["all", *names] if len(names) > 1 else ["all"]:
            chosen = np.ones(len(self.domains), bool) if name == "all" else self.domains == name
            yield str(name), chosen, [c for c, use in zip(self.clusters, chosen, strict=True) if use]

    def behaviour(self, draws: int, seed: int) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
        """Every metric at every checkpoint; and when the loss of each domain had gone half of its way."""
        rows, turned = [], []
        for domain, chosen, clusters in self._each_domain():
            for metric in self.metrics[0].columns:
                values = np.stack([self.metrics[i][metric].to_numpy(np.float64)[chosen] for i in self.metrics], 1)
                if np.isnan(values).all():
                    continue
                mean, change = mean_interval(values, clusters), mean_interval(values - values[:, :1], clusters)
                for i, name in enumerate(["base", *(place.name for place in self.places)]):
                    row = {"domain": domain, "metric": metric, "checkpoint": name, "step": self.steps[i]}
                    row |= {"value": mean.mean[i], "lo": mean.lo[i], "hi": mean.hi[i], "change": change.mean[i]}
                    rows.append(row | {"change_lo": change.lo[i], "change_hi": change.hi[i], "prompts": len(values)})
            losses = np.stack([self.losses[i, i, 0.0][chosen] for i in range(len(self.steps))], 1)
            turned.append(self._half_way("domain", domain, losses, clusters, draws, seed))
        return pd.DataFrame(rows), turned

    def _half_way(
        self, kind: str, what: str, values: Floats, clusters: list[str], draws: int, seed: int
    ) -> dict[str, Any]:
        """When the mean of (prompts, checkpoints) had gone half of its way from the base to the last checkpoint."""
        change = mean_interval(values[:, -1] - values[:, 0], clusters)
        row = {"kind": kind, "what": what, "step": math.nan, "lo": math.nan, "hi": math.nan}
        row |= {"change": float(change.mean), "change_lo": float(change.lo), "change_hi": float(change.hi)}
        if np.isnan(change.lo):
            return row | {"said": f"cannot tell: fewer than {FEWEST} prompts or clusters that differ"}
        if not (change.lo > 0 or change.hi < 0):
            return row | {"said": "cannot tell: no change beyond noise"}
        moved = values - values[:, :1]
        share = moved.mean(0) / moved[:, -1].mean()
        drawn = resample_means(moved, draws, seed, clusters)
        with np.errstate(invalid="ignore", divide="ignore"):
            halves = crossing(self.steps, drawn / drawn[:, -1:])
        lo, hi = ends(halves, len(set(clusters)))
        step = float(crossing(self.steps, share[None])[0])
        return row | {"step": step, "lo": float(lo), "hi": float(hi), "said": "turned"}

    def connectivity(self, draws: int, seed: int) -> pd.DataFrame:
        """The barrier on the straight line between neighbours, and from the base to the last."""
        names = ["base", *(place.name for place in self.places)]
        k = len(self.places)
        grid = np.array([0.0, *self.alphas, 1.0])
        rows = []
        for a, b in [*((i, i + 1) for i in range(k)), (0, k)]:
            line = [self.losses[a, a, 0.0], *(self.losses[a, b, x] for x in self.alphas), self.losses[b, b, 0.0]]
            for domain, chosen, clusters in self._each_domain():
                losses = np.stack(line, 1)[chosen]
                top, rise = (f(grid, losses, clusters, draws=draws, seed=seed) for f in (barrier_of, rise_of))
                row = {"from": names[a], "to": names[b], "domain": domain, "loss_from": losses[:, 0].mean()}
                row |= {"loss_to": losses[:, -1].mean(), "barrier": top.value, "lo": top.lo, "hi": top.hi}
                row |= {"alpha": top.alpha, "rise": rise.value, "rise_lo": rise.lo, "rise_hi": rise.hi}
                rows.append(row | {"prompts": len(losses), "clusters": len(set(clusters))})
        return pd.DataFrame(rows)

    def tokens(self, draws: int, seed: int) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
        """Followed tokens at every checkpoint, on prompts that they were not chosen on; and when each had turned."""
        clusters = [c for c, use in zip(self.clusters, self.tested, strict=True) if use]
        rows, turned = [], []
        for j, token in enumerate(self.names):
            values = np.stack([self.favoured[i][self.tested, j] for i in range(len(self.steps))], 1)
            gain = mean_interval(values - values[:, :1], clusters)
            for i, name in enumerate(["base", *(place.name for place in self.places)]):
                row = {"token": token, "checkpoint": name, "step": self.steps[i], "gain": gain.mean[i]}
                rows.append(row | {"lo": gain.lo[i], "hi": gain.hi[i], "gain_where_chosen": float(self.gains[j])})
            turned.append(self._half_way("token", token, values, clusters, draws, seed))
        return pd.DataFrame(rows), turned


def _followed(
    model: PreTrainedModel,
    batches: list[Batch],
    tokenizer: Any,
    at: Any,
    k: int,
    tested: NDArray[np.bool_],
    cells: Cells,
    marks: list[str],
    compute: Compute,
) -> tuple[list[str], Floats, dict[int, Floats]]:
    """The tokens that the last checkpoint favours most on half of the prompts, and all checkpoints' means of them."""
    key: dict[str, Any] = {"tokens": marks, "of": "chosen"}
    held = cells.find(key)
    if held is None:
        at((0, 0, 0.0))
        before, _ = _mean_logp(model, batches)
        at((k, k, 0.0))
        after, likely = _mean_logp(model, batches)
        gain = (after - before)[~tested].mean(0) if (~tested).any() else (after - before).mean(0)
        gain = torch.where(likely >= _LIKELY, gain, torch.tensor(-math.inf, dtype=gain.dtype))
        top = gain.topk(min(_TOKENS, len(gain)))
        kept = top.values > 0
        held = cells.keep(key, pd.DataFrame({"id": top.indices[kept].numpy(), "gain": top.values[kept].numpy()}))
    ids = torch.tensor(held["id"].to_numpy(np.int64))
    favoured: dict[int, Floats] = {}
    for i in range(k + 1):
        point = {"tokens": marks, "of": i, "ids": ids.tolist()}
        table = cells.find(point)
        if table is None:
            at((i, i, 0.0))
            table = cells.keep(point, pd.DataFrame(_mean_logp(model, batches)[0][:, ids].numpy()).rename(columns=str))
        favoured[i] = table.to_numpy(np.float64)
        compute.tell("tokens", i + 1, k + 1, "")
    return [tokenizer.decode([one]) for one in ids.tolist()], held["gain"].to_numpy(np.float64), favoured


def _mean_logp(model: PreTrainedModel, batches: list[Batch]) -> tuple[Tensor, Tensor]:
    """(prompts, vocabulary): the mean log-probability of every token over a prompt's places; and the largest anywhere.

    Places are those that predict the target, else the whole text's.
    """
    means, largest = [], None
    with torch.inference_mode():
        for batch in batches:
            inputs = {
                "input_ids": batch.input_ids.to(model.device),
                "attention_mask": batch.attention_mask.to(model.device),
            }
            logits = model(**inputs, use_cache=False).logits
            for row, item in zip(logits, batch.encoded, strict=True):
                places = item.scored if len(item.scored) else positions(item, "after template")
                logp = row[places.start : places.stop].float().log_softmax(-1)
                means.append(logp.mean(0).cpu())
                top = logp.amax(0).exp().cpu()
                largest = top if largest is None else torch.maximum(largest, top)
    assert largest is not None
    return torch.stack(means), largest


def _halves(clusters: list[str]) -> NDArray[np.bool_]:
    """Every other cluster: on these prompts tokens are measured, on the others they are chosen."""
    place = {name: i for i, name in enumerate(dict.fromkeys(clusters))}
    return np.array([place[name] % 2 == 1 for name in clusters])


def _ratio(value: float, of: float) -> float:
    return float(value / of) if of else math.nan


def _figures(tables: dict[str, pd.DataFrame]) -> dict[str, go.Figure]:
    along = tables["checkpoints"].melt(["step"], ["path", "path_above_noise", "chord"], "line", "value").dropna()
    axes: dict[str, Any] = {"x": "step", "x_title": "step"}
    figures = {
        "Path and chord: how straight is the way?": curves(
            along.assign(panel="‖·‖"), y="value", lo=None, hi=None, line="line", panel="panel", y_title="length", **axes
        )
    }
    modules = tables["modules"]
    if len(modules):
        shares = modules.groupby(["step", "module"], sort=False)["share"].mean().reset_index()
        figures["Share of the last ‖T‖, mean over layers"] = curves(
            shares.assign(panel="share"),
            y="share",
            lo=None,
            hi=None,
            line="module",
            panel="panel",
            y_title="share",
            **axes,
        )
    if "behaviour" in tables:
        loss = tables["behaviour"][tables["behaviour"].metric == "loss"]
        figures["Loss, nats a token"] = curves(
            loss.assign(line="loss"), y="value", lo="lo", hi="hi", line="line", panel="domain", y_title="nats", **axes
        )
    if len(tables.get("tokens", ())):
        first = list(dict.fromkeys(tables["tokens"].token))[:8]
        gain = tables["tokens"][tables["tokens"].token.isin(first)]
        figures["Tokens that the last checkpoint favours: gain in log-probability"] = curves(
            gain.assign(panel="held-out prompts"),
            y="gain",
            lo="lo",
            hi="hi",
            line="token",
            panel="panel",
            y_title="nats",
            **axes,
        )
    return figures
