"""Arguments and options that several commands take, and how they are read."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Literal

import typer

from tv.errors import InputError

Base = Annotated[
    str, typer.Argument(metavar="BASE", help="The pretrained checkpoint: a directory, a hub id or a GGUF file.")
]
Tuned = Annotated[
    str,
    typer.Argument(
        metavar="TUNED", help="The tuned model: a checkpoint, an adapter, or a vector that tv extract wrote."
    ),
]
Output = Annotated[
    Path | None, typer.Option("-o", "--output", help="Write the table to this file: .parquet, .csv or .json.")
]
Heads = Annotated[bool, typer.Option(help="Also measure the slice of each attention head.")]
Align = Annotated[
    bool,
    typer.Option(
        "--align", help="First match the order, scale and basis of the tuned weights to the base's (see tv align)."
    ),
]
# Where and how to compute: a command passes those that it takes on as one `tv.Compute`.
Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, …, or auto for all available GPUs.")]
Dtype = Annotated[
    Literal["float32", "bfloat16", "float16"],
    typer.Option(help="The dtype that models compute in; weights are always measured in float64."),
]
Offload = Annotated[bool, typer.Option("--offload", help="Keep the tuned model in CPU memory.")]
Stream = Annotated[
    bool | None,
    typer.Option(
        "--stream/--no-stream",
        help="Read the models a layer at a time, for pairs larger than memory.",
        show_default="if two models do not fit in memory",
    ),
]
Workers = Annotated[int, typer.Option(help="Number of processes that share the work; the tables do not depend on it.")]
Engine = Annotated[Literal["local", "ray"], typer.Option(help="local: processes on this machine; ray: a cluster.")]
Cache = Annotated[
    Path | None, typer.Option(help="A directory that stores the base's decompositions for the next tuned model.")
]


def among(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """Shell completion for a value among `names`, which are slow to list; other values are allowed."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in names() if name.startswith(incomplete)]

    return complete


def named(arguments: list[str]) -> dict[str, str]:
    """Name → source. A part before "=" is a name, unless the argument is itself something on disk."""
    sources: dict[str, str] = {}
    for argument in arguments:
        name, equals, source = argument.partition("=")
        if not equals or "/" in name or Path(argument).exists():
            name, source = Path(argument).resolve().name, argument
        if not name or not source:
            raise InputError(f"{argument!r}: give a tuned model as TUNED or NAME=TUNED")
        if name in sources:
            raise InputError(
                f"{sources[name]} and {source} are both called {name!r}; give one another name: NAME={source}"
            )
        sources[name] = source
    return sources
