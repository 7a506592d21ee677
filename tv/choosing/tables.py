"""The tables of a repair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd

from tv.choosing.candidates import RANDOM, SCALING, reverted
from tv.choosing.crossfit import EACH, HALVES, Candidate, CrossFit, Half
from tv.choosing.shares import Share, difference, share
from tv.choosing.trial import Values
from tv.stats.means import mean_interval


def chosen_table(
    cross: CrossFit,
    choices: Mapping[str, Mapping[Half, Candidate]],
    random: Sequence[Values],
    curve: pd.DataFrame,
    keep_at_least: float,
) -> pd.DataFrame:
    """A row per method: what its choice kept and undid on the prompts that it had not seen.

    `undone_at` is read off the method's curve where it keeps what is asked, all on held-out prompts. Of random choices
    the median, with 5 % and 95 % of them as its ends.
    """
    rows = []
    plain = cross.held_out(_values(choices[SCALING]))
    for method, choice in choices.items():
        values = cross.held_out(_values(choice))
        kept, undone = cross.tested(values)
        row = {"method": method, **_row(kept, undone), "undone_at": _undone_at(curve, method, keep_at_least)}
        row |= {f"setting_{half}": choice[half].setting for half in EACH}
        if method != SCALING:
            clusters = cross.sets["restore"].clusters
            more, p = difference(values["restore"], plain["restore"], cross.damage, clusters)
            row |= {"more_undone": more.value, "more_undone_lo": more.lo, "more_undone_hi": more.hi, "p": p}
        rows.append(row)
    drawn = np.array([[part.value for part in cross.tested(values)] for values in random])
    middle, low, high = np.median(drawn, 0), np.quantile(drawn, 0.05, axis=0), np.quantile(drawn, 0.95, axis=0)
    kept, undone = (Share(*map(float, ends)) for ends in zip(middle, low, high, strict=True))
    rows.append({"method": RANDOM, **_row(kept, undone)})
    return pd.DataFrame(rows)


def curve_table(
    cross: CrossFit, candidates: Mapping[str, Sequence[Candidate]], random: Sequence[Values]
) -> pd.DataFrame:
    """Every point of every method on held-out prompts; `on_frontier`: none keeps and undoes as much, and one more."""
    rows = []
    for method, found in candidates.items():
        for one in found:
            rows.append({"method": method, "setting": one.setting, **_row(*cross.tested(cross.held_out(one.values)))})
    for draw, values in enumerate(random):
        rows.append({"method": RANDOM, "setting": float(draw), **_row(*cross.tested(values))})
    table = pd.DataFrame(rows)
    kept, undone = (table[name].to_numpy() for name in ("kept", "undone"))
    at_least = (kept[:, None] >= kept) & (undone[:, None] >= undone)
    better = (kept[:, None] > kept) | (undone[:, None] > undone)
    return table.assign(on_frontier=~(at_least & better).any(0))


def scales_table(cross: CrossFit, chosen: Mapping[Half, Candidate]) -> pd.DataFrame:
    """A row per unit that moves: its share of ‖T‖², what reverting it alone costs and undoes, and its λ."""
    rows = []
    keep, restore = (cross.sets[name].clusters for name in ("keep", "restore"))
    for i, unit in enumerate(cross.stands.division.units):
        if not cross.energy[i]:
            continue
        values = reverted(cross, i)
        cost = share(cross.full["keep"] - values["keep"], cross.gain, keep)
        undone = share(values["restore"] - cross.full["restore"], cross.damage, restore)
        row = {"layer": unit.layer, "part": unit.name, "share": float(cross.energy[i] / cross.energy.sum())}
        row |= dict(zip(("gain_lost", "gain_lost_lo", "gain_lost_hi"), cost, strict=True))
        row |= dict(zip(("undone", "undone_lo", "undone_hi"), undone, strict=True))
        row |= {f"scale_{half}": float(chosen[half].scales[half][i]) for half in HALVES}
        rows.append(row | {"scale": float(chosen["all"].scales["all"][i])})
    return pd.DataFrame(rows)


def before_table(cross: CrossFit) -> pd.DataFrame:
    """Gain and damage of the whole T in the metric's unit; a damage above 0 is one."""
    rows = []
    for name, change in (("keep", cross.gain), ("restore", cross.damage)):
        asked = cross.sets[name]
        found = mean_interval(change, asked.clusters)
        ends = {
            model: float((asked.sign * at[name]).mean()) for model, at in (("base", cross.none), ("tuned", cross.full))
        }
        row = {"set": name, "metric": asked.metric, "unit": asked.unit, "prompts": len(change)}
        row |= {"clusters": len(set(asked.clusters)), **ends}
        rows.append(row | {part: float(getattr(found, part)) for part in ("mean", "lo", "hi", "p")})
    return pd.DataFrame(rows).rename(columns={"mean": "change"})


def _undone_at(curve: pd.DataFrame, method: str, keep_at_least: float) -> float:
    """What the method undoes where its curve crosses the share of the gain that is asked; NaN where it does not."""
    points = curve[curve.method == method].sort_values("kept", ascending=False)
    found = float("nan")
    for (above, more), (below, less) in pairwise(zip(points.kept, points.undone, strict=True)):
        if above >= keep_at_least > below:
            found = more + (less - more) * (above - keep_at_least) / (above - below)
    return found


def _values(choice: Mapping[Half, Candidate]) -> dict[Half, Values]:
    return {half: one.values[half] for half, one in choice.items()}


def _row(kept: Share, undone: Share) -> dict[str, float]:
    names = ("kept", "kept_lo", "kept_hi"), ("undone", "undone_lo", "undone_hi")
    return {**dict(zip(names[0], kept, strict=True)), **dict(zip(names[1], undone, strict=True))}
