"""Who writes to the residual stream and which modules read it, found on the live model."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from probes.capture.pair import Pair
from probes.capture.sums import Factor
from probes.errors import RunError
from tv.architecture.anatomy import Block, Module, Writer

#: The receiver behind all blocks: the final norm and the unembedding.
LOGITS = "logits"


@dataclass(frozen=True)
class Sender:
    """What writes to the stream: a component, or one head of it."""

    layer: int
    component: str
    head: int = -1
    at: int = 0  # the first state of the stream that holds what it writes

    def __str__(self) -> str:
        if self.component == "embed":
            return "embed"
        return f"layer {self.layer} {self.component}" + (f" head {self.head}" if self.head >= 0 else "")


@dataclass(frozen=True)
class Receiver:
    """What reads the stream: a component; several, where they share what reads for them; or the logits."""

    layer: int
    component: str
    paths: tuple[str, ...]  # the modules that read
    at: int = 0  # the state of the stream that they read

    def __str__(self) -> str:
        return LOGITS if self.component == LOGITS else f"layer {self.layer} {self.component}"


@dataclass(frozen=True)
class Wiring:
    """The stream of a model: state 2l is what block l reads, state 2l + 1 is between its mixer and its MLP."""

    senders: tuple[Sender, ...]
    receivers: tuple[Receiver, ...]
    outputs: Mapping[tuple[int, str], tuple[str, Factor]]  # by sender, the module whose output it is, and its factor
    heads: Mapping[tuple[int, str], tuple[str, Module]]  # the module that reads z, and the matrix
    first: str  # the first block: what it reads, the embedding has written
    ends: tuple[int, str]  # the key of the final norm and the unembedding together

    def beside(self, layer: int) -> tuple[int, str]:
        """The last sender of a layer: parameters of no component of its own count to it."""
        return [key for key in self.outputs if key[0] == layer][-1]


def wiring_of(pair: Pair, heads: bool = True) -> Wiring:
    """Who writes and who reads, from one pass over a few tokens through the base.

    A module reads the stream where what it is given is the stream itself, the same tensor. Whose it is follows from who
    is given what it gives.

    Args:
        pair: Both models, proved.
        heads: Whether heads are senders too, beside the components that they make up.

    Raises:
        RunError: The blocks multiply the stream, or it is not known what reads it.
    """
    architecture, flow = pair.architecture, pair.flows[0]
    name = architecture.name
    embed = flow.factor(-1, "embed")
    if isinstance(embed, Tensor) or embed != 1.0:
        raise RunError(f"edges: {name} multiplies its stream from block to block, so that contributions do not add up")
    senders: list[Sender] = [Sender(-1, "embed", -1, 0)]
    receivers: list[Receiver] = []
    outputs: dict[tuple[int, str], tuple[str, Factor]] = {}
    sliced: dict[tuple[int, str], tuple[str, Module]] = {}
    given, gave = _calls(pair)
    for block in architecture.blocks:
        layer = block.layer
        for writer in block.writers:
            at = 2 * layer + (1 if block.mid is not None and writer is not block.writers[-1] else 2)
            key = layer, writer.component
            outputs[key] = writer.out, flow.factor(*key)
            senders.append(Sender(layer, writer.component, -1, at))
            if heads and writer.head_module is not None and writer.post_norm is None and writer.head_in is not None:
                sliced[key] = writer.head_in, writer.head_module
                senders += [Sender(layer, writer.component, head, at) for head in range(writer.head_module.n_heads)]
        found = _receivers(pair, block, given, gave)
        unread = {w.component for w in block.writers} - {part for r in found for part in r.component.split("+")}
        if unread:
            told = ", ".join(sorted(unread))
            raise RunError(f"edges: {name}: no module is known to read the stream for {told} in layer {layer}")
        receivers += found
    n = architecture.n_layers
    receivers.append(Receiver(n, LOGITS, (architecture.final_norm,), 2 * n))
    return Wiring(tuple(senders), tuple(receivers), outputs, sliced, architecture.blocks[0].path, (n, "ends"))


def first_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """What a module reads: its first argument."""
    value = args[0] if args else kwargs.get("hidden_states")
    return value if isinstance(value, Tensor) else None


def _calls(pair: Pair) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What every module of the blocks was given and gave: the tensors themselves."""
    given: dict[str, Tensor] = {}
    gave: dict[str, Tensor] = {}
    model, blocks = pair.base, tuple(f"{block.path}." for block in pair.architecture.blocks)
    paths = {block.path for block in pair.architecture.blocks}
    with ExitStack() as hooks:
        for path, module in model.named_modules():
            if path in paths or path.startswith(blocks):

                def hook(
                    _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any, path: str = path
                ) -> None:
                    value = first_tensor(args, kwargs)
                    made = output[0] if isinstance(output, tuple) else output
                    if value is not None and isinstance(made, Tensor):
                        given[path], gave[path] = value, made

                hooks.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        ids = torch.arange(3, 10, device=model.device)[None] % pair.architecture.vocab_size
        with torch.no_grad():
            model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    return given, gave


def _receivers(pair: Pair, block: Block, given: Mapping[str, Tensor], gave: Mapping[str, Tensor]) -> list[Receiver]:
    """What reads the stream in one block, in order."""
    states = {2 * block.layer: given.get(block.path)}
    writers = {2 * block.layer: list(block.writers)}
    if block.mid is not None:
        states[2 * block.layer + 1] = given.get(block.mid)
        writers = {2 * block.layer: list(block.writers[:-1]), 2 * block.layer + 1: [block.writers[-1]]}
    found: dict[tuple[int, str], list[str]] = {}
    for at, state in states.items():
        if state is None:
            continue
        inside = f"{block.path}."
        readers = [path for path, value in given.items() if path.startswith(inside) and value is state]
        outermost = [path for path in readers if not any(path.startswith(f"{other}.") for other in readers)]
        served = {path: _served(path, writers[at], given, gave) for path in outermost}
        if outermost and any(not any(writer in own for own in served.values()) for writer in writers[at]):
            served = dict.fromkeys(outermost, writers[at])  # what one of them is given is scaled first: all as one
        for path, own in served.items():
            found.setdefault((at, "+".join(writer.component for writer in own)), []).append(path)
    return [Receiver(block.layer, name, tuple(paths), at) for (at, name), paths in sorted(found.items())]


def _served(path: str, writers: list[Writer], given: Mapping[str, Tensor], gave: Mapping[str, Tensor]) -> list[Writer]:
    """The components that a module reads for: it is one, or one is given what it gives; all where that is not told."""
    own = [w for w in writers if w.path == path or w.path.startswith(f"{path}.") or path.startswith(f"{w.path}.")]
    own = own or [w for w in writers if given.get(w.path) is gave[path]]
    return own or writers
