"""`probes init`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from tv.cli.options import Base, Tuned
from tv.cli.prompt_options import reads_prompts, settings_of
from tv.cli.terminal import print_notes, remark, wrote


@reads_prompts
def init(
    base: Base,
    tuned: Tuned,
    prompts: Annotated[
        list[Path],
        typer.Argument(metavar="PROMPTS", help="Files of prompts (.jsonl .json .csv .tsv .parquet), or folders."),
    ],
    out: Annotated[Path, typer.Option("-o", "--output", help="The suite to write.")] = Path("suite.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Replace a suite that is there.")] = False,
    **reading: Any,
) -> None:
    """Write a commented suite for two models and your prompts, from what is found in them.

    Example: probes init data/models/base data/models/medical data/prompts/medical.jsonl -o medical.yaml
    """
    from probes.starting.prompt_files import files_of, found, one_line

    settings = settings_of(**reading)
    for file in files_of(prompts):  # a mistake in a file of prompts is reported before torch is imported
        found(file, settings)
    from probes.starting.init import written

    suite = written(base, tuned, prompts, out=out, force=force, settings=settings)
    remark(one_line(suite.sets))
    print_notes(suite.notes)
    wrote(out, "the suite; look through it")
    remark(f"next: probes run {shlex.quote(str(out))}  (--plan first says how long it takes here)")
