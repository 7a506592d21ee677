"""The `tv` command, and what both commands do about bad input."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from typer.exceptions import Abort, TyperException

from tv.atomic import replacing
from tv.errors import CheckpointError, InputError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Where fine-tuning moved the weights, and what of it is more than matrix shape.",
)

Base = Annotated[str, typer.Argument(metavar="BASE", help="The pretrained checkpoint: a directory or a hub id.")]
Tuned = Annotated[str, typer.Argument(metavar="TUNED", help="The fine-tuned checkpoint.")]
Output = Annotated[Path | None, typer.Option("-o", "--output", help="Write the table: .parquet, .csv or .json.")]
Heads = Annotated[bool, typer.Option(help="Measure every head's own slice too.")]

_WRITERS = {".parquet": "to_parquet", ".csv": "to_csv", ".json": "to_json"}


@app.command()
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


@app.command()
def ssa(
    base: Base,
    tuned: Tuned,
    epsilon: Annotated[
        list[float] | None, typer.Option(help="Relative error of the kept subspace; repeatable.")
    ] = None,
    heads: Heads = True,
    output: Output = None,
) -> None:
    """Subspace alignment of every matrix beside its null.

    Example: tv ssa data/models/base data/models/medical -o ssa.parquet
    """
    import tv
    from tv.measure import EPSILONS

    _check_output(output)
    with _bar("alignment") as progress:
        frame = tv.ssa(base, tuned, tuple(epsilon or EPSILONS), heads=heads, progress=progress)
    _print_alignment(frame)
    _write(frame, output)


@app.command()
def geometry(base: Base, tuned: Tuned, heads: Heads = False, output: Output = None) -> None:
    """Norms, cosine, ranks and noise share of every module."""
    import tv

    _check_output(output)
    with _bar("geometry") as progress:
        frame = tv.geometry(base, tuned, heads=heads, progress=progress)
    columns = ("relative_norm", "cosine", "changed_fraction", "noise_share", "stable_rank", "effective_rank")
    table = Table("layer", "module", *columns, title="tuning vector by module")
    for row in frame[frame["head"] == -1].to_dict("records"):
        table.add_row(str(row["layer"]), row["module"], *(_number(row[name]) for name in columns))
    Console().print(table)
    _write(frame, output)


@app.command()
def extract(
    base: Base, tuned: Tuned, output: Annotated[Path, typer.Option("-o", "--output", help="A .safetensors file.")]
) -> None:
    """Write the tuning vector T = tuned − base as safetensors, float32, with its provenance."""
    import tv

    if output.suffix != ".safetensors":
        raise CheckpointError(f"{output}: a tuning vector is written as .safetensors; name the file so")
    vector = tv.extract(base, tuned)
    vector.save(output)
    typer.echo(f"{output}: {len(vector.names)} tensors, norm {vector.norm():.4g}")


def _print_alignment(frame: pd.DataFrame) -> None:
    """Leads with what is beyond the null: the fixed fraction, then ε = 0.05 with its null beside."""
    whole = frame[frame["head"] == -1]
    fixed = whole[whole.epsilon.isna()].assign(lift=lambda f: f.ssa**2 / f.ssa_null**2)
    lift = fixed.pivot_table(index="module", columns="side", values="lift", sort=False)
    at = whole[whole.epsilon.sub(0.05).abs() < 1e-9].pivot_table(
        index="module", columns="side", values=["ssa", "ssa_null", "kappa"], sort=False
    )
    headings = ["module", "lift left", "lift right"] + ["SSA left", "null", "κ left", "κ right"] * (len(at) > 0)
    table = Table(
        *headings, title="mean over layers: energy over its null at 10 % of the dimension, then SSA at ε = 0.05"
    )
    for name in lift.index:
        cells = [lift.loc[name, "left"], lift.loc[name, "right"]]
        if len(at):
            wanted = [("ssa", "left"), ("ssa_null", "left"), ("kappa", "left"), ("kappa", "right")]
            cells += [at.loc[name, key] for key in wanted]
        table.add_row(str(name), *(_number(cell) for cell in cells))
    Console().print(table)


def _number(value: float) -> str:
    return "–" if pd.isna(value) else f"{value:.3g}"


def _check_output(path: Path | None) -> None:
    if path is not None and path.suffix not in _WRITERS:
        raise CheckpointError(f"{path}: unknown ending {path.suffix!r}; use {', '.join(_WRITERS)}")
    if path is not None and not path.resolve().parent.is_dir():
        raise CheckpointError(f"{path}: its directory does not exist; make it first")


def _write(frame: pd.DataFrame, path: Path | None) -> None:
    if path is None:
        return
    options = {"orient": "records"} if path.suffix == ".json" else {"index": False}
    with replacing(path, CheckpointError) as temporary:
        getattr(frame, _WRITERS[path.suffix])(temporary, **options)
    typer.echo(f"{path}: {len(frame):,} rows")


class _bar:
    """A progress bar on stderr, called as progress(done, total, label)."""

    def __init__(self, title: str) -> None:
        columns = TextColumn("{task.description:<20}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        self.progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self.task = self.progress.add_task(title, total=None)

    def __enter__(self) -> _bar:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def __call__(self, done: int, total: int, label: str) -> None:
        self.progress.update(self.task, completed=done, total=total)


def entry(app: typer.Typer, name: str) -> None:
    """Run a command: bad input is one line on stderr and exit status 2, without a traceback."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore")
    code = 0
    try:
        code = typer.main.get_command(app).main(prog_name=name, standalone_mode=False) or 0
    except (InputError, TyperException) as error:
        message = error.format_message() if isinstance(error, TyperException) else str(error)
        if message.strip():  # empty where the help was shown for want of arguments
            print("error:", " ".join(message.split()), file=sys.stderr)
        code = 2
    except (KeyboardInterrupt, Abort):
        print("error: interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)


def main() -> None:
    """Run the `tv` command."""
    entry(app, "tv")
