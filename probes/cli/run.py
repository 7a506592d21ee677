"""`probes run`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from probes.cli.effects import print_verdict
from probes.cli.plan import print_plan, print_seconds
from tv.cli.options import Align, Cache, Device, Dtype, Engine, Offload, Stream, Workers
from tv.cli.prompt_options import reads_prompts, settings_of
from tv.cli.terminal import Stages, remark, wrote
from tv.errors import InputError
from tv.runtime.compute import Compute

if TYPE_CHECKING:
    from probes.job.pairs import Opened


@reads_prompts
def run(
    suite: Annotated[Path, typer.Argument(help="The suite file (YAML).", metavar="SUITE")],
    base: Annotated[
        str | None, typer.Option(help="The base: a directory, a hub id or a GGUF file.", show_default="the suite's")
    ] = None,
    tuned: Annotated[str | None, typer.Option(help="The tuned model.", show_default="the suite's")] = None,
    out: Annotated[
        str | None,
        typer.Option(
            help="Where to write the run: a directory or a URL (s3://…).", show_default="reports/<suite name>"
        ),
    ] = None,
    generate: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Also read both models on a continuation of each prompt of at most N tokens.",
            show_default="the suite's",
            metavar="N",
        ),
    ] = None,
    continuation: Annotated[
        Literal["base", "tuned", "given"] | None,
        typer.Option(
            "--continue",
            help="Whose continuation: the base's, the tuned model's, or the one given in the prompt file.",
            show_default="the suite's, else base",
        ),
    ] = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    offload: Offload = False,
    stream: Stream = None,
    workers: Workers = 1,
    engine: Engine = "local",
    cache: Cache = None,
    stages: Annotated[
        str | None,
        typer.Option(
            help="Only these stages, separated by commas: weights, capture, noise_floor, discover, attribute, link, "
            "report; run the others later with the same command.",
            show_default="all",
            metavar="STAGES",
        ),
    ] = None,
    backend: Annotated[
        Literal["torch", "transformer_lens", "nnsight"] | None,
        typer.Option(help="The library that captures activations.", show_default="the suite's"),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            help="Also store the vectors of these sites, as float16: resid_post,attn_out,…",
            show_default="the suite's",
            metavar="SITES",
        ),
    ] = None,
    align: Align = False,
    remote: Annotated[bool, typer.Option("--remote", help="Run the models on the server of nnsight.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Redo the run, and replace an existing one.")] = False,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan", help="Show what the run would read, store and compute, and how long it takes; do not run."
        ),
    ] = False,
    tokens: Annotated[
        int | None,
        typer.Option(min=1, help="With --plan: assume N tokens per prompt, where there is no tokenizer.", metavar="N"),
    ] = None,
    **reading: Any,
) -> None:
    """Run a suite: measure weights, capture activations, attribute the change of behaviour, link, report.

    Rerun the same command to resume. Options for prompts apply to every prompt set of the suite.

    With --plan no weights are loaded; times come from a trial of a few seconds on random weights.

    Example: probes run data/suites/demo.yaml --out reports/demo
    """
    from probes.suite import load_suite
    from tv.prompts.files import read_prompts

    if tokens is not None and not plan:
        raise InputError("--tokens needs --plan; a run counts its tokens itself")
    continued = {key: value for key, value in (("tokens", generate), ("from", continuation)) if value is not None}
    settings = {
        "generate": continued or None,
        "backend": backend,
        "align": align or None,
        "keep": keep.split(",") if keep else None,
        "prompts": settings_of(**reading) or None,
    }
    settings = {key: value for key, value in settings.items() if value is not None}
    chosen = load_suite(suite, base=base, tuned=tuned, settings=settings)
    read_prompts([prompts for prompts in chosen.prompts if prompts.file is not None])
    import probes  # only now: a mistake in the suite or in a prompt file is reported before torch is imported
    from probes.forecast import estimated
    from probes.job.prepare import prepare

    if plan:
        planned = probes.plan(
            suite,
            base=base,
            tuned=tuned,
            settings=settings,
            tokens=tokens,
            compute=Compute("auto" if device == "auto" else "cpu", dtype, offload),
        )
        print_plan(planned)
        return print_seconds(planned, device, dtype, workers, engine)
    with Stages() as progress:
        job = prepare(
            suite,
            base=base,
            tuned=tuned,
            out=out,
            force=force,
            stages=stages.split(",") if stages else None,
            settings=settings,
            remote=remote,
            compute=Compute(device, dtype, offload, workers, engine, cache, progress.update, stream),
        )
        for pair in job.pairs:
            _tell_pair(pair)
        if job.is_done:
            remark("already complete; use --force to redo")
        else:
            for note in job.notes:
                remark(f"note: {note}")
            for line in job.power:
                remark(line)
            for line in job.left_out:
                remark(f"left out: {line}")
            if job.sizes:
                _tell_size(job.sizes, job.besides)
            for line in estimated(job):
                remark(line)
        result = job.run()
    if "report" in job.stages:
        print_verdict(result)
        wrote(result.path / "report.html", "the report")
    else:
        wrote(result.path, f"a run with the stages {', '.join(job.stages)}")


def _tell_pair(opened: Opened) -> None:
    from tv.architecture.in_words import in_words
    from tv.cli.info import TOKENIZERS

    facts, architecture = opened.facts, opened.base.architecture
    dtypes = " and ".join(dict.fromkeys((facts.dtype_base, facts.dtype_tuned)))
    remark(
        f"{opened.name}: {architecture.name}, {in_words(architecture)}, {facts.n_parameters:,} parameters, "
        f"stored in {dtypes}; {TOKENIZERS[facts.tokenizer]}"
    )
    patterned = any(block.gate is not None or block.experts is not None for block in architecture.blocks)
    notes = (
        []
        if architecture.gated or not patterned
        else ["no GLU: gate patterns are the signs of the MLP's pre-activations"]
    )
    for note in (*facts.notes, *notes):
        remark(f"  note: {note}")
    if opened.sameness is not None:
        remark(f"  aligned: {opened.sameness['sentence']}")


def _tell_size(tables: Mapping[str, int], besides: int) -> None:
    """Print the disk space that the run will take, the tables that take most of it, and what goes when it is done."""
    from probes.store.table import size_text

    largest = sorted(tables.items(), key=lambda item: -item[1])[:3]
    parts = ", ".join(f"{name} {size_text(size)}" for name, size in largest)
    more = f"; while layers are streamed, up to {size_text(besides)} more" if besides else ""
    remark(f"about {size_text(sum(tables.values()))} on disk ({parts}){more}")
