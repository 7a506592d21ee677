"""Effects, their checks and a run's verdict, printed."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from tv.cli.terminal import Shown, print_table, remark, say, speaks_json

if TYPE_CHECKING:
    import pandas as pd

    from probes.store.run import Run


def print_verdict(run: Run) -> None:
    """The verdict on every tuned model, its largest effects, and checks that fail; a program gets every table."""
    from probes.errors import RunError
    from probes.reporting.words import prompts_of

    try:
        verdicts = run.verdict
    except RunError as error:  # of a run that is older, or whose tables were added to
        return remark(f"note: {error}")
    cells: list[list[object]] = []
    for name, verdict in verdicts.items():
        say(f"base → {name}")
        for line in str(verdict).splitlines():
            say(line)
        for one in verdict.largest:
            ends = Shown([one.lo, one.hi], f"{one.lo:+.3f} … {one.hi:+.3f}")
            size = Shown(one.effect, f"{one.effect:+.3f}")
            cells.append([name, one.component, one.method, f"{one.metric}, {prompts_of(one.domain)}", size, ends])
    if cells:
        headings = ["tuned", "component", "method", "on", "effect", "95 % interval of all"]
        print_table("largest effects of single components that are clear of 0", headings, cells)
    elif "effects" in run.tables:
        say("No effect of a single component is clear of 0.")
    if "effects" in run.tables and speaks_json():
        print_effects(run["effects"])
    if "checks" in run.tables and (speaks_json() or not run["checks"].holds.all()):
        print_checks(run["checks"])


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


def tell_next(path: str) -> None:
    """What to do after a command that changed tables which the report was made of."""
    remark(f"next: probes report {shlex.quote(path)}  (its report and verdict are of the tables before)")


def print_checks(checks: pd.DataFrame) -> None:
    """The checks of the effects over all prompts, and every check that fails."""
    from probes.store.schemas import ALL_DOMAINS

    cells: list[list[object]] = []
    for row in checks[(checks.domain == ALL_DOMAINS) | ~checks.holds].to_dict("records"):
        of = " ".join(part for part in (row["method"], row["check"]) if part)
        holds = "holds" if row["holds"] else "does not hold"
        cells.append([row["tuned"], row["domain"], of, row["value"], holds])
    print_table("checks", ["tuned", "domain", "check", "value", ""], cells)
