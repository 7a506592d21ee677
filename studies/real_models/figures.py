"""The study's figures, as SVG: what the tables of answers say, where a table would be too long."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from studies.real_models.answers.moving import added, transfers
from studies.real_models.answers.shown import MODULES, Tables, first_metrics, kinds, own_domain
from studies.real_models.answers.weights import at_epsilon
from studies.real_models.reading import ONE_STEP, RANDOM
from studies.real_models.texts import FILES

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
BLUE, ORANGE, GREY, GREEN = "#1f5fa8", "#c8641a", "#8a8a8a", "#2d7d46"


def draw(tables: Tables, out: Path) -> None:
    """Write every figure to `out/NAME.svg`."""
    out.mkdir(parents=True, exist_ok=True)
    for name, figure in FIGURES.items():
        with mpl.rc_context(STYLE):
            figure(tables).savefig(out / f"{name}.svg", metadata={"Date": None}, bbox_inches="tight")


def ssa(tables: Tables) -> Figure:
    """SSA of full fine-tunes beside its null, by module: the output side above, the input side below."""
    at = at_epsilon(tables["alignment"])
    figure, axes = _panels(at.model, rows=2)
    for row, (side, said) in enumerate((("left", "output"), ("right", "input"))):
        for axis, (model, of) in zip(axes[row], at[at.side == side].groupby("model", sort=False), strict=True):
            for i, module in enumerate(MODULES):
                here = of[of.module == module]
                tuned, random = here[here.kind == "full"], here[here.kind == RANDOM]
                null = tuned.ssa_null.mean()
                axis.plot([i - 0.3, i + 0.3], [null, null], color=GREY, label=_once("null", i))
                axis.plot([i] * len(tuned), tuned.ssa, "o", ms=4, color=BLUE, label=_once("fine-tunes", i))
                axis.plot([i] * len(random), random.ssa, "x", color=ORANGE, label=_once("random T", i))
            axis.set_xticks(range(len(MODULES)), MODULES)
            axis.set(title="" if row else model, ylabel=f"SSA, {said} side")
    axes[0][0].legend()
    return figure


def gates(tables: Tables) -> Figure:
    """Edit distance of gate patterns by layer, means over full fine-tunes."""
    table = kinds(tables["gates"])
    table = table[table.kind != "lora"]
    own = np.where(own_domain(table), "own domain", "other domains")
    table = table.assign(line=np.where(table.kind.isin([RANDOM, ONE_STEP]), table.kind, own))
    figure, axes = _panels(table.model)
    colours = {"own domain": BLUE, "other domains": GREEN, RANDOM: ORANGE, ONE_STEP: GREY}
    for axis, (model, of) in zip(axes[0], table.groupby("model", sort=False), strict=True):
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

    def of(kind: str) -> Callable[[pd.DataFrame], pd.Series]:
        return lambda here: here[here.kind == kind].new_share_above_null

    marks = (("fine-tunes", ".", BLUE, of("full")), ("random T", ".", ORANGE, of(RANDOM)))
    return _by_module(kinds(tables["ledger"]), "new share less its null", marks)


def causes(tables: Tables) -> Figure:
    """The share of the change in loss that path gives each type of matrix, beside its share of ‖T‖²."""
    marks = (
        ("of the change", "o", BLUE, lambda here: 100 * here.share),
        ("of ‖T‖²", "x", GREY, lambda here: 100 * here.share_of_norm),
    )
    return _by_module(tables["by_type"], "share, %", marks)


def negation(tables: Tables) -> Figure:
    """What each task's first metric is as λT, or λ times a random vector, is taken from the tuned model."""
    table = first_metrics(tables["negation"])
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
    models = means["full"].model
    figure, axes = _panels(models, rows=2)
    for row, (method, mean) in enumerate(means.items()):
        for axis, model in zip(axes[row], models.unique(), strict=True):
            of = mean[mean.model == model]
            axis.set_visible(len(of) > 0)
            if len(of):
                order = of.domain.unique()
                grid = of.pivot(index="domain", columns="text", values="change").loc[order, order]
                _grid(axis, grid, f"{model}, {method}")
    return figure


def together(tables: Tables) -> Figure:
    """What adding another fine-tune does to a loss, beside the cosine of both T: a point an ordered pair."""
    found = added(tables)
    figure, axes = _panels(found.model)
    for axis, (model, of) in zip(axes[0], found.groupby("model", sort=False), strict=True):
        for seed, group in of.groupby("seed"):
            mark, colour = "o+sx"[seed % 4], (BLUE, GREEN)[seed % 2]
            axis.plot(group.cosine, group.interference, mark, color=colour, label=f"seed {seed}")
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
    for axis, (model, of) in zip(axes[0], path.groupby("model", sort=False), strict=True):
        for domain, line in of.groupby("domain", sort=False):
            change, colour = line.value - line.value[line.alpha == 0].iloc[0], f"C{[*FILES].index(domain)}"
            axis.plot(line.alpha, change, ".-", color=colour, label=domain)
        axis.axvline(1, color=GREY, lw=0.8)
        axis.set(title=model, xlabel="α", ylabel="change in loss, nats a token")
        axis.legend(fontsize=7)
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


#: A label, a mark, its colour, and the values that it stands for among the rows of a type of matrix.
Mark = tuple[str, str, str, Callable[[pd.DataFrame], pd.Series]]


def _by_module(table: pd.DataFrame, ylabel: str, marks: Sequence[Mark]) -> Figure:
    """Two marks side by side at every type of matrix, one a row of the table."""
    figure, axes = _panels(table.model)
    for axis, (model, of) in zip(axes[0], table.groupby("model", sort=False), strict=True):
        for i, module in enumerate(MODULES):
            for (label, mark, colour, values_of), shift in zip(marks, (-0.12, 0.12), strict=True):
                values = values_of(of[of.module == module])
                axis.plot([i + shift] * len(values), values, mark, ms=4, color=colour, label=_once(label, i))
        axis.axhline(0, color=GREY, lw=0.8)
        axis.set_xticks(range(len(MODULES)), MODULES)
        axis.set(title=model, ylabel=ylabel)
    axes[0][0].legend()
    return figure


def _once(label: str, i: int) -> str | None:
    return None if i else label


def _grid(axis: Any, grid: pd.DataFrame, title: str) -> None:
    """A matrix with its numbers; blue is a lower loss."""
    top = np.abs(grid.to_numpy()).max() or 1.0
    axis.imshow(grid, cmap="RdBu_r", vmin=-top, vmax=top)
    for i, j in np.ndindex(grid.shape):
        value = grid.iloc[i, j]
        colour = "white" if abs(value) > 0.7 * top else "black"
        axis.text(j, i, f"{value:.2f}".replace("-", "−"), ha="center", va="center", fontsize=7, color=colour)
    axis.set_xticks(range(grid.shape[1]), grid.columns, rotation=30, ha="right")
    axis.set_yticks(range(grid.shape[0]), grid.index)
    axis.set(title=title, xlabel="texts of", ylabel="tuned on")
