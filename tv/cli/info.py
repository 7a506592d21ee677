"""`tv info`."""

from typing import Annotated

import typer

from tv.cli.options import Base


def info(
    path: Base, other: Annotated[str | None, typer.Argument(help="Check that this one is a fine-tune.")] = None
) -> None:
    """What a checkpoint is; with two, whether they belong together."""
    import tv

    checkpoint = tv.open_checkpoint(path)
    architecture, fingerprint = checkpoint.architecture, checkpoint.fingerprint()
    typer.echo(
        f"{checkpoint.source}: {architecture.name}, {fingerprint['parameters']:,} parameters, {checkpoint.dtype}"
    )
    typer.echo(
        f"{architecture.n_layers} layers, d_model {architecture.d_model}, {architecture.n_heads} heads, "
        f"{architecture.n_kv_heads} key-value heads, {'GLU' if architecture.gated else 'no GLU'}"
    )
    typer.echo(f"fingerprint {fingerprint['structure'][:12]} {fingerprint['content'][:12]}")
    if other is not None:
        facts = tv.check_pair(checkpoint, tv.open_checkpoint(other))
        typer.echo(f"{other}: fits; tokenizer {facts.tokenizer}")
        for note in facts.notes:
            typer.echo(f"note: {note}")
