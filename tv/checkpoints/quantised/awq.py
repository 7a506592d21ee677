"""AWQ: 4-bit numbers packed along the outputs, eight a word in an order of their own, a scale and a zero by group.

Source: arXiv 2306.00978 (the method); the layout is AutoAWQ's GEMM.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from jaxtyping import Float
from torch import Tensor

from tv.checkpoints.quantised.packing import scaled, unpack
from tv.checkpoints.quantised.parts import Files, Quantised

#: Where in a word each of eight neighbours lies.
_PLACES = [0, 4, 1, 5, 2, 6, 3, 7]


def read(files: Files) -> Iterator[Quantised]:
    """The weights of an AWQ checkpoint."""
    declared = files.declared
    layout = str(declared.get("version") or declared.get("format") or "gemm").lower()
    bits = declared.get("bits", declared.get("w_bit", 4))
    if layout != "gemm" or bits != 4:
        files.refuse(
            f"it is quantised with AWQ in the layout {layout!r} of {bits} bits, and only 'gemm' with 4 bits is read",
            "save it in the layout 'gemm' with AutoAWQ, or dequantised",
        )
    for module in files.modules("qweight"):
        yield _weight(files, module)
    for module in files.modules("scales"):
        files.refuse(f"tensor {module + '.scales'!r} scales an activation, which transformers' models do not")


def _weight(files: Files, module: str) -> Quantised:
    parts = {key: files.take(f"{module}.{key}", "I32") for key in ("qweight", "qzeros")}
    parts["scales"] = files.take(f"{module}.scales", "F16", "BF16", "F32")
    if any(len(part.shape) != 2 for part in parts.values()) or not all(parts["scales"].shape):
        files.refuse(f"the parts of {f'{module}.weight'!r} are no matrices", "download it again")
    cols, (groups, rows) = parts["qweight"].shape[0], parts["scales"].shape
    size = files.declared.get("group_size", files.declared.get("q_group_size", 128))
    files.require_shape(parts["scales"], (cols // size if size > 0 else 1, rows))
    files.require_shape(parts["qweight"], (cols, -(-rows // 8)))
    files.require_shape(parts["qzeros"], (groups, -(-rows // 8)))
    return Quantised(f"{module}.weight", (rows, cols), "AWQ4", parts, _values)


def _values(parts: Mapping[str, Tensor]) -> Float[Tensor, "rows cols"]:
    scales = parts["scales"].T
    codes, zeros = (_in_order(parts[key], scales.shape[0]).T for key in ("qweight", "qzeros"))
    return scaled(codes.contiguous(), scales, zeros)


def _in_order(words: Tensor, n: int) -> Tensor:
    codes = unpack(words, 4, 8 * words.shape[1])
    return codes.unflatten(1, (-1, 8))[..., _PLACES].flatten(1)[:, :n]
