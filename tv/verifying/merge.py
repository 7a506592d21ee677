"""Whether a merged file is base + ΔW, parameter by parameter, and what it is where it is not."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from tv.checkpoints.adapters.live import base_beside
from tv.checkpoints.checkpoint import Checkpoint
from tv.checkpoints.config_differences import config_differences
from tv.checkpoints.opening import Source, open_checkpoint
from tv.checkpoints.pairing import of_two_forms
from tv.checkpoints.tokenizers import compare_tokenizers
from tv.errors import CheckpointError
from tv.runtime.compute import Progress
from tv.verifying.evidence import Evidence, detectable, dot, matched
from tv.verifying.naming import (
    ABSENT,
    ADDED,
    BESIDE,
    BROKEN,
    EQUAL,
    GOOD,
    OTHER_BASE,
    ROUNDED,
    SETTINGS,
    SHAPED,
    SWALLOWED,
    TOUCHED,
    Named,
    named,
)
from tv.verifying.replays import Replay, replays

_SKETCHED = 4096  # entries of a ΔW that stand for it where another one is looked for
_ALIKE = 0.2  # the cosine of two such samples from which the whole is compared


@dataclass(frozen=True)
class Row:
    """One parameter, or one expert of it, in the table of `Verified`."""

    parameter: str
    expert: int  # −1 where it has none
    verdict: str  # a word of tv/verifying/naming.py
    scale: float  # of ΔW in the file; NaN where none is expected, or the dtype swallows it
    scale_error: float
    detectable: float  # the smallest |scale − 1| that would be seen; infinite where none would
    delta_norm: float  # of the ΔW that is expected
    seen_norm: float  # of file − base
    off: float  # the share of entries that differ from the replay
    ulps: float  # by how much, at most
    replay: str
    said: str


@dataclass(frozen=True)
class Verified:
    """What `tv.verify` found.

    Attributes:
        table: A row per parameter (per expert of a stacked one), worst first: `parameter expert verdict scale
            scale_error detectable delta_norm seen_norm off ulps replay said`. What concerns the whole model, such as a
            setting, is a row too.
        passes: Whether all of it is base + ΔW up to rounding; None where the file's dtype cannot tell.
        said: The verdict in sentences.
        notes: What a reader should know of the three sources.

    Examples:
        >>> medical = tv.extract("data/models/base", "data/models/medical")
        >>> tv.verify("data/models/base", medical, "data/models/medical").passes
        True
    """

    table: pd.DataFrame
    passes: bool | None
    said: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def faults(self) -> pd.DataFrame:
        """The rows that are not base + ΔW."""
        return self.table[~self.table.verdict.isin(list(GOOD))]


def verify(base: Source, change: Source, merged: Source, *, progress: Progress | None = None) -> Verified:
    """Check that a merged model is its base plus ΔW, and name what it is where it is not.

    Every parameter is compared with W + ΔW as it would be stored: replayed in the ways in which merges are made, bit
    for bit. Where bits differ, the scale at which ΔW is there is estimated with the error that rounding leaves it, and
    the rest is looked at.

    Args:
        base: The pretrained model: whatever `tv.open_checkpoint` opens.
        change: What was merged: an adapter, a tuning vector, or a tuned model, whose difference from `base` is ΔW.
        merged: The file to check.
        progress: Called after every parameter.

    Returns:
        A verdict per parameter and one on the whole.

    Raises:
        CheckpointError: A source cannot be read, the change is not of this base, or the merged file is of another
            architecture.

    Examples:
        >>> verified = tv.verify("data/models/base", "data/models/medical", "data/models/base")
        >>> verified.passes, sorted(set(verified.faults.verdict))
        (False, ['missing'])
    """
    sides = _opened(base, change, merged)
    left, moved, right = sides
    notes = [note for side in sides for note in side.notes]
    rows = list(_of_model(left, moved, right))
    work = _Work(left, moved, right, _scales_of(change))
    parts = list(work.parts())
    for i, (name, expert) in enumerate(parts):
        rows.append(work.row(name, expert))
        if progress is not None:
            progress("verify", i + 1, len(parts), name)
    rows = _of_other_base(rows, left, right)
    table = pd.DataFrame([asdict(row) for row in sorted(rows, key=_rank)], columns=list(Row.__annotations__))
    passes = _passes(rows)
    try:
        notes += compare_tokenizers(left, right)[1]
    except CheckpointError as error:
        notes.append(f"{error}")
    return Verified(table, passes, tuple(_sentences(rows, passes, right)), tuple(dict.fromkeys(notes)))


def _opened(base: Source, change: Source, merged: Source) -> tuple[Checkpoint, Checkpoint, Checkpoint]:
    left = open_checkpoint(base_beside(base, change))
    moved = open_checkpoint(change, base=left)
    right = open_checkpoint(merged, base=left)
    for side in (moved, right):
        for of, here, there in (
            ("", left.architecture.name, side.architecture.name),
            *((f"{size} ", getattr(left.architecture, size), getattr(side.architecture, size)) for size in _SIZES),
        ):
            if here != there:
                raise CheckpointError(
                    f"{side.source}: {of}{there}, but the base {left.source} is {of}{here}; it cannot have been made "
                    "of it"
                )
    if of_two_forms([left, moved, right]):
        left, moved, right = left.untied(), moved.untied(), right.untied()
    return left, moved, right


_SIZES = ("n_layers", "n_heads", "n_kv_heads", "d_head")


def _of_model(left: Checkpoint, moved: Checkpoint, right: Checkpoint) -> Iterator[Row]:
    """Rows on the model as a whole, and on parameters that only one side has."""
    for said in config_differences(left.settings, right.settings):
        if "tie_word_embeddings" not in said:
            yield _bare("config.json", SETTINGS, said.replace(": more changed than weights", ""))
    expected = {*left.values, *left.beside, *moved.values}
    for name in left.values:
        if name not in right.values:
            yield _bare(name, ABSENT, "the base has it, and the file has not")
    for name in (*right.values, *right.beside):
        if name not in expected:
            yield _bare(name, ADDED, "the file has it, and the base has not")


def _bare(name: str, word: str, said: str) -> Row:
    nothing = math.nan
    return Row(name, -1, word, nothing, nothing, nothing, nothing, nothing, nothing, nothing, "", said)


class _Work:
    """The three sides, and what has been learnt of how the file was made."""

    def __init__(self, base: Checkpoint, moved: Checkpoint, merged: Checkpoint, scales: dict[float, str]) -> None:
        self.base, self.moved, self.merged, self.scales = base, moved, merged, scales
        self.movable = set(moved.moved) if moved.base is not None else set(moved.values)
        self.usual = Counter[Replay]()
        self._sketches: dict[tuple[int, ...], list[tuple[str, int, Tensor]]] | None = None

    def parts(self) -> Iterator[tuple[str, int]]:
        """(parameter, expert) of all that both sides hold; −1 for a whole parameter."""
        for name in self.base.values:
            if name in self.merged.values:
                shape = self.base.info(name).shape
                yield from ((name, index) for index in (range(shape[0]) if len(shape) > 2 else range(-1, 0)))

    def row(self, name: str, expert: int) -> Row:
        """What one parameter is."""
        shapes = [side.info(name).shape for side in (self.base, self.moved, self.merged)]
        if shapes[1] != shapes[2] and not (expert < 0 and shapes[0] and shapes[0][1:] == shapes[2][1:]):
            return _bare(name, SHAPED, f"the file has shape {list(shapes[2])}, expected is {list(shapes[1])}")
        weight = self.base.read(name, expert)
        try:
            stored = self.merged.read(name, expert)
        except CheckpointError as error:
            if "NaN or Inf" not in str(error):
                raise
            return _bare(name, BROKEN, "it holds NaN or Inf")
        delta = self._delta(name, expert)
        rows = min(len(side) for side in (weight, stored)) if weight.ndim else None
        if rows is not None:
            if shapes[1] != shapes[2]:
                return _bare(name, SHAPED, f"the file has {shapes[2][0]} rows, expected are {shapes[1][0]}")
            added = self.moved.read(name)[rows:] if len(stored) > rows else None
            if added is not None and not torch.equal(added.to(stored.dtype), stored[rows:]):
                return _bare(name, TOUCHED, f"its {len(added)} added rows are not those of {self.moved.source}")
            weight, stored = weight[:rows], stored[:rows]
            delta = None if delta is None else delta[:rows]
        words = self.base.info(name).dtype, self.merged.info(name).dtype
        evidence = matched(weight, delta, stored, self._ways(*words, moved=delta is not None))
        if not evidence.match.off:
            self.usual[evidence.match.replay] += 1
        found = named(evidence, *words, self.scales, lambda: self._alike(evidence, name, expert))
        return _row(name, expert, evidence, found)

    def _delta(self, name: str, expert: int) -> Tensor | None:
        if name not in self.movable or name not in self.moved.values:
            return None
        delta = self.moved.delta(name, self.base, expert)
        return delta if bool(delta.any()) else None

    def _ways(self, base: str, merged: str, *, moved: bool) -> list[Replay]:
        """Those that fitted most parameters so far come first."""
        return sorted(replays(base, merged, moved=moved), key=lambda way: -self.usual[way])

    def _alike(self, evidence: Evidence, name: str, expert: int) -> Iterator[tuple[str, Tensor]]:
        """The ΔW of other parameters of the shape that what is seen resembles."""
        if self._sketches is None:
            self._sketches = {}
            for other, index in self.parts():
                delta = self._delta(other, index)
                if delta is not None:
                    self._sketches.setdefault(tuple(delta.shape), []).append((other, index, _sketch(delta)))
        seen = _sketch(evidence.seen)
        for other, index, sketch in self._sketches.get(tuple(evidence.seen.shape), []):
            norms = float(seen.norm() * sketch.norm())
            if (other, index) != (name, expert) and norms and float(seen.dot(sketch)) > _ALIKE * norms:
                delta = self._delta(other, index)
                if delta is not None:
                    yield other + (f", expert {index}" if index >= 0 else ""), delta


def _sketch(delta: Tensor) -> Tensor:
    """Entries at fixed places, spread so that they meet all rows and columns."""
    n = delta.numel()
    places = torch.linspace(0, n - 1, min(n, _SKETCHED), dtype=torch.float64).long()
    return delta.flatten()[places].double()


def _row(name: str, expert: int, evidence: Evidence, found: Named) -> Row:
    known = None if evidence.delta is None else evidence.scale
    return Row(
        parameter=name,
        expert=expert,
        verdict=found.word,
        scale=math.nan if known is None else known.value,
        scale_error=math.nan if known is None else known.error,
        detectable=math.nan if known is None else detectable(evidence),
        delta_norm=evidence.norm,
        seen_norm=dot(evidence.seen, evidence.seen) ** 0.5,
        off=evidence.match.share,
        ulps=evidence.match.ulps,
        replay=str(evidence.match.replay),
        said=found.said,
    )


def _of_other_base(rows: list[Row], left: Checkpoint, right: Checkpoint) -> list[Row]:
    """The rows, in which changes that most matrices share are said to be another base's."""
    matrices = [row for row in rows if row.replay and len(left.info(row.parameter).shape) > 1]
    touched = sum(row.verdict in (TOUCHED, BESIDE) for row in matrices)
    if not matrices or touched <= 0.5 * len(matrices):
        return rows
    said = f"; so it is in {touched} of {len(matrices)} matrices: not of {left.source}"
    return [
        Row(**{**asdict(row), "verdict": OTHER_BASE, "said": row.said + said})
        if row.verdict in (TOUCHED, BESIDE)
        else row
        for row in rows
    ]


def _passes(rows: Iterable[Row]) -> bool | None:
    words = Counter(row.verdict for row in rows)
    if any(word not in GOOD for word in words):
        return False
    moved = [row for row in rows if row.delta_norm > 0]
    return True if any(row.verdict != SWALLOWED for row in moved) else None


def _rank(row: Row) -> tuple[object, ...]:
    """Worst first: faults by the size of what is wrong beside what was expected, then what rounding hides most of."""
    beyond = abs(row.seen_norm - row.delta_norm) / max(row.delta_norm, 1e-12) if row.replay else math.inf
    blind = row.detectable if row.detectable == row.detectable else -1.0
    return row.verdict in GOOD, row.verdict == EQUAL, row.verdict == ROUNDED, -blind, -beyond, row.parameter, row.expert


def _sentences(rows: list[Row], passes: bool | None, merged: Checkpoint) -> Iterator[str]:
    moved = [row for row in rows if row.delta_norm > 0]
    still = [row for row in rows if row.replay and not row.delta_norm > 0]
    if passes is None and not moved:
        yield f"cannot tell: ΔW is zero everywhere, so {merged.source} can only be the base's own values, and it is"
    elif passes is None:
        yield f"cannot tell: {merged.dtype} swallows all of ΔW, so {merged.source} with and without it is one file"
    elif passes:
        yield f"{merged.source} is base + ΔW"
    else:
        yield f"{merged.source} is not base + ΔW: {_counted(row for row in rows if row.verdict not in GOOD)}"
    for of, what in ((moved, "with a ΔW"), (still, "without")):
        if of:
            exact = Counter(row.replay for row in of if row.verdict in (EQUAL, SWALLOWED))
            how = f" ({exact.most_common(1)[0][0]})" if exact else ""
            rounded = sum(row.verdict == ROUNDED for row in of)
            more = f", {rounded} up to rounding" if rounded else ""
            yield f"{len(of)} parameters {what}: {exact.total()} bit for bit{how}{more}"
    limits = sorted(row.detectable for row in moved if row.verdict in GOOD)
    if limits:
        blind = sum(map(math.isinf, limits))
        seen = [limit for limit in limits if not math.isinf(limit)]
        if seen:
            yield (
                f"a scale of ΔW that is off by {_percent(seen[len(seen) // 2])} would be seen in half of the modules, "
                f"by {_percent(seen[-1])} in {'all' if not blind else f'all but {blind}'}"
            )


def _counted(rows: Iterable[Row]) -> str:
    return ", ".join(f"{n} {word}" for word, n in Counter(row.verdict for row in rows).most_common())


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 else f"{100 * share:.1g} %"


def _scales_of(change: Any) -> dict[float, str]:
    """What a wrong scale of an adapter's ΔW would come from, by its value."""
    try:
        config = json.loads((Path(change) / "adapter_config.json").read_text(encoding="utf-8"))
        rank, alpha, root = int(config["r"]), float(config["lora_alpha"]), bool(config.get("use_rslora"))
        scaling = alpha / (math.sqrt(rank) if root else rank)
    except (OSError, ValueError, TypeError, KeyError, ArithmeticError):
        return {}
    own, other = ("α/√r", "α/r") if root else ("α/r", "α/√r")
    ratio = 1 / math.sqrt(rank) if root else math.sqrt(rank)
    known = {
        ratio: f"{other} was taken instead of {own} (rank {rank}; rsLoRA's scaling is α/√r)",
        1 / scaling: f"the scaling {own} = {scaling:.4g} was left out",
        scaling: f"the scaling {own} = {scaling:.4g} was applied twice",
        alpha / scaling: f"α = {alpha:.4g} was taken instead of {own} = {scaling:.4g}",
    }
    return {value: why for value, why in known.items() if abs(value - 1) > 1e-3}
