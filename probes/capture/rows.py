"""Pieces of a batch, turned into rows of the run's tables and written as one shard."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probes.capture.batch_files import BatchFiles, Columns, Key, stacked
from probes.capture.reduce import BatchReducer, Piece
from probes.measures.edit_distance import edit_distances
from probes.measures.gates import NeuronCounts, unpack
from probes.measures.places import Places
from probes.store.neurons import SHARES
from probes.store.parquet import Named, write_part
from probes.suite import Suite
from tv.architecture.anatomy import Architecture
from tv.prompts.encoding import Batch, positions

#: Rows and files of each table.
Counts = dict[str, dict[str, int]]

_PACKED = ("gate_base", "gate_xor", "vector_base", "vector_tuned")
_OF_BOTH = ("contributions", "behaviour", "predictions")  # tables that name a model, not a pair


@dataclass(frozen=True)
class Outputs:
    """What is read of both models' logits over one batch, as columns."""

    tokens: Columns
    predictions: tuple[Columns, Columns]  # of base and tuned
    behaviour: Columns  # none where it is not measured


@dataclass
class ShardTables:
    """Collects columns by table and layer; `write` sorts each by prompt and writes it as one file.

    `put_aside` moves what was collected to disk, from where `write` takes it back: there is never more than a batch and
    a table's layer in memory, and a killed run begins after the last batch that was put aside.
    """

    suite: Suite
    tuned: str
    architecture: Architecture
    prompt_ids: Sequence[str]  # of the shard
    with_base: bool  # the base's rows too
    aside: BatchFiles
    parts: dict[Key, list[Columns]] = field(default_factory=lambda: defaultdict(list))
    counts: dict[tuple[int, int, str], NeuronCounts] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names = {"prompt_id": sorted(self.prompt_ids), **self.aside.names}
        self.codes = {name: code for code, name in enumerate(self.names["prompt_id"])}

    def add(self, reduced: BatchReducer, outputs: Outputs, batch: Batch) -> None:
        """Add one batch. Names are codes until they are written."""
        for piece, values in zip(reduced.pieces, fetched(reduced.pieces), strict=True):
            rows = self._rows(piece, values, batch)
            if piece.table in (*self.suite.measure, "vectors"):
                site = piece.site.name if piece.table == "vectors" else ""
                self.parts[piece.table, piece.layer, site].append(rows)
            if piece.table == "changes" and "contributions" in self.suite.measure:
                self.parts["contributions", piece.layer, ""] += self._by_model(rows)
        if "gates" in self.suite.measure:
            for key, counts in reduced.counts.items():
                self.counts[key] = self.counts[key] + counts if key in self.counts else counts
        self.parts["tokens", None, ""].append(self._located(batch, reduced.places) | outputs.tokens)
        self._add_predictions(outputs.predictions, reduced.places, batch)
        if "behaviour" in self.suite.measure:
            answers = outputs.behaviour
            keep = np.array([self.with_base or model != "base" for model in answers["model"]], dtype=bool)
            self.parts["behaviour", None, ""].append({name: values[keep] for name, values in answers.items()})

    def _add_predictions(self, of_both: Sequence[Columns], places: Places, batch: Batch) -> None:
        """Base before tuned at every place, each in the order of ranks: sorting keeps it."""
        for model, columns in zip(("base", self.tuned), of_both, strict=True):
            if model != "base" or self.with_base:
                n = len(columns["rank"])
                rows = self._located(batch, places, n // max(len(places), 1))
                self.parts["predictions", None, ""].append(
                    rows | {"model": self._constant("model", model, n)} | columns
                )

    def put_aside(self, prompts: int) -> None:
        """Move what was collected, of so many prompts, to disk."""
        self.aside.write(prompts, self.parts, self.counts, self.names)
        self.parts.clear()
        self.counts.clear()

    def write(self, directory: Path, shard: str) -> Counts:
        """Write every table below `directory`, each layer one file: the same bytes for the same prompts."""
        written: Counts = {}
        for key, count in sorted(self._all_counts().items()):
            self.parts["neurons", None, ""].append(self._neuron_rows(*key, count))
        keys = list(dict.fromkeys([*self.aside.keys, *self.parts]))
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # the models do not compute meanwhile
            rows_of = pool.map(partial(self._file, directory, shard), keys)
            for (table, _, _), rows in zip(keys, rows_of, strict=True):
                table_counts = written.setdefault(table, {"rows": 0, "files": 0})
                table_counts["rows"] += rows
                table_counts["files"] += 1
        return written

    def _all_counts(self) -> dict[tuple[int, int, str], NeuronCounts]:
        total: dict[tuple[int, int, str], NeuronCounts] = {}
        for counts in (*self.aside.neurons(), self.counts):
            for key, count in counts.items():
                total[key] = total[key] + count if key in total else count
        return total

    def _file(self, directory: Path, shard: str, key: Key) -> int:
        """Write the collected columns of one table, layer and site; return the number of rows."""
        table, layer, site = key
        parts = [*self.aside.columns(key), *self.parts.get(key, ())]
        columns = {name: stacked([part[name] for part in parts]) for name in parts[0]}
        if layer is not None or table in ("tokens", "predictions"):
            order = np.lexsort([columns[name] for name in ("head", "expert", "pos", "prompt_id") if name in columns])
            columns = {name: values[order] for name, values in columns.items()}
        named = {
            name: Named(values, self.names[name]) if name in self.names and values.dtype != object else values
            for name, values in columns.items()
        }
        tuned = None if table in _OF_BOTH else self.tuned
        root = directory / SHARES if table == "neurons" else directory  # summed over the shards at the end
        return write_part(root, table, named, shard=shard, tuned=tuned, layer=layer, site=site or None)

    def _rows(self, piece: Piece, values: Mapping[str, NDArray[Any]], batch: Batch) -> Columns:
        packed = {name: values[name] for name in _PACKED if name in values}
        others = {name: value for name, value in values.items() if name not in packed}
        n_heads = next((value.shape[1] for value in others.values() if value.ndim == 2), 0)
        columns = self._located(batch, piece.places, max(n_heads, 1))
        n = len(columns["pos"])
        columns |= {name: self._constant(name, label, n) for name, label in piece.labels.items()}
        columns |= {name: value.reshape(-1) for name, value in others.items()}
        if piece.table == "changes":
            heads = np.arange(n_heads) if n_heads else np.array([-1])
            columns["head"] = np.tile(heads, len(piece.places)).astype(np.int16)
        if piece.table == "gates":
            columns |= self._edits(packed, piece, batch) | {"gated": np.full(n, self.architecture.gated)}
        return columns | packed

    def _located(self, batch: Batch, places: Places, repeats: int = 1) -> Columns:
        codes = np.array([self.codes[item.prompt.id] for item in batch.encoded], np.int32)
        return {
            "prompt_id": np.repeat(codes[places.row.numpy()], repeats),
            "pos": np.repeat(places.pos.numpy().astype(np.int32), repeats),
        }

    def _constant(self, column: str, value: str | int, n: int) -> NDArray[Any]:
        """A column of one value, as a code where it is a name."""
        if isinstance(value, int):
            return np.full(n, value, np.int16)
        known = self.names.setdefault(column, [])
        if value not in known:
            known.append(value)
        return np.full(n, known.index(value), np.int32)

    def _edits(self, packed: Columns, piece: Piece, batch: Batch) -> Columns:
        """Edit distances where the suite asks for them, NaN elsewhere."""
        n = len(piece.places)
        columns = {name: np.full(n, np.nan, np.float32) for name in ("edit_distance", "chance_edit_distance")}
        if self.suite.edit_distance != "none":
            chosen = [set(positions(item, self.suite.edit_distance)) for item in batch.encoded]
            places = zip(piece.places.row.tolist(), piece.places.pos.tolist(), strict=True)
            at = np.array([pos in chosen[row] for row, pos in places], dtype=bool)
            d_ff = self._neurons(piece.layer, int(piece.labels["expert"]))
            base, xor = (unpack(packed[name][at], d_ff) for name in ("gate_base", "gate_xor"))
            columns["edit_distance"][at], columns["chance_edit_distance"][at] = edit_distances(
                base, base ^ xor, self.suite.seed
            )
        with np.errstate(divide="ignore", invalid="ignore"):
            columns["edit_kappa"] = 1 - columns["edit_distance"] / columns["chance_edit_distance"]
        return columns

    def _neurons(self, layer: int, expert: int) -> int:
        """The neurons of a layer's MLP, or of one expert."""
        gate = self.architecture.blocks[layer].gate if expert < 0 else None
        return (gate or self.architecture.module(layer, "up", expert)).shape[0]

    def _by_model(self, changes: Columns) -> list[Columns]:
        """The same rows as `contributions`, one set a model."""
        models = [("base", "base")] * self.with_base + [(self.tuned, "tuned")]
        shared = ("prompt_id", "pos", "component", "expert", "head")
        return [
            {name: changes[name] for name in shared}
            | {"model": self._constant("model", model, len(changes["pos"]))}
            | {"norm": changes[f"norm_{side}"], "dla": changes[f"dla_{side}"]}
            for model, side in models
        ]

    def _neuron_rows(self, layer: int, expert: int, domain: str, counts: NeuronCounts) -> Columns:
        n = len(counts.flips)
        flips, base, tuned = (count.cpu().numpy() for count in (counts.flips, counts.base, counts.tuned))
        return {
            "domain": self._constant("domain", domain, n),
            "layer": np.full(n, layer, np.int16),
            "expert": np.full(n, expert, np.int16),
            "neuron": np.arange(n, dtype=np.int32),
            "n": np.full(n, counts.n, np.int32),
            "n_flips": flips,
            "n_active_base": base,
            "n_active_tuned": tuned,
        }


def fetched(pieces: Sequence[Piece]) -> list[dict[str, NDArray[Any]]]:
    """The columns of all pieces in host memory. Copies from a device run in parallel, with one wait for all."""
    host_columns = [{name: _start(value) for name, value in piece.columns.items()} for piece in pieces]
    for device in {value.device for piece in pieces for value in piece.columns.values() if value.is_cuda}:
        torch.cuda.synchronize(device)
    return [{name: value.numpy() for name, value in columns.items()} for columns in host_columns]


def _start(value: Tensor) -> Tensor:
    if not value.is_cuda:
        return value
    host = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
    return host.copy_(value, non_blocking=True)
