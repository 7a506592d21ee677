"""The performance table, from one command: `python benchmarks/table.py [--mergekit PYTHON] [--before FOLDER]`.

Runs the benchmarks of `wanted.py` one after another, each an interleaved run of its own, at sizes that two quiet cores
do in twenty minutes. A failure or a timeout is shown in the benchmark's rows, the others still run, and the status
is 1. A row that lacks something (mergekit, a checkout of another build in FOLDER, a finished run) says what.

What each run found is kept in `--keep FOLDER`, with the machine, the date and the commit, and the table is made of all
that is kept: `--only NAME…` measures a part again, `--only` with no name prints what is kept, and `--write FILE…` puts
the table into documents, between the lines `<!-- benchmarks: all -->` (or names of runs: their rows with a bound) and
`<!-- /benchmarks -->`. A ratio is the cost of the alternative ÷ the cost of ours in the same round, as a median with
its range; below 1 the alternative is better.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from results import Ratio, parsed, read
from wanted import ROWS, RUNS, Row, Run

HERE = Path(__file__).resolve().parent
_HEAD = "| what | other / ours | ratio: median (range) | wanted | met? |\n| --- | --- | --- | --- | --- |"


@dataclass(frozen=True)
class Kept:
    """What one run found, or why it found nothing, and where it was."""

    ratios: list[dict]
    failed: str  # empty where it did not
    machine: str
    date: str
    commit: str
    command: str


def main() -> None:
    """Run, keep, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=RUNS, metavar="NAME", help=", ".join(RUNS))
    parser.add_argument("--long", action="store_true", help="hours: whole jobs on models of 135 M parameters too")
    parser.add_argument("--rounds", type=int, help="another number of rounds, where a benchmark has rounds")
    parser.add_argument("--keep", type=Path, default=HERE.parent / "reports" / "bench", metavar="FOLDER")
    parser.add_argument("--write", type=Path, nargs="+", default=[], metavar="FILE", help="put the table there")
    parser.add_argument("--mergekit", type=os.path.abspath, help="the interpreter of an environment with mergekit")
    parser.add_argument("--before", type=os.path.abspath, metavar="FOLDER", help="a checkout of another build")
    parser.add_argument(
        "--run",
        type=os.path.abspath,
        default=str(HERE.parent / "reports" / "demo"),
        help="a finished run of the demo",
    )
    parser.add_argument("--base", type=os.path.abspath, help="a base of SmolLM2-135M's shape, with its tokenizer")
    parser.add_argument("--tuned", type=os.path.abspath, help="a model tuned from it")
    options = parser.parse_args()
    names = [name for name, run in RUNS.items() if options.long or not run.long]
    if options.only is not None or options.write:
        names = options.only or []
    options.keep.mkdir(parents=True, exist_ok=True)
    failed = [name for name in names if not _measured(name, options)]
    kept = {name: _read(options.keep / f"{name}.json") for name in RUNS if (options.keep / f"{name}.json").exists()}
    print(table(kept, ROWS))
    for file in options.write:
        file.write_text(_written(file.read_text(encoding="utf-8"), kept), encoding="utf-8")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def table(kept: dict[str, Kept], rows: Sequence[Row]) -> str:
    """The rows in Markdown, and under them where they were measured."""
    lines = [_line(row, kept.get(row.run)) for row in rows]
    places: dict[str, list[str]] = {}
    for name in dict.fromkeys(row.run for row in rows if row.run in kept):
        places.setdefault(f"{kept[name].machine}; {kept[name].date}, commit {kept[name].commit}", []).append(name)
    ends = [f"Measured on {place}: {', '.join(names)}.\n" for place, names in places.items()]
    return "\n".join([_HEAD, *lines, "", *ends]).rstrip()


def _line(row: Row, kept: Kept | None) -> str:
    wanted = "" if row.wanted is None else f"≥ {row.wanted:.2f}"
    begin = f"| {row.what} | {row.theirs} / {row.ours} |"
    if kept is None:
        return f"{begin} not run | {wanted} | |"
    if kept.failed:
        return f"{begin} {kept.failed.replace('|', '¦')} | {wanted} | |"
    found = {own.key: own for own in parsed(kept.ratios)}
    own = found.get((row.what, row.theirs, row.ours))
    if own is None:
        return f"{begin} not among what the benchmark found | {wanted} | |"
    return f"{begin} {own.figure()} | {wanted} | {_met(own)} |"


def _met(own: Ratio) -> str:
    return {"met": "yes", "missed": "**no**", "": ""}[own.verdict()]


def _measured(name: str, options: argparse.Namespace) -> bool:
    """Whether this run went well, or cannot be made here; what it found is kept."""
    lacking = [given for given in _asked(RUNS[name]) if not _there(getattr(options, given))]
    command = _command(RUNS[name], vars(options), options.rounds)
    said = " ".join(["python", f"benchmarks/{RUNS[name].script}", *command[2:]])
    print(f"{name}: {said}", file=sys.stderr, flush=True)
    if lacking:
        ratios, failed = [], f"not run: needs {' and '.join(f'--{given}' for given in lacking)}"
    else:
        ratios, failed = _run(command, RUNS[name].minutes, options.keep / f"{name}.log")
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    own = Kept([asdict(found) for found in ratios], failed, _machine(), date, _commit(), said)
    file = options.keep / f"{name}.json"
    if not lacking or not file.exists():  # what was found before stays
        file.write_text(json.dumps(asdict(own), indent=1), encoding="utf-8")
    print(f"{name}: {failed or 'done'}", file=sys.stderr, flush=True)
    return bool(lacking) or not failed


def _asked(run: Run) -> list[str]:
    return re.findall(r"\{(\w+)\}", run.arguments)


def _there(given: str | None) -> bool:
    return given is not None and Path(given).exists()


def _command(run: Run, options: dict[str, object], rounds: int | None) -> list[str]:
    arguments = [part.format_map(options) for part in run.arguments.split()]
    turns = [] if run.rounds is None else ["--rounds", str(rounds or run.rounds)]
    return [sys.executable, str(HERE / run.script), *arguments, *turns]


def _run(command: Sequence[str], minutes: float, log: Path) -> tuple[list[Ratio], str]:
    """What a benchmark found, or in one line why it found nothing."""
    with tempfile.TemporaryDirectory() as folder, log.open("w", encoding="utf-8") as said:
        path = Path(folder) / "ratios.json"
        process = subprocess.Popen(
            [*command, "--json", str(path)],
            cwd=HERE.parent,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(timeout=60 * minutes)
        except subprocess.TimeoutExpired:
            return [], f"failed: not done after {minutes:g} minutes"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # and what it started
                process.wait()
        if status:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [f"status {status}"]
            return [], f"failed: {lines[-1].strip()[:160]}"
        return read(path), ""


def _read(path: Path) -> Kept:
    return Kept(**json.loads(path.read_text(encoding="utf-8")))


def _written(text: str, kept: dict[str, Kept]) -> str:
    """A document with the table in its place: all rows, or those of the runs that the line before it names."""
    pattern = re.compile(r"(<!-- benchmarks: ([\w ]+) -->\n).*?(<!-- /benchmarks -->)", re.DOTALL)
    written, count = pattern.subn(lambda at: f"{at[1]}{table(kept, _rows(at[2].split()))}\n{at[3]}", text)
    if not count:
        sys.exit("the document has no line <!-- benchmarks: all --> or <!-- benchmarks: RUN RUN --> for the table")
    return written


def _rows(runs: Sequence[str]) -> list[Row]:
    """Every row, or of these runs the rows with a bound."""
    if runs == ["all"]:
        return list(ROWS)
    if unknown := [name for name in runs if name not in RUNS]:
        sys.exit(f"there is no benchmark {', '.join(unknown)}; there are {', '.join(RUNS)}")
    return [row for row in ROWS if row.run in runs and row.wanted is not None]


def _machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    names = [line.split(":")[1].strip() for line in _cpu_lines() if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    versions = f"Python {platform.python_version()}, torch {version('torch').split('+')[0]}"
    return f"{name}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()}, {versions}"


def _cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _commit() -> str:
    said = subprocess.run(["git", "-C", str(HERE), "describe", "--always", "--dirty"], capture_output=True, text=True)
    return said.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
