"""What rules are asked of: the tuned models of one run or of several, each under its own name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from probes.errors import RunError
from probes.store.run import Run, load
from probes.store.schemas import ALL_DOMAINS
from tv.stats.change import LEAST_FLOOR

BASE = "base"
_ASKED = ["text", "target", "foil", "continuation"]


@dataclass(frozen=True)
class Side:
    """A tuned model of a run."""

    label: str
    run: Run
    tuned: str

    @cached_property
    def prompts(self) -> pd.DataFrame:
        """By prompt_id: `domain`, `unit` (its cluster, or itself), and `same`, equal where the same is asked."""
        there = [name for name in ("domain", "cluster", *_ASKED) if name in self.run.table("prompts").columns]
        rows = self.run.df("prompts", columns=["prompt_id", *there]).set_index("prompt_id")
        rows = rows.reindex(columns=["domain", "cluster", *_ASKED]).fillna("").astype(str)
        unit = rows.cluster.where(rows.cluster != "", rows.index.to_series().astype(str))
        same = rows[_ASKED].agg("\x1f".join, axis=1) if len(rows) else rows.domain
        return rows[["domain"]].assign(unit=unit, same=rows.index.to_series().astype(str) + "\x1f" + same)

    @property
    def domains(self) -> list[str]:
        """Those of the prompts, and that of all of them."""
        return [ALL_DOMAINS, *dict.fromkeys(self.prompts.domain)]

    def of_domain(self, domain: str) -> pd.DataFrame:
        """The prompts of a domain."""
        return self.prompts if domain == ALL_DOMAINS else self.prompts[self.prompts.domain == domain]

    def rows(self, table: str, columns: Sequence[str], where: Sequence[tuple[str, str, Any]] = ()) -> pd.DataFrame:
        """Rows of this tuned model. Raises RunError where the run has no such table."""
        own = [("tuned", "==", self.tuned)] if "tuned" in self.run.table(table).columns else []
        return self.run.df(table, columns=list(columns), where=[*own, *where] or None)

    def behaviour(self, metric: str, model: str) -> pd.Series:
        """A metric of a model by prompt_id, without prompts that have none."""
        where = [("metric", "==", metric), ("model", "==", model)]
        return (
            self.run.df("behaviour", columns=["prompt_id", "value"], where=where).set_index("prompt_id").value.dropna()
        )

    def floor(self, metric: str, domain: str) -> float:
        """How far rounding alone moves the mean of a metric."""
        if "behaviour_floor" not in self.run.tables:
            return LEAST_FLOOR
        where = [("metric", "==", metric), ("domain", "==", domain)]
        floors = self.run.df("behaviour_floor", columns=["floor"], where=where).floor
        return max([LEAST_FLOOR, *floors.dropna().astype(float)])

    @property
    def unmoved(self) -> bool:
        """Whether base and tuned hold the same numbers: T = 0."""
        held = self.run.manifest.get("checkpoints", {})
        contents = [held.get(name, {}).get("fingerprint", {}).get("content") for name in (BASE, self.tuned)]
        return contents[0] is not None and contents[0] == contents[1]


def sides_of(runs: Sequence[str | Path | Run]) -> dict[str, Side]:
    """Every tuned model by its name; `RUN/NAME` where two runs use one name, and `RUN-2/NAME` where these are alike."""
    opened = [run if isinstance(run, Run) else load(run) for run in runs]
    if not opened:
        raise RunError("no run was given; pass what `probes run --out` wrote")
    pairs = [(i, name) for i, run in enumerate(opened) for name in run.manifest["suite"]["tuned"]]
    taken = [name for _, name in pairs]
    called: list[str] = []
    for run in opened:
        name = Path(str(run.path)).resolve().name
        called.append(name if name not in called else f"{name}-{len(called) + 1}")
    labels = [name if taken.count(name) == 1 else f"{called[i]}/{name}" for i, name in pairs]
    return {label: Side(label, opened[i], name) for label, (i, name) in zip(labels, pairs, strict=True)}
