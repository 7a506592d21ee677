"""The source's claims, what of them holds here, and what it takes to see it: with the numbers of the tables."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from studies.real_models.answers.moving import added
from studies.real_models.answers.shown import MODULES, Tables, kinds, own_domain, signed, spread
from studies.real_models.answers.weights import at_epsilon, moved
from studies.real_models.reading import RANDOM

_Found = Callable[[Tables, str], str]


def claims(tables: Tables) -> pd.DataFrame:
    """A row a claim: what the source reports, what is found in every model, and what has to stand beside it."""
    said: tuple[tuple[str, str, str, _Found, str], ...] = (
        (
            "Weights are similar",
            "base and tuned weights are more than 99.9 % alike",
            "yes, and so are those of a random T",
            _similar,
            "‖T‖ itself: a cosine above 0.999 says no more than that T at right angles to W is below 4.5 % of ‖W‖",
        ),
        (
            "A small subspace",
            "a small subset of the representational subspace is modified",
            "SSA does not show it",
            _subset,
            "SSA's null: a T without direction has nearly the same values, and their order",
        ),
        (
            "Activations are preserved",
            "gate patterns of both models are nearly the same",
            "beside chance yes, beside a random T no",
            _preserved,
            "other texts than the domain's, a random T of the same norms, and what rounding alone does",
        ),
        (
            "Tuning vectors are needed",
            "without T, instruction following and the quality of what is written fall",
            "what was learnt is lost; of instructions nothing can be told",
            _needed,
            "a random vector of T's norms taken away in its place, and hundreds of items",
        ),
        (
            "Vectors add up",
            "vectors of several domains together generalise better",
            "no: a second vector costs more often than it helps",
            _combined,
            "each vector alone on the same texts, and a random vector as the second",
        ),
        (
            "MLPs write, attention amplifies",
            "T writes new directions in MLPs and amplifies those that are there in attention",
            "no: attention writes new ones too, and gate does not",
            _written,
            "the share that chance leaves outside the pretrained directions, on activations and not on T alone",
        ),
    )
    return pd.DataFrame(
        [
            {
                "claim": claim,
                "the source reports": reports,
                "here": f"**{holds}.** {_each(tables, found)}",
                "what it takes to see it": needed,
            }
            for claim, reports, holds, found, needed in said
        ]
    )


def _each(tables: Tables, found: _Found) -> str:
    """What is found in every model."""
    names = list(dict.fromkeys(tables["weights"].model))
    return "; ".join(f"{name}: {found(tables, name)}" for name in names)


def _similar(tables: Tables, model: str) -> str:
    weights = kinds(tables["weights"].query("model == @model"))
    of = weights[weights.kind == "full"]
    random = weights[weights.kind == RANDOM]
    size = spread(100 * moved(of), 2)
    least = f"{100 - 100 * of.apart.max():.3f} % (with a random T {100 - 100 * random.apart.max():.3f} %)"
    return f"the least cosine of a matrix is {least}, at ‖T‖/‖W‖ of {size} %"


def _subset(tables: Tables, model: str) -> str:
    at = at_epsilon(tables["alignment"].query("model == @model"))
    of = at[(at.kind == "full") & (at.side == "left")].groupby("module")[["ssa", "ssa_null", "kappa"]].mean()
    rho = of.ssa.corr(of.ssa_null, method="spearman")
    left = f"κ, what is left, is {spread(of.kappa, 2)}"
    return f"on the output side ρ of SSA and its null over modules is {signed(rho, 2)}; {left}"


def _preserved(tables: Tables, model: str) -> str:
    table = kinds(tables["gates"].query("model == @model"))
    full = table[table.kind == "full"]
    own, other = (full[own_domain(full) == here].edit_distance.mean() for here in (True, False))
    random = table[table.kind == RANDOM].edit_distance.mean()
    return f"an edit distance of {own:.3f} on the own domain and {other:.3f} on others; a random T moves {random:.3f}"


def _needed(tables: Tables, model: str) -> str:
    returned = tables["returned"].query("model == @model and task == 'ifeval'")
    of, random = (returned[(returned.vector == vector)].groupby("domain").first() for vector in ("T", "random"))
    asked = tables["negation"].query("model == @model and task == 'ifeval'").n.max()

    def of_asked(share: float) -> int:
        return round(asked * share)

    gaps = [
        f"{name}: {of_asked(row.value_0)} → {of_asked(row.value_1)} (random: {of_asked(random.value_1[name])})"
        for name, row in of.iterrows()
    ]
    return f"of {asked} instructions, those followed with T and without, tuned on " + ", ".join(gaps)


def _combined(tables: Tables, model: str) -> str:
    found = added(tables).query("model == @model")
    worse, better = (found.interference_lo > 0).sum(), (found.interference_hi < 0).sum()
    seeds = found.seed.nunique()
    return (
        f"of {len(found)} ordered pairs ({len(found) // seeds} a seed), "
        f"the other's T clearly lowers the loss of {better} and raises that of {worse}"
    )


def _written(tables: Tables, model: str) -> str:
    ledger = kinds(tables["ledger"].query("model == @model"))
    of = ledger[ledger.kind == "full"].groupby("module").new_share_above_null.mean()
    return "new share above chance: " + ", ".join(f"{module} {signed(of[module], 3)}" for module in MODULES)
