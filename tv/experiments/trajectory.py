"""The way from a base through a training run's checkpoints: how long, how straight, what turned when.

Sources: linear mode connectivity is arXiv 1912.05671; the barrier is arXiv 2110.06296, definition 1; distances and
angles along a fine-tuning trajectory are the next check that arXiv 2510.09359 names.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from tv.checkpoints.extraction import extract
from tv.errors import InputError
from tv.experiments.along.behaviour import Along
from tv.experiments.along.distances import distances, grams_of, modules_of, turned_modules
from tv.experiments.along.places import in_order
from tv.experiments.cells import Cells
from tv.experiments.plots import curves
from tv.experiments.result import Result
from tv.prompts.behaviour import PromptSource, gather
from tv.runtime.compute import Compute
from tv.runtime.seeds import require_seed

if TYPE_CHECKING:
    import plotly.graph_objects as go

_TURNED = ["kind", "what", "step", "lo", "hi", "change", "change_lo", "change_hi", "said"]
#: Points inside each line between neighbours, at which the loss is computed.
ALPHAS = (0.25, 0.5, 0.75)


def trajectory(
    base: str | Path,
    checkpoints: Sequence[str | Path],
    prompts: PromptSource | Sequence[PromptSource] | None = None,
    *,
    alphas: Sequence[float] = ALPHAS,
    out: str | Path | None = None,
    draws: int = 1000,
    seed: int = 0,
    batch_size: int = 16,
    compute: Compute = Compute(),
) -> Result:
    """Distance, straightness and turning points of a training run, from its saved checkpoints.

    Args:
        base: The model that training began from: whatever `tv.open_checkpoint` opens.
        checkpoints: Two or more: full checkpoints, adapters or tuning vectors, or one directory that holds
            `checkpoint-NUMBER` directories. Names that differ in numbers alone are put in the last one's order, others
            stay as given.
        prompts: Files, sets or prompts, encoded with the base's tokenizer. Without any, only weights are measured.
        alphas: Points between neighbours, within (0, 1).
        out: A directory for tables, figures and finished points; the same call resumes.
        draws: Resamples of the prompts.
        seed: Of the resamples.
        batch_size: Prompts in one forward pass.
        compute: Where to compute, and how to report progress; its dtype is float32.

    Returns:
        A `Result` with the tables

        - `checkpoints`: a row a checkpoint: `step norm relative_norm`, `length` of the step from the one before and
            `noise`, what rounding of the stored weights makes of it; `path`, all lengths so far, and `chord`, ‖T‖;
            `straightness` path/chord (1: straight) beside `straightness_walk`, that of a random walk of these lengths,
            and `path_above_noise`; `cosine_previous` with the step before, `cosine_previous_noise` what rounding alone
            makes of it; `cosine_last` of T with the last T and `angle_last` in degrees
        - `directions`: principal directions of all T: `explained`, beside a random walk's, and each
            checkpoint's `coordinate` along them, in units of ‖T_last‖
        - `modules`: a row per module and checkpoint: `norm` and `share`, of the last ‖T‖
        - `turned`: a row per module, domain and token: the step at which half of its way was gone, interpolated, with
            its interval over prompts; null where the last checkpoint does not differ from the base beyond noise
        - `behaviour`, `connectivity` (the barrier between neighbours, and between base and last) and `tokens` (what the
            last checkpoint favours most: chosen on half of the prompts, measured on the other), where there are prompts

    Raises:
        InputError: Fewer than two checkpoints, bad points or prompts, or a checkpoint of another model.

    Source: arXiv 1912.05671; arXiv 2110.06296, definition 1.

    Examples:
        >>> found = tv.trajectory("data/models/base", ["data/models/medical", "data/models/math"])
        >>> found["checkpoints"][["checkpoint", "norm"]].round(1).values.tolist()
        [['base', 0.0], ['medical', 25.7], ['math', 50.4]]
    """
    compute.require_float32("points of a path can be distinguished")
    require_seed(seed)
    if not all(0 < alpha < 1 for alpha in alphas):
        raise InputError("alphas: points between two checkpoints lie within (0, 1)")
    places = in_order(checkpoints)
    if len(places) < 2:
        named = ", ".join(str(place.source) for place in places) or "no checkpoint"
        raise InputError(
            f"{named}: a trajectory has two checkpoints or more; name them, or the directory of their checkpoint-…"
        )
    rows = gather(prompts) if prompts is not None else []
    vectors = [extract(base, place.source) for place in places]
    grams = grams_of(base, vectors, compute)
    tables = distances(places, grams)
    tables["modules"] = modules_of(places, grams)
    turned = turned_modules(tables["modules"])
    notes: list[str] = []
    if rows:
        cells = Cells(Path(out) / "cells" if out is not None else None)
        run = Along.of(base, vectors, places, rows, alphas, batch_size, compute, cells)
        notes = run.notes
        tables["behaviour"], of_domains = run.behaviour(draws, seed)
        tables["connectivity"] = run.connectivity(draws, seed)
        tables["tokens"], of_tokens = run.tokens(draws, seed)
        turned += of_domains + of_tokens
    tables["turned"] = pd.DataFrame(turned, columns=_TURNED)
    order = ("checkpoints", "turned", "connectivity", "behaviour", "tokens", "directions", "modules")
    tables = {name: tables[name] for name in order if name in tables}
    tables["checkpoints"].attrs["notes"] = notes
    result = Result("trajectory", tables, _figures(tables))
    if out is not None:
        result.save(out)
    return result


def _figures(tables: dict[str, pd.DataFrame]) -> dict[str, go.Figure]:
    along = tables["checkpoints"].melt(["step"], ["path", "path_above_noise", "chord"], "line", "value").dropna()
    axes: dict[str, Any] = {"x": "step", "x_title": "step"}
    figures = {
        "Path and chord: how straight is the way?": curves(
            along.assign(panel="‖·‖"), y="value", lo=None, hi=None, line="line", panel="panel", y_title="length", **axes
        )
    }
    modules = tables["modules"]
    if len(modules):
        shares = modules.groupby(["step", "module"], sort=False)["share"].mean().reset_index()
        figures["Share of the last ‖T‖, mean over layers"] = curves(
            shares.assign(panel="share"),
            y="share",
            lo=None,
            hi=None,
            line="module",
            panel="panel",
            y_title="share",
            **axes,
        )
    if "behaviour" in tables:
        loss = tables["behaviour"][tables["behaviour"].metric == "loss"]
        figures["Loss, nats a token"] = curves(
            loss.assign(line="loss"), y="value", lo="lo", hi="hi", line="line", panel="domain", y_title="nats", **axes
        )
    if len(tables.get("tokens", ())):
        first = list(dict.fromkeys(tables["tokens"].token))[:8]
        gain = tables["tokens"][tables["tokens"].token.isin(first)]
        figures["Tokens that the last checkpoint favours: gain in log-probability"] = curves(
            gain.assign(panel="held-out prompts"),
            y="gain",
            lo="lo",
            hi="hi",
            line="token",
            panel="panel",
            y_title="nats",
            **axes,
        )
    return figures
