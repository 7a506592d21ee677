"""The `probes` command."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Annotated, Literal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from probes.attribute import focus, units_in
from probes.errors import RunError
from probes.handle import size_text
from probes.job import Opened
from probes.schemas import ALL_DOMAINS
from probes.suite import Backend
from tv.atomic import replacing
from tv.cli import entry
from tv.engine import Engine

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="What fine-tuning changed inside a model, and which of the changes cause its behaviour.",
)

Continuation = Literal["base", "tuned", "given"]
Device = Annotated[
    str, typer.Option(help="Where models compute: cpu, cuda, cuda:1, …, or auto for every GPU there is.")
]
Dtype = Annotated[str, typer.Option(help="In what they compute: float32, bfloat16 or float16.")]
Offload = Annotated[bool, typer.Option("--offload", help="Keep the tuned model on the CPU.")]
RunPath = Annotated[str, typer.Argument(help="The directory of a run, or its URL.", metavar="RUN")]


@app.command("run")
def run_suite(
    suite: Annotated[Path, typer.Argument(help="The suite file (YAML).", metavar="SUITE")],
    base: Annotated[str | None, typer.Option(help="This base, not the suite's: a directory or a hub id.")] = None,
    tuned: Annotated[str | None, typer.Option(help="This tuned model, not the suite's.")] = None,
    out: Annotated[
        str | None, typer.Option(help="Where the run goes, a directory or a URL (s3://…). [reports/<suite name>]")
    ] = None,
    generate: Annotated[
        int | None, typer.Option(min=1, help="Read both models over a continuation of at most N tokens.", metavar="N")
    ] = None,
    continuation: Annotated[
        Continuation | None, typer.Option("--continue", help="Whose continuation: base's, tuned's, or the given one.")
    ] = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    offload: Offload = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes that share the prompts; the tables are the same.")] = 1,
    engine: Annotated[Engine, typer.Option(help="local, or ray for more than one machine.")] = "local",
    backend: Annotated[
        Backend | None, typer.Option(help="What captures, not the suite's: torch, transformer_lens or nnsight.")
    ] = None,
    remote: Annotated[bool, typer.Option("--remote", help="Let nnsight's server run the models.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the run that is there.")] = False,
) -> None:
    """The main job: measure weights, capture activations, attribute, link, report.

    A run that was killed goes on where it stood when the same command is given again.

    Example: probes run data/suites/demo.yaml --out reports/demo
    """
    import probes

    console = Console(stderr=True)
    with _Stages(console) as stages:
        result = probes.run(
            suite,
            base=base,
            tuned=tuned,
            out=out,
            generate={key: value for key, value in (("tokens", generate), ("from", continuation)) if value is not None},
            force=force,
            device=device,
            dtype=dtype,
            offload=offload,
            workers=workers,
            engine=engine,
            backend=backend,
            remote=remote,
            stage=stages.update,
            found=lambda opened: _print_pair(console, opened),
            sized=lambda tables: _print_size(console, tables),
        )
    if not stages.tasks:
        console.print("this run was there, finished; --force makes it again")
    if "effects" in result.tables:
        _print_effects(result["effects"])
        _print_checks(result["checks"])
    typer.echo(f"report: {result.path / 'report.html'}")


@app.command("attribute")
def attribute_run(
    path: RunPath,
    method: Annotated[
        list[str] | None,
        typer.Option(help="path, graft, revert, patch, gradient, depth, split or shapley; give it again for several."),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(help="logit_diff, target_nll, exact_match, kl, first_divergence, or module:function of your own."),
    ] = None,
    granularity: Annotated[
        list[str] | None, typer.Option(help="component, module, head, kv_head, expert or neuron; several too.")
    ] = None,
    control: Annotated[
        list[str] | None, typer.Option(help="random, shuffled or spectrum: a vector in T's place; several too.")
    ] = None,
    curves: Annotated[bool | None, typer.Option(help="Move each ranking's top n together.")] = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    offload: Offload = False,
) -> None:
    """Attribute a run's behaviour change again, from the checkpoints that it names; what is not given is the suite's.

    Example: probes attribute reports/demo --method path --method revert --granularity module
    """
    import probes

    loaded = probes.load(path)
    with _Stages(Console(stderr=True)) as stages:
        effects = probes.attribute(
            loaded,
            method=method,
            metric=metric,
            granularity=granularity,
            device=device,
            dtype=dtype,
            offload=offload,
            stage=stages.update,
            controls=control,
            curves=curves,
        )
    _print_effects(effects)
    _print_checks(loaded["checks"])


@app.command("link")
def link_run(path: RunPath) -> None:
    """Join a run's weights, changes, ledger and effects by layer again; print the rank correlations."""
    import probes

    loaded = probes.load(path)
    probes.link(loaded)
    typer.echo(loaded["correlations"].to_string(index=False))


@app.command("diagnose")
def diagnose_run(
    path: RunPath,
    conflicts: Annotated[bool, typer.Option(help="Compare every two tuned checkpoints again.")] = True,
) -> None:
    """Say which known failure signatures a run shows, with the numbers behind them.

    Example: probes diagnose reports/demo
    """
    import probes

    for row in probes.diagnose(probes.load(path), conflicts=conflicts).to_dict("records"):
        mark = {True: "[bold red]yes[/]", False: "no", None: "not measured"}[row["holds"]]
        Console(soft_wrap=True).print(f"{escape(row['tuned'])}: {row['signature']}: {mark}. {escape(row['sentence'])}")


@app.command("query")
def query_run(
    path: RunPath,
    statement: Annotated[str, typer.Argument(help="One SELECT, in DuckDB's dialect.", metavar="SQL")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the whole answer: .csv, .parquet or .json.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows that are printed.")] = 40,
) -> None:
    """Ask a run's tables in SQL. It reads those tables and nothing else, and never writes to them.

    Example: probes query reports/demo "SELECT layer, avg(flip_rate) AS flips FROM gates GROUP BY layer ORDER BY layer"
    """
    import probes

    found = probes.load(path).sql_arrow(statement)
    if out is not None:
        _write_answer(found, out)
        typer.echo(f"{out}: {found.num_rows:,} rows")
        return
    table = Table(*(escape(name) for name in found.column_names))
    for row in found.slice(0, rows).to_pandas().itertuples(index=False):
        table.add_row(*(escape(_cell(value)) for value in row))
    Console().print(table)
    if found.num_rows > rows:
        typer.echo(f"{found.num_rows - rows:,} rows more; --rows N prints N, --out FILE writes all")


def _write_answer(found: pa.Table, out: Path) -> None:
    """Written whole or not at all."""
    writers: dict[str, Callable[[Path], object]] = {
        ".csv": lambda path: found.to_pandas().to_csv(path, index=False),
        ".parquet": lambda path: pq.write_table(found, path),
        ".json": lambda path: found.to_pandas().to_json(path, orient="records"),
    }
    if out.suffix not in writers:
        raise RunError(f"{out}: its name ends in none of {', '.join(writers)}, which say how to write it")
    with replacing(out, RunError) as temporary:
        writers[out.suffix](temporary)


def _cell(value: object) -> str:
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    return f"{value:.5g}" if isinstance(value, float) else str(value)


@app.command("report")
def report_run(path: RunPath) -> None:
    """Write a run's report.html again."""
    import probes

    typer.echo(f"report: {probes.report(probes.load(path))}")


class _Stages:
    """One progress bar a stage, on stderr."""

    def __init__(self, console: Console) -> None:
        columns = TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        self.progress = Progress(*columns, console=console)
        self.tasks: dict[str, TaskID] = {}

    def __enter__(self) -> _Stages:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def update(self, stage: str, done: int, total: int, label: str) -> None:
        self.progress.start()
        if stage not in self.tasks:
            self.tasks[stage] = self.progress.add_task(stage, total=total)
        self.progress.update(self.tasks[stage], completed=done)


def _print_pair(console: Console, opened: Opened) -> None:
    facts, architecture = opened.facts, opened.base.architecture
    console.print(
        f"[bold]{escape(opened.name)}[/]: {architecture.name}, {architecture.n_layers} layers, "
        f"{facts.n_parameters:,} parameters, stored {facts.dtype_base} and {facts.dtype_tuned}, "
        f"tokenizer {facts.tokenizer}"
    )
    notes = [] if architecture.gated else ["no GLU: gate patterns are the signs of the MLP's pre-activations"]
    for note in (*facts.notes, *notes):
        console.print(f"  note: {escape(note)}")


def _print_size(console: Console, tables: Mapping[str, int]) -> None:
    """What the run will take on disk, and the tables that take most of it."""
    largest = sorted(tables.items(), key=lambda item: -item[1])[:3]
    parts = ", ".join(f"{name} {size_text(size)}" for name, size in largest)
    console.print(f"about {size_text(sum(tables.values()))} on disk ({parts})")


def _print_effects(effects: pd.DataFrame, top: int = 6) -> None:
    """The units with the largest effects, by model and method, in the domain where effects are largest."""
    title = f"largest effects on {effects.metric.iloc[0]}"
    table = Table("tuned", "domain", "method", "unit", "effect", "95 % interval", "q", title=title)
    shown = effects[
        (effects.control == "") & ~effects.method.isin(["mean", "synergy"]) & (effects.granularity != "all")
    ]
    for _, own in shown.groupby("tuned", sort=False):
        for _, family in own[own.domain == focus(own)].groupby(["granularity", "method", "direction"], sort=False):
            rows = family.loc[family.effect.abs().nlargest(top).index]
            for unit, row in zip(units_in(rows), rows.to_dict("records"), strict=True):
                cells = (f"{row['effect']:+.3f}", f"{row['lo']:+.3f} … {row['hi']:+.3f}", f"{row['q']:.2g}")
                table.add_row(escape(row["tuned"]), escape(row["domain"]), row["method"], str(unit), *cells)
    Console().print(table)


def _print_checks(checks: pd.DataFrame) -> None:
    """What proves the effects, and what does not hold."""
    for row in checks[(checks.domain == ALL_DOMAINS) | ~checks.holds].to_dict("records"):
        of = " ".join(part for part in (row["method"], row["check"]) if part)
        sign = "holds" if row["holds"] else "[bold red]does not hold[/]"
        Console().print(f"{escape(row['tuned'])}: {of} ({escape(row['domain'])}): {row['value']:.3g}, {sign}")


def main() -> None:
    """Run the command; bad input is one line on stderr and exit status 2."""
    entry(app, "probes", interrupted="; the same `probes run` goes on where it stopped")
