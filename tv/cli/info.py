"""`tv info`."""

from typing import Annotated

import typer

from tv.cli.options import Base, Output
from tv.cli.output import check_output, write
from tv.cli.terminal import print_table


def info(
    path: Base,
    other: Annotated[str | None, typer.Argument(help="Check that this one is a fine-tune.")] = None,
    output: Output = None,
) -> None:
    """What a checkpoint is; with two, whether they belong together.

    Example: tv info data/models/base data/models/medical
    """
    import tv

    check_output(output)
    checkpoint = tv.open_checkpoint(path)
    architecture, fingerprint = checkpoint.architecture, checkpoint.fingerprint()
    frame = tv.info(checkpoint)
    typer.echo(
        f"{checkpoint.source}: {architecture.name}, {fingerprint['parameters']:,} parameters, {checkpoint.dtype}"
    )
    typer.echo(
        f"{architecture.n_layers} layers, d_model {architecture.d_model}, {architecture.n_heads} heads, "
        f"{architecture.n_kv_heads} key-value heads, {'GLU' if architecture.gated else 'no GLU'}"
    )
    typer.echo(f"fingerprint {fingerprint['structure'][:12]} {fingerprint['content'][:12]}")
    kinds = frame.groupby(["module", "kind", "rows", "cols", "dtype"], sort=False).size()
    print_table(
        "modules", ["module", "kind", "rows", "cols", "stored", "how many"], [[*at, n] for at, n in kinds.items()]
    )
    if architecture.note and other is None:
        typer.echo(f"note: {architecture.note}")
    if other is not None:
        facts = tv.open_pair(checkpoint, other).facts
        typer.echo(f"{other}: fits; tokenizer {facts.tokenizer}")
        for note in facts.notes:
            typer.echo(f"note: {note}")
    write(frame, output)
