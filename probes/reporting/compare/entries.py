"""What is compared: every tuned model of every run under its own name, and the reasons not to compare."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd

from probes.errors import RunError
from probes.reporting.causes import shown_domain
from probes.reporting.evidence import Evidence, gather, rows_of
from probes.reporting.tables import pair_rows
from probes.reporting.words import effect_metric_name, listing
from probes.store.manifest import suite_name
from probes.store.run import Run, load

#: The fewest entries that show an order.
ORDERED = 3
_ASKED = "prompt_id domain text target foil continuation chat cluster"


@dataclass(frozen=True)
class Entry:
    """One tuned model of one run."""

    label: str
    run: Run
    evidence: Evidence
    prompts: pd.DataFrame  # by prompt_id: domain, cluster, and `same`, equal for prompts that ask the same

    @property
    def metric(self) -> str:
        """The metric of the effects; "" where none were measured."""
        return str(self.evidence.effects.metric.iloc[0]) if len(self.evidence.effects) else ""

    @cached_property
    def own_domain(self) -> str:
        """The domain whose metric changed most, whose causes are shown first."""
        return shown_domain(self.evidence.effects, self.evidence.behaviour)

    @property
    def base(self) -> str:
        """A short fingerprint of its base's content."""
        return str(self.fingerprint("base").get("content", "unknown"))[:12]

    def fingerprint(self, model: str) -> dict[str, Any]:
        """The fingerprint of a checkpoint, base or tuned; empty where the run has none."""
        fingerprint = self.run.manifest.get("checkpoints", {}).get(model, {}).get("fingerprint", {})
        return fingerprint if isinstance(fingerprint, dict) else {"content": fingerprint}


def entries_of(runs: Sequence[str | Path | Run], labels: Sequence[str] | None = None) -> list[Entry]:
    """The entries of the runs in the order given. Raises RunError for fewer than two, or labels that do not fit."""
    if isinstance(runs, str | Path | Run):
        runs = [runs]
    if labels is not None and len(labels) != len(runs):
        raise RunError(f"{len(labels)} labels for {len(runs)} runs; give one for each run, in the same order, or none")
    opened = [run if isinstance(run, Run) else load(run) for run in runs]
    pairs = [(i, tuned) for i, run in enumerate(opened) for tuned in run.manifest["suite"]["tuned"]]
    if len(pairs) < 2:
        held = f"{opened[0].path} holds one tuned model" if pairs else "no run was given"
        raise RunError(f"nothing to compare: {held}; pass a second run, or one with several tuned models")
    names = labels or [_name(run) for run in opened]
    shown = _distinct(_shown(pairs, list(names), labels is not None))
    asked = [_prompts(run) for run in opened]
    return [
        Entry(label, opened[i], gather(opened[i], tuned), asked[i])
        for label, (i, tuned) in zip(shown, pairs, strict=True)
    ]


def entry_rows(entries: Sequence[Entry]) -> list[dict[str, str]]:
    """What each entry is, as text: where its checkpoints come from, and what was asked of them."""
    rows = []
    for entry in entries:
        base, tuned = pair_rows(entry.run.manifest, entry.evidence.tuned)
        asked = {
            "label": entry.label,
            "suite": suite_name(entry.run.manifest),
            "base": base["content"],
            "layers": str(entry.evidence.n_layers),
            "prompts": str(len(entry.prompts)),
            "positions": positions_of(entry),
            "metric": effect_metric_name(entry.metric) or "–",
        }
        rows.append({**tuned, **asked})
    return rows


def cautions(entries: Sequence[Entry]) -> list[str]:
    """Why entries cannot be compared as they are, one sentence per reason; none where they can."""
    sentences = []
    for what, (value, consequence) in _SAME.items():
        groups: dict[Hashable, list[str]] = {}
        for entry in entries:
            groups.setdefault(value(entry), []).append(entry.label)
        if len(groups) > 1:
            parts = "; ".join(f"{key or 'none'} in {listing(names)}" for key, names in groups.items())
            sentences.append(f"{what}: {parts}. {consequence}")
    return sentences + _other_prompts(entries) + _twins(entries)


def laid(entries: Sequence[Entry], read: Callable[[Entry], pd.DataFrame]) -> pd.DataFrame:
    """The rows of all entries, with the label of each as `entry`; an entry without any has none."""
    tables = [rows.assign(entry=entry.label) for entry in entries if len(rows := read(entry))]
    return pd.concat(tables, ignore_index=True) if tables else read(entries[0]).assign(entry="")


def lacking(entries: Sequence[Entry], rows: pd.DataFrame) -> str:
    """Which entries have no row here, as a sentence to end a note with; nothing where all have."""
    missing = [entry.label for entry in entries if entry.label not in set(rows.entry)]
    return f" Not measured of {listing(missing)}." if missing else ""


def shared_prompts(entries: Sequence[Entry]) -> set[str]:
    """The prompts that all of the entries were asked, as `same`."""
    return set.intersection(*(set(entry.prompts.same) for entry in entries))


#: How a training names its checkpoints.
_STEP = re.compile(r"(?P<training>.*(?:checkpoint|step|epoch)[-_]?)(?P<step>\d+)/?", re.IGNORECASE)


def one_training(entries: Sequence[Entry]) -> bool:
    """Whether the entries are checkpoints of one training in their order: one base, one place, and rising numbers."""
    sources = [entry.run.manifest["checkpoints"].get(entry.evidence.tuned, {}).get("source", "") for entry in entries]
    found = [_STEP.fullmatch(str(source)) for source in sources]
    steps = [int(match["step"]) for match in found if match]
    places = {match["training"] for match in found if match}
    rising = all(first < then for first, then in pairwise(steps))
    return len(steps) == len(entries) and len(places) == len({entry.base for entry in entries}) == 1 and rising


def positions_of(entry: Entry) -> str:
    """The positions at which an entry was measured, as text."""
    suite = entry.run.manifest["suite"]
    return f"{suite.get('positions', 'all')}, ledger {suite.get('ledger_positions', 'target')}"


def _stored(entry: Entry) -> str:
    models = (entry.fingerprint(name) for name in ("base", entry.evidence.tuned))
    computed = (entry.run.manifest.get("computed") or {}).get("dtype") or "as stored"
    return f"{' and '.join(str(fingerprint.get('dtype', 'unknown')) for fingerprint in models)}, computed in {computed}"


def _architecture(entry: Entry) -> str:
    architecture = entry.run.manifest["architecture"]
    return (
        f"{architecture.get('name', 'unknown')} of {architecture['n_layers']} layers "
        f"and width {architecture.get('d_model', 'unknown')}"
    )


#: What should be the same in all entries, and what it means where it is not.
_SAME: dict[str, tuple[Callable[[Entry], Hashable], str]] = {
    "Not one base": (
        lambda entry: entry.base,
        "Each T starts from another place: changes are from different starting points, and norms, lifts and effects of "
        "the same size need not mean the same.",
    ),
    "Other architecture": (
        _architecture,
        "Models of unlike depth are laid over each other by relative depth, and effects of components that only one of "
        "them has are not correlated.",
    ),
    "Other positions": (
        positions_of,
        "Flips, contribution changes and the ledger are means over other tokens: no difference of them is taken.",
    ),
    "Other metric of the effects": (
        lambda entry: effect_metric_name(entry.metric),
        "Sizes of effects do not compare, and where less of one is better its signs are turned; their order may.",
    ),
    "Other precision": (
        _stored,
        "Flips and norms hold another share of rounding.",
    ),
    "Other backend": (
        lambda entry: entry.run.manifest["suite"].get("backend", "torch"),
        "Differences of rounding size may come from the capture.",
    ),
    "Other version of this program": (
        lambda entry: (entry.run.manifest.get("versions") or {}).get("tuning-probes", ""),
        "Look at the changes between them before you believe a small difference.",
    ),
}


def _other_prompts(entries: Sequence[Entry]) -> list[str]:
    shared, asked = shared_prompts(entries), {frozenset(entry.prompts.same) for entry in entries}
    if len(asked) == 1:
        return []
    counts = listing([f"{len(entry.prompts)} in {entry.label}" for entry in entries])
    return [
        f"Not the same prompts: {counts}, of which {len(shared)} are in all. Differences are over the prompts that two "
        "entries share; means are over each entry's own, and differ by the prompts alone."
    ]


def _twins(entries: Sequence[Entry]) -> list[str]:
    groups: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        contents = [str(entry.fingerprint(name).get("content", "")) for name in ("base", entry.evidence.tuned)]
        if all(contents):
            groups.setdefault((contents[0], contents[1]), []).append(entry.label)
    same = [listing(names) for names in groups.values() if len(names) > 1]
    return [f"The same two checkpoints: {names}. What differs between them is not the training." for names in same]


def _prompts(run: Run) -> pd.DataFrame:
    rows = rows_of(run, "prompts", _ASKED, []).set_index("prompt_id")
    asked = rows[["text", "target", "foil", "continuation", "chat"]].fillna("").astype(str)
    same = [json.dumps([name, *line]) for name, line in zip(asked.index, asked.to_numpy().tolist(), strict=True)]
    return rows[["domain", "cluster"]].fillna("").assign(same=same)


def _name(run: Run) -> str:
    """The last part of a run's path."""
    path = run.path.resolve() if isinstance(run.path, Path) else Path(str(run.path))
    return path.name or suite_name(run.manifest)


def _shown(pairs: Sequence[tuple[int, str]], names: Sequence[str], wanted: bool) -> list[str]:
    """The tuned models' names where they are unique and no labels are `wanted`; else with the runs' names."""
    tuned, held = [name for _, name in pairs], [i for i, _ in pairs]
    if not wanted and len(set(tuned)) == len(tuned):
        return tuned
    return [names[i] if held.count(i) == 1 else f"{names[i]}: {name}" for i, name in pairs]


def _distinct(labels: Sequence[str]) -> list[str]:
    distinct: list[str] = []
    for label in labels:
        name, count = label, 2
        while name in distinct:
            name, count = f"{label} ({count})", count + 1
        distinct.append(name)
    return distinct
