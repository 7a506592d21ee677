"""The study's figures, as SVG: what the tables of answers say, where a table would be too long."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from studies.real_models.answers.moving import transfers
from studies.real_models.answers.shown import Tables, kinds
from studies.real_models.answers.weights import at_epsilon
from studies.real_models.predicting import interference
from studies.real_models.reading import ONE_STEP, RANDOM

#: Text stays text, and the same tables give the same file.
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "study",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
MODULES = ("q", "k", "v", "o", "gate", "up", "down")
BLUE, ORANGE, GREY, GREEN = "#1f5fa8", "#c8641a", "#8a8a8a", "#2d7d46"


def draw(tables: Tables, out: Path) -> None:
    """Write every figure to `out/NAME.svg`."""
    out.mkdir(parents=True, exist_ok=True)
    for name, figure in FIGURES.items():
        with mpl.rc_context(STYLE):
            figure(tables).savefig(out / f"{name}.svg", metadata={"Date": None}, bbox_inches="tight")


def ssa(tables: Tables) -> Figure:
    """SSA of full fine-tunes beside its null, by module: the left side above, the right side below."""
    at = at_epsilon(tables["alignment"])
    figure, axes = _panels(at.model, rows=2)
    for (model, column), side_row in _each(at.model, ("left", "right")):
        axis = axes[side_row][column]
        of = at[(at.model == model) & (at.side == ("left", "right")[side_row])]
        for i, module in enumerate(MODULES):
            here = of[of.module == module]
            tuned, random = here[here.kind == "full"], here[here.kind == RANDOM]
            null = tuned.ssa_null.mean()
            axis.plot([i - 0.3, i + 0.3], [null, null], color=GREY, label="null" if not i else None)
            axis.plot([i] * len(tuned), tuned.ssa, "o", ms=4, color=BLUE, label="fine-tunes" if not i else None)
            axis.plot([i] * len(random), random.ssa, "x", color=ORANGE, label="random T" if not i else None)
        axis.set_xticks(range(len(MODULES)), MODULES)
        axis.set_ylabel(f"SSA, {('output', 'input')[side_row]} side")
        axis.set_title(model if not side_row else "")
    axes[0][0].legend()
    return figure


def gates(tables: Tables) -> Figure:
    """Edit distance of gate patterns by layer, means over full fine-tunes."""
    table = kinds(tables["gates"])
    own = np.where(table.tuned.str.rpartition("-")[0] == table.domain, "own domain", "other domains")
    table = table.assign(line=np.where(table.kind.isin([RANDOM, ONE_STEP]), table.kind, own))
    table = table[table.kind != "lora"]
    figure, axes = _panels(table.model)
    colours = {"own domain": BLUE, "other domains": GREEN, RANDOM: ORANGE, ONE_STEP: GREY}
    for (model, column), _ in _each(table.model):
        axis, of = axes[0][column], table[table.model == model]
        for line, colour in colours.items():
            by_layer = of[of.line == line].groupby("layer").edit_distance.mean()
            axis.plot(by_layer.index, by_layer, color=colour, label=line.replace("random", "random T"))
        chance = of.groupby("layer").chance_edit_distance.mean()
        axis.plot(chance.index, chance, ":", color="black", label="chance")
        axis.set(title=model, xlabel="layer", ylabel="edit distance of gates", yscale="log")
    axes[0][-1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def ledger(tables: Tables) -> Figure:
    """The new share on data less its null, by module: full fine-tunes on every domain of prompts, and a random T."""
    table = kinds(tables["ledger"])
    table = table[table.module.isin(MODULES)]
    figure, axes = _panels(table.model)
    for (model, column), _ in _each(table.model):
        axis, of = axes[0][column], table[table.model == model]
        for i, module in enumerate(MODULES):
            for kind, colour, shift, label in (("full", BLUE, -0.12, "fine-tunes"), (RANDOM, ORANGE, 0.12, "random T")):
                values = of[(of.module == module) & (of.kind == kind)].new_share_above_null
                axis.plot([i + shift] * len(values), values, ".", ms=4, color=colour, label=label if not i else None)
        axis.axhline(0, color=GREY, lw=0.8)
        axis.set_xticks(range(len(MODULES)), MODULES)
        axis.set(title=model, ylabel="new share less its null")
    axes[0][0].legend()
    return figure


def causes(tables: Tables) -> Figure:
    """The share of the change in loss that path gives each type of matrix, beside its share of ‖T‖²."""
    table = tables["by_type"]
    table = table[table.module.isin(MODULES)]
    figure, axes = _panels(table.model)
    for (model, column), _ in _each(table.model):
        axis, of = axes[0][column], table[table.model == model]
        for i, module in enumerate(MODULES):
            here = of[of.module == module]
            axis.plot([i - 0.12] * len(here), 100 * here.share, "o", ms=4, color=BLUE, label=_once("of the change", i))
            axis.plot([i + 0.12] * len(here), 100 * here.share_of_norm, "x", color=GREY, label=_once("of ‖T‖²", i))
        axis.axhline(0, color=GREY, lw=0.8)
        axis.set_xticks(range(len(MODULES)), MODULES)
        axis.set(title=model, ylabel="share, %")
    axes[0][0].legend()
    return figure


def negation(tables: Tables) -> Figure:
    """What each task's first metric is as λT, or λ times a random vector, is taken from the tuned model."""
    table = tables["negation"]
    table = table[table.metric == table.groupby("task").metric.transform("first")]
    tunes = list(table.groupby(["model", "domain"], sort=False).groups)
    tasks = ["own loss", "general-loss", "own choice", "pubmedqa", "svamp-choice", "mmlu", "ifeval"]
    named = table.assign(
        task=np.select(
            [table.task == table.domain + f"-{kind}" for kind in ("loss", "choice")], tasks[:3:2], table.task
        )
    )
    figure = Figure(figsize=(1.9 * len(tasks), 1.9 * len(tunes)), layout="constrained")
    axes = figure.subplots(len(tunes), len(tasks), squeeze=False)
    for row, (model, domain) in enumerate(tunes):
        for column, task in enumerate(tasks):
            axis = axes[row][column]
            of = named[(named.model == model) & (named.domain == domain) & (named.task == task)]
            for vector, colour in (("T", BLUE), ("random", ORANGE)):
                line = of[of.vector == vector].sort_values("scale")
                axis.fill_between(
                    line.scale, line.lo.astype(float), line.hi.astype(float), color=colour, alpha=0.15, lw=0
                )
                axis.plot(line.scale, line.value, color=colour, label=vector.replace("random", "random vector"))
            axis.set_visible(len(of) > 0)
            axis.set_title(task if not row or not axes[row - 1][column].get_visible() else "", fontsize=9)
            axis.set_xlabel("λ" if row == len(tunes) - 1 else "")
        axes[row][0].set_ylabel(f"{model}\n{domain}")
    axes[0][0].legend(fontsize=7)
    return figure


def transfer(tables: Tables) -> Figure:
    """The change in loss, nats a token, of every fine-tune on every domain's texts."""
    means = {method: transfers(tables, method) for method in ("full", "lora")}
    figure, axes = _panels(means["full"].model, rows=2)
    for (model, column), row in _each(means["full"].model, ("full", "lora")):
        method = ("full", "lora")[row]
        of = means[method][means[method].model == model]
        if of.empty:
            axes[row][column].set_visible(False)
            continue
        grid = of.pivot(index="domain", columns="text", values="change").loc[of.domain.unique(), of.domain.unique()]
        _grid(axes[row][column], grid, f"{model}, {method}")
    return figure


def together(tables: Tables) -> Figure:
    """What adding another fine-tune does to a loss, beside the cosine of both T: a point an ordered pair."""
    found = interference(tables["sums"], tables["pairs"], tables["transfer"])
    figure, axes = _panels(found.model)
    for (model, column), _ in _each(found.model):
        axis, of = axes[0][column], found[found.model == model]
        for seed, group in of.groupby("seed"):
            axis.plot(
                group.cosine, group.interference, "o+sx"[seed % 4], color=(BLUE, GREEN)[seed % 2], label=f"seed {seed}"
            )
        axis.plot(of.cosine, of.control, ".", ms=3, color=ORANGE, label="a random vector in its place")
        axis.axhline(0, color=GREY, lw=0.8)
        axis.set(title=model, xlabel="cosine of both T", ylabel="change in loss, nats a token")
    axes[0][0].legend(fontsize=7)
    return figure


def lines(tables: Tables) -> Figure:
    """The loss along θ + αT, less the base's."""
    path = tables["path"]
    path = path[(path.written == "as trained") & (path.start == "base") & (path.metric == "loss")]
    figure, axes = _panels(path.model)
    for (model, column), _ in _each(path.model):
        axis = axes[0][column]
        for domain, line in path[path.model == model].groupby("domain", sort=False):
            axis.plot(line.alpha, line.value - line.value[line.alpha == 0].iloc[0], ".-", label=domain)
        axis.axvline(1, color=GREY, lw=0.8)
        axis.set(title=model, xlabel="α", ylabel="change in loss, nats a token")
    axes[0][0].legend(fontsize=7)
    return figure


FIGURES: Mapping[str, Callable[[Tables], Figure]] = {
    **{"ssa": ssa, "gates": gates, "ledger": ledger, "causes": causes, "negation": negation},
    **{"transfer": transfer, "together": together, "lines": lines},
}


def _panels(models: pd.Series, rows: int = 1) -> tuple[Figure, Any]:
    """A column of panels for each model."""
    n = models.nunique()
    figure = Figure(figsize=(5 * n, 3 * rows), layout="constrained")
    return figure, figure.subplots(rows, n, squeeze=False)


def _each(models: pd.Series, rows: tuple[str, ...] = ("",)) -> list[tuple[tuple[str, int], int]]:
    """((model, its column), row) of every panel."""
    return [((model, i), row) for i, model in enumerate(models.unique()) for row in range(len(rows))]


def _once(label: str, i: int) -> str | None:
    return None if i else label


def _grid(axis: Any, grid: pd.DataFrame, title: str) -> None:
    """A matrix with its numbers; blue is a lower loss."""
    top = np.abs(grid.to_numpy()).max() or 1.0
    axis.imshow(grid, cmap="RdBu_r", vmin=-top, vmax=top)
    for i, j in np.ndindex(grid.shape):
        value = grid.iloc[i, j]
        axis.text(j, i, f"{value:.2f}".replace("-", "−"), ha="center", va="center", fontsize=7)
    axis.set_xticks(range(grid.shape[1]), grid.columns, rotation=30, ha="right")
    axis.set_yticks(range(grid.shape[0]), grid.index)
    axis.set(title=title, xlabel="texts of", ylabel="tuned on")
