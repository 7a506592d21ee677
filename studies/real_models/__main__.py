"""The claims of the source on real models: `python -m studies.real_models --data FOLDER --budget 8h`.

Stages that are done are kept in --work, so that the same command goes on where it was stopped. --plan says what would
be done, and what it takes, without doing it.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path

from studies.real_models import negating, running, tables, texts
from studies.real_models.study import SIZES, Study, of_models, stages, within
from tv.errors import InputError
from tv.runtime.progress import duration


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=_minutes, default=8 * 60, metavar="TIME", help="10m, 5h or 8h (default: 8h)")
    parser.add_argument(
        "--models", nargs="+", default=(), metavar="NAME", help="only these (default: all of the budget)"
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets that studies/README.md lists")
    parser.add_argument("--work", type=Path, default=Path("reports/real_models"), help="weights, runs and the journal")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="stages at once (default: one a core)")
    parser.add_argument("--only", default="", help="only stages whose names match this regular expression")
    parser.add_argument("--plan", action="store_true", help="say what would be done, and what it takes")
    parser.add_argument("--tables", type=Path, metavar="FOLDER", help="only join what is done into tables there")
    chosen = parser.parse_args(arguments)
    try:
        study = Study(of_models(within(chosen.budget, SIZES), chosen.models), chosen.data, chosen.work)
        wanted = [stage for stage in stages(study) if re.search(chosen.only, stage.name)]
        pace = running.pace()
        if chosen.plan:
            for stage in wanted:
                cost, room = f"{stage.cpu * pace:7.0f} s", f"{stage.memory:7.0f} MiB {stage.disk:7.0f} MiB on disk"
                print(f"{stage.name:40} {cost} {room}")
            print(f"{duration(sum(stage.cpu for stage in wanted) * pace)} of CPU time")
            return 0
        if chosen.tables:
            missing = tables.collect(study, chosen.tables)
            print("\n".join(f"not done: {name}" for name in missing))
            return 0
        for name in dict.fromkeys([*chain.from_iterable(study.size.domains.values()), "general"]):
            texts.domain(name, study.texts)
        negating.require_benchmarks(study)
        running.claim(study.work, asdict(study.size) | {"data": str(study.texts.resolve())})
        running.run(wanted, study.work, pace, chosen.jobs, lambda line: print(line, file=sys.stderr, flush=True))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _minutes(text: str) -> float:
    found = re.fullmatch(r"([\d.]+)([mh])", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: write 10m or 8h")
    return float(found[1]) * {"m": 1, "h": 60}[found[2]]


if __name__ == "__main__":
    sys.exit(main())
