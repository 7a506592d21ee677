"""`tv diff`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tv.cli.commands import DONE, FAILED
from tv.cli.terminal import Shown, bar, print_notes, print_table, say

if TYPE_CHECKING:
    from tv.verifying.difference import Difference, Setting

_KINDS = "a model's directory, an adapter's, a .safetensors or .gguf file, or a hub id"


def diff(
    a: Annotated[str, typer.Argument(metavar="A", help=f"A checkpoint: {_KINDS}.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another checkpoint.")],
    headers: Annotated[
        bool, typer.Option("--headers", help="Compare names, shapes, dtypes and settings only, not values.")
    ] = False,
    rows: Annotated[int, typer.Option(min=0, help="How many tensors to show for each kind of difference.")] = 20,
) -> int:
    """Show how two checkpoints differ: names, shapes, dtypes, settings, tokenizer, template, then values.

    Exit status: 0 if they are the same, 3 if they differ.

    Example: tv diff data/models/base data/models/medical --headers
    """
    from tv.verifying.difference import diff as compared

    if headers:
        found = compared(a, b, headers=True)
    else:
        with bar("diff") as progress:
            found = compared(a, b, progress=progress)
    print_notes(found.notes)
    _print(found, a, b, rows)
    return DONE if found.same else FAILED


def _print(found: Difference, a: str, b: str, rows: int) -> None:
    if found.kinds[0] != found.kinds[1]:
        say(f"{a} is of kind {found.kinds[0]}, {b} of kind {found.kinds[1]}")
    for source, names in ((a, found.only_a), (b, found.only_b)):
        if names:
            _table(f"{len(names)} tensors only in {source}", ["name"], [[name] for name in names], rows)
    shapes = [[name, str(list(one)), str(list(two))] for name, one, two in found.shapes]
    _table(f"{len(shapes)} tensors with different shapes", ["name", "A", "B"], shapes, rows)
    kinds: dict[tuple[str, str], list[str]] = {}
    for name, one, two in found.dtypes:
        kinds.setdefault((one, two), []).append(name)
    dtypes = [[len(names), *pair, names[0]] for pair, names in kinds.items()]
    _table(f"{len(found.dtypes)} tensors with different dtypes", ["tensors", "A", "B", "first"], dtypes, rows)
    if found.kinds[0] == found.kinds[1] or "adapter" not in found.kinds:
        _print_settings("settings (config.json)", found.config)
        _print_settings("generation settings (generation_config.json)", found.generation)
    else:
        say("settings are not compared: one is an adapter and the other is not")
    for line in found.tokenizer:
        say(f"tokenizer: {line}")
    for line in found.template:
        say(line)
    if found.values is None:
        say("headers are the same" if found.same else "headers differ; values were not read")
        return
    moved = sorted(found.values, key=lambda one: -one.relative if one.relative == one.relative else 0.0)
    cells = [
        [one.name, Shown([one.off, one.n], f"{100 * one.off / one.n:.3g} %"), one.relative, one.largest]
        for one in moved
    ]
    headings = ["name", "entries that differ", "‖B − A‖/‖A‖", "largest"]
    _table(f"{len(cells)} of {found.n_tensors} tensors have different values", headings, cells, rows)
    say("the same" if found.same else f"they differ; {found.n_tensors - len(cells)} tensors are equal")


def _print_settings(title: str, settings: tuple[Setting, ...]) -> None:
    cells: list[list[object]] = []
    for one in settings:
        a, b = ("–" if side is None else _short(side) for side in (one.a, one.b))
        cells.append([one.key, Shown(one.a, a), Shown(one.b, b), "yes" if one.read else "no"])
    _table(f"{len(cells)} {title}", ["key", "A", "B", "read by the forward pass"], cells, len(cells))


def _table(title: str, headings: list[str], cells: list[list[object]] | list[list[str]], rows: int) -> None:
    if cells:
        rest = len(cells) - min(rows, len(cells))
        print_table(f"{title}{f', {rest} not shown' if rest else ''}", headings, cells[:rows])


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:59] + "…"
