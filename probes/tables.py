"""Pieces of a batch, turned into rows of the run's tables and written shard by shard."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probes.gates import edit_distances, unpack
from probes.reduce import Piece, Places
from probes.store import RunWriter
from probes.suite import Suite
from tv.architecture import Architecture
from tv.prompts import Batch, positions

Columns = dict[str, NDArray[Any]]


@dataclass
class ShardTables:
    """Collects columns by table and layer; `flush` writes each as one shard, sorted by prompt."""

    writer: RunWriter
    suite: Suite
    tuned: str
    architecture: Architecture
    with_base: bool  # the base's own rows too
    parts: dict[tuple[str, int | None], list[Columns]] = field(default_factory=lambda: defaultdict(list))
    n_shards: int = 0

    def add(self, pieces: Sequence[Piece], tokens: Columns, answers: Columns, batch: Batch) -> None:
        """Take in one batch."""
        for piece in pieces:
            columns = self._columns(piece, batch)
            if piece.table != "changes" or "changes" in self.suite.measure:
                self.parts[piece.table, piece.layer].append(columns)
            if piece.table == "changes" and "contributions" in self.suite.measure:
                self.parts["contributions", piece.layer] += self._by_model(columns)
        self.parts["tokens", None].append(tokens | {"tuned": _constant(self.tuned, tokens)})
        if "behaviour" in self.suite.measure:
            keep = np.array([self.with_base or model != "base" for model in answers["model"]], dtype=bool)
            self.parts["behaviour", None].append({name: values[keep] for name, values in answers.items()})

    def flush(self) -> None:
        """Write what has come in since the last flush."""
        shard = f"{self.tuned}-{self.n_shards:05d}"
        for (table, layer), parts in self.parts.items():
            columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            keys = [columns[name] for name in ("head", "pos") if name in columns]
            order = np.lexsort([*keys, columns["prompt_id"].astype(str)])
            tuned = self.tuned if table in ("gates", "changes", "ledger") else None
            ordered = {name: values[order] for name, values in columns.items()}
            self.writer.write(table, ordered, shard=shard, tuned=tuned, layer=layer)
        self.parts.clear()
        self.n_shards += 1

    def _columns(self, piece: Piece, batch: Batch) -> Columns:
        values = {name: value.cpu().numpy() for name, value in piece.columns.items()}
        packed: Columns = {name: values.pop(name) for name in ("gate_base", "gate_xor") if name in values}
        n_heads = max((v.shape[1] for v in values.values() if v.ndim == 2), default=1)
        columns = located(batch, piece.places, n_heads)
        columns |= {name: _constant(label, columns) for name, label in piece.labels.items()}
        columns |= {name: value.reshape(-1) for name, value in values.items()}
        if piece.table == "changes":
            heads = np.arange(n_heads) if n_heads > 1 or values["norm_base"].ndim == 2 else np.array([-1])
            columns["head"] = np.tile(heads, len(columns["pos"]) // n_heads)
        if packed:
            columns |= self._edits(packed, piece, batch) | {"gated": _constant(self.architecture.gated, columns)}
            columns |= packed
        return columns

    def _edits(self, packed: Columns, piece: Piece, batch: Batch) -> Columns:
        """Edit distances where the suite asks for them, NaN elsewhere."""
        n = len(piece.places.pos)
        columns = {name: np.full(n, np.nan, np.float32) for name in ("edit_distance", "chance_edit_distance")}
        if self.suite.edit_distance != "none":
            chosen = [set(positions(item, self.suite.edit_distance)) for item in batch.encoded]
            places = zip(piece.places.row.tolist(), piece.places.pos.tolist(), strict=True)
            at = np.array([pos in chosen[row] for row, pos in places], dtype=bool)
            d_ff = self.architecture.module(piece.layer, "up").shape[0]
            base, xor = (unpack(packed[name][at], d_ff) for name in ("gate_base", "gate_xor"))
            columns["edit_distance"][at], columns["chance_edit_distance"][at] = edit_distances(
                base, base ^ xor, self.suite.seed
            )
        return columns

    def _by_model(self, changes: Columns) -> list[Columns]:
        """The same rows as `contributions`, one set a model."""
        models = [("base", "base")] * self.with_base + [(self.tuned, "tuned")]
        shared = ("prompt_id", "pos", "component", "head")
        return [
            {name: changes[name] for name in shared}
            | {"model": _constant(model, changes), "norm": changes[f"norm_{side}"], "dla": changes[f"dla_{side}"]}
            for model, side in models
        ]


def located(batch: Batch, places: Places, repeats: int = 1) -> Columns:
    """The id columns of rows at `places`, each `repeats` times."""
    ids = np.array([item.prompt.id for item in batch.encoded], dtype=object)
    return {
        "prompt_id": np.repeat(ids[places.row.numpy()], repeats),
        "pos": np.repeat(places.pos.numpy(), repeats),
    }


def _constant(value: object, like: Columns) -> NDArray[Any]:
    dtype = bool if isinstance(value, bool) else object
    return np.full(len(next(iter(like.values()))), value, dtype=dtype)
