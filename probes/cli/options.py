"""Arguments and options that several commands take."""

from typing import Annotated

import typer

Device = Annotated[
    str, typer.Option(help="Where models compute: cpu, cuda, cuda:1, …, or auto for every GPU there is.")
]
Dtype = Annotated[str, typer.Option(help="In what they compute: float32, bfloat16 or float16.")]
Offload = Annotated[bool, typer.Option("--offload", help="Keep the tuned model on the CPU.")]
RunPath = Annotated[str, typer.Argument(help="The directory of a run, or its URL.", metavar="RUN")]
