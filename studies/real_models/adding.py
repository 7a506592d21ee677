"""Question 5: what a fine-tune does to texts of other domains, and what two of them do together.

Transfer: every fine-tune on every domain's texts. Sums: θ + T_a + T_b on texts of both domains, beside θ + T_a, and
beside θ + T_a + a random vector of T_b's norms. Pairs: what the weights of a and b have in common.
`studies.real_models.predicting` asks whether pairs foretell sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations

import numpy as np
import pandas as pd

import tv
from studies.real_models.models import SOURCES
from studies.real_models.reading import write
from studies.real_models.stage import Stage
from studies.real_models.study import Study
from studies.real_models.texts import SHORTER, Text, domain, shortest
from studies.real_models.training import Training, losses
from tv.checkpoints.live import load_model, load_tokenizer
from tv.runtime.seeds import seed_of

#: CPU seconds to start and to open models; to put 1 MiB of a model (float32) at a point, to read its T, to draw a T.
START, POINT, READ, DRAW = 5, 0.0026, 0.0015, 0.0046
#: CPU seconds to compare two T: for each MiB of the blocks, their directions, and for each MiB of all, their values;
#: and first, for each MiB of the blocks, the base's directions.
DIRECTIONS, VALUES, BASE = 0.0175, 0.009, 0.03


def stages(study: Study) -> list[Stage]:
    """`transfer-…` for every method and seed, `sums-…` and `pairs-…` for full fine-tunes of two domains or more."""
    size = study.size
    each = [(model, method, seed) for model in size.names for method in size.methods for seed in size.seeds]
    several = [(model, seed) for model, method, seed in each if method == "full" and len(size.domains[model]) > 1]
    return [
        *(_transfer(study, *one) for one in each),
        *(_sums(study, *one) for one in several),
        *(_pairs(study, *one) for one in several),
    ]


def _transfer(study: Study, model: str, method: str, seed: int) -> Stage:
    n, names = _texts(study), study.size.domains[model]
    k = len(names)
    tokens = (1 + k) * n * sum(SHORTER[name] for name in names)
    moved = k * (POINT + READ) * SOURCES[model].mib
    return _stage(study, f"transfer-{model}-{method}-{seed}", transfer, (model, method, seed), tokens, moved)


def _sums(study: Study, model: str, seed: int) -> Stage:
    n, names = _texts(study), study.size.domains[model]
    k = len(names)
    tokens = (1 + 1.5 * (k - 1)) * n * sum(SHORTER[name] for name in names)
    pairs_of = k * (k - 1) / 2  # a sum serves both of its domains, a random vector one
    moved = (POINT * (k + 2 * pairs_of) + READ * (k + 3 * pairs_of) + DRAW * pairs_of) * SOURCES[model].mib
    return _stage(study, f"sums-{model}-{seed}", sums, (model, "full", seed), tokens, moved)


def _pairs(study: Study, model: str, seed: int) -> Stage:
    k, source = len(study.size.domains[model]), SOURCES[model]
    cost = BASE * source.blocks + k * (k - 1) / 2 * (DIRECTIONS * source.blocks + VALUES * source.mib)
    return _stage(study, f"pairs-{model}-{seed}", pairs, (model, "full", seed), 0, cost)


def _stage(
    study: Study, name: str, work: Callable[..., None], of: tuple[str, str, int], tokens: float, more: float
) -> Stage:
    """Of all fine-tunes of one model, method and seed."""
    source = SOURCES[of[0]]
    needs = (f"base-{of[0]}", *(f"tune-{one.name}" for one in _trainings(study, *of).values()))
    out, cost = study.results(name), START + tokens * source.forward + more
    memory = source.memory(2.4, 11.5) if tokens else source.memory(0, 8)
    return Stage(name, partial(work, study, *of, name), cost, memory, 1, out, needs)


def transfer(study: Study, model: str, method: str, seed: int, name: str) -> None:
    """`transfer.csv`: a row per fine-tuned domain and text, of domain `text`: the loss of the base, and its change."""
    base, vectors = study.base(model), _vectors(study, model, method, seed)
    live, tokenizer, read = load_model(base), load_tokenizer(base), _read(study, model)

    def on_all() -> pd.DataFrame:
        return pd.concat([losses(live, tokenizer, few).assign(text=text) for text, few in read.items()])

    under, frames = on_all().rename(columns={"nll": "base"}), []
    with tv.Mover(live, list(vectors.values())) as mover:
        for tuned, vector in vectors.items():
            mover.to({vector: 1.0})
            frames.append(under.assign(domain=tuned, change=on_all().nll - under.base))
    table = pd.concat(frames)[["domain", "text", "id", "cluster", "tokens", "base", "change"]]
    write(study.results(name), {"transfer": table}, model=model, method=method, seed=seed)


def sums(study: Study, model: str, method: str, seed: int, name: str) -> None:
    """`sums.csv`: a row per domain, other domain and text of the first: its loss `alone`, by θ + T_domain.

    `interference` is what adding T_other changes, `control` what a random vector with the norms of T_other does, in
    one of the two orders of every two domains.
    """
    base, vectors = study.base(model), _vectors(study, model, method, seed)
    live, tokenizer, read = load_model(base), load_tokenizer(base), _read(study, model)
    seeds = {one: seed_of(f"{seed} {one}") for one in vectors}  # one draw of each, none a multiple of another
    random = {one: tv.control(vector, "random", seeds[one]) for one, vector in vectors.items()}
    alone: dict[str, pd.DataFrame] = {}
    frames = []
    with tv.Mover(live, [*vectors.values(), *random.values()]) as mover:
        for one, vector in vectors.items():
            mover.to({vector: 1.0})
            alone[one] = losses(live, tokenizer, read[one]).rename(columns={"nll": "alone"})

        def change(of: str) -> pd.Series:
            return losses(live, tokenizer, read[of]).nll - alone[of].alone

        for i, two in enumerate(combinations(vectors, 2)):
            one, other = two if i % 2 else two[::-1]
            mover.to({vectors[one]: 1.0, vectors[other]: 1.0})
            found = {one: change(one), other: change(other)}
            mover.to({vectors[one]: 1.0, random[other]: 1.0})
            control = {one: change(one), other: np.nan}
            frames += [
                alone[own].assign(domain=own, other=added, interference=found[own], control=control[own])
                for own, added in ((one, other), (other, one))
            ]
    table = pd.concat(frames)[["domain", "other", "id", "cluster", "tokens", "alone", "interference", "control"]]
    write(study.results(name), {"sums": table}, model=model, method=method, seed=seed)


#: Of the whole vectors, from `tv.cosine`.
_WHOLE = ["cosine", "cosine_z", "sign_conflict", "sign_conflict_null", "conflict_energy", "norm_a", "norm_b"]
#: Means over matrices.
_SHARED = ["cosine_shared_z", "overlap_left_kappa", "overlap_right_kappa"]
#: A T in the other's leading directions, less what chance gives: (SSA² − null²)/(1 − null²), means over matrices.
_INSIDE = [f"ssa_{side}_{order}" for side in ("left", "right") for order in ("a_in_b", "b_in_a")]


def pairs(study: Study, model: str, method: str, seed: int, name: str) -> None:
    """`pairs.csv`: a row per two domains `a` and `b`, with what `tv.cosine` says of their vectors."""
    tuned = {one: study.tuned(training) for one, training in _trainings(study, model, method, seed).items()}
    found = tv.cosine(study.base(model), tuned, level="module")
    whole = found[found.scope == "whole"].set_index(["a", "b"])[_WHOLE]
    matrices = found[(found.scope == "module") & (found.k_a > 0) & (found.k_b > 0)]
    null = {column: matrices[f"{column}_null"] ** 2 for column in _INSIDE}
    inside = {f"{c}_kappa": ((matrices[c] ** 2 - null[c]) / (1 - null[c])).where(null[c] < 1) for c in _INSIDE}
    means = matrices.assign(**inside).replace([np.inf, -np.inf], np.nan).groupby(["a", "b"])[[*_SHARED, *inside]].mean()
    table = whole.join(means).reset_index()
    write(study.results(name), {"pairs": table}, model=model, method=method, seed=seed)


def _trainings(study: Study, model: str, method: str, seed: int) -> dict[str, Training]:
    return {name: Training(model, name, method, seed, study.size.steps) for name in study.size.domains[model]}


def _vectors(study: Study, model: str, method: str, seed: int) -> dict[str, tv.TuningVector]:
    trainings = _trainings(study, model, method, seed)
    return {name: tv.extract(study.base(model), study.tuned(one)) for name, one in trainings.items()}


def _read(study: Study, model: str) -> dict[str, Sequence[Text]]:
    held_out = {name: domain(name, study.texts).held_out[: study.size.held_out] for name in study.size.domains[model]}
    return {name: shortest(texts, _texts(study)) for name, texts in held_out.items()}


def _texts(study: Study) -> int:
    """The shorter half of the held-out texts: losses of about 80 models are as many passes over them."""
    return study.size.held_out // 2
