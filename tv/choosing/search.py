"""Search: scales of several tuning vectors chosen by behaviour, beside plain addition with the same budget.

On each half of the prompts by itself and tested on the other, as in `tv.choosing.crossfit`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tv.arithmetic.methods.compose import check_method
from tv.arithmetic.methods.terms import METHODS
from tv.arithmetic.variants import Mover
from tv.checkpoints.live import LiveSource
from tv.checkpoints.opening import Source
from tv.checkpoints.vector import TuningVector
from tv.choosing.asked import Asked, ask, halves, require_metric
from tv.choosing.crossfit import EACH, HALVES, Half
from tv.choosing.evolving import best_of_line, evolve, require_cma
from tv.choosing.ground import Ground, ground
from tv.choosing.landscape import Landscape
from tv.choosing.shares import over_domains, share
from tv.choosing.trial import Trial, Values
from tv.choosing.units import scaled
from tv.choosing.writing import Written, beside, require_writable, write_choice
from tv.errors import InputError, choices
from tv.experiments.cells import Cells
from tv.prompts.behaviour import PromptSource, gather
from tv.runtime.compute import Compute
from tv.runtime.options import options_of
from tv.runtime.seeds import require_seed
from tv.stats.change import LEAST_FLOOR
from tv.stats.means import Floats

Over = Literal["vectors", "components"]
#: The largest λ that is tried.
LONGEST = 2.0
#: Options that are searched where they are not given, with their bounds.
SEARCHED = {"density": (0.05, 1.0), "fraction": (0.01, 0.5)}
PLAIN, SCALED, EACH_ITS_OWN, FOUND = "plain addition", "one λ for all", "a λ each", "found"


@dataclass(frozen=True)
class Searched:
    """What a search found.

    Attributes:
        path: The checkpoint; None where none was asked for.
        table: A row per way of adding: the mean over domains of what it keeps of the best single vector's gain, on
            prompts that its choice had not seen, with each domain's own and the difference from the two kinds of plain
            addition.
        scales: λ by vector (and part), and the options of the method, as chosen on all prompts.
        notes: How the prompts and the weights were read, a line each.

    Examples:
        >>> import pandas as pd
        >>> tv.Searched(None, pd.DataFrame({"way": ["found"]}), pd.DataFrame(), ()).table.way.tolist()
        ['found']
    """

    path: Path | None
    table: pd.DataFrame
    scales: pd.DataFrame
    notes: tuple[str, ...]


def search(
    base: LiveSource,
    tuned: Mapping[str, Source | TuningVector],
    domains: Sequence[PromptSource],
    *,
    over: Over = "vectors",
    method: str = "sum",
    budget: int = 100,
    metric: str | None = None,
    out: str | Path | None = None,
    report: str | Path | None = None,
    out_dtype: str = "float32",
    seed: int = 0,
    batch_size: int = 16,
    force: bool = False,
    compute: Compute = Compute(),
    **options: Any,
) -> Searched:
    """Find the scales at which several tuning vectors add up best, judged on prompts that the search does not see.

    The score of a point is its gain over the base, as a share of what the best single vector gains, averaged over
    domains. One λ for all, and (where more is searched) a λ each, are searched with the same budget, as the reference.

    Args:
        base: Whatever `tv.open_checkpoint` opens, or a live model, which is copied.
        tuned: Tuned sides or tuning vectors by name.
        domains: Prompts of a domain each: files, or `tv.PromptSet`s.
        over: "vectors": a λ for each, and the method's `density` or `fraction` where none is given. "components": a λ
            for each component of each vector, added up.
        method: One of `tv.METHODS`.
        budget: Evaluations of a search; each reads all prompts once.
        metric: As in `tv.repair`.
        out: The directory of the checkpoint, chosen on all prompts.
        report: A directory for finished evaluations: the same call resumes. Without it, `out` with `-search` added.
        out_dtype: What is stored: "float32" or "bfloat16".
        seed: Of the halves, of the search and of what a method draws.
        batch_size: Prompts in one forward pass.
        force: Replace the checkpoint at `out`.
        compute: Where to compute, and how to report progress; its dtype is float32.
        options: Options of the method that are not searched.

    Returns:
        A table, the scales, and the checkpoint's path.

    Raises:
        InputError: Bad settings or prompts, cma missing, or a domain in which no vector gains.
        CheckpointError: An `out` that cannot be written, or models that do not belong together.

    Source: arXiv 2403.13187 (merging searched for by CMA-ES).

    Examples:
        >>> tuned = {name: f"data/models/{name}" for name in ("medical", "math-beside-medical")}
        >>> domains = [tv.PromptSet(file=f"data/prompts/{name}.jsonl", limit=8) for name in ("medical", "math")]
        >>> searched = tv.search("data/models/base", tuned, domains, budget=8)
        >>> searched.table.way.tolist()
        ['plain addition', 'one λ for all', 'found']
    """
    if over not in get_args(Over):
        raise InputError(f"over {over!r} is not possible{choices(over, get_args(Over))}")
    if budget < 8:
        raise InputError(f"budget {budget}: a search takes at least 8 evaluations")
    if len(tuned) < 2 or len(domains) < 2:
        raise InputError("a search adds up at least two vectors, judged by prompts of at least two domains")
    if over == "components" and method != "sum":
        raise InputError(f"method {method!r}: a λ a component goes with sum; search over vectors")
    check_method(method, options)
    if metric is not None:
        require_metric(metric)
    require_cma()
    require_seed(seed)
    target = Path(out) if out is not None else None
    place = beside(target, report, "search")
    require_writable(target, "checkpoint", None, out_dtype, [base, *tuned.values()], force)
    rows = [gather(one) for one in domains]
    stands = ground(base, list(tuned.values()), [p for one in rows for p in one], "component", compute)
    names = _names(domains)
    sets = {
        name: ask(prompts, stands.model, stands.tokenizer, metric, batch_size, name)
        for name, prompts in zip(names, rows, strict=True)
    }
    cells = Cells(place / "cells" if place is not None else None)
    field = Landscape(stands.model, stands.vectors, stands.division)
    space = _Space(stands, field, tuple(tuned), over, method, options, seed)
    judge = _Judge(space, sets, cells, seed, compute)
    ways = judge.ways(budget)
    table, scales = judge.table(ways), space.scales(ways[FOUND]["all"])
    if place is not None:
        table.to_csv(place / "search.csv", index=False)
        scales.to_csv(place / "scales.csv", index=False)
    path = None
    if target is not None:
        written = space.written(ways[FOUND]["all"], target, table)
        path = write_choice(written, form="checkpoint", rank=None, out_dtype=out_dtype, force=force, compute=compute)
    return Searched(path, table, scales, stands.notes)


def _names(domains: Sequence[PromptSource]) -> list[str]:
    names = [str(getattr(one, "name", None) or Path(str(one)).stem) for one in domains]
    if len(set(names)) < len(names):
        raise InputError(f"two domains of one name: {', '.join(names)}")
    return names


class _Space:
    """Points of a search, as numbers, and where each puts the model."""

    def __init__(
        self,
        stands: Ground,
        field: Landscape,
        names: Sequence[str],
        over: Over,
        method: str,
        options: Mapping[str, Any],
        seed: int,
    ) -> None:
        self.stands, self.field, self.names, self.over, self.method = stands, field, names, over, method
        self.options, self.seed = dict(options), seed
        taken = options_of(METHODS.one(method))
        self.searched = [name for name in SEARCHED if name in taken and name not in options]
        n = len(names) if over == "vectors" else int(np.prod(self.field.shape))
        self.low = [0.0] * n + [SEARCHED[name][0] for name in self.searched]
        self.high = [LONGEST] * n + [SEARCHED[name][1] for name in self.searched]
        self.n = n

    @property
    def is_plain(self) -> bool:
        """Whether it is the space of a λ each, added up."""
        return self.over == "vectors" and self.method == "sum"

    def place(self, point: Floats) -> dict[str, Any]:
        """All that says where a point is."""
        numbers = [round(float(value), 6) for value in point]
        return {"over": self.over, "method": self.method, "options": self.options, "seed": self.seed, "point": numbers}

    @contextmanager
    def at(self, point: Floats) -> Iterator[None]:
        """The model at a point."""
        if self.method == "sum":
            vectors, units = self.field.shape
            scales = point.reshape(vectors, -1) if self.over == "components" else np.tile(point[:, None], (1, units))
            with self.field.at(scales):
                yield
            return
        options = self.options | self.found_options(point)
        by_vector = dict(zip(self.stands.vectors, map(float, point[: self.n]), strict=True))
        with Mover(self.stands.model, self.stands.vectors, method=self.method, seed=self.seed, **options) as mover:
            mover.to(by_vector)
            yield

    def found_options(self, point: Floats) -> dict[str, float]:
        """The searched options at a point."""
        return {name: float(value) for name, value in zip(self.searched, point[self.n :], strict=True)}

    def scales(self, point: Floats) -> pd.DataFrame:
        """λ by vector and part, and options."""
        if self.over == "vectors":
            rows = [{"vector": name, "part": "all", "scale": s} for name, s in zip(self.names, point, strict=False)]
            options = self.options | self.found_options(point)
            return pd.DataFrame(
                rows + [{"vector": "", "part": name, "scale": value} for name, value in options.items()]
            )
        by_vector = point.reshape(self.field.shape)
        units = self.stands.division.units
        return pd.DataFrame(
            [
                {"vector": name, "part": unit.label, "scale": float(scale)}
                for name, scales in zip(self.names, by_vector, strict=True)
                for unit, scale in zip(units, scales, strict=True)
            ]
        )

    def written(self, point: Floats, out: Path, table: pd.DataFrame) -> Written:
        """The checkpoint of a point, with what to expect of it."""
        row = table.set_index("way").loc[FOUND]
        lines = [
            f"On prompts that the search had not seen it keeps {row['value']:.1%} [{row['lo']:.0%}, {row['hi']:.0%}]",
            "of what the best single vector gains in each domain, a mean over domains. The scales were then searched",
            "for on all prompts.",
        ]
        vectors = self.stands.vectors
        title = "Searched for by `tv apply --search`"
        if self.over == "components":
            by_vector = point.reshape(self.field.shape)
            record = {"chosen_by": "tv apply --search"}
            moved = [
                scaled(vector, self.stands.division, scales.tolist(), record)
                for vector, scales in zip(vectors, by_vector, strict=True)
            ]
            return Written(self.stands.base, dict.fromkeys(moved, 1.0), out, title, lines)
        scales = dict(zip(vectors, map(float, point[: self.n]), strict=True))
        options = self.options | self.found_options(point)
        return Written(self.stands.base, scales, out, title, lines, self.method, options, self.seed)


class _Judge:
    """Domains, their halves, and what a point is worth on each."""

    def __init__(self, space: _Space, sets: Mapping[str, Asked], cells: Cells, seed: int, compute: Compute) -> None:
        self.space, self.sets, self.seed, self.compute = space, sets, seed, compute
        self.plain = _Space(space.stands, space.field, space.names, "vectors", "sum", {}, 0)
        self.trial = Trial(space.stands.model, sets, cells, {"choice": "search", **space.stands.key})
        n = len(space.names)
        self.none = self.values(self.plain, np.zeros(n))
        singles = [self.values(self.plain, np.eye(n)[i]) for i in range(n)]
        self.gain = {name: self._gain(name, singles) for name in sets}
        first = {name: halves(asked, self.gain[name], seed) for name, asked in sets.items()}
        self.seen: dict[Half, dict[str, NDArray[np.bool_]]] = {
            "first": first,
            "second": {name: ~half for name, half in first.items()},
            "all": {name: np.ones(len(half), bool) for name, half in first.items()},
        }
        odd = next((n for n in sets for h in EACH if self.gain[n][self.seen[h][n]].mean() <= LEAST_FLOOR), None)
        if odd is not None:
            raise InputError(f"{odd}: one half of its prompts shows no gain; give more prompts, or another --seed")

    def values(self, space: _Space, point: Floats) -> Values:
        """Every prompt's values at a point."""
        return self.trial.at(space.place(point), partial(space.at, np.asarray(space.place(point)["point"])))

    def worth(self, space: _Space, half: Half, point: Floats) -> float:
        """The mean over domains of the share of the gain that is kept, on one half."""
        values, seen = self.values(space, point), self.seen[half]
        return float(
            np.mean(
                [
                    (values[name] - self.none[name])[seen[name]].mean() / self.gain[name][seen[name]].mean()
                    for name in self.sets
                ]
            )
        )

    def ways(self, budget: int) -> dict[str, dict[Half, Floats]]:
        """The point that each way of adding chooses by each half."""
        n = len(self.space.names)
        stages: dict[str, Callable[[Half], Floats]] = {
            PLAIN: lambda half: np.ones(n),
            SCALED: lambda half: best_of_line(partial(self.worth, self.plain, half), np.full(n, LONGEST), budget),
        }
        if not self.space.is_plain:
            stages[EACH_ITS_OWN] = partial(self._evolved, self.plain, budget)
        stages[FOUND] = partial(self._evolved, self.space, budget)
        ways: dict[str, dict[Half, Floats]] = {}
        for i, (way, find) in enumerate(stages.items()):
            ways[way] = {}
            for j, half in enumerate(EACH):
                ways[way][half] = find(half)
                self.compute.tell("search", i * len(EACH) + j + 1, len(stages) * len(EACH), way)
        return ways

    def table(self, ways: Mapping[str, Mapping[Half, Floats]]) -> pd.DataFrame:
        """A row per way, on prompts that its choice had not seen."""
        tested = {way: self._held_out(self._space_of(way), points) for way, points in ways.items()}
        rows = []
        for way, values in tested.items():
            mean, _ = self._over_domains(values, self.none)
            row: dict[str, Any] = {"way": way, "value": mean.value, "lo": mean.lo, "hi": mean.hi}
            for other in (PLAIN, SCALED):
                gap, p = self._over_domains(values, tested[other]) if way != other else (None, np.nan)
                ends = gap if gap is not None else (np.nan,) * 3
                key = "over_plain" if other == PLAIN else "over_scaled"
                row |= dict(zip((key, f"{key}_lo", f"{key}_hi", f"{key}_p"), (*ends, p), strict=True))
            for name, asked in self.sets.items():
                own = share(values[name] - self.none[name], self.gain[name], asked.clusters)
                row |= dict(zip((name, f"{name}_lo", f"{name}_hi"), own, strict=True))
            rows.append(row)
        return pd.DataFrame(rows)

    def _space_of(self, way: str) -> _Space:
        return self.space if way == FOUND else self.plain

    def _evolved(self, space: _Space, budget: int, half: Half) -> Floats:
        return evolve(partial(self.worth, space, half), space.low, space.high, budget, self.seed)

    def _held_out(self, space: _Space, points: Mapping[Half, Floats]) -> Values:
        by_half = {half: self.values(space, points[half]) for half in HALVES}
        return {
            name: np.where(self.seen["first"][name], by_half["second"][name], by_half["first"][name])
            for name in self.sets
        }

    def _over_domains(self, first: Values, second: Values) -> tuple[Any, float]:
        parts = [first[name] - second[name] for name in self.sets]
        return over_domains(parts, [self.gain[name] for name in self.sets], [o.clusters for o in self.sets.values()])

    def _gain(self, name: str, singles: Sequence[Values]) -> Floats:
        """What the best single vector gains in a domain, by prompt. Raises InputError where none does."""
        gains = [single[name] - self.none[name] for single in singles]
        best = max(gains, key=lambda gain: float(gain.mean()))
        asked = self.sets[name]
        if best.mean() <= max(LEAST_FLOOR, asked.matters):
            raise InputError(
                f"{name}: no vector gains there over the base what matters ({best.mean():.3g} {asked.unit} of "
                f"{asked.words}); give prompts of what one was tuned for"
            )
        return best
