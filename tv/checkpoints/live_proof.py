"""The proof that a model which transformers loaded holds what weight space reads of the same files.

Every measure of weights is of one reading and every activation of the other: were they of different files, names or
ties, each table would be right and their comparison wrong.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tv.architecture.values import values_of
from tv.checkpoints.checkpoint import Checkpoint
from tv.checkpoints.file_tensors import FileTensors
from tv.checkpoints.parameters import Tensors
from tv.checkpoints.quantised.formats import dequantised
from tv.checkpoints.safetensors_files import weight_files
from tv.checkpoints.tensors import stored_tensors
from tv.checkpoints.ties import is_tied, untie
from tv.checkpoints.tree import tree_of
from tv.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def as_read(model: PreTrainedModel, checkpoint: Checkpoint) -> PreTrainedModel:
    """The model, proved to hold what the checkpoint reads.

    Every parameter and saved buffer is compared by name, shape and a few entries of its first dimension, bit for bit in
    the model's dtype. Where the checkpoint holds an unembedding apart from the embedding, and rounding made the two
    equal, the model's are untied.

    Args:
        model: Just loaded from the checkpoint's files; not in use anywhere else.
        checkpoint: The same files, opened.

    Returns:
        The model.

    Raises:
        CheckpointError: The first parameter that differs.

    Examples:
        >>> from tv.checkpoints.live import load_model
        >>> model = load_model("data/models/base")
        >>> as_read(model, tv.open_checkpoint("data/models/base")) is model
        True
    """
    if is_tied(model) and not checkpoint.architecture.tied:
        untie(model)
    _prove(model, checkpoint.source, checkpoint.reader)
    return model


def with_own_code(model: PreTrainedModel, directory: Path) -> PreTrainedModel:
    """The same of a model whose class is its checkpoint's own code, which has no skeleton here."""
    if getattr(model.config, "quantization_config", None) is None:
        stored = stored_tensors(weight_files(directory, getattr(model.config, "transformers_weights", None)))
        plain = dequantised(str(directory), stored, {})
        tree = tree_of(model)
        tensors = FileTensors(str(directory), plain, tree, {})
        if tensors.tree is not tree:
            untie(model)
        _prove(model, str(directory), tensors)
    return model


def _prove(model: PreTrainedModel, source: str, read: Tensors) -> None:
    parameters, values = dict(model.named_parameters()), values_of(model)
    pad = getattr(model.config.get_text_config(), "pad_token_id", None)
    pad = pad if isinstance(pad, int) else 0
    missing = next((name for name in parameters if name not in read.infos), None)
    if missing is not None:
        raise CheckpointError(f"{source}: tensor {missing!r} is missing; the checkpoint is incomplete")
    unknown = next((name for name in sorted(read.infos) if name not in parameters), None)
    if unknown is not None:
        raise CheckpointError(
            f"{source}: its files hold {unknown!r}, and transformers loads a model without it; load the model with "
            "transformers, save it again, and pass that"
        )
    held = {**read.beside, **read.infos}
    for name, value in values.items():
        if name not in held:  # a buffer that older files lack
            continue
        if tuple(value.shape) != held[name].shape or _differs(value.detach(), name, read, pad):
            raise CheckpointError(
                f"{source}: transformers loads other values of {name!r} than its files hold by that name; "
                "load the model with transformers, save it again, and pass that"
            )


def _differs(loaded: Tensor, name: str, read: Tensors, pad: int) -> bool:
    if not read.native:  # it was filled by this very reader
        return False
    if not loaded.ndim:
        value = read.read(name)
    else:
        chosen = {0, len(loaded) // 2, len(loaded) - 1, pad}  # some classes set the padding token's row to 0
        indices = sorted(index for index in chosen if 0 <= index < len(loaded))
        value, loaded = (read.rows(name, indices), loaded[indices]) if indices else (loaded, loaded)
    # NaN is equal here: what reads T says where it is.
    return not torch.allclose(value.to(loaded.dtype), loaded.cpu(), rtol=0, atol=0, equal_nan=True)
