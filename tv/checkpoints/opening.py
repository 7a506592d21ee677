"""One way to open every source: a directory, a hub id, a live model, a GGUF file, an adapter, a tuning vector."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from tv.architecture.anatomy import Architecture
from tv.architecture.resolve import resolve, skeleton
from tv.architecture.sizes import sizes_of
from tv.checkpoints.adapters.directory import adapter_base, adapter_tensors
from tv.checkpoints.adapters.live import adapted, as_model, holds_adapter, without_adapter
from tv.checkpoints.checkpoint import Checkpoint
from tv.checkpoints.file_tensors import FileTensors
from tv.checkpoints.gguf import GgufTensors, gguf_config, gguf_file
from tv.checkpoints.live_tensors import LiveTensors
from tv.checkpoints.location import HubId, kind_of, locate, locate_config, place_of
from tv.checkpoints.moved import MovedTensors
from tv.checkpoints.noise import PLAIN, rounding_note
from tv.checkpoints.outline import OutlineTensors
from tv.checkpoints.quantised.declaration import IN_CONFIG, declaration
from tv.checkpoints.quantised.formats import dequantised
from tv.checkpoints.quantised.parts import Quantised
from tv.checkpoints.tensors import of_ranks, passed_over, stored_tensors, weight_files
from tv.checkpoints.ties import is_tied
from tv.checkpoints.vector import TuningVector, VectorTensors
from tv.checkpoints.wrappers import unwrapped
from tv.errors import CheckpointError, InputError, first_line

Source: TypeAlias = str | Path | PreTrainedModel | Checkpoint | TuningVector


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
    if isinstance(source, PreTrainedModel):
        if holds_adapter(source):
            return _running(source, base)
        name = str(source.config.name_or_path or type(source).__name__)
        return Checkpoint(name, None, _described(source), resolve(source), LiveTensors(name, source))
    if isinstance(source, TuningVector):
        return _open_vector("tuning vector", source, base)
    path = locate(source, revision)
    place = place_of(source, revision)
    source = str(place) if isinstance(place, HubId) else source
    kind = kind_of(path)
    if kind == "vector":
        return _open_vector(str(source), TuningVector.load(path), base)
    if kind == "adapter":
        under = open_checkpoint(base) if base is not None else open_checkpoint(*adapter_base(path))
        return _over(str(source), path, adapter_tensors(path, under))
    if kind == "gguf":
        file = gguf_file(path)
        config = gguf_config(file)
        model = _tree(config, file)
        return Checkpoint(str(source), None, config, _resolved(model, file), GgufTensors(file, model))
    config, quantisation = _config(path), declaration(path)
    files = weight_files(path, getattr(config, "transformers_weights", None))
    stored = dequantised(str(source), stored_tensors(files), quantisation)
    layers = sizes_of(config).n_layers
    if layers > len(stored):  # checked before a tree of so many is built
        raise CheckpointError(f"{path}: its config declares {layers:,} layers, but it stores {len(stored):,} tensors")
    model = _tree(config, path / "config.json")
    plain, notes = unwrapped(str(source), stored, model)
    tensors = FileTensors(str(source), plain, model, quantisation)
    if not tensors.infos:
        first = next(iter(stored), "none")
        raise CheckpointError(
            f"{source}: none of its tensors ({first!r} first) is a parameter of {type(model).__name__}; the files and "
            "config.json are of two models"
        )
    tensors.notes = (*passed_over(path, files), *notes, *_rounded(str(source), tensors), *tensors.notes)
    quantised = quantisation or any(isinstance(tensor, Quantised) for tensor in stored.values())
    tensors.native = not (notes or quantised or of_ranks(path))
    return Checkpoint(str(source), path, model.config, _resolved(model, path / "config.json"), tensors)


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
    config = _config(file)
    model = _tree(config, file)
    path = file.parent if file.name == "config.json" else None
    tensors = OutlineTensors(str(source), model)
    return Checkpoint(str(source), path, model.config, _resolved(model, file), tensors)


def _rounded(source: str, tensors: FileTensors) -> Iterator[str]:
    sizes = Counter[str]()
    for info in tensors.infos.values():
        if info.dtype not in PLAIN:
            sizes[info.dtype] += math.prod(info.shape)
    if sizes:
        yield rounding_note(source, sizes.most_common(1)[0][0])


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
    config = copy.deepcopy(base.config)
    config.get_text_config().vocab_size = rows
    tokenizer_path = path if path is not None and (path / "tokenizer.json").is_file() else base.path
    return Checkpoint(source, tokenizer_path, config, replace(base.architecture, vocab_size=rows), tensors)


def _described(model: PreTrainedModel) -> PretrainedConfig:
    """A live model's configuration, which says whether its embedding and unembedding are one."""
    flags = (model.config, model.config.get_text_config())  # of a wrapper either may have one
    if is_tied(model) or not any(getattr(of, "tie_word_embeddings", False) for of in flags):
        return model.config
    config = copy.deepcopy(model.config)
    config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
    return config


def _tree(config: PretrainedConfig, file: Path) -> PreTrainedModel:
    return _of_config(skeleton, config, file)


def _resolved(model: PreTrainedModel, file: Path) -> Architecture:
    return _of_config(resolve, model, file)


def _of_config(step: Callable[[Any], Any], given: Any, file: Path) -> Any:
    try:
        return step(given)
    except InputError:
        raise
    except Exception as error:  # numbers that describe no model can make transformers raise anything
        raise CheckpointError(f"{file}: describes no model: {first_line(error)}") from error


def _config(path: Path) -> PretrainedConfig:
    """A model's configuration, of its directory or file, without its quantisation."""
    file = path if path.is_file() else path / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{path}: no config.json; pass a Hugging Face model directory")
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except StrictDataclassError as error:  # it names the field on its first line, and what is wrong on the next
        raise CheckpointError(f"{file}: {' '.join(str(error).split())}") from error
    except (OSError, ValueError, KeyError, TypeError, ArithmeticError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{file}: cannot be read: {first_line(error)}") from error
    for key in IN_CONFIG:
        if hasattr(config, key):
            delattr(config, key)
    return config
