"""What spreading an attribution over processes costs and saves: `python benchmarks/spread.py`.

The same attribution of the embedded pair, every round done once by each of

- `alone`: one process
- `workers`: the same with two workers on this machine
- `ray`: the same with two actors of a Ray cluster that is started for it

Wall seconds are those of the attribution, in which the workers start and load the pair. CPU seconds are those of all
processes together, from their start to their end: imports and Ray's own servers count. The tables have to be the same
to the bit. One process has all threads of this machine and two workers half of them each, so that on one machine little
can be won; with OMP_NUM_THREADS=1 each worker is as fast as the one process is, as on a machine of its own.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
ALONE = "alone"
CONTENDERS = {ALONE: ("local", 1), "workers": ("local", 2), "ray": ("ray", 2)}
#: Makes a process the parent of what its children leave behind, so that its CPU time is counted.
_SUBREAPER = 36
#: Seconds between two looks at what the processes have taken; what each takes after the last one is missed.
_EVERY = 0.1


def main() -> None:
    """Rounds of every contender in turn, then the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--methods", default="path,graft,revert")
    parser.add_argument("--only", help="these contenders beside one process, with commas between")
    parser.add_argument("--json", type=Path, help="write the ratios there too")
    parser.add_argument("--serve", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        print(json.dumps(_attributed(options)))
    else:
        _compare(options)


def _compare(options: argparse.Namespace) -> None:
    from results import ratio, report

    ctypes.CDLL(None, use_errno=True).prctl(_SUBREAPER, 1, 0, 0, 0)
    names = [name for name in CONTENDERS if name == ALONE or options.only is None or name in options.only.split(",")]
    wall: dict[str, list[float]] = {name: [] for name in names}
    cpu: dict[str, list[float]] = {name: [] for name in names}
    tables: dict[str, set[str]] = {name: set() for name in names}
    for i in range(options.rounds + 1):
        for name in names:
            found, seconds = _asked(name, options)
            tables[name].add(found["tables"])
            if i:  # the first round warms up
                wall[name].append(found["wall"])
                cpu[name].append(seconds)
    for name in names:
        for what, seconds in (("wall", wall[name]), ("CPU", cpu[name])):
            print(f"{name}: {what} {statistics.median(seconds):.1f} ({min(seconds):.1f}–{max(seconds):.1f}) s")
        same = tables[name] == tables[ALONE] and len(tables[name]) == 1
        print(f"{name}: {'the same tables' if same else 'OTHER TABLES'}")
    report(
        [
            ratio(f"attribution by {name}, {what}", ("one process", seconds[ALONE]), (name, seconds[name]))
            for name in names[1:]
            for what, seconds in (("wall", wall), ("CPU", cpu))
        ],
        options.json,
    )
    if any(tables[name] != tables[ALONE] for name in names):
        sys.exit("the tables differ")


def _asked(name: str, options: argparse.Namespace) -> tuple[dict[str, object], float]:
    """What one process says, and the CPU seconds of it and of all that it started."""
    asked = ["--serve", name, "--prompts", str(options.prompts), "--methods", options.methods]
    environment = {**os.environ, "PYTHONPATH": str(HERE), "RAY_USAGE_STATS_ENABLED": "0"}
    command, seconds = [sys.executable, __file__, *asked], dict[int, float]()
    with subprocess.Popen(command, env=environment, cwd=HERE, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            seconds |= _cpu_of_descendants()
            time.sleep(_EVERY)
        said = process.stdout.read() if process.stdout else ""
    if process.returncode:
        sys.exit(f"{name} ended with status {process.returncode}")
    while descendants := _cpu_of_descendants():  # servers that outlive it for a moment
        seconds |= descendants
        with suppress(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)
        time.sleep(_EVERY)
    return json.loads(said.splitlines()[-1]), sum(seconds.values())


def _cpu_of_descendants() -> dict[int, float]:
    """CPU seconds so far of every process that this one, or one of its descendants, has started, by its id.

    Not of those that a parent has waited for: Ray's servers wait for nobody.
    """
    parents, seconds = dict[int, int](), dict[int, float]()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            fields = path.read_text(encoding="utf-8").rpartition(")")[2].split()
            number = int(path.parent.name)
            parents[number] = int(fields[1])
            seconds[number] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    found, level = dict[int, float](), {os.getpid()}
    while level := {number for number, parent in parents.items() if parent in level}:
        found |= {number: seconds[number] for number in level}
    return found


def _attributed(options: argparse.Namespace) -> dict[str, object]:
    import pandas as pd

    from probes.attribution.attributor import Attributor
    from probes.attribution.elsewhere import helped
    from probes.capture.loading import Pairs
    from probes.suite import load_suite
    from tv.prompts.encoding import encode
    from tv.prompts.files import read_prompts
    from tv.runtime.compute import Compute

    engine, workers = CONTENDERS[options.serve]
    suite = load_suite(
        HERE / "data" / "suites" / "demo.yaml", settings={"attribute": {"methods": options.methods.split(",")}}
    )
    assert suite.attribute is not None
    (name, *_) = suite.tuned
    pairs = Pairs(suite, Compute(engine=engine, workers=workers))  # type: ignore[arg-type]
    pair = pairs.pair(name)
    encoded = encode(read_prompts(suite.prompts), pair.tokenizer, pair.architecture.context)
    some = encoded[:: max(1, len(encoded) // options.prompts)][: options.prompts]
    began = time.perf_counter()
    attributor = Attributor(pair, some, suite.attribute, batch_size=suite.batch_size, seed=suite.seed)
    with helped(attributor.work, pairs, name) as team:
        tables = attributor.tables(bootstrap=suite.bootstrap, bases=pairs.bases, scores={}, team=team)
    wall = time.perf_counter() - began
    digest = hashlib.sha256()
    for table, rows in sorted(tables.items()):
        digest.update(table.encode() + pd.util.hash_pandas_object(rows, index=False).to_numpy().tobytes())
    return {"wall": wall, "tables": digest.hexdigest()}


if __name__ == "__main__":
    main()
