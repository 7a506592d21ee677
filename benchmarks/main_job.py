"""Time and memory of the main job on the embedded pair, stage by stage: `python benchmarks/main_job.py`.

Installation apart, and imports included. Prints one row a stage, medians over `--runs` runs with their range.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Each run is a fresh process, so that imports and peak memory are its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", type=Path, default=ROOT / "data" / "suites" / "demo.yaml")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        print(json.dumps(_once(options.suite)))
        return
    command = [sys.executable, __file__, "--once", "--suite", str(options.suite)]
    runs = [json.loads(subprocess.run(command, capture_output=True, check=True).stdout) for _ in range(options.runs)]
    print(f"{'stage':<28}{'median':>9}{'min':>9}{'max':>9}   ({options.runs} runs)")
    for stage in runs[0]:
        values = [run[stage] for run in runs]
        unit = "MiB" if stage == "peak memory" else "s"
        print(f"{stage:<28}{statistics.median(values):>9.1f}{min(values):>9.1f}{max(values):>9.1f} {unit}")


def _once(suite: Path) -> dict[str, float]:
    start = last = time.perf_counter()
    import probes

    seconds = {"import": time.perf_counter() - start}
    last = time.perf_counter()

    def stage(name: str, done: int, total: int, label: str) -> None:
        nonlocal last
        now = time.perf_counter()
        seconds[name] = seconds.get(name, 0.0) + now - last
        last = now

    with tempfile.TemporaryDirectory() as folder:
        probes.run(suite, out=Path(folder) / "run", compute=probes.Compute(progress=stage))
    seconds["total"] = time.perf_counter() - start
    seconds["peak memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return seconds


if __name__ == "__main__":
    main()
