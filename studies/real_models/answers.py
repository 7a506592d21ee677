"""What the study's tables say to each question, as tables for readers."""

from __future__ import annotations

import numpy as np
import pandas as pd

from studies.real_models.reading import ONE_STEP, RANDOM

#: The source's rule: a share of the spectrum that 5 % of the norm is left out of.
EPSILON = 0.05

Tables = dict[str, pd.DataFrame]


def similarity(tables: Tables) -> pd.DataFrame:
    """How far whole models moved, and what of that bfloat16 keeps: a row a model and method, ranges over fine-tunes."""
    weights = tables["weights"]
    weights = weights.assign(
        energy=weights.delta_norm**2, size=weights.weight_norm**2, kept=weights.changed_fraction_bf16 * weights.numbers,
        noise=weights.noise_share * weights.delta_norm**2,
    )  # fmt: skip
    rows = []
    for (model, kind), group in _kinds(weights).groupby(["model", "kind"], sort=False):
        sums = group.groupby(["tuned", "seed"])[["energy", "size", "kept", "numbers", "noise"]].sum()
        rows.append(
            {
                "model": model,
                "tuned": kind,
                "fine-tunes": len(sums),
                "‖T‖/‖W‖, %": _range(100 * np.sqrt(sums.energy / sums["size"])),
                "lowest cosine of a matrix": f"{group.cosine.min():.5f}",
                "numbers that differ in bfloat16, %": _range(100 * sums.kept / sums.numbers),
                "of ‖T‖², explained by rounding, %": _range(100 * sums.noise / sums.energy),
            }
        )
    return pd.DataFrame(rows)


def subspaces(tables: Tables) -> pd.DataFrame:
    """SSA at the source's ε beside its null, and κ; a row a model, module and side, means over full fine-tunes."""
    at = _at_epsilon(tables["alignment"])
    rows = []
    for (model, module, side), group in at[at.kind == "full"].groupby(["model", "module", "side"], sort=False):
        if side == "two_sided":
            continue
        random = at[(at.kind == RANDOM) & (at.model == model) & (at.module == module) & (at.side == side)]
        rows.append(
            {
                "model": model,
                "module": module,
                "side": side,
                "SSA": f"{group.ssa.mean():.3f}",
                "null": f"{group.ssa_null.mean():.3f}",
                "random T": f"{random.ssa.mean():.3f}",
                "κ": _range(group.kappa, 3),
                "layers above / below the null": f"{group.above.sum()} / {group.below.sum()} of {group.layers.sum()}",
            }
        )
    return pd.DataFrame(rows)


def orderings(tables: Tables) -> pd.DataFrame:
    """The source's ordering of modules by SSA, and what is left of it once the null is taken off."""
    at = _at_epsilon(tables["alignment"])
    left = at[(at.side == "left") & at.module.isin(["q", "k", "v", "o", "gate", "up", "down"])]
    rows = []
    for model, group in left.groupby("model", sort=False):
        of_tuned = group[group.kind == "full"].groupby("module")[["ssa", "ssa_null", "kappa"]].mean()
        row: dict[str, object] = {"model": model}
        for said, column in (("by SSA", "ssa"), ("by its null", "ssa_null"), ("by κ", "kappa")):
            row[said] = " > ".join(of_tuned[column].sort_values(ascending=False).index)
        row["ρ of SSA and null"] = f"{of_tuned.ssa.corr(of_tuned.ssa_null, method='spearman'):.2f}"
        row["ρ of κ and SSA"] = f"{of_tuned.kappa.corr(of_tuned.ssa, method='spearman'):.2f}"
        rows.append(row)
    return pd.DataFrame(rows)


def gates(tables: Tables) -> pd.DataFrame:
    """Gate patterns on a fine-tune's own domain and on others', beside chance, random T and one step."""
    table = _kinds(tables["gates"])
    own = np.where(table.tuned.str.rpartition("-")[0] == table.domain, "own domain", "other domains")
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
                "edit distance": _range(by_tune.edit_distance, 3),
                "chance": f"{by_tune.chance_edit_distance.mean():.3f}",
                "gates that flip, %": _range(100 * by_tune.flip_rate, 2),
                "flips by bfloat16 alone, %": f"{100 * floor[model]:.2f}",
            }
        )
    return pd.DataFrame(rows)


def new_directions(tables: Tables) -> pd.DataFrame:
    """The share of T x outside the pretrained output directions, on data: a row a model and module type."""
    ledger = _kinds(tables["ledger"])
    ledger = ledger[ledger.new_share.notna() & ledger.module.isin(["q", "k", "v", "o", "gate", "up", "down"])]
    rows = []
    for (model, module), group in ledger[ledger.kind == "full"].groupby(["model", "module"], sort=False):
        random = ledger[(ledger.kind == RANDOM) & (ledger.model == model) & (ledger.module == module)]
        clear = (group.new_share_above_null_lo > 0).sum(), (group.new_share_above_null_hi < 0).sum()
        rows.append(
            {
                "model": model,
                "module": module,
                "new share": _range(group.new_share, 3),
                "null": f"{group.new_share_null.mean():.3f}",
                "random T": f"{random.new_share.mean():.3f}",
                "a multiple of W": f"{group.new_share_of_w.mean():.3f}",
                "above / below the null": f"{clear[0]} / {clear[1]} of {len(group)}",
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
        row = {"model": model, "tuned on": of, "change, nats a token": f"{group.effect.sum():.3f}"}
        for part in ("attention", "MLP", "embedding and norms"):
            row[f"{part}: of the change / of ‖T‖², %"] = (
                f"{100 * sums.share[part]:.0f} / {100 * sums.share_of_norm[part]:.0f}"
            )
        rows.append(row | {"path is off by, %": f"{100 * completeness[model, of]:.2f}"})
    return pd.DataFrame(rows)


def searches(tables: Tables) -> pd.DataFrame:
    """The words that a discovery is sure of, in any of its parts, and the claims that held on the other texts."""
    words, rows = tables["words"], []
    for (model, of), group in words.groupby(["model", "of"], sort=False):
        sure = group[group.stands_out.astype(bool)].sort_values(["part", "rank"])
        listed = list(dict.fromkeys(f"`{token.strip()}`" for token in sure.token.astype(str) if token.strip()))
        counts = tables["searches"].query("model == @model and of == @of").stand_out
        held = tables["claims"].query("model == @model and of == @of").holds.astype(bool) if "claims" in tables else []
        rows.append(
            {
                "model": model,
                "tuned on": of,
                "words that stand out": int(counts.sum()),
                "the first": ", ".join(listed[:8]) or "none",
                "claims that hold": int(sum(held)),
            }
        )
    return pd.DataFrame(rows)


def estimates(tables: Tables) -> pd.DataFrame:
    """What the program said beforehand against what its runs took."""
    took = tables["forecasts"].dropna(subset="cpu_estimate")  # not what was resumed
    ratio = took.cpu / took.cpu_estimate
    return pd.DataFrame(
        {
            "run": took.stage,
            "CPU seconds": took.cpu.round(),
            "said before": took.cpu_estimate.round(),
            "ratio": ratio.round(2),
        }
    )


def markdown(table: pd.DataFrame) -> str:
    """A table as Markdown."""
    lines = [list(table.columns), ["---"] * len(table.columns), *table.astype(str).to_numpy().tolist()]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _kinds(table: pd.DataFrame) -> pd.DataFrame:
    """With the column `kind`: full, lora, or the null that it is."""
    kind = table.tuned.where(table.tuned.isin([RANDOM, ONE_STEP]), table.tuned.str.rpartition("-")[2])
    return table.assign(kind=kind)


def _at_epsilon(alignment: pd.DataFrame) -> pd.DataFrame:
    return _kinds(alignment[(alignment.k_rule == "tail") & (alignment.level == EPSILON)])


def _range(values: pd.Series, digits: int = 3) -> str:
    """The median, and the range where there are several."""
    middle = f"{values.median():.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ({values.min():.{digits}f}–{values.max():.{digits}f})"
