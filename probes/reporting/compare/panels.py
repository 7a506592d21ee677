"""The weights and activations of several entries, laid side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from probes.reporting import figures
from probes.reporting.alignment import fixed_fraction
from probes.reporting.compare import charts
from probes.reporting.compare.entries import Entry, lacking, laid
from probes.reporting.evidence import MODULES, rows_of
from probes.reporting.figures import Plot
from probes.reporting.panels import Figure, Panel
from probes.reporting.words import percent, prompts_of

#: Said of maps that stand beside each other.
SCALE = "An entry a map, one scale for all of them."
SHARE = {"tickformat": ".0%", "rangemode": "tozero"}
_FROM_ZERO = {"rangemode": "tozero"}


def weight_panels(entries: Sequence[Entry]) -> list[Panel]:
    """How far each module moved, and alignment beyond chance at the fixed fraction."""
    moved = _modules(laid(entries, lambda entry: entry.evidence.weights))
    fixed = _modules(laid(entries, lambda entry: fixed_fraction(entry.evidence.alignment))).assign(chance=1.0)
    cuts = {
        "relative norm ‖T‖/‖W‖": (moved, "relative_norm"),
        "lift at 10 %, output side": (fixed[fixed.side == "left"], "lift"),
        "lift at 10 %, input side": (fixed[fixed.side == "right"], "lift"),
    }
    cuts = {name: cut for name, cut in cuts.items() if len(cut[0])}
    if not cuts:
        return []
    names, depths, maps = [], [], []
    for title, (rows, value) in cuts.items():
        level = "chance" if value == "lift" else ""
        names.append(_by_module(entries, rows, value, title, level, _FROM_ZERO))
        depths.append(charts.by_depth(rows, value, layers_of(entries), title=title, level=level, axis=_FROM_ZERO))
        maps.append(side_by_side(entries, rows, value, "module", MODULES, ratio=value == "lift"))
    note = (
        "Lift is the energy of T in the leading 10 % of W's directions over what a T with no preferred direction would "
        "put there: 1 is chance, whatever the shape of the matrix." + lacking(entries, moved if len(moved) else fixed)
    )
    found = [
        Figure("weights-by-module", "By module, mean over layers", names),
        Figure("weights-by-depth", "By depth, mean over modules", depths),
    ]
    return [
        Panel("How far each module moved, and along what", note, found, list(cuts), "measure"),
        Panel("Layer × module", SCALE, as_figures("weights-map", entries, maps), list(cuts), "measure"),
    ]


def activation_panels(entries: Sequence[Entry]) -> list[Panel]:
    """Gate flips, contribution changes and the lens by depth; the ledger by module."""
    panels = [_flips(entries), _changes(entries), _ledger(entries), _lens(entries)]
    return [panel for panel in panels if panel is not None]


def _flips(entries: Sequence[Entry]) -> Panel | None:
    flips = laid(entries, lambda entry: entry.evidence.flips)
    if flips.empty:
        return None
    cuts = _by_domain(flips)
    lines = [
        charts.by_depth(
            rows, "flip_rate", layers_of(entries), title="share of neurons", level="chance_flip_rate", axis=SHARE
        )
        for rows in cuts.values()
    ]
    floors = laid(entries, lambda entry: entry.evidence.noise_floor)
    rounding = f" Rounding alone flips {percent(floors.flip_rate.mean())}." if len(floors) else ""
    note = (
        "Neurons whose gate is open in one model and shut in the other; dotted: unrelated patterns of the same "
        f"activity, one line for entries of one depth.{rounding}{lacking(entries, flips)}"
    )
    return Panel("Gate flips", note, [Figure("flips", "", lines)], list(cuts), "prompts", wide=True)


def _changes(entries: Sequence[Entry]) -> Panel | None:
    changes = laid(entries, lambda entry: entry.evidence.changes)
    if changes.empty:
        return None
    found = [
        Figure(
            f"change-{component}",
            f"{component}: relative change ‖Δ‖/‖base‖",
            [charts.by_depth(rows, "relative_change", layers_of(entries), title="‖Δ‖/‖base‖", axis=_FROM_ZERO)],
        )
        for component in ("attn", "mlp")
        if len(rows := changes[changes.component == component])
    ]
    note = (
        "What each component adds to the residual stream, tuned against base, mean over prompts; its own doing or what "
        "came in with its input." + lacking(entries, changes)
    )
    return Panel("Contribution change", note, found)


def _ledger(entries: Sequence[Entry]) -> Panel | None:
    ledger = _modules(laid(entries, lambda entry: entry.evidence.ledger))
    if ledger.empty:
        return None
    rows = ledger.assign(ten=0.9)
    cuts = {
        "new: outside the leading 10 % of output directions": ("new_share_10", "ten"),
        "amplified: inside the leading 10 %": ("amplified_10", "ten_inside"),
        "new: outside the ε = 0.05 subspace": ("new_share", "new_share_null"),
        "own doing: the direct term's share of the change": ("direct", ""),
    }
    rows = rows.assign(amplified_10=1 - rows.new_share_10.astype(float), ten_inside=0.1)
    cuts = {name: cut for name, cut in cuts.items() if rows[cut[0]].notna().any()}
    names, depths = [], []
    for value, level in cuts.values():
        known = rows.dropna(subset=[value])
        names.append(_by_module(entries, known, value, "share of squared norm", level, {"tickformat": ".0%"}))
        depths.append(
            charts.by_depth(known, value, layers_of(entries), title="share", level=level, axis={"tickformat": ".0%"})
        )
    note = (
        "Of what each module's own weights add to its output (T x), the share in directions that the pretrained module "
        "hardly wrote, beside its null; and how much of the whole change that is. New means more than the null, not "
        "more than half." + lacking(entries, ledger)
    )
    found = [
        Figure("ledger-by-module", "By module, mean over layers", names),
        Figure("ledger-by-depth", "By depth, mean over modules", depths),
    ]
    return Panel("Ledger: new directions, or more of the old?", note, found, list(cuts), "share")


def _lens(entries: Sequence[Entry]) -> Panel | None:
    lens = laid(entries, _lens_of)
    if lens.empty:
        return None
    cuts = _by_domain(lens)
    titles = {
        "prob_tuned": ("Probability of the target in the tuned model", "probability"),
        "kl": ("Distance of the two models", "KL(base ‖ tuned), nats"),
    }
    found = [
        Figure(
            f"lens-{value}",
            title,
            [
                charts.by_depth(
                    rows,
                    value,
                    layers_of(entries),
                    title=unit,
                    level="prob_base" if value == "prob_tuned" else "",
                    beside="base",
                    axis=_FROM_ZERO,
                )
                for rows in cuts.values()
            ],
        )
        for value, (title, unit) in titles.items()
    ]
    note = (
        "Each layer's residual stream read through its own model's final norm and unembedding, at the place before the "
        "target." + lacking(entries, lens)
    )
    return Panel("Logit lens", note, found, list(cuts), "prompts")


def _lens_of(entry: Entry) -> pd.DataFrame:
    own = [("tuned", "==", entry.evidence.tuned)]
    lens = rows_of(entry.run, "lens", "prompt_id layer prob_base prob_tuned kl", own).dropna(subset=["prob_tuned"])
    domains = lens.prompt_id.map(entry.prompts.domain).rename("domain")
    values = ["prob_base", "prob_tuned", "kl"]
    return lens.groupby([domains, "layer"], sort=False)[values].mean().reset_index() if len(lens) else lens


def labels_of(entries: Sequence[Entry]) -> list[str]:
    """What the entries are called, in their order."""
    return [entry.label for entry in entries]


def layers_of(entries: Sequence[Entry]) -> dict[str, int]:
    """How many blocks each entry has, by its label."""
    return {entry.label: entry.evidence.n_layers for entry in entries}


def side_by_side(
    entries: Sequence[Entry],
    rows: pd.DataFrame,
    value: str,
    column: str,
    order: Sequence[str],
    *,
    ratio: bool = False,
    **look: Any,
) -> list[Plot]:
    """A layer × `column` map an entry, all of them on one scale."""
    known = rows[value].astype(float).dropna()
    reach = figures.reach(known) if ratio else float(known.abs().max()) if len(known) else 0.0
    by_entry = dict(list(rows.groupby("entry")))
    return [
        figures.heatmap(
            by_entry[entry.label],
            value,
            column,
            order,
            entry.evidence.n_layers,
            ratio=ratio,
            reach=reach or None,
            **look,
        )
        if entry.label in by_entry
        else charts.nothing()
        for entry in entries
    ]


def as_figures(key: str, entries: Sequence[Entry], maps: Sequence[Sequence[Plot]]) -> list[Figure]:
    """A figure an entry, out of the maps of every choice."""
    return [Figure(f"{key}-{i}", entry.label, [cut[i] for cut in maps]) for i, entry in enumerate(entries)]


def _by_module(
    entries: Sequence[Entry], rows: pd.DataFrame, value: str, title: str, level: str, axis: dict[str, Any]
) -> Plot:
    order = [name for name in MODULES if name in set(rows.module)]
    means = rows.groupby(["entry", "module"], sort=False)[value].mean().reset_index()
    means = means.sort_values("module", key=lambda names: names.map(order.index), kind="stable")
    chance = rows.groupby("module")[level].mean().to_dict() if level else None
    return charts.by_name(means, value, "module", labels_of(entries), title=title, level=chance, axis=axis)


def _by_domain(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The mean over domains, then the rows of each, by what the prompts are called."""
    values = [name for name in rows.select_dtypes("number") if name != "layer"]
    means = rows.groupby(["entry", "layer"], sort=False)[values].mean().reset_index()
    domains = {prompts_of(str(domain)): own for domain, own in rows.groupby("domain", sort=False)}
    return {"mean over domains": means, **domains} if len(domains) > 1 else domains


def _modules(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows.module.isin(MODULES)]
