"""How the capture's time and memory grow: `python benchmarks/growth.py`.

A random float32 pair shaped like Qwen2-0.5B, cut down; layers, width and the number of prompts are doubled twice, one
at a time. Every point runs in a process of its own (`capture_memory.py --work capture`), all points once a round. Time
is the capture's through to closed files, with what a pair needs once; memory is the peak beyond imports.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

SMALL = {"layers": 4, "width": 512, "prompts": 16}
DOUBLINGS = 2


def main() -> None:
    """A table: each size with its medians, and how many times the smallest they are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    points = {(name, SMALL[name] * 2**i) for name in SMALL for i in range(DOUBLINGS + 1)}
    found = defaultdict[tuple[str, int], list[dict[str, float]]](list)
    for turn in range(options.rounds):
        for name, size in sorted(points):
            found[name, size].append(_measured({**SMALL, name: size}))
        print(f"round {turn + 1} of {options.rounds}", file=sys.stderr, flush=True)
    print("| what | size | seconds | × | peak MiB | × |\n| --- | --- | --- | --- | --- | --- |")
    for name in SMALL:
        first = None
        for size in (SMALL[name] * 2**i for i in range(DOUBLINGS + 1)):
            runs = found[name, size]
            now = [statistics.median(run["seconds"] for run in runs)]
            now.append(statistics.median(run["peak"] - run["imports"] for run in runs))
            first = first or now
            cells = [f"{value:.1f} | {value / start:.2f}" for value, start in zip(now, first, strict=True)]
            print(f"| {name} | {size} | {' | '.join(cells)} |")


def _measured(sizes: dict[str, int]) -> dict[str, float]:
    script = Path(__file__).with_name("capture_memory.py")
    given = [part for name, size in sizes.items() for part in (f"--{name}", str(size))]
    command = [sys.executable, str(script), "--work", "capture", "--vocab", "8000", *given]
    measured: dict[str, float] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return measured


if __name__ == "__main__":
    main()
