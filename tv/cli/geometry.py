"""`tv geometry`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from tv.cli.options import Align, Base, Cache, Device, Dtype, Engine, Heads, Output, Tuned, Workers
from tv.cli.output import check_output, write
from tv.cli.terminal import bar, print_notes, print_table

if TYPE_CHECKING:
    import pandas as pd


def geometry(
    base: Base,
    tuned: Tuned,
    heads: Heads = False,
    align: Align = False,
    tokens: Annotated[int, typer.Option(help="How many tokens to list: those whose embeddings changed most.")] = 10,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    workers: Workers = 1,
    engine: Engine = "local",
    cache: Cache = None,
    output: Output = None,
) -> None:
    """Measure every module's change: norms, cosine, ranks, spectra, share of noise; and the tokens that changed most.

    Example: tv geometry data/models/base data/models/medical -o geometry.parquet
    """
    import tv
    from tv.cli.align import aligned

    check_output(output)
    side = aligned(base, tuned) if align else tuned
    with bar("geometry") as progress:
        frame = tv.geometry(
            base,
            side,
            heads=heads,
            compute=tv.Compute(device, dtype, False, workers, engine, cache, progress),
        )
    whole = frame[frame["head"] == -1]
    matrices = whole[whole.kind == "linear"]
    _print(matrices, "tuning vector by module: matrices, mean over layers (and experts)", _MATRIX)
    _print(matrices, "what it changed in the spectrum and leading subspaces of W", _SUBSPACES)
    for kind, title in _VECTORS.items():
        _print(whole[whole.kind == kind], f"{title}, mean over layers", _VECTOR)
    if tokens > 0:
        moved = tv.moved_tokens(base, side, tokens)
        columns = ["matrix", "rank", "token_id", "token", "relative_norm", "mean_relative_norm"]
        if len(moved):
            print_table(
                "tokens whose embeddings changed most",
                ["matrix", "rank", "id", "token", "‖T‖/‖W‖", "mean"],
                moved[columns].to_numpy(object).tolist(),
            )
    print_notes(frame.attrs.get("notes", ()))
    write(frame, output)


#: What is no matrix of a block, by kind.
_VECTORS = {
    "norm": "norm gains",
    "bias": "biases",
    "embed": "embeddings",
    "vector": "other parameters",
    "group": "parts beside the language model, or outside its forward pass",
}
#: The columns shown of what has entries, and of what has directions too.
_VECTOR = ("relative_norm", "cos_weight_delta", "changed_fraction", "noise_share", "large_overlap")
_MATRIX = (*_VECTOR, "effective_rank")
_SUBSPACES = (
    *("spectral_shift", "kept_left", "kept_right"),
    *("intruders_left", "intruders_null_left", "intruders_right", "intruders_null_right"),
)
#: Headings in place of declared words that would make a table wider than 80 columns.
_SHORT = {
    "relative_norm": "‖T‖/‖W‖",
    "changed_fraction": "changed",
    "noise_share": "noise",
    "large_overlap": "on large W",
    "spectral_shift": "σ shift",
    "kept_left": "kept left",
    "kept_right": "kept right",
    "intruders_right": "right",
}


def _print(rows: pd.DataFrame, title: str, columns: Sequence[str]) -> None:
    from tv.measures.forms import form_of

    if rows.empty:
        return
    form = form_of("weights")
    headings = [_SHORT.get(name, form[name].title) for name in columns]
    means = rows.groupby("module", sort=False)[list(columns)].mean()
    cells = [[name, *map(float, values)] for name, values in zip(means.index, means.to_numpy(), strict=True)]
    print_table(title, ["module", *headings], cells)
