"""How a model directory says that it is quantised: in config.json, or in a file of the quantiser's beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tv.errors import CheckpointError, first_line

#: Where config.json declares it: transformers, older compressed-tensors, MLX.
IN_CONFIG = ("quantization_config", "compression_config", "quantization")
#: Files beside config.json, and the method whose they are: ModelOpt's, AutoGPTQ's, AutoAWQ's.
_FILES = {"hf_quant_config.json": "modelopt", "quantize_config.json": "gptq", "quant_config.json": "awq"}


def declaration(path: Path) -> dict[str, Any]:
    """The quantisation that a model directory declares, with its `quant_method`; empty where it declares none.

    Raises CheckpointError where a declaration cannot be read.
    """
    config = _read(path / "config.json")
    if config.get("quantization"):  # MLX repeats it under transformers' name
        return {"quant_method": "mlx", **_mapping(config["quantization"], path / "config.json")}
    for key in IN_CONFIG:
        if config.get(key):
            declared = _mapping(config[key], path / "config.json")
            return declared | {"quant_method": _method(declared, key, path / "config.json")}
    for name, method in _FILES.items():
        if (path / name).is_file():
            declared = _read(path / name)
            return {"quant_method": method, **_mapping(declared.get("quantization", declared), path / name)}
    return {}


def _method(declared: dict[str, Any], key: str, file: Path) -> str:
    if "quant_method" in declared:
        return str(declared["quant_method"])
    if key == "compression_config":
        return "compressed-tensors"
    if declared.get("load_in_4bit") or declared.get("load_in_8bit"):
        return "bitsandbytes"
    raise CheckpointError(
        f"{file}: its {key} names no quant_method; add the method that the weights are quantised with"
    )


def _mapping(value: object, file: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise CheckpointError(f"{file}: its quantisation settings are no object of names and values")
    return value


def _read(file: Path) -> dict[str, Any]:
    try:
        return _mapping(json.loads(file.read_text(encoding="utf-8")), file)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: cannot be read: {first_line(error)}") from error
