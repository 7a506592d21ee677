"""The layers that a streamed pass has behind it, on disk: a killed run goes on at the layer that it was in.

Once every batch has come to a layer, a line of the journal says so, and its files hold, of every batch, what was read
since the layer before and what the block before it returned. Of the latter only the last file stays.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from probes.capture.batch_files import kept_prompts
from probes.capture.hooks.plan import Read, Seen
from probes.capture.hooks.torch_backend import Inputs, lockstep
from probes.capture.hooks.turns import Coming, enter, kept, turn
from probes.capture.pair import Pair
from probes.capture.reduce import BatchReducer, Piece
from probes.capture.skipping import skipping
from probes.capture.tensor_file import index_of, tensor_file, value_of
from probes.errors import RunError
from probes.measures.gates import NeuronCounts
from probes.measures.places import Places
from probes.store.journal import BATCHES, append_line, whole_lines
from tv.prompts.encoding import Batch, Encoded

Result = TypeVar("Result")
Together = Callable[[Sequence[Callable[[], Result]]], Iterator[Result]]

_FOLDER, _JOURNAL = "layers", "layers.jsonl"
#: The kinds of files of a layer: what was read up to it, and what enters it.
_READ, _PASSED = _KINDS = "read", "passed"
_TENSOR = "tensor"


@dataclass(frozen=True)
class _Pass:
    """What is on disk of a pass: its batches, by the ids of their prompts, and the files of every layer."""

    dtype: str = ""
    batches: Sequence[Sequence[str]] = ()
    layers: Sequence[Mapping[str, int]] = ()  # of every layer from 1, the sizes of its files by name

    @classmethod
    def of(cls, folder: Path) -> _Pass:
        lines = whole_lines(folder / _JOURNAL)
        return cls(lines[0]["dtype"], lines[0]["batches"], [line["files"] for line in lines[1:]]) if lines else cls()

    def whole(self, folder: Path) -> int:
        """The last layer, where its files and what was read of those before it are there whole; else 0."""
        needed = [(name, size) for files in self.layers for name, size in files.items() if name.endswith(_READ)]
        needed += self.layers[-1].items() if self.layers else ()
        paths = [(folder / name, size) for name, size in needed]
        return len(self.layers) if all(path.is_file() and path.stat().st_size == size for path, size in paths) else 0

    def ends_with(self, prompts: Sequence[str]) -> bool:
        """Whether these prompts are its last batches, whole."""
        left, later = list(prompts), list(self.batches)
        while left and later and left[-len(later[-1]) :] == list(later[-1]):
            del left[-len(later.pop()) :]
        return not left


class _Kept:
    """One file, by batch."""

    def __init__(self, path: Path) -> None:
        self.path, self.index = path, index_of(path)

    def value(self, name: str, device: torch.device) -> Any:
        return value_of(self.path, self.index[name], device)


def kept_layers(directory: Path, shard: str, prompts: Sequence[str]) -> int:
    """How many layers are on disk, below the run's `directory`, of those prompts of a shard that are not."""
    folder = directory / BATCHES / shard / _FOLDER
    found = _Pass.of(folder)
    return found.whole(folder) if found.ends_with(prompts[kept_prompts(directory, shard) :]) else 0


@dataclass
class _Progress:
    """What of one batch's reducer is on disk."""

    reducer: BatchReducer
    paths: list[str] = field(default_factory=list)  # of the modules that were read since
    pieces: int = 0
    unread: int = 0
    counts: set[tuple[int, int, str]] = field(default_factory=set)
    overlaps: set[int] = field(default_factory=set)

    def seen(self) -> None:
        """All that is there now is on disk."""
        of = self.reducer
        self.paths, self.pieces, self.unread = [], len(of.pieces), len(of.unread)
        self.counts, self.overlaps = set(of.counts), set(of.overlaps)


class PassedLayers:
    """The layers behind the batches of one shard, which are streamed together.

    Args:
        folder: Of the shard.
        pair: Streamed, with blocks that pass on their output alone (`Architecture.chained`).
        reads: What is read of every batch.
        left: The prompts that are to be read, in order.

    Attributes:
        first: The layer that the next pass begins at.
        size: The prompts of a batch of that pass; 0 where it begins at layer 0.
    """

    def __init__(self, folder: Path, pair: Pair, reads: Sequence[Read], left: Sequence[Encoded]) -> None:
        self._folder, self._pair, self._reads = folder / _FOLDER, pair, reads
        self._sites = [site for read in reads for site in read.sites]
        self._at = {site: i for i, site in enumerate(self._sites)}
        self._dtype = str(pair.base.dtype).removeprefix("torch.")
        found = _Pass.of(self._folder)
        fits = found.dtype == self._dtype and found.ends_with([item.prompt.id for item in left])
        self.first = found.whole(self._folder) if fits else 0
        self.size = max(map(len, found.batches)) if self.first else 0
        self._read: list[_Kept] = []  # by layer
        self._passed: _Kept | None = None
        self._begun = False

    def together(self, tasks: Together[Result]) -> Together[Result]:
        """The same, for passes whose layers are kept: the first takes up what is there, others begin anew."""

        def run(work: Sequence[Callable[[], Result]]) -> Iterator[Result]:
            if self._begun:
                self.first = 0
            self._begun = True
            self._tidy()
            self._read = [_Kept(self._path(layer, _READ)) for layer in range(1, self.first + 1)]
            self._passed = _Kept(self._path(self.first, _PASSED)) if self.first else None
            self._batches, self._n, self._came = list[list[str]](), len(work), 0
            self._shapes, self._keeps = list[Any](), True
            with ExitStack() as self._open:
                yield from tasks(work)

        return run

    def run(self, batch: Batch, inputs: Inputs, reducer: BatchReducer) -> tuple[Tensor, Tensor]:
        """`lockstep` of one batch, from the layer that is kept on."""
        progress, name, device = _Progress(reducer), batch.encoded[0].prompt.id, self._pair.base.device
        self._batches.append([item.prompt.id for item in batch.encoded])
        skips = ExitStack()

        def during() -> AbstractContextManager[Any]:
            if self._passed is not None:
                for layer in self._read:
                    self._restore(layer.value(name, device), progress)
                passed = self._passed.value(name, device)
                self._shapes = list(map(_shape, passed))
                with ExitStack() as begun:
                    for model, output in zip(self._pair.models, passed, strict=True):
                        same = dict.fromkeys(range(self.first), output)
                        begun.enter_context(skipping(model, self._pair.architecture, same, self.first))
                    skips.push(begun.pop_all())
            return skips

        def reduce(read: Read, base: Seen, tuned: Seen) -> None:
            reducer(read, base, tuned)
            progress.paths.append(read.path)

        def at_gate(place: int, base: Coming, tuned: Coming) -> None:
            if place >= self.first:
                skips.close()
                passed = base.taken(), tuned.taken()
                if place > self.first:
                    self._keep(place, name, progress, passed)
                del passed
                turn(place, base.value, tuned.value)
            elif place == 0:
                enter(base.value, tuned.value)

        done = {path for layer in self._read for path in layer.index[name]["paths"]}
        left = [read for read in self._reads if read.path not in done]
        return lockstep(*self._pair.models, left, inputs, reduce, during, at_gate)

    def _keep(self, place: int, name: str, progress: _Progress, passed: tuple[Any, Any]) -> None:
        """Write what one batch has behind it. With the last batch the layer is whole."""
        shapes = list(map(_shape, passed))
        self._shapes = self._shapes or shapes
        # A block that returns something else than the ones before could not stand for them.
        self._keeps = self._keeps and shapes == self._shapes and None not in shapes
        if not self._keeps:
            return
        if not self._came:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise RunError(f"{self._folder}: cannot be created: {error.strerror}") from error
            self._files = {kind: self._open.enter_context(tensor_file(self._path(place, kind))) for kind in _KINDS}
        self._files[_READ].put(name, self._since(progress))
        self._files[_PASSED].put(name, passed)
        self._came += 1
        if self._came == self._n:
            self._open.close()
            self._record(place)
            self._came = 0

    def _record(self, place: int) -> None:
        """Say in the journal that a layer is whole; what entered the one before it can go."""
        journal = self._folder / _JOURNAL
        if place == 1:
            append_line(journal, {"dtype": self._dtype, "batches": self._batches})
        files = {path.name: path.stat().st_size for path in (self._path(place, kind) for kind in _KINDS)}
        append_line(journal, {"layer": place, "files": files})
        self._path(place - 1, _PASSED).unlink(missing_ok=True)

    def _since(self, progress: _Progress) -> dict[str, Any]:
        """What a reducer has read since the last layer, as values that a file holds."""
        reducer, at = progress.reducer, self._at
        known = [reducer.places, reducer.ledger_places, reducer.lens_places]

        def piece(one: Piece) -> list[Any]:
            which = next((i for i, places in enumerate(known) if places is one.places), -1)
            own = [one.places.row, one.places.pos] if which < 0 else []
            return [one.table, at[one.site], dict(one.labels), dict(one.columns), which, own]

        unread = []
        for i, (site, base, tuned) in enumerate(reducer.unread[progress.unread :], progress.unread):
            values = base(), tuned()
            unread.append([at[site], *values])
            reducer.unread[i] = site, kept(values[0]), kept(values[1])
        counts = {key: reducer.counts[key] for key in reducer.counts.keys() - progress.counts}
        overlaps = {layer: reducer.overlaps[layer] for layer in reducer.overlaps.keys() - progress.overlaps}
        found = {
            "paths": progress.paths,
            "pieces": [piece(one) for one in reducer.pieces[progress.pieces :]],
            "unread": unread,
            "counts": [[*key, of.n, of.base, of.tuned, of.flips] for key, of in counts.items()],
            "overlaps": list(map(list, overlaps.items())),
            "scales": reducer.scales,
        }
        progress.seen()
        return found

    def _restore(self, found: Mapping[str, Any], progress: _Progress) -> None:
        """Put back what `_since` gave."""
        reducer = progress.reducer
        known = [reducer.places, reducer.ledger_places, reducer.lens_places]
        for table, i, labels, columns, which, own in found["pieces"]:
            site = self._sites[i]
            places = Places(own[0].cpu(), own[1].cpu(), known[0].shape) if own else known[which]
            reducer.pieces.append(Piece(table, site.layer, labels, columns, places, site))
        for i, base, tuned in found["unread"]:
            reducer.unread.append((self._sites[i], kept(base), kept(tuned)))
        for layer, expert, domain, n, *counted in found["counts"]:
            reducer.counts[layer, expert, domain] = NeuronCounts(n, *counted)
        reducer.overlaps.update({layer: overlap for layer, overlap in found["overlaps"]})
        reducer.scales = found["scales"]
        progress.seen()

    def _path(self, layer: int, kind: str) -> Path:
        return self._folder / f"{layer:05d}.{kind}"

    def _tidy(self) -> None:
        """Remove what no resumed pass needs: half-written files, and with no layer kept all."""
        if not self.first:
            shutil.rmtree(self._folder, ignore_errors=True)
            return
        needed = {self._path(layer, _READ) for layer in range(1, self.first + 1)}
        for path in set(self._folder.iterdir()) - needed - {self._folder / _JOURNAL, self._path(self.first, _PASSED)}:
            path.unlink()


def _shape(passed: Any) -> Any:
    """What a block returned, without its numbers; None where it is more than tensors."""
    if isinstance(passed, Tensor):
        return _TENSOR
    if not isinstance(passed, tuple):
        return None
    shapes = ["nothing" if item is None else _shape(item) for item in passed]
    return None if None in shapes else shapes
