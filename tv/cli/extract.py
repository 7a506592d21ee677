"""`tv extract`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tv.cli.options import Base, Tuned
from tv.cli.terminal import print_notes, wrote
from tv.errors import CheckpointError


def extract(
    base: Base,
    tuned: Tuned,
    output: Annotated[Path, typer.Option("-o", "--output", help="The file to write: .safetensors.")],
) -> None:
    """Write the tuning vector T = tuned − base as safetensors, float32, with its provenance.

    Example: tv extract data/models/base data/models/medical -o medical.safetensors
    """
    import tv

    if output.suffix != ".safetensors":
        raise CheckpointError(f"{output}: a tuning vector is written as .safetensors; use that ending")
    pair = tv.open_pair(base, tuned)
    print_notes(pair.facts.notes)
    vector = tv.extract(pair.base, pair.tuned)
    vector.save(output)
    wrote(output, f"{len(vector.names)} tensors, norm {vector.norm():.4g}")
