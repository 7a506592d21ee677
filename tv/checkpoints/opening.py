"""One way to open every source: a directory, a hub id, a live model, a GGUF file, an adapter, a tuning vector."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from tv.architecture.sizes import sizes_of
from tv.checkpoints.adapters.live import adapted, as_model, holds_adapter, without_adapter
from tv.checkpoints.checkpoint import Checkpoint
from tv.checkpoints.description import Description, of_config
from tv.checkpoints.file_tensors import FileTensors
from tv.checkpoints.live_tensors import LiveTensors
from tv.checkpoints.location import HubId, kind_of, locate, locate_config, place_of
from tv.checkpoints.moved import MovedTensors
from tv.checkpoints.noise import PLAIN, rounding_note
from tv.checkpoints.outline import OutlineTensors
from tv.checkpoints.quantised.declaration import declaration
from tv.checkpoints.quantised.formats import dequantised
from tv.checkpoints.quantised.parts import Quantised
from tv.checkpoints.safetensors_files import of_ranks, passed_over, weight_files
from tv.checkpoints.tensors import stored_tensors
from tv.checkpoints.ties import is_tied
from tv.checkpoints.vector import TuningVector, VectorTensors
from tv.checkpoints.wrappers import unwrapped
from tv.errors import CheckpointError
from tv.runtime.live_models import is_live

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

Source: TypeAlias = "str | Path | PreTrainedModel | Checkpoint | TuningVector"


def open_checkpoint(source: Source, revision: str | None = None, *, base: Source | None = None) -> Checkpoint:
    """Open a source, reading headers only.

    Args:
        source: A local Hugging Face directory, a hub id (`org/name` or `org/name@revision`), a live model, a .gguf
            file, the directory of an adapter of peft, or a tuning vector (a file of `tv extract`, or one in memory). A
            live model may run with adapters, a PeftModel too: then it is what they move.
        revision: Of a hub id: a branch, a tag or a commit.
        base: What an adapter or a tuning vector is opened over; by default the base that it names, or the live
            model's own.

    Returns:
        The weights by name. None is read yet.

    Raises:
        CheckpointError: Nothing is there, or no config or safetensors; a shard is missing or truncated; the config
            does not describe the tensors; an adapter has no T, or is not of this base; weights are quantised in a
            format that is not read.

    Examples:
        >>> checkpoint = tv.open_checkpoint("data/models/base")
        >>> checkpoint.dtype, checkpoint.info("model.embed_tokens.weight").shape[1]
        ('BF16', 160)
    """
    if isinstance(source, Checkpoint):
        return source
    source = as_model(source)
    if is_live(source):
        return _running(source, base) if holds_adapter(source) else _open_live(source)
    if isinstance(source, TuningVector):
        return _open_vector("tuning vector", source, base)
    path = locate(source, revision)
    place = place_of(source, revision)
    source = str(place) if isinstance(place, HubId) else source
    kind = kind_of(path)
    if kind == "vector":
        return _open_vector(str(source), TuningVector.load(path), base)
    if kind == "adapter":
        return _open_adapter(str(source), path, base)
    if kind == "gguf":
        return _open_gguf(str(source), path)
    described = Description(path)
    named, quantisation = described.weights, declaration(path)
    files = weight_files(path, named)
    stored = dequantised(str(source), stored_tensors(files), quantisation)
    layers = described.architecture.n_layers if described.known else sizes_of(described.config).n_layers
    if layers > len(stored):  # checked before a tree of so many is built
        raise CheckpointError(f"{path}: its config declares {layers:,} layers, but it stores {len(stored):,} tensors")
    plain, notes = unwrapped(str(source), stored, described.tree)
    tensors = FileTensors(str(source), plain, described.tree, quantisation)
    if not tensors.infos:
        first = next(iter(stored), "none")
        raise CheckpointError(
            f"{source}: none of its tensors ({first!r} first) is a parameter of {tensors.tree.kind}; the files and "
            "config.json are of two models"
        )
    tensors.notes = (*passed_over(path, files), *notes, *_rounded(str(source), tensors), *tensors.notes)
    quantised = quantisation or any(isinstance(tensor, Quantised) for tensor in stored.values())
    tensors.native = not (notes or quantised or of_ranks(path))
    if tensors.tree is not described.tree:
        return _open_untied(str(source), path, tensors)
    described.keep()
    return Checkpoint(
        *(str(source), path, described.get_config, described.architecture, tensors, described.settings),
        written=described.written,
    )


def outline(source: str | Path, revision: str | None = None) -> Checkpoint:
    """Open what a configuration alone says of a model: no weight is read, and none has to be there.

    Args:
        source: A directory with a config.json, such a file, or a hub id, of which only the configuration is fetched.
        revision: Of a hub id.

    Returns:
        Names and shapes of the parameters, as transformers builds them; reading one raises CheckpointError.

    Raises:
        CheckpointError: There is no configuration, or it describes no model.

    Examples:
        >>> outline("data/models/base").architecture.n_layers
        6
    """
    file = locate_config(source, revision)
    described = Description(file)
    path = file.parent if file.name == "config.json" else None
    tensors, architecture = OutlineTensors(str(source), described.tree), described.architecture
    described.keep()
    return Checkpoint(
        *(str(source), path, described.get_config, architecture, tensors, described.settings), written=described.written
    )


def _rounded(source: str, tensors: FileTensors) -> Iterator[str]:
    sizes = Counter[str]()
    for info in tensors.infos.values():
        if info.dtype not in PLAIN:
            sizes[info.dtype] += math.prod(info.shape)
    if sizes:
        yield rounding_note(source, sizes.most_common(1)[0][0])


def _open_live(model: PreTrainedModel) -> Checkpoint:
    from tv.architecture.resolve import resolve  # here, as below: it imports transformers

    name = str(model.config.name_or_path or type(model).__name__)
    return Checkpoint(name, None, _described(model), resolve(model), LiveTensors(name, model))


def _open_adapter(source: str, path: Path, base: Source | None) -> Checkpoint:
    from tv.checkpoints.adapters.directory import adapter_base, adapter_tensors

    under = open_checkpoint(base) if base is not None else open_checkpoint(*adapter_base(path))
    return _over(source, path, adapter_tensors(path, under))


def _open_gguf(source: str, path: Path) -> Checkpoint:
    from tv.architecture.resolve import resolve, skeleton
    from tv.checkpoints.gguf import GgufTensors, gguf_config, gguf_file

    file = gguf_file(path)
    config = gguf_config(file)
    model = of_config(skeleton, config, file)
    return Checkpoint(source, None, config, of_config(resolve, model, file), GgufTensors(file, model))


def _open_untied(source: str, path: Path, tensors: FileTensors) -> Checkpoint:
    """Files whose embedding and unembedding differ, though the configuration ties them."""
    from tv.architecture.resolve import resolve

    model = tensors.tree.get_model()
    return Checkpoint(source, path, model.config, resolve(model), tensors)


def _open_vector(source: str, vector: TuningVector, base: Source | None) -> Checkpoint:
    if base is None:
        named = vector.base
        if named is None:
            raise CheckpointError(f"{source}: a tuning vector that names no base; pass the base")
        base = str(named.get("source"))
    return _over(source, None, VectorTensors(source, vector, open_checkpoint(base)))


def _running(model: PreTrainedModel, base: Source | None) -> Checkpoint:
    """A model that runs with adapters, as what they move of its base."""
    own = open_checkpoint(without_adapter(model))
    tensors = adapted(model, own, None if base is None else open_checkpoint(base))
    return own if tensors is None else _over(f"{own.source} with its adapter", None, tensors)


def _over(source: str, path: Path | None, tensors: MovedTensors) -> Checkpoint:
    """The base as an adapter or a tuning vector moves it. Where it has no tokenizer, the base's is used."""
    base = tensors.base
    embed = tensors.infos.get(f"{base.architecture.embed}.weight")  # where no rule finds one, none grows
    rows = base.architecture.vocab_size if embed is None else embed.shape[0]
    tokenizer_path = path if path is not None and (path / "tokenizer.json").is_file() else base.path
    architecture = replace(base.architecture, vocab_size=rows)
    return Checkpoint(source, tokenizer_path, partial(_grown, base, rows), architecture, tensors, base.settings)


def _grown(base: Checkpoint, rows: int) -> PretrainedConfig:
    """The base's configuration with a vocabulary of its own."""
    config = copy.deepcopy(base.config)
    config.get_text_config().vocab_size = rows
    return config


def _described(model: PreTrainedModel) -> PretrainedConfig:
    """A live model's configuration, which says whether its embedding and unembedding are one."""
    flags = (model.config, model.config.get_text_config())  # of a wrapper either may have one
    if is_tied(model) or not any(getattr(of, "tie_word_embeddings", False) for of in flags):
        return model.config
    config = copy.deepcopy(model.config)
    config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
    return config
