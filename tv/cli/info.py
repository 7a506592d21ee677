"""`tv info`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tv.cli.options import Base, Output
from tv.cli.output import check_output, write
from tv.cli.terminal import print_notes, print_table, say
from tv.runtime.lasting import lasting

#: What is said of two tokenizers.
TOKENIZERS = {
    "same": "same tokenizer",
    "grown": "one tokenizer has more tokens",
    "renamed": "reserved ids have other tokens",
    "other rules": "the tokenizers differ",
    "not compared": "tokenizers not compared",
}


def info(
    path: Base,
    other: Annotated[
        str | None, typer.Argument(metavar="TUNED", help="A tuned model: check that it belongs to BASE.")
    ] = None,
    output: Output = None,
) -> None:
    """Describe a checkpoint; with two, check that they belong together.

    Example: tv info data/models/base data/models/medical
    """
    import tv

    check_output(output)
    with lasting():
        from tv.architecture.in_words import in_words
        from tv.checkpoints.info import described, info_notes, info_rows
        from tv.checkpoints.outline import OutlineTensors
    checkpoint = described(path)
    facts = None if other is None else tv.open_pair(checkpoint, other).facts  # a refusal comes before any table
    architecture, fingerprint = checkpoint.architecture, checkpoint.fingerprint()
    say(f"{checkpoint.source}: {architecture.name}, {fingerprint['parameters']:,} parameters, {checkpoint.dtype}")
    say(in_words(architecture))
    if not isinstance(checkpoint.reader, OutlineTensors):
        say(f"fingerprint {fingerprint['structure'][:12]} {fingerprint['content'][:12]}")
    kinds: dict[tuple[Any, ...], list[int]] = {}
    for row in info_rows(checkpoint):
        kinds.setdefault(tuple(row[key] for key in ("module", "kind", "rows", "cols", "dtype")), []).append(
            row["numbers"]
        )
    print_table(
        "modules",
        ["module", "kind", "rows", "cols", "stored", "how many", "numbers"],
        [
            [name, kind, *((None, None) if kind == "group" else size), dtype, len(numbers), sum(numbers)]
            for (name, kind, *size, dtype), numbers in kinds.items()
        ],
    )
    if facts is not None:
        say(f"{other}: compatible with the base; {TOKENIZERS[facts.tokenizer]}")
    print_notes(facts.notes if facts is not None else info_notes(checkpoint))
    if output is not None:
        write(tv.info(checkpoint), output)
