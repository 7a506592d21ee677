"""Where a directory says how it is quantised."""

import json
from pathlib import Path
from typing import Any

import pytest

import tv
from tv.checkpoints.quantised.declaration import declaration

#: File → content, and the declaration.
DECLARED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nothing": ({"config.json": {}}, {}),
    "null": ({"config.json": {"quantization_config": None}}, {}),
    "transformers": (
        {"config.json": {"quantization_config": {"quant_method": "awq", "bits": 4}}},
        {"quant_method": "awq", "bits": 4},
    ),
    "bitsandbytes without a name": (
        {"config.json": {"quantization_config": {"load_in_8bit": True}}},
        {"load_in_8bit": True, "quant_method": "bitsandbytes"},
    ),
    "older compressed-tensors": (
        {"config.json": {"compression_config": {"format": "dense"}}},
        {"format": "dense", "quant_method": "compressed-tensors"},
    ),
    "mlx, which says it twice": (
        {"config.json": {"quantization": {"bits": 4}, "quantization_config": {"bits": 4}}},
        {"quant_method": "mlx", "bits": 4},
    ),
    "modelopt": (
        {"config.json": {}, "hf_quant_config.json": {"producer": {}, "quantization": {"quant_algo": "FP8"}}},
        {"quant_method": "modelopt", "quant_algo": "FP8"},
    ),
    "autogptq": (
        {"config.json": {}, "quantize_config.json": {"bits": 4}},
        {"quant_method": "gptq", "bits": 4},
    ),
    "gptqmodel's awq": (
        {"config.json": {}, "quantize_config.json": {"bits": 4, "quant_method": "awq"}},
        {"quant_method": "awq", "bits": 4},
    ),
    "autoawq": (
        {"config.json": {}, "quant_config.json": {"w_bit": 4}},
        {"quant_method": "awq", "w_bit": 4},
    ),
    "config.json first": (
        {"config.json": {"quantization_config": {"quant_method": "gptq"}}, "hf_quant_config.json": {"a": 1}},
        {"quant_method": "gptq"},
    ),
}


def _write(path: Path, files: dict[str, Any]) -> None:
    for name, content in files.items():
        (path / name).write_text(json.dumps(content))


@pytest.mark.parametrize("case", DECLARED)
def test_declaration(case: str, tmp_path: Path) -> None:
    files, expected = DECLARED[case]
    _write(tmp_path, files)
    assert declaration(tmp_path) == expected


@pytest.mark.parametrize(
    "files, expected",
    [
        ({"config.json": {"quantization_config": {"bits": 4}}}, "config.json: its quantization_config names no quant"),
        ({"config.json": {"quantization_config": "gptq"}}, "config.json: its quantisation settings are no object"),
        ({"config.json": {}, "quantize_config.json": [4]}, "quantize_config.json: its quantisation settings are no"),
        ({"config.json": {}, "hf_quant_config.json": {"quantization": 8}}, "hf_quant_config.json: its quantisation"),
    ],
)
def test_nonsense_is_one_line(files: dict[str, Any], expected: str, tmp_path: Path) -> None:
    _write(tmp_path, files)
    with pytest.raises(tv.CheckpointError, match=expected) as caught:
        declaration(tmp_path)
    assert "\n" not in str(caught.value)
