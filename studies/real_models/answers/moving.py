"""Questions 4, 5 and 7: what a fine-tune learnt, loses when T is taken away, and does to others; paths and orders."""

from __future__ import annotations

import numpy as np
import pandas as pd

from studies.real_models.along import STARTS
from studies.real_models.answers.shown import Tables, first_metrics, interval, over_texts, signed, spread
from studies.real_models.predicting import interference, predictions
from tv.evaluation.paired import difference

#: The folder of a fine-tune, of the kind that stands in a table of losses: none that starts elsewhere.
_TUNE = r"^(?P<model>[^-]+)-(?P<domain>[a-z]+)-(?P<method>full|lora)-(?P<seed>\d+)$"


def losses(tables: Tables) -> pd.DataFrame:
    """Held-out losses, nats a token of the answer, before and after, over texts' means over seeds: a row a domain."""
    held_out = tables["held_out"]
    named = held_out.join(held_out.tune.str.extract(_TUNE)).dropna(subset="model")
    named = named.assign(change=named.after - named.before)
    rows = []
    for (model, domain), group in named.groupby(["model", "domain"], sort=False):
        row = {"model": model, "tuned on": domain, "before": f"{group.before.mean():.3f}"}
        for method, said in (("full", "change, full"), ("lora", "change, LoRA")):
            of = group[group.method == method].groupby(["id", "cluster"], as_index=False).change.mean()
            row[said] = over_texts(of.change, of.cluster) if len(of) else "–"
        rows.append(row | {"texts": group.id.nunique()})
    return pd.DataFrame(rows)


def negation(tables: Tables) -> pd.DataFrame:
    """What is left at λ = 1 without T, and without a random vector of its norms: a row a fine-tune and task."""
    returned = first_metrics(tables["returned"])
    items = tables["negation"].groupby(["model", "domain", "task"]).n.max()
    rows = []
    for (model, domain, task), group in returned.groupby(["model", "domain", "task"], sort=False):
        of, random = group[group.vector == "T"].iloc[0], group[group.vector == "random"].iloc[0]
        rows.append(
            {
                "model": model,
                "tuned on": domain,
                "task": f"{task}: {of.metric}",
                "items": items[model, domain, task],
                "tuned": signed(of.value_0),
                "− T": signed(of.value_1),
                "− random": signed(random.value_1),
                "base": signed(of.value_1 - of.difference),
                "back at the base's": of.returned,
            }
        )
    return pd.DataFrame(rows)


def quality(tables: Tables) -> pd.DataFrame:
    """How what is written changes from the tuned model's, item by item: a row a fine-tune and metric."""
    of_item = ["model", "domain", "metric", "item_id", "cluster"]
    wide = tables["quality"].pivot_table(index=of_item, columns=["vector", "scale"], values="value").reset_index()
    rows = []
    for (model, domain, metric), group in wide.groupby(["model", "domain", "metric"], sort=False):
        start, row = group["T", 0.0], {"model": model, "tuned on": domain, "metric": metric}
        row["tuned"] = signed(start.mean())
        for vector, scale in (("T", 1.0), ("T", 1.5), ("random", 1.0)):
            if (vector, scale) in group:
                gap = difference(start, group[vector, scale], group["cluster"].astype(str).tolist())
                row[f"− {scale:g} {vector}"] = interval(gap.difference, gap.lo, gap.hi)
        rows.append(row)
    return pd.DataFrame(rows)


def lineages(tables: Tables) -> pd.DataFrame:
    """How long what was learnt lasts as T is taken away, by what was tuned: a row a task and metric."""
    robust, gaps = tables["robustness"].query("vector == 'own'"), tables["lineage_difference"]
    rows = []
    for gap in gaps.itertuples():
        of = robust[(robust.task == gap.task) & (robust.metric == gap.metric)].set_index("lineage")
        row = {"model": gap.model, "task": f"{gap.task}: {gap.metric}"}
        row |= {f"area, {name}": f"{of.area[name]:.2f}" for name in (gap.first, gap.second)}
        rows.append(row | {"first − second": interval(gap.area, gap.area_lo, gap.area_hi, 2)})
    return pd.DataFrame(rows)


def transfer(tables: Tables, method: str = "full") -> pd.DataFrame:
    """A row a fine-tune, a column a domain of texts: the change in loss, in brackets where it is not clear."""
    rows = []
    for (model, domain), of_tune in _transfers(tables, method).groupby(["model", "domain"], sort=False):
        row = {"model": model, "tuned on ↓, texts of →": domain}
        for text, group in of_tune.groupby("text", sort=False):
            found = difference(np.zeros(len(group)), group.change, group.cluster.astype(str).tolist())
            clear = found.lo > 0 or found.hi < 0
            row[text] = signed(found.difference) if clear else f"({signed(found.difference)})"
        rows.append(row)
    return pd.DataFrame(rows).fillna("–")


def transfers(tables: Tables, method: str = "full") -> pd.DataFrame:
    """The mean change in loss by fine-tune and domain of texts: model, domain, text, change."""
    means = _transfers(tables, method).groupby(["model", "domain", "text"], sort=False).change.mean()
    return means.reset_index()


def _transfers(tables: Tables, method: str) -> pd.DataFrame:
    """A row a text: its change, over seeds."""
    table = tables["transfer"].query("method == @method")
    by = ["model", "domain", "text", "id", "cluster"]
    return table.groupby(by, sort=False, as_index=False).change.mean()


def added(tables: Tables) -> pd.DataFrame:
    """What two fine-tunes do to each other: a row a model, seed and ordered pair."""
    return interference(tables["sums"], tables["pairs"], tables["transfer"])


def sums(tables: Tables) -> pd.DataFrame:
    """What adding another fine-tune does to the losses of one: a row a model and seed, over ordered pairs."""
    found = added(tables)
    rows = []
    for (model, seed), group in found.groupby(["model", "seed"], sort=False):
        rows.append(
            {
                "model": model,
                "seed": seed,
                "ordered pairs": len(group),
                "change by the other's T": spread(group.interference),
                "clearly worse / better": f"{(group.interference_lo > 0).sum()} / {(group.interference_hi < 0).sum()}",
                "change by a random vector of its norms": spread(group.control.dropna()),
                "cosine of both T": spread(group.cosine),
            }
        )
    return pd.DataFrame(rows)


def foretold(tables: Tables) -> pd.DataFrame:
    """Does what is known in one place order interference in another: the chosen measure of weights, and behaviour."""
    found = predictions(added(tables))
    if found.empty:
        return found
    rows = []
    for row in found[found.chosen | ~found.measure.isin([*found[found.chosen].measure])].itertuples():
        if row.chosen or row.measure in ("transfer", "interference"):
            rows.append(
                {
                    "across": row.across,
                    "from → to": f"{row.train} → {row.test}",
                    "measure": row.measure + (" (the best of the weights')" if row.chosen else ""),
                    "ρ there": "–" if np.isnan(row.rho_train) else signed(row.rho_train, 2),
                    "ρ here": signed(row.rho, 2),
                    "chance, 95 %": f"{signed(row.null_lo, 2)} to {signed(row.null_hi, 2)}",
                    "p": f"{row.p:.3f}",
                    "pairs": row.pairs,
                }
            )
    return pd.DataFrame(rows)


def lines(tables: Tables) -> pd.DataFrame:
    """Barriers from the base to fine-tunes, and between seeds: a row a model and domain."""
    path = tables["path"]
    path = path[path.written == "as trained"]
    rows = []
    for (model, domain), group in path.groupby(["model", "domain"], sort=False):
        row = {"model": model, "tuned on": domain}
        for start, said in (("base", "from the base"), ("seed 0", "between seeds")):
            of = group[group.start == start]
            barrier = of[of.metric == "barrier"]
            if len(barrier):
                one = barrier.iloc[0]
                row[f"barrier {said}"] = interval(one.value, one.lo, one.hi)
            if len(of) and start == "base":
                loss = of[of.metric == "loss"].set_index("alpha").value
                row |= {"loss at α = 0, 1": f"{loss[0.0]:.3f}, {loss[1.0]:.3f}", "best α": f"{loss.idxmin():g}"}
        rows.append(row)
    return pd.DataFrame(rows).fillna("–")


def orders(tables: Tables) -> pd.DataFrame:
    """What is written in another order than in the base: a row a model and way of writing, over kinds of symmetry."""
    rows = []
    for (model, written), group in tables["align"].groupby(["model", "written"], sort=False):
        rows.append(
            {
                "model": model,
                "written": written,
                "fine-tunes": group[["domain", "seed"]].drop_duplicates().shape[0],
                "most that any layer moves, %": f"{100 * group.moved.max():.1f}",
                "rescaled, %": f"{100 * group.rescaled.max():.1f}",
                "of ‖T‖², explained by order, %": spread(100 * group.explained, 2),
            }
        )
    return pd.DataFrame(rows)


def trajectory(tables: Tables) -> pd.DataFrame:
    """The path of one training: a row a checkpoint, as trained and as published in bfloat16."""
    table = tables["trajectory"]
    table = table[table.step > 0]
    published = table[table.dtype == "bfloat16"].set_index(["model", "step"])
    barriers = tables["trajectory_barriers"].set_index(["model", "to"])
    rows = []
    for one in table[table.dtype == "float32"].itertuples():
        rounded, near = published.loc[one.model, one.step], barriers.loc[[(one.model, one.checkpoint)]].iloc[0]
        rows.append(
            {
                "model": one.model,
                "step": int(one.step),
                "‖T‖/‖θ‖, %": f"{100 * one.relative_norm:.3f}",
                "length / distance": f"{one.straightness:.2f}",
                "of a random walk": f"{one.straightness_walk:.2f}",
                "cosine with the last T": f"{one.cosine_last:.2f}",
                "length / distance in bfloat16": f"{rounded.straightness:.2f}",
                "barrier to the one before": interval(near.barrier, near.lo, near.hi),
            }
        )
    return pd.DataFrame(rows)


def starts(tables: Tables) -> pd.DataFrame:
    """LoRA whose frozen A lies in T's directions, outside of them, or at random; and what else was trained."""
    rows = []
    for one in tables["subspace"].itertuples():
        frozen = one.start in STARTS and one.start != "random"
        rows.append(
            {
                "model": one.model,
                "seed": one.seed,
                "A": f"{one.start}, frozen" if one.start in STARTS else one.start,
                "loss before": f"{one.before:.3f}",
                "after": f"{one.after:.3f}",
                "less that of random": interval(one.less_random, one.lo, one.hi) if frozen else "–",
            }
        )
    return pd.DataFrame(rows).sort_values(["model", "seed"], kind="stable")
