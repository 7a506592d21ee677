"""Questions 3, 6 and 8: gate patterns, new directions on data, causes by type, and what a search finds."""

from __future__ import annotations

import numpy as np
import pandas as pd

from studies.real_models.answers.shown import MODULES, Tables, interval, kinds, own_domain, signed, spread
from studies.real_models.reading import ONE_STEP, RANDOM


def gates(tables: Tables) -> pd.DataFrame:
    """Gate patterns on a fine-tune's own domain and on others', beside chance, random T and one step."""
    table = kinds(tables["gates"])
    own = np.where(own_domain(table), "own domain", "other domains")
    table = table.assign(on=np.where(table.kind.isin([RANDOM, ONE_STEP]), "all domains", own))
    floor = tables["noise_floor"].groupby("model").flip_rate.mean()
    distances, rows = ["edit_distance", "chance_edit_distance", "flip_rate"], []
    for (model, kind, on), group in table.groupby(["model", "kind", "on"], sort=False):
        by_tune = group.groupby(["tuned", "seed", "domain"])[distances].mean()
        rows.append(
            {
                "model": model,
                "tuned": kind,
                "texts of": on,
                "edit distance": spread(by_tune.edit_distance, 3),
                "chance": f"{by_tune.chance_edit_distance.mean():.3f}",
                "gates that flip, %": spread(100 * by_tune.flip_rate, 2),
                "flips by bfloat16 alone, %": f"{100 * floor[model]:.2f}",
            }
        )
    return pd.DataFrame(rows)


def new_directions(tables: Tables) -> pd.DataFrame:
    """The share of T x outside the pretrained output directions, on data: a row a model and module type."""
    ledger = kinds(tables["ledger"])
    ledger = ledger[ledger.new_share.notna() & ledger.module.isin(MODULES)]
    rows = []
    for (model, module), group in ledger[ledger.kind == "full"].groupby(["model", "module"], sort=False):
        random = ledger[(ledger.kind == RANDOM) & (ledger.model == model) & (ledger.module == module)]
        known = group.dropna(subset="new_share_above_null_lo")  # of domains with clusters enough for an interval
        clear = (known.new_share_above_null_lo > 0).sum(), (known.new_share_above_null_hi < 0).sum()
        rows.append(
            {
                "model": model,
                "module": module,
                "new share": spread(group.new_share, 3),
                "null": f"{group.new_share_null.mean():.3f}",
                "random T": f"{random.new_share.mean():.3f}",
                "a multiple of W": f"{group.new_share_of_w.mean():.3f}",
                "above / below the null": f"{clear[0]} / {clear[1]} of {len(known)}",
            }
        )
    return pd.DataFrame(rows)


def causes(tables: Tables) -> pd.DataFrame:
    """What path gives attention and MLPs of the change in loss, beside their share of ‖T‖²: a row a fine-tune."""
    kinds = {**dict.fromkeys("qkvo", "attention"), **dict.fromkeys(("gate", "up", "down"), "MLP")}
    table = tables["by_type"].assign(part=lambda t: t.module.map(kinds).fillna("embedding and norms"))
    checks = tables["checks"].query("check == 'completeness' and method == 'path' and domain == 'all'")
    completeness = checks.set_index(["model", "of"]).value
    rows = []
    for (model, of), group in table.groupby(["model", "of"], sort=False):
        sums = group.groupby("part")[["effect", "share", "share_of_norm"]].sum()
        row = {"model": model, "tuned on": of, "change, nats a token": signed(group.effect.sum())}
        for part in ("attention", "MLP", "embedding and norms"):
            row[f"{part}: of the change / of ‖T‖², %"] = (
                f"{signed(100 * sums.share[part], 0)} / {100 * sums.share_of_norm[part]:.0f}"
            )
        rows.append(row | {"path is off by, %": f"{100 * completeness[model, of]:.2f}"})
    return pd.DataFrame(rows)


def searches(tables: Tables) -> pd.DataFrame:
    """The words that a discovery is sure of, those it names first whether it is sure or not, and claims that held.

    The first are those that the tuned model shifts most beside how common they are.
    """
    words, rows = tables["words"], []
    for (model, of), group in words.groupby(["model", "of"], sort=False):
        where = tables["searches"].query("model == @model and of == @of")
        claims = tables["claims"].query("model == @model and of == @of and n > 1")  # one text tests nothing
        first = group[(group.part == "token_shifts") & (group.reading == "largest unusual")]
        rows.append(
            {
                "model": model,
                "tuned on": of,
                "readings in which words stand out": f"{(where.stand_out > 0).sum()} of {len(where)}",
                "these": _listed(group[group.stands_out.astype(bool)].sort_values(["part", "rank"])),
                "named first": _listed(first.sort_values("rank")),
                "claims that hold, of those with several texts": f"{claims.holds.astype(bool).sum()} of {len(claims)}",
            }
        )
    return pd.DataFrame(rows)


def _listed(words: pd.DataFrame) -> str:
    """Up to six different ones."""
    found = dict.fromkeys(f"`{token.strip()}`" for token in words.token.astype(str) if token.strip())
    return ", ".join([*found][:6]) or "none"


def agreement(tables: Tables) -> pd.DataFrame:
    """How far path orders units as grafting and reverting them does, and what T does beside random ones of its norm."""
    rows = []
    for (model, of), group in tables["agreement"].query("method == 'path'").groupby(["model", "of"], sort=False):
        draws = tables["controls"].query("model == @model and of == @of and control == 'random'").effect
        row = {"model": model, "tuned on": of}
        for granularity, reference in (("component", "graft"), ("component", "revert"), ("module", "mean")):
            one = group[(group.granularity == granularity) & (group.reference == reference)]
            said = "mean of both" if reference == "mean" else reference
            if len(one):
                row[f"ρ of {granularity}s, {said}"] = interval(one.rho.iloc[0], one.lo.iloc[0], one.hi.iloc[0], 2)
        whole = tables["by_type"].query("model == @model and of == @of").effect.sum()
        rows.append(row | {"change by T": signed(whole), "by a random T": spread(draws)})
    return pd.DataFrame(rows)


def predictors(tables: Tables) -> pd.DataFrame:
    """Which measure of a matrix's weights orders its cause, |path|: over all, and within types of matrices.

    Types differ in SSA by its null alone, so the second says more. Ranges are over fine-tunes. Chance is where 95 % of
    correlations of unrelated orders lie, by the variance 1/(n − 1) of Spearman's ρ.
    """
    rows = []
    for model, of_model in tables["links"].groupby("model", sort=False):
        for measure in ("relative_norm", "ssa_left", "kappa_left", "ssa_right", "kappa_right"):
            whole, within, free = [], [], 0
            for _, links in of_model.groupby("of", sort=False):
                whole.append(_order(links, measure))
                types = [_order(group, measure) for _, group in links.groupby("module") if group[measure].nunique() > 1]
                within.append(float(np.mean(types)) if types else np.nan)
                free = len(links) - links.module.nunique()
            rows.append(
                {
                    "model": model,
                    "measure": measure,
                    "ρ over all matrices": spread(pd.Series(whole), 2),
                    "ρ within types": spread(pd.Series(within), 2),
                    "chance": f"± {1.96 / np.sqrt(free):.2f}",
                }
            )
    return pd.DataFrame(rows)


def _order(links: pd.DataFrame, measure: str) -> float:
    return float(links[measure].corr(links.path.abs(), method="spearman"))
