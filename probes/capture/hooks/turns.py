"""Forward passes that take turns: all of them reach a layer before the first goes on to the next.

So a model whose weights are read as they are used (`tv.checkpoints.streamed`) reads each layer once for all of them.
Every task runs in its own greenlet. Where a streamed model's forward comes to a block or to the unembedding, the task
hands over to those that are not there yet. What waits meanwhile lies in memory up to a bound, and beyond it in a file.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from heapq import heappop, heappush
from tempfile import TemporaryFile
from typing import Any, NamedTuple, TypeVar

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn
from transformers import PreTrainedModel

from tv.architecture.anatomy import Architecture
from tv.checkpoints.streamed import is_streamed

Result = TypeVar("Result")

#: Bytes of waiting activations that are held in memory where the largest part of a model is smaller.
_LEAST_BOUND = 2**26
#: The place of a task that has come to no block yet.
START = -1


class Gate(NamedTuple):
    """Where a forward pass comes to a block (by its layer) or, after the last one, to the unembedding."""

    path: str
    place: int


@dataclass
class Coming:
    """What a forward pass brings to a gate."""

    value: Tensor  # that enters
    passed: Any  # what the block before it returned; None at the first, and once it is taken

    def taken(self) -> Any:
        """What was passed, which is not held here any longer: only `value` waits in a file."""
        passed, self.passed = self.passed, None
        return passed


def take_turns(model: PreTrainedModel, architecture: Architecture) -> None:
    """Let the forward passes of a streamed model take turns, where they run as tasks of `in_turns`."""
    gates = [Gate(block.path, block.layer) for block in architecture.blocks]
    for gate in (*gates, Gate(architecture.unembed, architecture.n_layers)):
        module = model.get_submodule(gate.path)
        module.register_forward_pre_hook(_hook(gate), with_kwargs=True, prepend=True)
        if gate.place < architecture.n_layers:
            module.register_forward_hook(_passes)


def _hook(gate: Gate) -> Callable[..., None]:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if _Tasks.running is not None:
            first = next(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
            _meeting.get(getcurrent(), _alone)(gate, Coming(first, _passed.pop(getcurrent(), None)))

    return hook


def _passes(_module: nn.Module, _args: Any, output: Any) -> None:
    if getcurrent() in _meeting:
        _passed[getcurrent()] = output


def _alone(gate: Gate, coming: Coming) -> None:
    turn(gate.place, coming.value)


#: Of a forward pass that keeps step with another one: what brings both to the gate.
_meeting: dict[greenlet, Callable[..., Any]] = {}
#: What the last block of such a pass returned, until the pass comes to the next gate.
_passed: dict[greenlet, Any] = {}


@contextmanager
def meeting(at_gate: Callable[..., Any]) -> Iterator[None]:
    """Call `at_gate` where the forward pass of this greenlet comes to a gate; it waits for the other pass there."""
    _meeting[getcurrent()] = at_gate
    try:
        yield
    finally:
        del _meeting[getcurrent()]
        _passed.pop(getcurrent(), None)


def turn(place: int, *values: Tensor) -> None:
    """Wait until every other task is at `place` too, or has passed it. `values` may lie in a file meanwhile."""
    if _Tasks.running is not None:
        _Tasks.running.wait(place, values)


def enter(*values: Tensor) -> None:
    """Say what entered the first block, where that is no turn: it may lie in a file during later turns."""
    if _Tasks.running is not None:
        _Tasks.running.enter(values)


def kept(value: Tensor) -> Callable[[], Tensor]:
    """A tensor for later, perhaps in a file meanwhile; the result gives it back, once."""
    if _Tasks.running is None:
        return lambda: value
    value = value.clone()  # it may be a view of what the forward goes on with
    back = _Tasks.running.shelf.put(value)

    def given() -> Tensor:
        back()
        return value

    return given


def together(model: PreTrainedModel) -> Callable[[Sequence[Callable[[], Result]]], Iterator[Result]]:
    """What runs tasks that are forward passes of this model and others like it, and gives their results in order."""
    return partial(in_turns, largest=model.weights.largest) if is_streamed(model) else one_by_one


def one_by_one(tasks: Iterable[Callable[[], Result]]) -> Iterator[Result]:
    """The result of every task, each begun when the one before it is done."""
    return (task() for task in tasks)


def in_turns(tasks: Iterable[Callable[[], Result]], largest: int) -> Iterator[Result]:
    """The result of every task, in their order; all reach a layer before one goes on.

    Args:
        tasks: Each runs forward passes of streamed models.
        largest: Bytes of the models' largest part, and of the activations that may wait in memory.

    Returns:
        Results, the first ones when other tasks are still at the last layer.
    """
    return _Tasks(max(largest, _LEAST_BOUND)).run(list(tasks))


class _Tasks:
    """Tasks by the place where they wait."""

    running: _Tasks | None = None

    def __init__(self, bound: int) -> None:
        self.shelf = Shelf(bound)
        self.driver: greenlet = getcurrent()
        self.waiting: list[tuple[int, int, greenlet]] = []
        self.first: dict[greenlet, list[weakref.ref[Tensor]]] = {}  # what each task brought to its first block
        self.order: dict[greenlet, int] = {}

    def run(self, tasks: list[Callable[[], Result]]) -> Iterator[Result]:
        results: dict[int, Result] = {}
        done = 0
        for i, task in enumerate(tasks):
            started = greenlet(lambda task=task, i=i: results.__setitem__(i, task()))
            self.order[started] = i
            heappush(self.waiting, (START - 1, i, started))
        try:
            while self.waiting:
                *_, task = heappop(self.waiting)
                self._resume(task)
                while done in results:
                    yield results.pop(done)
                    done += 1
        finally:
            with torch.inference_mode():  # the mode that each of them began in, and sets again as it ends
                unwind([task for *_, task in self.waiting])
            self.shelf.close()

    def _resume(self, task: greenlet) -> None:
        before, _Tasks.running = _Tasks.running, self
        self.driver = task.parent = getcurrent()
        try:
            with torch.inference_mode():  # else a task that ends would restore the mode that another one began in
                task.switch()
        finally:
            _Tasks.running = before

    def enter(self, values: tuple[Tensor, ...]) -> None:
        """Called in a task: models hold what enters the first block until they return."""
        self.first[getcurrent()] = [weakref.ref(value) for value in values]

    def wait(self, place: int, values: tuple[Tensor, ...]) -> None:
        """Called in a task."""
        task = getcurrent()
        if place == 0:
            self.enter(values)
        held = (ref() for ref in self.first.get(task, ()))
        alive = [value for value in (*values, *held) if value is not None]
        back = [self.shelf.put(value) for value in {v.untyped_storage().data_ptr(): v for v in alive}.values()]
        heappush(self.waiting, (place, self.order[task], task))
        del alive, values
        self.driver.switch()
        for bring in back:
            bring()


class Shelf:
    """Tensors that wait: in memory up to a bound, beyond it in a file. A waiting tensor's memory is given up."""

    def __init__(self, bound: int) -> None:
        self.bound, self.held, self.written = bound, 0, 0
        self._file: Any = None
        self._end = 0
        self._free: dict[int, list[int]] = {}  # offsets in the file by size

    def put(self, value: Tensor) -> Callable[[], None]:
        """Let it wait. The result brings it back: the same tensor, with all its views."""
        storage = value.untyped_storage()
        n = storage.nbytes()
        if self.held + n <= self.bound or value.device.type != "cpu" or not storage.resizable():
            self.held += n

            def release() -> None:
                self.held -= n

            return release
        if self._file is None:
            self._file = TemporaryFile()  # noqa: SIM115  (`close` closes it)
        spare = self._free.setdefault(n, [])
        offset = spare.pop() if spare else self._end
        self._end = max(self._end, offset + n)
        self._file.seek(offset)
        self._file.write(_bytes(storage))
        self.written += n
        storage.resize_(0)

        def back() -> None:
            storage.resize_(n)
            self._file.seek(offset)
            self._file.readinto(_bytes(storage))
            spare.append(offset)

        return back

    def close(self) -> None:
        """Remove the file."""
        if self._file is not None:
            self._file.close()


def _bytes(storage: torch.UntypedStorage) -> Any:
    """The bytes themselves. Not by numpy, after which a storage cannot be resized."""
    return (ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr())


def unwind(tasks: Iterable[greenlet]) -> None:
    """End greenlets that are paused, each through all that it has to clean up."""
    for paused in tasks:
        if not paused.dead:
            with suppress(Unwound):
                paused.throw(Unwound)


class Unwound(BaseException):
    """Thrown into an abandoned forward. Not GreenletExit, which would end its greenlet alone."""
