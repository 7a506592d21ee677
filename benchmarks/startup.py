"""How long a small command takes from nothing, beside `import torch`: `python benchmarks/startup.py [--before FOLDER]`.

Whole processes on the embedded pair, interleaved, after a round that compiles bytecode and fills the cache of
descriptions. What is compared is CPU time (user and system), which does not depend on what else the machine does;
medians of the seconds that a person waits are printed beside it. `FOLDER` is a checkout of another version, whose
commands take turns with these.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from results import Ratio, add_option, allowed, ratio, report

ROOT = Path(__file__).parents[1]
_MODELS = [str(ROOT / "data/models" / name) for name in ("base", "medical", "math")]
_MISTAKE = "probes run, a mistake"
#: CPU seconds until a mistake in a suite is told.
TOLD = 0.5


def main() -> None:
    """One interleaved run after a round that does not count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, metavar="FOLDER", help="a checkout of another version")
    parser.add_argument("--rounds", type=int, default=5)
    add_option(parser)
    options = parser.parse_args()
    sides = {"now": ROOT} | ({"before": options.before.resolve()} if options.before else {})
    taken: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        commands = _commands(Path(folder))
        for turn in range(-1, options.rounds):
            runs = [("import torch", "now", ["-c", "import torch"])]
            runs += [(name, side, ["-m", *command]) for name, command in commands.items() for side in sides]
            for name, side, arguments in runs:
                status = 2 if name == _MISTAKE else 0
                seconds = _timed(arguments, sides[side], Path(folder) / side, status)
                shutil.rmtree(Path(folder) / "out", ignore_errors=True)
                if turn >= 0:
                    taken[name, side].append(seconds)
    for (name, side), seconds in taken.items():
        cpu, wall = (statistics.median(kind) for kind in zip(*seconds, strict=True))
        print(f"{name}, {side}: {cpu:.2f} s of CPU, {wall:.2f} s")
    report(list(_ratios(taken, list(commands), "before" in sides)), options.json)


def _commands(folder: Path) -> dict[str, list[str]]:
    base, medical, math = _MODELS
    out = folder / "out"
    suite = (ROOT / "data/suites/demo.yaml").read_text(encoding="utf-8").replace("../", f"{ROOT}/data/")
    (folder / "suite.yaml").write_text(f"{suite}\nbootstrrap: 3\n", encoding="utf-8")
    return {
        "tv info BASE TUNED": ["tv", "info", base, medical],
        "tv extract": ["tv", "extract", base, medical, "-o", str(out / "vector.safetensors")],
        "tv cosine": ["tv", "cosine", base, medical, math],
        "tv geometry": ["tv", "geometry", base, medical],
        "tv ssa": ["tv", "ssa", base, medical],
        "tv apply": ["tv", "apply", base, "--add", medical, "-o", str(out / "model")],
        "tv --help": ["tv", "--help"],
        "probes --help": ["probes", "--help"],
        "probes attribute --help": ["probes", "attribute", "--help"],
        _MISTAKE: ["probes", "run", str(folder / "suite.yaml")],
    }


def _timed(arguments: list[str], root: Path, own: Path, status: int) -> tuple[float, float]:
    """CPU seconds and seconds of a process that ends with this status; `own` is this side's for what it keeps."""
    (own.parent / "out").mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"PYTHONPATH": str(root), "PYTHONPYCACHEPREFIX": str(own / "bytecode"), "OMP_NUM_THREADS": "1"}
    environment |= {"TUNING_PROBES_CACHE": str(own / "cache"), "HF_HUB_OFFLINE": "1"}
    begun = time.perf_counter()
    with open(os.devnull, "w") as nowhere:  # a module is looked for in the working directory first
        command = [sys.executable, *arguments]
        process = subprocess.Popen(command, cwd=root, env=environment, stdout=nowhere, stderr=nowhere)
    _, ended, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begun
    process.returncode = os.waitstatus_to_exitcode(ended)
    assert process.returncode == status, f"{' '.join(arguments)} in {root} ended with {process.returncode}"
    return used.ru_utime + used.ru_stime, seconds


def _ratios(taken: dict[tuple[str, str], list[tuple[float, float]]], names: list[str], before: bool) -> list[Ratio]:
    cpu = {key: [seconds[0] for seconds in rounds] for key, rounds in taken.items()}
    torch = ("import torch", cpu["import torch", "now"])
    found = []
    for name in names:
        ours = ("ours", cpu[name, "now"])
        what = f"{name}, whole process, CPU"
        found.append(allowed(what, TOLD, "s", cpu[name, "now"]) if name == _MISTAKE else ratio(what, torch, ours))
        if before:
            found.append(ratio(what, ("before", cpu[name, "before"]), ours))
    return found


if __name__ == "__main__":
    main()
