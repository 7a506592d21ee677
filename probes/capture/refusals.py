"""Why a model's blocks are no sum: what else it does to its residual stream, as far as one forward shows it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from math import prod

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tv.architecture.parts import is_norm

_Same = Callable[[Tensor, Tensor], bool]
#: Whether factors make one stream of another one and of terms.
Explained = Callable[[Tensor, Tensor, Sequence[Tensor]], bool]


def told(error: Exception) -> str:
    """What a model's forward raised at a text alone, in one line."""
    first = (str(error).strip().splitlines() or [""])[0]
    name, missing, needed = first.partition(" missing ")
    if isinstance(error, TypeError) and missing and name.endswith("forward()"):
        return f"its forward needs {', '.join(needed.split(chr(39))[1::2])}: it has no text-only pass"
    return f"it computes nothing of a text alone: its forward raises {type(error).__name__}: {first}"


def without_trunk(model: PreTrainedModel, note: str) -> str:
    """Why a model whose blocks no rule finds cannot be read: `note`, or that each block normalises the stream."""
    if model.config.is_encoder_decoder:
        return note
    lists = [(len(part), path) for path, part in model.named_modules() if isinstance(part, nn.ModuleList) and len(part)]
    block = f"{max(lists)[1]}.0" if lists else ""
    given: dict[str, Tensor] = {}

    def hook_of(path: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: object, output: object) -> None:
            first = output[0] if isinstance(output, (tuple, list)) else output
            if isinstance(first, Tensor):
                given[path] = first.clone()

        return hook

    watched = [(path, part) for path, part in model.named_modules() if f"{path}.".startswith(f"{block}.")]
    handles = [part.register_forward_hook(hook_of(path)) for path, part in watched]
    try:
        with torch.inference_mode():
            model(input_ids=torch.arange(5, device=model.device)[None], use_cache=False)
    except Exception as error:  # a model that needs more than a text may raise anything
        return f"{type(model).__name__}: {told(error)}"
    finally:
        for handle in handles:
            handle.remove()
    for path, part in watched:
        leaf = next(part.children(), None) is None
        if leaf and is_norm(part) and path in given and block in given and torch.equal(given[path], given[block]):
            return f"{type(model).__name__}: normalises its residual stream in every block ({path} gives it)"
    return note


def reads_otherwise(shape: tuple[int, ...], after: tuple[int, ...], plain: tuple[int, ...]) -> str:
    """Why a block's input and output, of these shapes, are not one stream; `plain` are the sizes that one has."""
    if shape == after and (shape[0], shape[-1], len(shape)) == (plain[0], plain[-1], 3) and shape[1] != plain[1]:
        return f"computes {shape[1]} positions for a prompt of {plain[1]}"
    more = prod(shape) // prod(plain)
    if shape == after and more > 1 and more * prod(plain) == prod(shape):
        return f"keeps {more} residual streams side by side, and the instrument reads one"
    return f"takes {list(shape)} and gives {list(after)}: more than a stream"


def no_sum(
    pre: Tensor,
    post: Tensor,
    options: Sequence[Sequence[Tensor]],
    norms: Mapping[str, Tensor],
    explained: Explained,
    same: _Same,
) -> str | None:
    """What a block does to its stream besides adding to it; None where this does not tell.

    Args:
        pre: The stream before the block, (prompt, position, d_model).
        post: The stream behind it.
        options: What each component may write, in order.
        norms: The output of every norm in the block, by its path.
        explained: Whether factors make the second stream of the first and of terms.
        same: Whether two tensors agree.
    """
    options = [[term for term in terms if term.shape == post.shape and not same(term, post)] for terms in options]
    if any(_without(pre, post, terms, same) for terms in product(*options)):
        return "does not pass its residual stream on: what it gives is the sum of what its components write"
    for path, normed in norms.items():
        if normed.shape != post.shape:
            continue
        others = [[term for term in terms if not same(term, normed)] for terms in options]
        tails = [others[first:] for first in range(len(others))]
        if same(normed, post) or any(explained(normed, post, terms) for tail in tails for terms in product(*tail)):
            return f"normalises its residual stream: {path} passes on what it gives as the stream"
    for terms in product(*options):
        if _with_constant(pre, post, terms, same):
            return "adds a vector of its own to its residual stream, beside what its components write"
    return None


def _without(pre: Tensor, post: Tensor, terms: Sequence[Tensor], same: _Same) -> bool:
    """Whether the terms make the stream behind the block, and the one before it has no part in that."""
    columns = [pre, *terms]
    a = torch.stack([column.flatten() for column in columns], 1).double().cpu()
    factors = torch.linalg.lstsq(a, post.flatten().double().cpu()[:, None]).solution[:, 0].tolist()
    made = sum(factor * column for factor, column in zip(factors, columns, strict=True))
    return abs(factors[0]) < 1e-4 and isinstance(made, Tensor) and same(made, post)


def _with_constant(pre: Tensor, post: Tensor, terms: Sequence[Tensor], same: _Same) -> bool:
    """Whether a vector, and a number for each term and dimension, make the stream. The first prompt gives them."""
    columns = [torch.ones_like(pre), pre, *terms]
    a = torch.stack([column[0].T for column in columns], -1).double().cpu()
    goal = post[0].T[..., None].double().cpu()
    factors = torch.linalg.lstsq(a, goal, rcond=None).solution[..., 0].float().to(pre.device).unbind(-1)
    made = sum(factor * column for factor, column in zip(factors, columns, strict=True))
    return isinstance(made, Tensor) and same(made, post)
