"""Runs of a few tables, made by hand: what their numbers are is known."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

import probes
from probes.store.schemas import SCHEMA_VERSION, SCHEMAS

DOMAINS = ("general", "medical")


def written(
    path: Path,
    worse: Mapping[str, float],
    *,
    n: int = 40,
    spread: float = 0.1,
    seed: int = 0,
    tuned: str = "tuned",
    contents: tuple[str, str] = ("a", "b"),
) -> probes.Run:
    """A run in which the target NLL of each domain is worse by so much, give or take, and one answer in ten turned."""
    rng = np.random.default_rng(seed)
    ids = [f"{domain}-{i}" for domain in DOMAINS for i in range(n)]
    prompts = pd.DataFrame({"prompt_id": ids, "domain": [name.rpartition("-")[0] for name in ids]})
    prompts = prompts.assign(set="s", text=ids, target=" yes", foil=" no", cluster=None, answer_pos=1)
    before = rng.normal(2, 0.5, len(ids))
    moved = np.array([worse[domain] for domain in prompts.domain])
    moved = moved + np.concatenate([_noise(rng, n, spread) for _ in DOMAINS]) if moved.any() else moved
    values = {
        ("base", "target_nll"): before,
        (tuned, "target_nll"): before + moved,
        ("base", "exact_match"): np.ones(len(ids)),
        (tuned, "exact_match"): (np.arange(len(ids)) % 10 > 0).astype(float),
        ("base", "logit_diff"): np.full(len(ids), 2.0),
        (tuned, "logit_diff"): rng.normal(2, 1, len(ids)),
    }
    behaviour = [
        pd.DataFrame({"prompt_id": ids, "model": model, "metric": metric, "value": value})
        for (model, metric), value in values.items()
    ]
    path.mkdir(parents=True)
    held = {
        name: {"fingerprint": {"content": content}} for name, content in zip(("base", tuned), contents, strict=True)
    }
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "tables": {},
        "suite": {"name": "made", "tuned": {tuned: "b"}, "base": "a"},
        "checkpoints": held,
    }
    (path / "manifest.json").write_text(json.dumps(manifest))
    run = probes.load(path)
    put(run, "prompts", prompts)
    put(run, "behaviour", pd.concat(behaviour))
    kl = {"tuned": tuned, "prompt_id": ids * 2, "pos": [0] * len(ids) + [1] * len(ids), "kl": [9.0] * len(ids)}
    kl |= {
        "role": ["template"] * len(ids) + ["user"] * len(ids),
        "kl": kl["kl"] + list(rng.exponential(0.05, len(ids))),
    }
    put(run, "tokens", pd.DataFrame(kl))
    weights = {"layer": [-1, 0, 1], "module": ["embed", "q", "q"], "delta_norm": [1.0, 2.0, 2.0], "weight_norm": 10.0}
    put(run, "weights", pd.DataFrame({"tuned": tuned, "head": -1, "expert": -1, "tied": False, **weights}))
    checks = {"check": ["no_op", "completeness"], "method": ["patch", "path"], "domain": "all", "metric": "logit_diff"}
    put(
        run,
        "checks",
        pd.DataFrame({"tuned": tuned, **checks, "value": [0, 0.2], "bound": 0.01, "holds": [True, False]}),
    )
    return probes.load(path)


def put(run: probes.Run, table: str, rows: pd.DataFrame) -> None:
    """Add a table; what the rows do not say is null."""
    run.add(table, rows.reindex(columns=SCHEMAS[table].names))


def _noise(rng: np.random.Generator, n: int, spread: float) -> np.ndarray:
    noise = rng.normal(size=n)
    return spread * (noise - noise.mean()) / noise.std()
