"""An adapter's directory in peft's format, opened over a base."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tv.architecture.resolve import skeleton
from tv.checkpoints.adapters.changes import AdapterTensors, Change, Move
from tv.checkpoints.adapters.kinds import form_of, peft_version, reads_base, require_mergeable, trained_as
from tv.checkpoints.adapters.layers import moved_leaves
from tv.checkpoints.adapters.lora import factors_of, of_single_experts
from tv.checkpoints.adapters.through_peft import Merge, digest_of, injected, noise_of
from tv.checkpoints.adapters.ties import settled, tied_names
from tv.checkpoints.location import place_of
from tv.checkpoints.noise import ROUNDING, coarsest
from tv.checkpoints.tensors import Stored, header
from tv.checkpoints.transformers_names import ModelNames
from tv.errors import CheckpointError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tv.checkpoints.checkpoint import Checkpoint

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_WRAPPED = re.compile(r"\.(modules_to_save(\.default)?|(token_adapter\.)?base_layer)\.")
_BAND = 4096  # rows compared at a time


def adapter_base(directory: Path) -> tuple[str, str | None]:
    """(source, revision) of the base that an adapter names. Raises CheckpointError where it names none."""
    config = _config(directory)
    name = config.get("base_model_name_or_path")
    if not name:
        raise CheckpointError(f"{directory / _CONFIG}: names no base model; pass the base")
    return str(name), config.get("revision")


def adapter_tensors(directory: Path, base: Checkpoint) -> AdapterTensors:
    """The parameters of `base` under the adapter in a directory.

    Raises CheckpointError in one line: an adapter that has no T, is damaged, or was trained on another base.
    """
    config = _config(directory)
    form = form_of(config)
    plain = form == "LoRA"
    if not plain:
        require_mergeable(str(directory), form, config)
    model = skeleton(base.config)
    tied = tied_names(model, base)
    whole, parts = _sorted(_weights(directory), model)
    if plain and of_single_experts(parts, model):
        form, plain = "LoRA on single experts", False
        require_mergeable(str(directory), form, config)
    if not whole and not parts:
        raise CheckpointError(f"{directory / _WEIGHTS}: holds no tensor of an adapter")
    for name, stored in whole.items():
        _require_whole(directory, tied.get(name, name), stored, base)
    whole, notes = _without_carried(directory, config, base, whole, tied)
    changes: Mapping[str, Change]
    if plain:
        changes = factors = factors_of(str(directory), config, parts, model)
        for name, one in factors.items():
            shape = whole[name].shape if name in whole else _shape(directory, base, tied.get(name, name))
            one.require(name, shape, base.source)
    else:
        changes = _merges(directory, config, form, base, whole, parts, tied, model)
    moves = {name: Move(whole.get(name), changes.get(name)) for name in dict.fromkeys([*whole, *changes])}
    over, moves, of_ties = settled(str(directory), base, moves, tied)
    how = "by its factors" if plain else f"as peft {peft_version()} merges them, in float64"
    n_changed = sum(move.change is not None for move in moves.values())
    counts = ((n_changed, how), (len(moves) - n_changed, "stored whole"))
    said = ", ".join(f"{n} {way}" for n, way in counts if n)
    trained = trained_as(form, config)
    notes.insert(
        0, f"{directory}: an adapter ({trained}), which changes {len(moves)} of {len(over.names)} tensors: {said}"
    )
    named = str(config.get("base_model_name_or_path") or "")
    if named and Path(named).name != Path(place_of(base.source).name).name:
        notes.append(f"{directory}: says that its base is {named}; T is applied to {base.source}")
    if config.get("init_lora_weights") == "lora_ga":
        notes.append(
            f"{directory}: began from lora_ga, which took part of the base's weights into A and B; peft leaves it in "
            "the base when it loads the adapter, so T holds that part too"
        )
    return AdapterTensors(over, moves, (*notes, *of_ties))


def _merges(
    directory: Path,
    config: Mapping[str, Any],
    form: str,
    base: Checkpoint,
    whole: Mapping[str, Stored],
    parts: list[Stored],
    tied: Mapping[str, str],
    model: PreTrainedModel,
) -> dict[str, Change]:
    """The changes that peft makes, by the parameter's name in the model."""

    def read(name: str) -> Tensor:
        return whole[name].load() if name in whole else base.read(tied.get(name, name))

    rows = max((whole[name].shape[0] for name in whole if name in _words(base)), default=0)
    if rows > base.architecture.vocab_size:
        model.resize_token_embeddings(rows, mean_resizing=False)  # the adapter's tokens are numbered there
    layers = injected(directory, form, model, parts, read)
    dtype = coarsest(stored.dtype for stored in parts)
    digest, from_base = digest_of(config, parts), reads_base(config) or bool(config.get("use_dora"))
    changes: dict[str, Change] = {}
    for one, leaf, formed in moved_leaves(str(directory), form, layers):
        name = f"{one.path}.{leaf}"
        _shape(directory, base, tied.get(name, name))
        beside = [other for other, _ in one.module.named_parameters(recurse=False) if other != leaf]
        others = {} if one.parameter else {other: partial(read, f"{one.path}.{other}") for other in beside}
        noise = noise_of(dtype, base.info(tied.get(name, name)).dtype, formed, from_base)
        changes[name] = Merge(str(directory), one, leaf, others, dtype, noise, digest)
    return changes


def _sorted(file: Path, model: PreTrainedModel) -> tuple[dict[str, Stored], list[Stored]]:
    """The parameters of the model that the file holds whole, by name, and the adapter's own tensors."""
    names, known = ModelNames(model), dict(model.named_parameters(remove_duplicate=False)).keys()
    whole: dict[str, Stored] = {}
    parts = []
    for stored in header(file):
        if ".original_module." in stored.name:
            continue  # the base's, kept beside the trained one
        name, pattern = names.of(_WRAPPED.sub(".", stored.name.removeprefix("base_model.model.")))
        if pattern is not None or name not in known:
            parts.append(stored)
        elif name not in whole or ".modules_to_save." in stored.name:
            whole[name] = stored
    return whole, parts


def _require_whole(directory: Path, name: str, stored: Stored, base: Checkpoint) -> None:
    """Raise CheckpointError where a parameter held whole is not of the base's shape, its vocabulary aside."""
    expected = _shape(directory, base, name)
    vocabulary = name in _words(base)
    if stored.dtype not in ROUNDING:
        raise CheckpointError(f"{directory}: tensor {stored.name!r} is stored as {stored.dtype}; save it as float32")
    if stored.shape != expected and not (vocabulary and stored.shape[1:] == expected[1:]):
        raise CheckpointError(
            f"{directory}: its change of {name!r} has shape {list(stored.shape)}, the parameter of {base.source} "
            f"{list(expected)}; pass the base it was trained on"
        )


def _shape(directory: Path, base: Checkpoint, name: str) -> tuple[int, ...]:
    if name not in base.names:
        if name.endswith(".bias") and f"{name.removesuffix('bias')}weight" in base.names:
            raise CheckpointError(
                f"{directory}: it adds a bias {name!r} (lora_bias), and that module of {base.source} has none: peft "
                "cannot merge it, so it has no T"
            )
        raise CheckpointError(
            f"{directory}: it moves {name!r}, and {base.source} has no such parameter; pass the base it was trained on"
        )
    return base.info(name).shape


def _without_carried(
    directory: Path,
    config: Mapping[str, Any],
    base: Checkpoint,
    whole: dict[str, Stored],
    tied: Mapping[str, str],
) -> tuple[dict[str, Stored], list[str]]:
    """What the adapter holds whole without the embedding that peft saves beside it, where that is the base's own.

    Where it is another's, peft overwrites the base's with it, on both sides of a tie: T has the difference, which a
    note tells.
    """
    kept, notes = dict(whole), list[str]()
    words = _words(base)
    trained = [str(path) for path in config.get("modules_to_save") or ()]
    if config.get("ensure_weight_tying") and any(word.endswith(f"{path}.weight") for word in words for path in trained):
        return kept, notes
    for word in words:
        path, stored = word.rpartition(".")[0], whole.get(word)
        if stored is None or any(path == one or path.endswith(f".{one}") for one in trained):
            continue
        owner = tied.get(word, word)
        rows, changed = _changed_rows(stored.load(), base.read(owner))
        if stored.shape == base.info(owner).shape and not changed:
            del kept[word]
            continue
        for other in (word, owner, *(alias for alias, of in tied.items() if of == owner)):
            kept.setdefault(other, stored)
        if changed:
            notes.append(
                f"{directory}: holds {word} of the base that it was trained on, and {changed} of its {rows} rows are "
                f"others than {base.source}'s: peft overwrites them, so T has that difference too"
            )
    return kept, notes


def _words(base: Checkpoint) -> tuple[str, str]:
    """The names of the embedding and of the unembedding."""
    return f"{base.architecture.embed}.weight", f"{base.architecture.unembed}.weight"


def _changed_rows(stored: Tensor, base: Tensor) -> tuple[int, int]:
    """(rows that both have, how many of them differ)."""
    rows = min(len(stored), len(base))
    bands = (slice(start, min(start + _BAND, rows)) for start in range(0, rows, _BAND))
    return rows, sum(int((stored[band].float() != base[band].float()).any(-1).sum()) for band in bands)


def _config(directory: Path) -> dict[str, Any]:
    try:
        config = json.loads((directory / _CONFIG).read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("not a mapping")
        return config
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{directory / _CONFIG}: cannot be read: {first_line(error)}") from error


def _weights(directory: Path) -> Path:
    if (directory / _WEIGHTS).is_file():
        return directory / _WEIGHTS
    if any(directory.glob("*.bin")):
        raise CheckpointError(f"{directory}: holds pickled weights only, which are not read; save them as safetensors")
    raise CheckpointError(f"{directory}: no {_WEIGHTS}; download it")
