"""A run's numbers found again, with none of the instrument's hooks and measures.

Plain torch hooks on the live models, and surgery on their weights. What a component adds to the last residual stream
is found by difference: every component's output is set to zero, then one is given what it computed, and what arrives
at the final norm is compared. So factors, norms and scales on the way are the model's own and nothing is assumed of
them. Of the instrument only the names of modules and the run's tables are used.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tv.architecture.anatomy import Architecture, Block, Writer

#: Layer, component, expert, head.
Place = tuple[int, str, int, int]
#: What each writes to the last residual stream, (pos, d_model).
Added = dict[Place, Tensor]

#: So small a step that a soft cap of the logits bends none of it.
_STEP = 1e-2


@dataclass
class Bench:
    """One live model on one text: what its modules took and gave, and what reaches the final norm, and the logits."""

    model: PreTrainedModel
    architecture: Architecture
    ids: Tensor  # (1, pos)

    @cached_property
    def seen(self) -> dict[str, tuple[Tensor | None, Tensor | None]]:
        """Each module's first tensor in and out, by path; of modules that run once, and the final norm's last call."""
        return self._record()[0]

    @cached_property
    def writers(self) -> list[tuple[Block, Writer]]:
        """What writes to the stream, in order."""
        return [(block, writer) for block in self.architecture.blocks for writer in block.writers]

    def written(self, path: str) -> Tensor:
        """What the module at `path` computed, (1, pos, d_model)."""
        out = self.seen[path][1]
        assert out is not None, path
        return out

    def arriving(self, given: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """What the final norm reads, (given, pos, d_model), when components give this and all others nothing."""
        edits = {}
        for path in self.ends.values():
            own = self.written(path)
            each = [one.get(path, torch.zeros_like(own)).reshape(own.shape) for one in given]
            edits[path] = torch.cat(each)
        caught: list[Tensor] = []

        def catch(_module: nn.Module, args: Any, kwargs: Any) -> None:
            caught.append(first_tensor((*args, *kwargs.values())).clone())

        norm = self.model.get_submodule(self.architecture.final_norm)
        with self._outputs(edits), _hooked(norm.register_forward_pre_hook(catch, with_kwargs=True)):
            self._forward(len(given))
        return caught[-1].reshape(len(given), *caught[-1].shape[-2:])

    def logits(self, normed: Tensor) -> Tensor:
        """The logits (given, pos, vocab) where the final norm gives this."""
        with self._outputs({self.architecture.final_norm: normed}):
            return self._forward(len(normed))

    def _forward(self, times: int) -> Tensor:
        ids = self.ids.repeat(times, 1)
        with torch.no_grad():
            logits: Tensor = self.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        return logits

    @contextmanager
    def _outputs(self, edits: Mapping[str, Tensor]) -> Iterator[None]:
        handles = []
        for path, value in edits.items():

            def edit(_module: nn.Module, _args: Any, output: Any, value: Tensor = value) -> Any:
                return _in_place_of_first(output, value)

            handles.append(self.model.get_submodule(path).register_forward_hook(edit))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _record(self) -> tuple[dict[str, tuple[Tensor | None, Tensor | None]], Tensor]:
        calls: dict[str, list[tuple[Tensor | None, Tensor | None]]] = {}
        handles = []
        for path, module in self.model.named_modules():

            def look(_module: nn.Module, args: Any, kwargs: Any, output: Any, path: str = path) -> None:
                taken, given = first_tensor((*args, *kwargs.values())), first_tensor(output)
                both = (None if x is None else x.clone() for x in (taken, given))
                calls.setdefault(path, []).append(tuple(both))  # type: ignore[arg-type]

            handles.append(module.register_forward_hook(look, with_kwargs=True))
        try:
            logits = self._forward(1)
        finally:
            for handle in handles:
                handle.remove()
        last = self.architecture.final_norm
        return {path: call[-1] for path, call in calls.items() if len(call) == 1 or path == last}, logits

    def again(self, path: str) -> Tensor:
        """What the module at `path` gives now, after surgery on the weights."""
        out = self._record()[0][path][1]
        assert out is not None
        return out

    @cached_property
    def ends(self) -> dict[str, str]:
        """By the path of each writer the module whose output reaches the stream: itself, or a norm behind it."""
        return {writer.path: writer.out for _, writer in self.writers}

    def _reads_alone(self, end: str, path: str) -> bool:
        """Whether what the module at `path` gives reaches `end` as it is, with nothing beside it."""
        taken = self.seen[end][0]
        return end == path or (taken is not None and torch.equal(taken, self.written(path)))

    def added(self, wanted: Container[Place]) -> tuple[Added, float]:
        """What each component adds, each expert and some heads of those wanted; the relative error of the sum."""
        bare = self.arriving([{}])[0]
        parts = self.arriving([{end: self.written(end)} for end in self.ends.values()]) - bare
        real = self.seen[self.architecture.final_norm][0]
        assert real is not None
        error = float((bare + parts.sum(0) - real[0]).norm() / real.norm())
        found: Added = {(-1, "embed", -1, -1): bare}
        for (block, writer), part in zip(self.writers, parts, strict=True):
            place = block.layer, writer.component
            found[*place, -1, -1] = part
            finer = {**self._experts(block, writer), **self._heads(writer)}
            finer = {cut: lost for cut, lost in finer.items() if (*place, *cut) in wanted}
            if finer and self._reads_alone(self.ends[writer.path], writer.path):
                end, own = self.ends[writer.path], self.written(writer.path)
                through = frozen(self.model.get_submodule(end), own) if end != writer.path else None
                given = [{end: lost if through is None else through(lost)} for lost in finer.values()]
                for cut, step in zip(finer, self.arriving(given) - bare, strict=True):
                    found[*place, *cut] = step
        return found, error

    def _experts(self, block: Block, writer: Writer) -> dict[tuple[int, int], Tensor]:
        """Of each expert, by its index, what the component loses without its last matrix."""
        if writer.component != "mlp" or block.experts is None:
            return {}
        downs = [m for m in self.architecture.modules if m.layer == block.layer and m.name == "down" and m.expert >= 0]
        own, lost = self.written(writer.path), {}
        for down in downs:
            parameters = [(down.parameter, down.expert), (f"{down.parameter}_bias", down.expert)]
            with self._zeroed([(name, lambda p, e=expert: p[e]) for name, expert in parameters]):
                lost[down.expert, -1] = own - self.again(writer.path)
        return lost

    def _heads(self, writer: Writer) -> dict[tuple[int, int], Tensor]:
        """Of the first and last head what the component loses without its columns of the output projection."""
        head = writer.head_module
        if head is None:
            return {}
        own, lost = self.written(writer.path), {}
        size = head.shape[1] // head.n_heads
        for index in dict.fromkeys((0, head.n_heads - 1)):
            at = slice(index * size, (index + 1) * size)
            columns = (lambda p, at=at: p[at]) if head.transposed else (lambda p, at=at: p[:, at])
            with self._zeroed([(head.parameter, columns)]):
                lost[-1, index] = own - self.again(writer.path)
        return lost

    @contextmanager
    def _zeroed(self, parts: Sequence[tuple[str, Callable[[Tensor], Tensor]]]) -> Iterator[None]:
        parameters = dict(self.model.named_parameters())
        kept = {name: parameters[name].detach().clone() for name, _ in parts if name in parameters}
        with torch.no_grad():
            for name, part in parts:
                if name in parameters:
                    part(parameters[name]).zero_()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in kept.items():
                    parameters[name].copy_(value)

    def pushes(self, added: Added, target: int, foil: int) -> dict[Place, Tensor]:
        """Of each, the logit difference (pos,) that it supplies through the final norm with its scale frozen."""
        norm, read = self.model.get_submodule(self.architecture.final_norm), self.seen[self.architecture.final_norm][0]
        assert read is not None
        through = frozen(norm, read)
        normed = through(torch.stack(list(added.values())))
        logits = self.logits(torch.cat([0 * normed[:1], _STEP * normed]))
        difference = logits[..., target] - logits[..., foil]
        return dict(zip(added, (difference[1:] - difference[:1]) / _STEP, strict=True))


def frozen(norm: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    """The linear map that `norm` applies to what is added to `x`, its scale as it is at `x`; found by trying it."""
    with torch.no_grad():
        y, shifted, at_zero = norm(x.clone()), norm(x + 1.0), norm(torch.zeros_like(x))
    centred = torch.allclose(y, shifted, rtol=1e-3, atol=1e-4)

    def centre(value: Tensor) -> Tensor:
        value = value.double()
        return value - value.mean(-1, keepdim=True) if centred else value

    middle = centre(x)
    gain = torch.where(middle == 0, 0.0, (y.double() - at_zero.double()) / middle)
    return lambda step: (centre(step) * gain).float()


def first_tensor(value: Any) -> Any:
    """The first float tensor in what a module takes or gives; None where there is none."""
    if isinstance(value, Tensor):
        return value if value.is_floating_point() else None
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        return next((found for part in value if (found := first_tensor(part)) is not None), None)
    return None


def _in_place_of_first(output: Any, value: Tensor) -> Any:
    if isinstance(output, Tensor):
        return value.reshape(-1, *output.shape[1:]) if output.ndim < value.ndim else value
    parts = list(output)
    at = next(i for i, part in enumerate(parts) if isinstance(part, Tensor) and part.is_floating_point())
    parts[at] = value
    return tuple(parts)


@contextmanager
def _hooked(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()
