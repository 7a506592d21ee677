"""Arguments and options that several commands take."""

from pathlib import Path
from typing import Annotated

import typer

from tv.engine import Engine

Base = Annotated[str, typer.Argument(metavar="BASE", help="The pretrained checkpoint: a directory or a hub id.")]
Tuned = Annotated[
    str,
    typer.Argument(metavar="TUNED", help="The fine-tuned side: a checkpoint, a LoRA adapter, or an extracted vector."),
]
Output = Annotated[Path | None, typer.Option("-o", "--output", help="Write the table: .parquet, .csv or .json.")]
Heads = Annotated[bool, typer.Option(help="Measure every head's own slice too.")]
DeviceOption = Annotated[str, typer.Option("--device", help="Where to compute: cpu, cuda, cuda:1, …")]
Workers = Annotated[int, typer.Option(help="Processes that share the modules; the tables are the same.")]
EngineOption = Annotated[Engine, typer.Option(help="local, or ray for more than one machine.")]
Cache = Annotated[Path | None, typer.Option(help="A directory that keeps the base's decompositions for the next run.")]
