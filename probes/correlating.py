"""Rank correlations of weight measures with what happened, and which of them stand out of shuffled layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from probes.store.schemas import SCHEMAS, form_of
from tv.stats.means import Floats
from tv.stats.ranks import Correlations, family_p, rank_correlations, shuffled_p

_LAYER = "layer "


def correlations_of(
    units: pd.DataFrame, values: Mapping[str, Floats], clusters: Sequence[str], draws: int, seed: int
) -> pd.DataFrame:
    """The table `correlations`: Spearman's rho of every weight measure with everything that happened, per tuned model.

    `over` says which units: all of a kind, ranked within their type (module, or component); the modules of one type in
    every layer (`q`); or those of one layer (`layer 3`). `n` counts them, `lo hi` resample layers and prompts.

    - `null_lo null_hi`: where 95 % of rhos fall when layers are shuffled, all units of one together; `p`: how many are
      as far from 0.
    - `p_family`: in how many shuffles any pair of the tuned model and `over` is as far, each in its own standard
      deviations. Below 0.05 a pair stands out; 5 % of models without any link have one that does.
    - One layer has each type once. No shuffle parts what a type does everywhere from what its weights did here, so its
      rows describe and have neither null nor p.

    Args:
        units: A row per unit: `tuned kind layer component module` and weight measures. Its index gives the columns of
            `values`.
        values: What happened: (prompts, units) of each activation and causal measure.
        clusters: The cluster of each prompt.
        draws: Shuffles, and resamples.
        seed: Of both.

    Returns:
        A row per tuned model × kind × `over` × weight measure × what happened.
    """
    roles = {column.name: column.role for column in form_of("link")}
    weights = [name for name, role in roles.items() if role == "weight" and name in units]
    happened = {
        name: values[name] for name, role in roles.items() if role in ("activation", "cause") and name in values
    }
    pairs: list[tuple[object, ...]] = []
    for (tuned, over), kinds in _groups(units):
        families = []
        for kind, part in kinds.items():
            known = {name: table[:, part.index] for name, table in happened.items()}
            known = {name: table for name, table in known.items() if not np.isnan(table).all()}
            found = rank_correlations(
                part[weights].to_numpy(np.float64).T,
                list(known.values()),
                draws=draws,
                seed=seed,
                types=_types(kind, over, part),
                blocks=list(part.layer) if over == "all" else None,
                clusters=clusters,
            )
            families.append((kind, list(known), found))
        pairs += _rows(tuned, over, weights, families)
    return pd.DataFrame(pairs, columns=SCHEMAS["correlations"].names)


def _groups(units: pd.DataFrame) -> Iterator[tuple[tuple[str, str], dict[str, pd.DataFrame]]]:
    """The units whose pairs are one family, by kind: all of them, then modules by type and by layer."""
    for tuned, part in units.groupby("tuned"):
        kinds = {str(kind): rows for kind, rows in part.groupby("kind")}
        yield (str(tuned), "all"), kinds
        for name, modules in kinds.get("module", part[:0]).groupby("module", sort=False):
            yield (str(tuned), str(name)), {"module": modules}
        for layer, modules in kinds.get("module", part[:0]).groupby("layer"):
            yield (str(tuned), f"{_LAYER}{layer}"), {"module": modules}


def _types(kind: str, over: str, part: pd.DataFrame) -> list[str]:
    """Among which units ranks are taken."""
    if over.startswith(_LAYER):
        return [over] * len(part)
    return list(part.module if kind == "module" else part.component)


def _rows(
    tuned: str, over: str, weights: list[str], families: list[tuple[str, list[str], Correlations]]
) -> Iterator[tuple[object, ...]]:
    """Rows of `correlations`: the pairs of every kind, which are one family."""
    parts = [np.stack([found.rho, found.lo, found.hi, found.n]).reshape(4, -1) for _, _, found in families]
    rho, lo, hi, n = np.concatenate(parts, axis=1)
    null = np.concatenate([found.null.reshape(len(found.null), -1) for _, _, found in families], axis=1)
    tests = [*np.percentile(null, [2.5, 97.5], axis=0), shuffled_p(rho, null), family_p(rho, null)]
    if over.startswith(_LAYER):
        tests = [np.full(rho.shape, np.nan)] * len(tests)
    names = [(kind, over, w, a) for kind, activations, _ in families for w in weights for a in activations]
    for name, *row in zip(names, rho, lo, hi, n.astype(int), *tests, strict=True):
        yield (tuned, *name, *row)
