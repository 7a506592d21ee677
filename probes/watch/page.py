"""The page of a watched training: rewritten while it runs, and reloaded by the browser."""

from __future__ import annotations

import html
import math
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from probes.errors import RunError
from probes.watch.charts import Line, chart, table
from probes.watch.store import Watched, load_watch
from tv.runtime.atomic import replacing

_STYLE = """
:root{color-scheme:light dark}
body{font:15px/1.45 system-ui,sans-serif;max-width:62rem;margin:1.5rem auto;padding:0 1rem}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(24rem,1fr));gap:1rem}
section{border:1px solid #8884;border-radius:6px;padding:.6rem .9rem}
h1{font-size:1.3rem}h2{font-size:1rem;margin:.2rem 0}svg{width:100%}svg text{font-size:11px;fill:currentColor}
.grid{stroke:#8884}.legend{font-size:.8rem;margin:.2rem 0}.legend span{margin-right:.9rem}
.legend i{display:inline-block;width:.7em;height:.7em;margin-right:.3em}.note{font-size:.85rem;opacity:.8}
table{border-collapse:collapse;font-size:.85rem}td,th{padding:.15rem .6rem;text-align:right;border-top:1px solid #8884}
td:first-child,th:first-child{text-align:left}
"""


def watch(path: str | Path, *, to: str | Path | None = None, every: float = 5.0, live: bool = True) -> Iterator[Path]:
    """Write the page of a watched training, again and again until training has ended.

    Args:
        path: The directory of a `probes.TrainingProbe`.
        to: The page; `watch.html` in that directory if not given.
        every: Seconds between two looks.
        live: Whether to go on; otherwise one page of what is there.

    Yields:
        The page's path, each time that it was written.

    Raises:
        RunError: No watched training is there, or the page cannot be written.
    """
    watched = load_watch(path)
    page = Path(to) if to is not None else watched.path / "watch.html"
    seen: tuple[int, bool] | None = None
    while True:
        ended = watched.ended
        steps = watched["steps"]
        if seen != (len(steps), ended):
            seen = (len(steps), ended)
            with replacing(page, RunError) as temporary:
                temporary.write_text(page_of(watched, every if live and not ended else None), encoding="utf-8")
            yield page
        if ended or not live:
            return
        time.sleep(every)


def page_of(watched: Watched, refresh: float | None = None) -> str:
    """The page as HTML; with `refresh`, the browser loads it again after so many seconds."""
    steps = watched["steps"]
    title = f"Training watched: {watched.path.name}"
    again = f'<meta http-equiv="refresh" content="{max(1, round(refresh))}">' if refresh is not None else ""
    sections = "".join(
        f"<section><h2>{html.escape(head)}</h2>{drawn}<p class='note'>{html.escape(note)}</p></section>"
        for head, drawn, note in _sections(watched, steps)
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">{again}<title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{html.escape(title)}</h1>"
        f"<p>{html.escape(_said(watched, steps))}</p><div class='charts'>{sections}</div></body></html>\n"
    )


def _said(watched: Watched, steps: pd.DataFrame) -> str:
    if not len(steps):
        return "Nothing is measured yet."
    last = steps.iloc[-1]
    cost = "" if math.isnan(last.share) else f", {100 * last.share:.1f} % of the training time"
    going = "Training has ended." if watched.ended else "Training runs, or was stopped."
    took = f"{len(steps)} measurements took {last.probe_seconds:.1f} s{cost}"
    return f"{going} Last measured after step {last.step:.0f}; {took}."


def _sections(watched: Watched, steps: pd.DataFrame) -> Iterator[tuple[str, str, str]]:
    """(heading, chart, what its null or floor is)."""
    if len(steps) and steps.loss.notna().any():
        yield "Training loss", chart([_line("loss", steps, "loss")], "nats"), "as the loop or the Trainer said last"
    behaviour = watched["behaviour"] if "behaviour" in watched.tables else pd.DataFrame()
    nulls = watched["nulls"] if "nulls" in watched.tables else None
    for metric, head, unit in _METRICS:
        of = behaviour[behaviour.metric == metric] if len(behaviour) else behaviour
        if len(of):
            names = list(dict.fromkeys(of.domain))
            names = names[1:] if len(names) > 2 else names[:1]
            lines = [_line(name, of[of.domain == name], "value", True) for name in names]
            yield head, chart(lines, unit), _of_null(metric, of, nulls)
    if len(behaviour):
        last = behaviour[behaviour.step == behaviour.step.max()]
        names = ["domain", "metric", "base", "value", "change", "change_lo", "change_hi", "floor", "said"]
        note = "mean over prompts, the change's 95 % interval over their clusters; p corrected over the domains (Holm)"
        yield "What changed by the last measurement", table(names, last[names].to_dict("records")), note
    weights = watched["weights"] if "weights" in watched.tables else pd.DataFrame()
    if len(weights):
        kinds = weights[(weights.module != "all") & ~weights.module.str.contains("norm|bias")]
        for column, head, note in _WEIGHTS:
            means = kinds.groupby(["module", "step"], sort=False)[column].mean().reset_index()
            lines = [_line(str(name), of, column) for name, of in means.groupby("module", sort=False)]
            yield head, chart(lines, column), note
        note = "of ‖T‖², what rounding in the training's dtype explains at most: near 1, T says nothing"
        yield "Noise share of T", chart([_line("all", weights[weights.module == "all"], "noise_share")], "share"), note
    cosines = watched["cosines"] if "cosines" in watched.tables else pd.DataFrame()
    whole = cosines[cosines.module == "all"] if len(cosines) else cosines
    if len(whole):
        lines = [_line(str(name), of, "cosine") for name, of in whole.groupby("vector", sort=False)]
        null = 3 * float(whole.cosine_null.max())
        note = (
            f"a T without direction stays within ± {null:.2g} (three standard deviations); tunes of one base share more"
        )
        yield "Cosine of T with named vectors", chart(lines, "cosine"), note
    flips = watched["flips"] if "flips" in watched.tables else pd.DataFrame()
    whole = flips[flips.layer == -2] if len(flips) else flips
    if len(whole):
        lines = [_line("flipped", whole, "flip_rate", True)]
        lines += [_line(name, whole, name, dashed=True) for name in ("chance_flip_rate", "floor")]
        note = "dashed: patterns with these active rates by chance, and the base with other rounding"
        yield "Gates that are not as in the base", chart(lines, "share of gates"), note


_METRICS = (
    ("kl", "KL(base ‖ tuned) by domain", "nats"),
    ("loss", "Loss on the prompts by domain", "nats a token"),
    ("exact_match", "Exact match by domain", "share of prompts"),
    ("logit_diff", "Logit difference by domain", "logits"),
)
_WEIGHTS = (
    ("relative_norm", "‖T‖/‖W‖ by module, mean over layers", "0 where nothing moved"),
    ("stable_rank", "Stable rank of T by module", "‖T‖²/‖T‖₂², mean over layers"),
    ("participation_ratio", "Participation ratio of T by module", "(Σσ²)²/Σσ⁴, mean over layers"),
)


def _of_null(metric: str, of: pd.DataFrame, nulls: pd.DataFrame | None) -> str:
    said = f"with other rounding the base itself changes by at most {of.floor.max():.2g}"
    if nulls is None:
        return said
    drawn = nulls[(nulls.metric == metric) & (nulls.domain == "all")]
    values = ", ".join(f"{value:.3g}" for value in drawn.value)
    return f"{said}; random T with the norms of the last one: {values} (all prompts)" if values else said


def _line(name: str, frame: pd.DataFrame, column: str, interval: bool = False, dashed: bool = False) -> Line:
    x, y = frame.step.astype(float).tolist(), frame[column].astype(float).tolist()
    lo, hi = (frame[end].astype(float).tolist() if interval else None for end in ("lo", "hi"))
    return Line(name, x, y, lo, hi, dashed)
