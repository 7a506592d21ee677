"""Arguments and options that several commands take."""

from pathlib import Path
from typing import Annotated

import typer

Base = Annotated[str, typer.Argument(metavar="BASE", help="The pretrained checkpoint: a directory or a hub id.")]
Tuned = Annotated[
    str,
    typer.Argument(metavar="TUNED", help="The fine-tuned side: a checkpoint, a LoRA adapter, or an extracted vector."),
]
Output = Annotated[Path | None, typer.Option("-o", "--output", help="Write the table: .parquet, .csv or .json.")]
Heads = Annotated[bool, typer.Option(help="Measure every head's own slice too.")]
