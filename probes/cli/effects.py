"""Effects and their checks, printed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tv.cli.terminal import Shown, print_table

if TYPE_CHECKING:
    import pandas as pd


def print_effects(effects: pd.DataFrame, top: int = 6) -> None:
    """The units with the largest effects, by model and method, in the domain where effects are largest."""
    from probes.attribution.effects import focus, units_in
    from probes.reporting.words import effect_metric_name

    shown = effects[
        (effects.control == "") & ~effects.method.isin(["mean", "synergy"]) & (effects.granularity != "all")
    ]
    cells: list[list[object]] = []
    for _, pair_effects in shown.dropna(subset="effect").groupby("tuned", sort=False):
        ways = pair_effects.groupby("method").direction.nunique()
        for (_, method, direction), family in pair_effects[pair_effects.domain == focus(pair_effects)].groupby(
            ["granularity", "method", "direction"], sort=False
        ):
            named = f"{method} {direction}" if ways[method] > 1 else method
            rows = family.loc[family.effect.abs().nlargest(top).index]
            for unit, row in zip(units_in(rows), rows.to_dict("records"), strict=True):
                names = (row["tuned"], row["domain"], named, str(unit))
                effect = Shown(row["effect"], f"{row['effect']:+.3f}")
                told = f"{row['lo_all']:+.3f} … {row['hi_all']:+.3f}" if row["lo_all"] == row["lo_all"] else "–"
                interval = Shown([row["lo_all"], row["hi_all"]], told)
                cells.append([*names, row["n"], effect, interval, row["q"], row["held_out"]])
    headings = ["tuned", "domain", "method", "unit", "n", "effect", "95 % interval of all", "q", "held out"]
    print_table(f"largest effects on {effect_metric_name(effects.metric.iloc[0])}", headings, cells)


def print_checks(checks: pd.DataFrame) -> None:
    """The checks of the effects over all prompts, and every check that fails."""
    from probes.store.schemas import ALL_DOMAINS

    cells: list[list[object]] = []
    for row in checks[(checks.domain == ALL_DOMAINS) | ~checks.holds].to_dict("records"):
        of = " ".join(part for part in (row["method"], row["check"]) if part)
        holds = "holds" if row["holds"] else "does not hold"
        cells.append([row["tuned"], row["domain"], of, row["value"], holds])
    print_table("checks", ["tuned", "domain", "check", "value", ""], cells)
