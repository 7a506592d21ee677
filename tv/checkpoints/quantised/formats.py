"""Every format of quantised checkpoints by the method that a checkpoint declares, and what is said of all others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tv.checkpoints.quantised import (
    awq,
    bitsandbytes,
    compressed_tensors,
    float8,
    fp4,
    gptq,
    mlx,
    modelopt,
)
from tv.checkpoints.quantised.parts import Files, Quantised
from tv.checkpoints.tensors import Stored
from tv.errors import first_line

_FORMATS: dict[str, Callable[[Files], Iterator[Quantised]]] = {
    **dict.fromkeys(("fp8", "fbgemm_fp8", "mxfp8"), float8.read),
    "awq": awq.read,
    "bitsandbytes": bitsandbytes.read,
    "compressed-tensors": compressed_tensors.read,
    "gptq": gptq.read,
    "mlx": mlx.read,
    "modelopt": modelopt.read,
    "mxfp4": fp4.read,
}
#: Ends of names that no tensor has but a part of a quantised weight.
_PARTS = (".qweight", ".weight_packed", ".SCB", ".weight.absmax", "_proj_blocks")


def dequantised(
    source: str, stored: Mapping[str, Stored], declared: Mapping[str, Any]
) -> dict[str, Stored | Quantised]:
    """The tensors of a model's files as they would be without quantisation, by name; none is read but a few settings.

    Args:
        source: What messages call the checkpoint.
        stored: The tensors of its files by name.
        declared: Its declaration (see `declaration`); empty where there is none.

    Returns:
        A weight stored in parts as one tensor that is dequantised when it is read, in float32; others as they are.

    Raises:
        CheckpointError: A method that is not read, or a declaration that does not fit the tensors, naming the first.
    """
    files = Files(source, stored, declared)
    method = str(declared["quant_method"]) if declared else None
    if method is not None and method not in _FORMATS:
        files.refuse(
            f"it is quantised with {method}, which is not read",
            f"load it with transformers where {method} runs, call model.dequantize(), and save that as bfloat16",
        )
    if method is None and (part := next((name for name in stored if name.endswith(_PARTS)), None)):
        files.refuse(
            f"tensor {part!r} is part of a quantised weight, and neither config.json nor quantize_config.json says how "
            "it is quantised",
            "download that file too",
        )
    try:
        weights = {weight.name: weight for weight in _FORMATS.get(method or "", float8.read)(files)}
    except (
        TypeError,
        AttributeError,
        LookupError,
        ArithmeticError,
        ValueError,
    ) as error:  # settings or shapes of no kind
        files.refuse(f"its settings or its tensors do not fit {method}: {first_line(error)}", "download it again")
    if method is not None and not weights:
        files.refuse(
            f"it declares that it is quantised with {method}, and none of its tensors is",
            "remove the declaration (quantization_config) if its weights are plain, or download them again",
        )
    return {**files.rest, **weights}
