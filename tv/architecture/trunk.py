"""The trunk of a language model: embedding, list of blocks, final norm, unembedding, also inside a wrapper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from tv.architecture import names
from tv.architecture.sizes import Sizes
from tv.errors import ArchitectureError
from tv.runtime.live_models import is_live

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Trunk:
    """What carries the residual stream of text."""

    path: str  # of the module that runs the blocks, embedding and final norm included
    stack: str  # of the list of blocks
    blocks: nn.ModuleList
    embed: nn.Module
    positions: nn.Module | None  # an embedding of positions, added to that of tokens
    final_norm: nn.Module
    unembed: nn.Module


def trunk_of(model: PreTrainedModel, sizes: Sizes) -> Trunk:
    """Find it. Raises ArchitectureError where a part of it is missing."""
    kind = type(model).__name__
    if model.config.is_encoder_decoder:
        raise ArchitectureError(f"{kind}: an encoder reads the prompt, not the blocks that write the answer")
    paths = {module: path for path, module in model.named_modules()}
    embed, unembed = ends_of(model)
    if not _is_matrix(embed) or not _is_matrix(unembed):
        raise ArchitectureError(f"{kind}: no embedding or no unembedding found in the module tree")
    lists = [(path, part) for path, part in model.named_modules() if isinstance(part, nn.ModuleList) and len(part)]
    lists = [(path, part) for path, part in lists if next(part.parameters(), None) is not None]
    near = [
        (_shared(path, paths[embed]), len(part) == sizes.n_layers, len(part), -path.count("."), path, part)
        for path, part in lists
    ]
    fitting = [row for row in near if row[1]] or near
    if not fitting:
        raise ArchitectureError(f"{kind}: no list of its blocks found in the module tree")
    *_, stack, blocks = max(fitting, key=lambda row: row[:4])
    path = stack.rpartition(".")[0]
    trunk, around = model.get_submodule(path), model.get_submodule(path.rpartition(".")[0])
    behind = [getattr(part, name, None) for part in (trunk, around) for name in names.FINAL_NORMS]
    final_norm = next((norm for norm in behind if isinstance(norm, nn.Module)), None)
    if final_norm is None:
        raise ArchitectureError(f"{kind}: no final norm found in {path or 'the module tree'}")
    positions = next((getattr(trunk, n) for n in names.POSITIONS if _is_matrix(getattr(trunk, n, None))), None)
    return Trunk(path, stack, blocks, embed, positions, final_norm, unembed)


def ends_of(model: PreTrainedModel) -> tuple[Any, Any]:
    """Embedding and unembedding; None where neither the model nor a language model in it says which they are."""
    for part in model.modules():
        if is_live(part):
            try:
                ends = part.get_input_embeddings(), part.get_output_embeddings()
            except NotImplementedError:
                continue
            if None not in ends:
                return ends
    return None, None


def _is_matrix(module: object) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(module, nn.Module) and isinstance(weight, Tensor) and weight.ndim == 2


def _shared(path: str, other: str) -> int:
    """How many leading segments two paths have in common."""
    count = 0
    for one, two in zip(path.split("."), other.split("."), strict=False):
        if one != two:
            break
        count += 1
    return count
