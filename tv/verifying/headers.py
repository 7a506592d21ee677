"""What lies in a checkpoint besides values: names, shapes, dtypes and settings, read without torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tv.checkpoints.safetensors_files import declared, holds_weights, weight_files
from tv.errors import CheckpointError, first_line

#: Files that a tokenizer is made of.
_TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tekken.json"),
    *("vocab.*", "merges.txt", "*.model", "*.tiktoken"),
)
_TEMPLATES = ("*.jinja", "additional_chat_templates/*.jinja", "chat_template.json")
_CONFIGS = ("config.json", "adapter_config.json")
_GENERATION = "generation_config.json"


@dataclass(frozen=True)
class Tensor:
    """One stored tensor, as its header declares it."""

    shape: tuple[int, ...]
    dtype: str  # in safetensors' words or GGUF's
    file: Path


@dataclass(frozen=True)
class Headers:
    """A checkpoint without its values.

    Attributes:
        source: As it was given.
        kind: "model", "adapter", "vector" or "gguf".
        tensors: By the name in the files.
        config: What config.json (of an adapter, adapter_config.json) says, keys of nested parts joined by dots.
        generation: The same of generation_config.json.
        tokenizer: The files of its tokenizer, by name.
        templates: Chat templates, by name.
    """

    source: str
    kind: str
    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any]
    generation: Mapping[str, Any]
    tokenizer: Mapping[str, Path]
    templates: Mapping[str, str]


def headers_of(source: str | Path) -> Headers:
    """The headers of a source: a directory, a .safetensors or .gguf file, or a hub id.

    Raises CheckpointError where there is none, or a file cannot be read.
    """
    path = Path(source).expanduser()
    if not path.exists():
        from tv.checkpoints.location import locate  # here: it imports torch, and what lies on the disk needs no hub

        path = locate(source)
    if path.is_file():
        return _of_file(str(source), path)
    files = _weights(path)
    if not files:
        ggufs = sorted(path.glob("*.gguf"))
        if len(ggufs) == 1:
            return _of_file(str(source), ggufs[0])
        raise CheckpointError(f"{source}: holds no safetensors; pass a checkpoint's directory, or a .gguf file")
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors.update(_tensors(file)[0])
    config = next((name for name in reversed(_CONFIGS) if (path / name).is_file()), _CONFIGS[0])
    return Headers(
        source=str(source),
        kind="adapter" if config == _CONFIGS[1] else "model",
        tensors=tensors,
        config=dict(flat(_json(path / config))),
        generation=dict(flat(_json(path / _GENERATION))),
        tokenizer=_found(path, _TOKENIZER),
        templates=dict(_templates(path)),
    )


def flat(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested mappings, by their keys joined by dots.

    Examples:
        >>> dict(flat({"rope": {"theta": 1e4}, "layers": [1, 2]}))
        {'rope.theta': 10000.0, 'layers': [1, 2]}
    """
    if isinstance(values, Mapping) and (values or not prefix):
        for key, value in values.items():
            yield from flat(value, f"{prefix}.{key}" if prefix else str(key))
    elif prefix:
        yield prefix, values


def _of_file(source: str, path: Path) -> Headers:
    if path.suffix == ".gguf":
        tensors, settings = _of_gguf(path)
        templates = (
            {"chat_template": str(settings.pop("tokenizer.chat_template"))}
            if ("tokenizer.chat_template" in settings)
            else {}
        )
        return Headers(source, "gguf", tensors, settings, {}, {}, templates)
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{source}: pass a checkpoint's directory, or a .safetensors or .gguf file")
    tensors, metadata = _tensors(path)
    return Headers(source, "vector", tensors, metadata, {}, {}, {})


def _weights(directory: Path) -> list[Path]:
    """The safetensors files of a directory: a model's, an adapter's, or whatever lies there."""
    adapter = directory / "adapter_model.safetensors"
    if holds_weights(directory):
        return weight_files(directory)
    return [adapter] if adapter.is_file() else sorted(directory.glob("*.safetensors"))


def _tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What the header of a safetensors file declares: tensors, and metadata."""
    tensors, metadata = declared(file)
    return {one.name: Tensor(one.shape, one.dtype, one.file) for one in tensors}, metadata


def _of_gguf(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from gguf import GGUFReader

    try:
        reader = GGUFReader(file)
        tensors = {
            one.name: Tensor(tuple(int(size) for size in reversed(one.shape)), one.tensor_type.name, file)
            for one in reader.tensors
        }
        fields = {name: _field(field) for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    except Exception as error:  # a damaged file can make the reader raise anything
        raise CheckpointError(f"{file}: not a readable GGUF file: {first_line(error)}") from error
    return tensors, fields


def _field(field: Any) -> Any:
    """A setting; of a long list (a vocabulary) its length and a hash."""
    if len(field.data) > 64:
        import hashlib

        digest = hashlib.sha256()
        for part in field.data:
            digest.update(bytes(field.parts[part].tobytes()) + b"\0")
        return f"{len(field.data):,} entries, sha256 {digest.hexdigest()[:12]}"
    value = field.contents()
    return value.item() if hasattr(value, "item") else value


def _templates(directory: Path) -> Iterator[tuple[str, str]]:
    inside = _json(directory / "tokenizer_config.json").get("chat_template")
    if isinstance(inside, str):
        yield "chat_template", inside
    elif isinstance(inside, list):
        for one in inside:
            if isinstance(one, Mapping):
                yield f"chat_template {one.get('name')}", str(one.get("template"))
    for name, file in _found(directory, _TEMPLATES).items():
        if file.suffix == ".json":
            yield "chat_template", str(_json(file).get("chat_template", ""))
        else:
            yield name.removesuffix(".jinja"), file.read_text(encoding="utf-8", errors="replace")


def _found(directory: Path, patterns: tuple[str, ...]) -> dict[str, Path]:
    files = sorted({file for pattern in patterns for file in directory.glob(pattern) if file.is_file()})
    return {str(file.relative_to(directory)): file for file in files}


def _json(file: Path) -> dict[str, Any]:
    """A JSON file's mapping; empty where there is no such file."""
    if not file.is_file():
        return {}
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("not a mapping")
        return values
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: cannot be read: {first_line(error)}") from error
