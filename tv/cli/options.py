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
    typer.Argument(metavar="TUNED", help="The fine-tuned side: a checkpoint, an adapter, or an extracted vector."),
]
Output = Annotated[Path | None, typer.Option("-o", "--output", help="Write the table: .parquet, .csv or .json.")]
Heads = Annotated[bool, typer.Option(help="Measure every head's slice too.")]
Align = Annotated[
    bool,
    typer.Option(
        "--align", help="First undo what of T is a change of writing alone: orders, scales, bases (tv align)."
    ),
]
# Where and how to compute: a command passes those that it takes on as one `tv.Compute`.
Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, …, or auto for every GPU there is.")]
Dtype = Annotated[
    Literal["float32", "bfloat16", "float16"],
    typer.Option(help="What models compute in; weights are always measured in float64."),
]
Offload = Annotated[bool, typer.Option("--offload", help="Keep the tuned model on the CPU.")]
Stream = Annotated[
    bool | None,
    typer.Option(
        "--stream/--no-stream",
        help="Read the models a layer at a time, for pairs larger than memory.",
        show_default="where two models do not fit",
    ),
]
Workers = Annotated[int, typer.Option(help="Processes that share the work; the tables are the same.")]
Engine = Annotated[Literal["local", "ray"], typer.Option(help="local, or ray for more than one machine.")]
Cache = Annotated[Path | None, typer.Option(help="A directory that keeps the base's decompositions for the next run.")]


def among(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """Shell completion for a value among `names`, which are slow to list; other values are allowed too."""

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
            raise InputError(f"{argument!r}: a tuned side is given as TUNED or NAME=TUNED")
        if name in sources:
            raise InputError(f"{sources[name]} and {source} are both called {name!r}; name them apart: NAME={source}")
        sources[name] = source
    return sources
