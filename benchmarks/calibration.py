"""How often the instrument is wrong: `python -m benchmarks.calibration`, from the project's folder.

Prints three tables, as docs/measures.md shows them: how often printed intervals cover; how often a report claims
something where nothing is true; and what is said of pairs of models that compute one function. About ten minutes on one
core; `--draws 400 --reports 40` takes two.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, PreTrainedModel

import probes
import tv
from benchmarks.alignment_null import claims_something, matrices_of
from probes.attribution.effects import BACKWARD, FORWARD, Effects, summarise
from probes.attribution.units import Unit
from probes.correlating import correlations_of
from probes.linking import COMPONENT
from probes.reporting.behaviour import compare_behaviour
from probes.reporting.behaviour_sentences import said_of_each
from probes.reporting.causes import leaders
from probes.reporting.compare.measures import differences
from probes.reporting.compare.verdict import told_apart
from probes.reporting.diagnose import conflict_of
from probes.reporting.evidence import gather
from probes.reporting.link_sentences import link_sentences, stands_out
from probes.store.schemas import ALL_DOMAINS
from tests.tv.matching.same_function import move_gains, permute_neurons, trade_sizes
from tv.checkpoints.vector import TuningVector
from tv.stats.means import mean_interval
from tv.stats.proportions import share_change, share_interval

Floats = NDArray[np.float64]
#: (generator, (prompts, experiments)) → values of a true mean.
Draw = Callable[[np.random.Generator, tuple[int, int]], Floats]
BASE = Path(__file__).parent.parent / "data" / "models" / "base"
SIZES = (8, 12, 16, 24, 48)
#: Intervals must cover so often, and a sentence may be wrong so often.
COVERED, WRONG = 0.93, 0.06


@dataclass(frozen=True)
class Rate:
    """How often something happened in `of` experiments, and the bound on it."""

    what: str
    where: str
    rate: float
    of: int
    bound: float
    at_least: bool = False  # whether the bound is from below

    @property
    def holds(self) -> bool:
        """Whether the bound is met; two standard errors of the simulation are left to chance."""
        slack = 2 * math.sqrt(self.bound * (1 - self.bound) / max(self.of, 1))
        return self.rate >= self.bound - slack if self.at_least else self.rate <= self.bound + slack


# Coverage.


def _sparse(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    return (rng.random(shape) < 0.3) * rng.lognormal(size=shape)


#: What effects of prompts look like, with their true mean.
EFFECTS: dict[str, tuple[Draw, float]] = {
    "normal": (lambda rng, shape: rng.normal(1, 1, shape), 1.0),
    "exponential": (lambda rng, shape: rng.exponential(size=shape), 1.0),
    "lognormal": (lambda rng, shape: rng.lognormal(size=shape), math.exp(0.5)),
    "sparse (70 % are 0)": (_sparse, 0.3 * math.exp(0.5)),
}


def coverage(draws: int, seed: int = 0) -> Iterator[Rate]:
    """Of the intervals of means, of shares and of leading components that are shown, how many cover."""
    rng = np.random.default_rng(seed)
    for n in SIZES:
        where = f"{n} prompts"
        for name, (draw, true) in EFFECTS.items():
            found = mean_interval(draw(rng, (n, draws)))
            yield _covered(f"mean, {name}", where, found.lo, found.hi, true)
        which = np.repeat(np.arange(n), 4)
        for name, draw in (("normal", rng.normal), ("exponential", rng.exponential)):
            values = draw(size=(n, draws))[which] + rng.normal(size=(len(which), draws))
            found = mean_interval(values, [str(i) for i in which])
            yield _covered(f"mean, {name} clusters of 4", where, found.lo, found.hi, float(name == "exponential"))
        yield from _shares(rng, n, draws // 4)
        yield from _leader(rng, n, draws // 10)


def _shares(rng: np.random.Generator, n: int, draws: int) -> Iterator[Rate]:
    before = rng.random((draws, n)) < 0.8
    after = np.where(rng.random((draws, n)) < 0.25, rng.random((draws, n)) < 0.4, before)
    ends = np.array([share_interval(row)[1:] for row in before]).T
    yield _covered("share of 80 %", f"{n} prompts", *ends, 0.8)
    ends = np.array([share_change(a, b)[1:] for a, b in zip(before, after, strict=True)]).T
    yield _covered("share that fell by 10 points", f"{n} prompts", *ends, -0.1)


def _leader(rng: np.random.Generator, n: int, draws: int) -> Iterator[Rate]:
    """The interval of the component named first, of 14 with small true effects; where prompts are few none is named."""
    units, true = _components(), np.abs(rng.normal(0, 0.5, 14))
    covered = []
    for _ in range(draws):
        values = true[:, None] + rng.normal(size=(14, n))
        told = leaders(_effects_table({"graft": values}, units))
        if len(told):
            top = told.iloc[0]
            covered.append(top.lo_all <= true[units.index(_unit(top))] <= top.hi_all)
    if covered:
        yield Rate("first component named", f"{n} prompts", float(np.mean(covered)), len(covered), COVERED, True)


def _covered(what: str, where: str, lo: Floats, hi: Floats, true: float) -> Rate:
    shown = ~np.isnan(lo)
    covered = (lo[shown] <= true) & (hi[shown] >= true)
    return Rate(what, where, float(covered.mean()), int(shown.sum()), COVERED, at_least=True)


# Claims where nothing is true.


def claims(reports: int, seed: int = 0) -> Iterator[Rate]:
    """How many of so many reports on null pairs make each claim."""
    rng = np.random.default_rng(seed)
    base = tv.open_checkpoint(BASE)
    matrices, generator = matrices_of(base), torch.Generator().manual_seed(seed)
    drawn: dict[str, tuple[str, Callable[[], bool]]] = {
        "something got worse": ("labels of base and tuned swapped", partial(_worse, rng)),
        "a component is named": ("the same", partial(_named, rng)),
        "a link is named": ("layers shuffled", partial(_linked, rng)),
        "compare tells entries apart": ("labels of two entries swapped", partial(_apart, rng)),
        "alignment, or rescaling": ("T turned at random, rank 8", lambda: claims_something(matrices, 8, 1, generator)),
        "diagnose: conflict": ("one subspace, unrelated coefficients", partial(_conflict, base, generator)),
    }
    for what, (null, claim) in drawn.items():
        yield Rate(what, null, float(np.mean([claim() for _ in range(reports)])), reports, WRONG)


def _swapped(rng: np.random.Generator, pair: tuple[Floats, Floats]) -> tuple[Floats, Floats]:
    turned = rng.random(len(pair[0])) < 0.5
    return np.where(turned, pair[1], pair[0]), np.where(turned, pair[0], pair[1])


def _answers(rng: np.random.Generator, n: int) -> dict[str, tuple[Floats, Floats]]:
    """Both models' metrics of n prompts, which differ in nothing but chance: skewed losses, and answers that turn."""
    loss = rng.lognormal(size=n)
    right = rng.random(n) < 0.7
    return {
        "target_nll_per_token": (loss * rng.lognormal(0, 0.8, n), loss * rng.lognormal(0, 0.8, n)),
        "logit_diff": (rng.normal(2, 2, n), rng.normal(2, 2, n)),
        "exact_match": (right.astype(float), np.where(rng.random(n) < 0.3, ~right, right).astype(float)),
    }


def _worse(rng: np.random.Generator) -> bool:
    rows, prompts = [], []
    for domain in ("medical", "math", "general"):
        names = [f"{domain}{i}" for i in range(24)]
        prompts += [{"prompt_id": name, "domain": domain, "cluster": name} for name in names]
        for metric, pair in _answers(rng, 24).items():
            for model, values in zip(("base", "t"), _swapped(rng, pair), strict=True):
                rows += [(name, model, metric, value) for name, value in zip(names, values, strict=True)]
    values = pd.DataFrame(rows, columns=["prompt_id", "model", "metric", "value"])
    found = compare_behaviour(values, "t", pd.DataFrame(prompts), {})
    return bool((said_of_each(found).said == "worse").any())


def _components() -> list[Unit]:
    return [Unit("component", layer, name) for layer in range(7) for name in ("attn", "mlp")]


def _unit(row: pd.Series) -> Unit:
    return Unit("component", int(row.layer), str(row.component))


def _effects_table(values: dict[str, Floats], units: list[Unit]) -> pd.DataFrame:
    names = tuple(f"p{i}" for i in range(next(iter(values.values())).shape[1]))
    measured = [
        Effects(method, BACKWARD if method == "revert" else FORWARD, tuple(units), names, table)
        for method, table in values.items()
    ]
    return summarise(measured, "logit_diff", dict.fromkeys(names, "d"), seed=0)


def _named(rng: np.random.Generator) -> bool:
    """Effects of three methods, alike between components and skewed, each prompt with a random sign."""
    shared, n = rng.lognormal(size=24), 24
    signs = rng.choice([-1.0, 1.0], n)
    values = {method: signs * shared * (0.5 + rng.lognormal(0, 0.5, (14, n))) for method in ("graft", "revert", "path")}
    return len(leaders(_effects_table(values, _components()))) > 0


def _linked(rng: np.random.Generator) -> bool:
    """Twelve layers whose modules are alike, with weights that know nothing of the activations."""
    places = [(layer, COMPONENT[name], name) for layer in range(12) for name in COMPONENT]
    units = pd.DataFrame(places, columns=["layer", "component", "module"]).assign(tuned="t", kind="module")
    of_layer = np.repeat(rng.normal(size=(2, 12)), 7, axis=1)
    weights, truth = of_layer + rng.normal(size=(2, len(units)))
    for name in ("relative_norm", "cosine", "kappa10_left"):
        units[name] = weights + rng.normal(size=len(units))
    values = {name: truth + rng.normal(size=(16, len(units))) for name in ("direct_share", "direct_norm", "graft")}
    found = correlations_of(units, values, [f"p{i}" for i in range(16)], 199, int(rng.integers(2**31)))
    whole = found[found.over == "all"]
    return bool(stands_out(whole).any()) and bool(link_sentences(whole))


def _apart(rng: np.random.Generator) -> bool:
    asked = pd.DataFrame({"domain": ["medical"] * 24 + ["math"] * 24, "cluster": ""}, [f"p{i}" for i in range(48)])
    pairs = {metric: _swapped(rng, pair) for metric, pair in _answers(rng, 48).items()}
    left, right = (asked.assign(**{metric: pair[side] for metric, pair in pairs.items()}) for side in (0, 1))
    rows = [row for row in differences(left, right) if row["domain"] != ALL_DOMAINS]
    return len(told_apart(pd.DataFrame(rows))) > 0


def _directions(d: int, generator: torch.Generator) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(d, 8, generator=generator))[0]


def _conflict(base: tv.Checkpoint, generator: torch.Generator) -> bool:
    """Two vectors that move every matrix inside the same eight directions, each in its own way."""
    sides = {
        module.parameter: [
            torch.linalg.qr(torch.randn(d, 8, generator=generator))[0] for d in base.matrix(module).shape
        ]
        for module in base.architecture.modules
        if module.kind == "linear"
    }
    shapes = {name: tuple(base.info(name).shape) for name in base.names}

    def vector() -> TuningVector:
        mixed = {name: left @ torch.randn(8, 8, generator=generator) @ right.T for name, (left, right) in sides.items()}
        return TuningVector(shapes, lambda name: mixed.get(name, torch.zeros(shapes[name])), {})

    rows = tv.cosine(base, {"a": vector(), "b": vector()})
    return bool(conflict_of(rows[rows.scope != "layer"])[0])


# One function, written differently.


def between_bfloat16(model: PreTrainedModel) -> None:
    """Weights that no bfloat16 holds, and that round to the ones there were."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.mul_(1 + (torch.rand(parameter.shape, generator=generator) - 0.5) * 0.98 / 2**8)


def rounded(model: PreTrainedModel) -> None:
    """Rounded to bfloat16."""
    for parameter in model.parameters():
        parameter.copy_(parameter.to(torch.bfloat16).to(parameter.dtype))


SAME: dict[str, Callable[[PreTrainedModel], None]] = {
    "neurons in another order": permute_neurons,
    "norm gains × 2, readers ÷ 2": lambda model: move_gains(model, 2.0),
    "v and up × 2, o and down ÷ 2": lambda model: trade_sizes(model, 2.0),
    "rounded to bfloat16": rounded,
    "the base itself": lambda model: None,
}


@dataclass(frozen=True)
class Said:
    """What a run says of a pair that computes one function: the last four are claims, and none is true."""

    pair: str
    sameness: str
    worse: int
    components: int
    links: int
    failed: int  # checks that do not hold


def same_function(limit: int = 24) -> Iterator[Said]:
    """A run of each pair, over a float32 base whose rounding is the embedded one."""
    with tempfile.TemporaryDirectory() as folder:
        base = _written(BASE, between_bfloat16, Path(folder) / "base")
        for name, change in SAME.items():
            tuned = _written(base, change, Path(folder) / "tuned")
            run = probes.run(_suite(base, tuned, limit), out=Path(folder) / "run", force=True, stages=_STAGES)
            evidence = gather(run, "tuned")
            shown = evidence.effects
            yield Said(
                name,
                "; ".join(run.manifest.get("sameness", {}).values()),
                int((said_of_each(evidence.behaviour).said == "worse").sum()),
                len(leaders(shown)) if len(shown) else 0,
                int(stands_out(evidence.correlations).sum()) if len(evidence.correlations) else 0,
                int((~evidence.checks.holds.astype(bool)).sum()),
            )


_STAGES = ("weights", "capture", "noise_floor", "attribute", "link")


def _suite(base: Path, tuned: Path, limit: int) -> dict[str, object]:
    prompts = BASE.parent.parent / "prompts"
    return {
        "name": "same",
        "base": str(base),
        "tuned": {"tuned": str(tuned)},
        "prompts": [{"file": str(prompts / f"{name}.jsonl"), "limit": limit} for name in ("medical", "general")],
        "measure": ["gates", "changes", "ledger", "behaviour"],
        "attribute": {"methods": ["path", "graft", "revert"], "metric": "logit_diff", "curves": False},
        "bootstrap": 200,
    }


def _written(source: Path, change: Callable[[PreTrainedModel], None], to: Path) -> Path:
    """A checkpoint, changed in float32, with its tokenizer."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    with torch.no_grad():
        change(model)
    model.save_pretrained(to)
    for file in source.glob("tokenizer*"):
        shutil.copy(file, to)
    return to


# What is printed.


def table(rates: Iterable[Rate]) -> str:
    """Rates as a table of Markdown: rows what, columns where."""
    frame = pd.DataFrame([vars(rate) | {"text": f"{rate.rate:.3f}{'' if rate.holds else ' (!)'}"} for rate in rates])
    wide = frame.pivot(index="what", columns="where", values="text")
    wide = wide.loc[frame.what.drop_duplicates(), frame["where"].drop_duplicates()].fillna("")
    return _markdown(
        ["", *wide.columns], [[str(what), *row] for what, row in zip(wide.index, wide.values, strict=True)]
    )


def _markdown(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Print the tables; exit with status 1 where a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=4000, help="Experiments for each coverage.")
    parser.add_argument("--reports", type=int, default=400, help="Null reports for each claim.")
    options = parser.parse_args()
    covered = list(coverage(options.draws))
    print(table(covered), "\n", flush=True)
    made = list(claims(options.reports))
    rows = [[rate.what, rate.where, f"{rate.rate:.3f}"] for rate in made]
    print(_markdown(["claim", f"null, {options.reports} reports", "made"], rows), "\n", flush=True)
    said = list(same_function())
    heads = ["pair of one function", "worse", "components", "links", "failed checks"]
    print(_markdown(heads, [[one.pair, *map(str, (one.worse, one.components, one.links, one.failed))] for one in said]))
    missed = [rate for rate in (*covered, *made) if not rate.holds]
    for rate in missed:
        print(f"missed: {rate.what}, {rate.where}: {rate.rate:.3f}", file=sys.stderr)
    sys.exit(bool(missed) or any(one.worse + one.components + one.links + one.failed for one in said))


if __name__ == "__main__":
    main()
