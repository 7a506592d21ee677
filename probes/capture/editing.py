"""A site of a model changed in passing: what a module reads or gives goes through a function first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor, nn

from probes.capture.hooks.plan import Read, Site, plan
from probes.capture.hooks.torch_backend import by_position
from probes.errors import RunError
from tv.architecture.anatomy import Architecture

Edit = Callable[[Tensor], Tensor]


@contextmanager
def edited(
    model: nn.Module,
    architecture: Architecture,
    site: str,
    layer: int,
    edit: Edit,
    at: Bool[Tensor, "batch pos"] | None = None,
) -> Iterator[None]:
    """A model whose values at a site are changed while the context lasts.

    Args:
        model: A model of this architecture.
        architecture: Where its sites are.
        site: A site of d_model numbers: resid_pre, resid_mid, resid_post, attn_out, mlp_out.
        layer: From 0.
        edit: From (places, d_model) to the same shape; it does not change its argument.
        at: The places that are changed, of one batch; without it every place of any forward pass.

    Raises:
        RunError: The architecture has no such site in this layer.
    """
    read, own = site_at(architecture, site, layer)
    module, enters = model.get_submodule(read.path), Read(read.path, (own,)).ends[0]
    change = _at(edit, at)
    if enters:
        handle = module.register_forward_pre_hook(entering(change), with_kwargs=True)
    else:
        handle = module.register_forward_hook(leaving(change))
    try:
        yield
    finally:
        handle.remove()


def site_at(architecture: Architecture, site: str, layer: int) -> tuple[Read, Site]:
    """The read that serves a site of a layer.

    Raises RunError where there is none, or several mixers add to the stream side by side.
    """
    every = [(read, own) for read in plan(architecture, (site,)) for own in read.sites]
    found = [(read, own) for read, own in every if own.layer == layer]
    if len(found) > 1:
        names = " and ".join(own.component for _, own in found)
        raise RunError(f"{site} of layer {layer}: {names} stand side by side there; choose resid_mid or resid_post")
    if not found:
        layers = sorted({own.layer for _, own in every})
        there = f"layers {layers[0]} to {layers[-1]} have it" if layers else "no layer of this model has it"
        raise RunError(f"{site} of layer {layer}: there is no such site; {there}")
    return found[0]


def entering(edit: Edit) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
    """A pre-hook, with keywords, that changes what a module reads."""

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if args:
            return (edit(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": edit(kwargs["hidden_states"])}

    return hook


def leaving(edit: Edit) -> Callable[..., Any]:
    """A hook that changes what a module gives."""

    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        return (edit(output[0]), *output[1:]) if isinstance(output, tuple) else edit(output)

    return hook


def _at(edit: Edit, at: Bool[Tensor, "batch pos"] | None) -> Edit:
    """The edit at some places alone; the result is no view, as a model may change it in place."""

    def change(value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        if at is None:
            return edit(value.flatten(0, -2)).to(value).view_as(value)
        moved = value.clone()
        here = at.to(value.device)
        placed = by_position(moved, (at.shape[0], at.shape[1]))
        placed[here] = edit(placed[here]).to(value)
        return moved

    return change
