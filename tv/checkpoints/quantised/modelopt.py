"""ModelOpt: float8 with a scale by tensor, row or block; NVFP4.

Source: the format as the package nvidia-modelopt exports it for Hugging Face.
"""

from __future__ import annotations

from collections.abc import Iterator

from tv.checkpoints.quantised import float8
from tv.checkpoints.quantised.fp4 import packed_fp4
from tv.checkpoints.quantised.parts import Files, Quantised


def read(files: Files) -> Iterator[Quantised]:
    """The weights of a ModelOpt checkpoint."""
    for module in files.modules("pre_quant_scale"):
        files.refuse(
            f"tensor {f'{module}.pre_quant_scale'!r} scales an activation, which no model of transformers does"
        )
    for module in files.modules("weight_scale_2"):
        yield packed_fp4(files, module, files.take(f"{module}.weight", "U8"), multiplies="weight_scale_2")
    yield from float8.read(files)
