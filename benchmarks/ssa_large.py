"""`tv ssa` on matrices of 3 billion parameters' widths: `python benchmarks/ssa_large.py [--before FOLDER]`.

A random bfloat16 pair of a 3B shape cut to `--layers` blocks is written to a temporary directory. `tv ssa BASE TUNED`
runs on it as a whole process, each round once with this build and then, if given, with the build in FOLDER. One module
is in memory at a time and layers are alike, so the peak is the whole model's.

This build runs under `--limit-gib`, which the system enforces from its start on private, writable memory (RLIMIT_DATA);
its resident peak, pages of mapped files included, is held against the same bound.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
from results import add_option, allowed, ratio, report

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Write the pair, run every build in turn, compare their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="a checkout of the build to compare with")
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--vocab", type=int, default=128256, help="words; fewer for a comparison of builds alone")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--limit-gib", type=float, default=5.0)
    add_option(parser)
    options = parser.parse_args()
    builds = {"ours": ROOT, **({"before": options.before.resolve()} if options.before else {})}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in builds}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # In a process of its own: the peak of a process that starts another counts as the other's.
        writing = get_context("spawn").Process(target=_write, args=(folder, options.layers, options.vocab))
        writing.start()
        writing.join()
        for turn in range(options.rounds):
            for build, where in builds.items():
                limit = round(options.limit_gib * 2**30) if build == "ours" else None
                taken[build].append(_once(where, folder, folder / f"{build}.csv", limit))
                print(
                    f"round {turn + 1}: {build} {taken[build][-1][0]:.0f} CPU s, {taken[build][-1][1]:.0f} MiB",
                    flush=True,
                )
        if options.before:
            _compare(folder / "before.csv", folder / "ours.csv")
    blocks = "a block" if options.layers == 1 else f"{options.layers} blocks"
    what = f"tv ssa, {blocks} of a 3B shape, {options.vocab} words"
    cpu, peaks = ({build: [one[i] for one in own] for build, own in taken.items()} for i in range(2))
    ratios = [allowed(f"{what}, resident peak under an enforced limit", 1024 * options.limit_gib, "MiB", peaks["ours"])]
    if options.before:
        ratios.append(ratio(f"{what}, CPU", ("before", cpu["before"]), ("ours", cpu["ours"])))
    report(ratios, options.json)


def _write(folder: Path, layers: int, vocab: int) -> None:
    from random_pair import SHAPE_3B, write_pair

    write_pair(folder, SHAPE_3B.cut(layers, vocab))


def _once(build: Path, folder: Path, out: Path, limit: int | None) -> tuple[float, float]:
    """CPU seconds, and the peak of resident memory in MiB."""

    def enforce() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    command = [sys.executable, "-P", "-m", "tv", "ssa", str(folder / "base"), str(folder / "tuned"), "--quiet"]
    environment = os.environ | {"PYTHONPATH": str(build), "PYTHONPYCACHEPREFIX": str(folder / build.name)}
    process = subprocess.Popen([*command, "-o", str(out)], env=environment, cwd=folder, preexec_fn=enforce)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{build}: tv ssa ended with status {process.returncode}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def _compare(before: Path, ours: Path) -> None:
    """Say how far the two builds' tables are apart."""
    keys = ["layer", "module", "head", "expert", "side", "epsilon"]
    both = pd.read_csv(before).merge(pd.read_csv(ours), on=keys, suffixes=("_before", "_ours"), how="outer")
    for column in ("k", "ssa", "ssa_null", "ssa_z"):
        apart = (both[f"{column}_before"] - both[f"{column}_ours"]).abs().max()
        print(f"{column}: at most {apart:.2g} apart in {len(both)} rows")


if __name__ == "__main__":
    main()
