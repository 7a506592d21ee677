"""MLX: whole numbers packed along the inputs, a scale and a bias by group of inputs.

Source: MLX's `quantize`, w = scale · code + bias.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

from jaxtyping import Float
from torch import Tensor

from tv.checkpoints.quantised.packing import unpack
from tv.checkpoints.quantised.parts import Files, Quantised


def read(files: Files) -> Iterator[Quantised]:
    """The weights of an MLX checkpoint."""
    if stacked := next((name for name in files.stored if ".switch_mlp." in name), None):
        files.refuse(f"tensor {stacked!r} stacks experts as MLX does and transformers does not", "use the original")
    for module in files.modules("scales"):
        own = files.declared.get(module)
        settings = own if isinstance(own, Mapping) else files.declared
        mode, bits, size = settings.get("mode", "affine"), settings.get("bits"), settings.get("group_size")
        if mode != "affine" or bits not in (2, 3, 4, 5, 6, 8) or not isinstance(size, int) or size <= 0:
            files.refuse(
                f"tensor {f'{module}.weight'!r} is quantised by MLX in the mode {mode!r} of {bits} bits in groups of "
                f"{size}, which is not read",
                "convert it with mlx_lm.convert --dequantize",
            )
        yield _weight(files, module, bits, size)


def _weight(files: Files, module: str, bits: int, size: int) -> Quantised:
    parts = {"weight": files.take(f"{module}.weight", "U32")}
    parts |= {key: files.take(f"{module}.{key}", "F16", "BF16", "F32") for key in ("scales", "biases")}
    shape = (*parts["weight"].shape[:-1], 32 * parts["weight"].shape[-1] // bits)
    for key in ("scales", "biases"):
        files.require_shape(parts[key], (*shape[:-1], shape[-1] // size))
    files.require_shape(parts["weight"], (*shape[:-1], shape[-1] // size * size * bits // 32))
    return Quantised(f"{module}.weight", shape, f"MLX{bits}", parts, partial(_values, bits=bits, n=shape[-1]))


def _values(parts: Mapping[str, Tensor], bits: int, n: int) -> Float[Tensor, "... rows cols"]:
    scales, biases = parts["scales"].float()[..., None], parts["biases"].float()[..., None]
    out = unpack(parts["weight"], bits, n).float()
    out.unflatten(-1, (scales.shape[-2], -1)).mul_(scales).add_(biases)
    return out
