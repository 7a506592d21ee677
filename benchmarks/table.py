"""The performance table, from one command: `python benchmarks/table.py [--mergekit PYTHON] [--before FOLDER]`.

Runs the other benchmarks one after another, each an interleaved run of its own, at sizes that two cores do in about
half an hour, and prints one Markdown table. A ratio is what the other way took over what ours took, in the same round,
as a median with its range; below 1 the other way is better, and the table says so. With a checkout of another build in
FOLDER the whole job of both is compared too, on the embedded pairs and on a random pair of SmolLM2-135M's shape.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from results import Ratio, read

HERE = Path(__file__).parent
RUNS = (
    ("startup.py",),
    ("capture_speed.py", "--layers", "6", "--vocab", "32000", "--prompts", "64"),
    ("ssa_speed.py",),
    ("attribution_speed.py",),
    ("path_speed.py",),
    ("run_slices.py", "--rows", "7000000"),
)
#: What is compared with another build.
BEFORE = (("main_job.py",), ("main_job.py", "--shape", "--rounds", "1"))


def main() -> None:
    """Run, collect, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mergekit", type=Path, help="the interpreter of an environment with mergekit")
    parser.add_argument("--before", type=Path, metavar="FOLDER", help="a checkout of another build")
    parser.add_argument("--without-growth", action="store_true", help="leave out how time and memory grow")
    options = parser.parse_args()
    runs = [*RUNS, *([("apply_speed.py", str(options.mergekit))] if options.mergekit else [])]
    runs += [(*run, "--before", str(options.before)) for run in BEFORE] if options.before else []
    print(f"{_machine()}\n\n| what | other / ours | ratio | better |\n| --- | --- | --- | --- |", flush=True)
    for script, *arguments in runs:
        for own in _ratios(script, arguments):
            print(_row(own), flush=True)
    if not options.without_growth:
        print(flush=True)
        subprocess.run([sys.executable, str(HERE / "growth.py")], check=True)


def _ratios(script: str, arguments: list[str]) -> list[Ratio]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ratios.json"
        command = [sys.executable, str(HERE / script), *arguments, "--json", str(path)]
        subprocess.run(command, check=True, stdout=sys.stderr)
        return read(path)


def _row(own: Ratio) -> str:
    better = own.ours if min(own.values) > 1 else own.theirs if max(own.values) < 1 else "even"
    return f"| {own.what} | {own.theirs} / {own.ours} | {own.figure()} | {better} |"


def _machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    names = [line.split(":")[1].strip() for line in _cpu_lines() if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    versions = f"Python {platform.python_version()}, torch {torch.__version__.split('+')[0]}"
    return f"{name}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()}; {versions}"


def _cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


if __name__ == "__main__":
    main()
