"""One model on one batch, to be run part by part: what is before the blocks, a block, what is behind them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from tv.architecture.anatomy import Architecture
from tv.architecture.trunk import ends_of

#: What a block calls the hidden states that it is given, where it is passed by name.
_HIDDEN = "hidden_states"


class Parts:
    """A model and its inputs; every part runs with whatever weights it has then."""

    def __init__(
        self, model: PreTrainedModel, architecture: Architecture, inputs: Mapping[str, Tensor], like: Parts | None
    ) -> None:
        """Looks at what blocks are given besides hidden states. `like` is another batch, whose blocks were run for it.

        Then they need not run again, unless they return more tensors than one.
        """
        self.model, self.inputs = model, inputs
        self._blocks = [model.get_submodule(block.path) for block in architecture.blocks]
        self._given: list[tuple[bool, tuple[Any, ...], dict[str, Any]]] = []
        self._rest: list[tuple[Any, ...] | None] = []
        # What a block returns besides hidden states, and is of this batch's own, only running it tells.
        known = None if like is None or any(map(_holds_more, like._rest)) else like._rest
        with ExitStack() as hooks:
            if known is not None:
                hooks.enter_context(_standing_in(self._blocks, [partial(_unchanged, rest) for rest in known]))
            for block in self._blocks:
                hooks.callback(block.register_forward_hook(self._look, with_kwargs=True).remove)
            with suppress(_ReachedError):
                model(**inputs, use_cache=False)

    @property
    def n_blocks(self) -> int:
        """How many blocks there are."""
        return len(self._blocks)

    def entering(self) -> Float[Tensor, "batch pos d_model"]:
        """What the first block is given."""
        found: list[Tensor] = []

        def forward(*args: Any, **kwargs: Any) -> Any:
            found.append(_hidden(args, kwargs))
            raise _ReachedError

        with suppress(_ReachedError), _standing_in(self._blocks[:1], [forward]):
            self.model(**self.inputs, use_cache=False)
        return found[0]

    def block(self, layer: int, hidden: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """What a block makes of hidden states: of these inputs, or of them several times over, one after the other."""
        (by_position, args, kwargs), block = self._given[layer], self._blocks[layer]
        rows = len(self.inputs["input_ids"])
        if 1 < rows < len(hidden):
            times = len(hidden) // rows
            args, kwargs = _repeated(args, rows, times), _repeated(kwargs, rows, times)
        output = block(hidden, *args, **kwargs) if by_position else block(**kwargs, **{_HIDDEN: hidden})
        found: Tensor = output[0] if isinstance(output, tuple) else output
        return found

    def behind(
        self, hidden: Float[Tensor, "batch pos d_model"], inputs: Mapping[str, Tensor]
    ) -> Float[Tensor, "batch pos vocab"]:
        """The logits, from what the last block gave. The inputs are those of these positions."""
        embed = ends_of(self.model)[0]
        width = next(embed.parameters()).shape[1]
        given = [_giving(hidden if rest is None else (hidden, *rest)) for rest in self._rest]
        # The blocks do not look at what they are given, so that no embedding has to be there.
        given.append(_giving(hidden.new_zeros(*inputs["input_ids"].shape, width)))
        with _standing_in([*self._blocks, embed], given):
            logits: Tensor = self.model(**inputs, use_cache=False).logits
        return logits

    def _look(self, _block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Keep what a block is given and returns besides hidden states. Nothing behind the last one is run."""
        others = {name: value for name, value in kwargs.items() if name != _HIDDEN}  # what came in is not kept
        self._given.append((bool(args), args[1:], others))
        self._rest.append(output[1:] if isinstance(output, tuple) else None)
        if len(self._given) == len(self._blocks):
            raise _ReachedError


def _repeated(value: Any, rows: int, times: int) -> Any:
    """What a block is given besides hidden states, for each of several times these rows."""
    if isinstance(value, Tensor):
        own = value.ndim > 1 and len(value) == rows
        return value.repeat(times, *[1] * (value.ndim - 1)) if own else value
    if isinstance(value, tuple):
        return tuple(_repeated(each, rows, times) for each in value)
    if isinstance(value, dict):
        return {name: _repeated(each, rows, times) for name, each in value.items()}
    return value


def _hidden(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    hidden: Tensor = args[0] if args else kwargs[_HIDDEN]
    return hidden


def _giving(output: Any) -> Callable[..., Any]:
    def forward(*_args: Any, **_kwargs: Any) -> Any:
        return output

    return forward


def _unchanged(rest: tuple[Any, ...] | None, *args: Any, **kwargs: Any) -> Any:
    hidden = _hidden(args, kwargs)
    return hidden if rest is None else (hidden, *rest)


def _holds_more(rest: tuple[Any, ...] | None) -> bool:
    return rest is not None and any(value is not None for value in rest)


class _ReachedError(Exception):
    """The forward pass has come as far as it is needed."""


@contextmanager
def _standing_in(blocks: Sequence[nn.Module], forwards: Sequence[Callable[..., Any]]) -> Iterator[None]:
    """These functions in place of the blocks' forwards."""
    kept = [block.__dict__.get("forward") for block in blocks]  # accelerate may have set one
    try:
        for block, forward in zip(blocks, forwards, strict=True):
            block.forward = forward
        yield
    finally:
        for block, before in zip(blocks, kept, strict=True):
            if before is None:
                block.__dict__.pop("forward", None)
            else:
                block.forward = before
