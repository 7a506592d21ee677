"""What of an architecture decides in which ways its weights can be written: rotary pairs, norms, who reads a norm.

All of it is read off the module tree or tried on the modules themselves, never guessed: what is not known is left as it
is.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor, nn

from tv.architecture.anatomy import Architecture, Module
from tv.architecture.resolve import skeleton
from tv.errors import ArchitectureError
from tv.runtime.transformers_private import quarter_turn

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_READERS = {
    "attn_norm": ("q", "k", "v"),
    "mlp_norm": ("gate", "up", "router", "shared_gate", "shared_up", "shared_router"),
    "final_norm": ("unembed",),
}
#: The matrices of a block of attention and MLP; any other beside them might read a norm too.
_KNOWN = {"o", "down", "shared_down", *_READERS["attn_norm"], *_READERS["mlp_norm"]}


class Conventions:
    """The symmetries that an architecture has beside the order of neurons and heads; none where no rule of tv's fits.

    Args:
        config: The model's configuration.
        architecture: Its modules by role.

    Examples:
        >>> base = tv.open_checkpoint("data/models/base")
        >>> conventions = Conventions(base.config, base.architecture)
        >>> conventions.rotary_pairs[0].tolist(), conventions.offset(base.architecture.module(0, "attn_norm"))
        ([0, 12], 0.0)
    """

    def __init__(self, config: PretrainedConfig, architecture: Architecture) -> None:
        self._architecture = architecture
        self._tree = None
        if architecture.roles == "rules":
            with suppress(ArchitectureError):  # the class of a live model may be its checkpoint's own
                self._tree = skeleton(config)

    @cached_property
    def rotary_pairs(self) -> Int[Tensor, "pairs 2"] | None:
        """The dimensions of a head that are rotated together; empty without rotary embedding, None where not known."""
        if self._tree is None:
            return None
        sizes = {len(buffer) for name, buffer in self._tree.named_buffers() if name.endswith("inv_freq")}
        if not sizes:
            learned = any(module.name == "pos_embed" for module in self._architecture.modules)
            return torch.empty(0, 2, dtype=torch.long) if learned else None
        turn, rotated = quarter_turn(self._tree), 2 * max(sizes)
        if turn is None or len(sizes) > 1 or rotated > self._architecture.d_head:
            return None
        partners = turn(torch.arange(1, rotated + 1)).abs() - 1
        firsts = torch.arange(rotated)
        return torch.stack([firsts, partners], 1)[firsts < partners]

    def offset(self, norm: Module) -> float | None:
        """0 where the norm multiplies by its stored gain, 1 where by 1 + that; None where it does neither."""
        if self._tree is None:
            return None
        module = copy.deepcopy(self._tree.get_submodule(norm.path)).to_empty(device="cpu").float()
        x = torch.randn(3, *norm.shape, generator=torch.Generator().manual_seed(0))
        try:
            at_zero, at_one, at_two = (_with_gain(module, x, gain) for gain in (0.0, 1.0, 2.0))
        except (RuntimeError, TypeError):
            return None
        linear = torch.allclose(at_two - at_one, at_one - at_zero, atol=1e-5)
        offsets = [offset for offset in (0.0, 1.0) if torch.allclose(at_zero, offset * (at_one - at_zero), atol=1e-5)]
        return offsets[0] if linear and offsets else None

    def readers(self, norm: Module) -> Sequence[Module]:
        """The matrices that read the norm's output, where they and nothing else do; otherwise none.

        A block that has one of its two norms alone may feed both halves from it.
        """
        if self._tree is None or norm.name not in _READERS:
            return ()
        modules = [module for module in self._architecture.modules if module.layer == norm.layer]
        names = {module.name for module in modules if module.kind == "linear"}
        if norm.name != "final_norm" and (
            not {"attn_norm", "mlp_norm"} <= {module.name for module in modules} or names - _KNOWN
        ):
            return ()
        readers = [module for module in modules if module.name in _READERS[norm.name]]
        return () if any(module.tied or module.shape[1:] != norm.shape for module in readers) else readers

    def is_plain(self, output: Module) -> bool:
        """Whether an attention layer does nothing to values between its matrices, nor to q and k but by known norms."""
        if self._tree is None or getattr(self._tree.config.get_text_config(), "clip_qkv", None) is not None:
            return False
        path = output.path.rpartition(".")[0]
        known = {module.path for module in self._architecture.modules}
        children = self._tree.get_submodule(path).named_children()
        return not any(
            f"{path}.{name}" not in known and "norm" in type(child).__name__.lower() for name, child in children
        )


@torch.no_grad()
def _with_gain(module: nn.Module, x: Tensor, gain: float) -> Tensor:
    for name, parameter in module.named_parameters():
        parameter.fill_(gain if name == "weight" else 0.0)
    return torch.as_tensor(module(x))
