"""Slices of a large run, and what gates take on disk: `python benchmarks/run_slices.py [--rows 7000000]`.

Writes a synthetic run with a `changes` table of `--rows` rows (28 layers; 16 rows a place and layer, as a Qwen2-7B cut
to 14 heads has) and a `gates` table, in shards as a capture writes them. Then reads one layer and one prompt of
`changes` through `probes.load(run).df(…)`, all columns, with the page cache warm: median seconds over `--repeats`, the
bytes that the process read by the kernel's count, and the bytes of the row groups that can hold such rows by their own
statistics. Bounds: ≤ 50 ms each; no more bytes than those row groups' and the end of every file that may hold some,
where its footer is (Arrow reads the last 64 KiB). Gates: bytes on disk
against the float32 activations of both models, bound ≤ 1/30, at several rates of flips; the base's bits are random,
which no compression shortens.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from results import add_option, ratio, report

import probes
from probes.store.run import Run
from probes.store.schemas import PARTITIONS, SCHEMAS
from probes.store.writer import RunWriter

LAYERS, HEADS, TOKENS, D_FF = 28, 14, 125, 18944
COMPONENTS = ["attn", *["attn"] * HEADS, "mlp"]
SECONDS, SHARE = 0.050, 1 / 30
FLIPS = (0.02, 0.1, 0.3)
_END = 64 * 1024
EVERYTHING = range(3)  # how often the whole table is read


def main() -> None:
    """Write the run, then one row a slice and one a rate of flips."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=7_000_000)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--directory", type=Path, help="where the temporary directory goes")
    add_option(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as folder:
        n_prompts = round(options.rows / (LAYERS * len(COMPONENTS) * TOKENS))
        with RunWriter(Path(folder) / "run") as writer:
            _write_changes(writer, n_prompts, options.shards)
            for layer, rate in enumerate(FLIPS):
                writer.write("gates", _gates(rate), shard="0", tuned="tuned", layer=layer)
            held = np.array_split(np.arange(n_prompts), options.shards)
            shards = {f"{i:05d}": [f"p{n:05d}" for n in prompts] for i, prompts in enumerate(held)}
            writer.finish({"suite": {"name": "synthetic"}, "shards": shards})
        run = probes.load(writer.directory)
        print(run)
        print(f"\n{'slice':<12}{'rows':>10}{'median':>10}{'min':>9}{'max':>9}{'read':>12}{'row groups':>22}")
        ratios = []
        for name, where in (
            ("one layer", [("layer", "==", LAYERS // 2)]),
            ("one prompt", [("prompt_id", "==", f"p{n_prompts // 2:05d}")]),
        ):
            ours = _print_slice(run, name, where, options.repeats)[: len(EVERYTHING)]
            theirs = [_with_pandas(run, *where[0]) for _ in EVERYTHING]
            ratios.append(ratio(f"{name} of a run's table", ("all with pandas", theirs), ("Run.df", ours)))
        print()
        for layer, rate in enumerate(FLIPS):
            path = next((run.path / "tables" / "gates").rglob(f"layer={layer}/*.parquet"))
            rows = pq.read_metadata(path).num_rows
            share = path.stat().st_size / (2 * 4 * D_FF * rows)
            verdict = "met" if share <= SHARE else "MISSED"
            print(f"gates at {rate:.0%} flips: 1/{1 / share:.1f} of the float32 activations ({verdict}, bound 1/30)")
        report(ratios, options.json)


def _with_pandas(run: Run, column: str, _operator: str, value: Any) -> float:
    """Seconds of reading the whole table and keeping the rows that are asked for."""
    start = time.perf_counter()
    table = pd.read_parquet(run.path / "tables" / "changes")
    table = table[table[column] == value]
    return time.perf_counter() - start


def _print_slice(run: Run, name: str, where: Sequence[tuple[str, str, Any]], repeats: int) -> list[float]:
    """Print what reading a slice took, and return every repeat's seconds."""
    run.df("changes", where=where)
    seconds = []
    before = _bytes_read()
    for _ in range(repeats):
        start = time.perf_counter()
        frame = run.df("changes", where=where)
        seconds.append(time.perf_counter() - start)
    read = (_bytes_read() - before) / repeats
    groups, of, inside, ends = _row_groups(run, *where[0])
    middle = statistics.median(seconds)
    met = middle <= SECONDS and read <= 1.05 * (inside + ends)
    print(
        f"{name:<12}{len(frame):>10,}{1e3 * middle:>7.1f} ms{1e3 * min(seconds):>6.1f} ms{1e3 * max(seconds):>6.1f} ms"
        f"{read / 1e6:>9.2f} MB{groups:>6} of {of}, {inside / 1e6:.2f} MB + ends {ends / 1e6:.2f} MB   "
        f"≤ 50 ms, their row groups only: {'met' if met else 'MISSED'}"
    )
    return seconds


def _row_groups(run: Run, column: str, _operator: str, value: Any) -> tuple[int, int, int, int]:
    """Row groups of `changes` that can hold rows with this value; all; bytes of the former; of the ends of files."""
    found = total = inside = ends = 0
    for path in (run.path / "tables" / "changes").rglob("*.parquet"):
        metadata = pq.read_metadata(path)
        total += metadata.num_row_groups
        if column in PARTITIONS["changes"] and f"{column}={value}" not in path.parts:
            continue
        ends += min(path.stat().st_size, _END)
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            columns = [group.column(i) for i in range(group.num_columns)]
            bounds = next((c.statistics for c in columns if c.path_in_schema == column), None)
            if bounds is None or bounds.min <= value <= bounds.max:
                found += 1
                inside += sum(c.total_compressed_size for c in columns)
    return found, total, inside, ends


def _bytes_read() -> int:
    """What this process has read from files so far, cached pages included."""
    return int(Path("/proc/self/io").read_text(encoding="utf-8").split()[1])


def _write_changes(writer: RunWriter, n_prompts: int, shards: int) -> None:
    generator = np.random.default_rng(0)
    for shard, prompts in enumerate(np.array_split(np.arange(n_prompts), shards)):
        keys = dict(_keys(prompts))
        for layer in range(LAYERS):
            columns = {
                name: keys[name] if name in keys else generator.normal(size=len(keys["pos"])).astype(np.float32)
                for name in SCHEMAS["changes"].names
                if name not in PARTITIONS["changes"]
            }
            writer.write("changes", columns, shard=f"{shard:05d}", tuned="tuned", layer=layer)


def _keys(prompts: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    rows = TOKENS * len(COMPONENTS)
    n = len(prompts) * TOKENS
    yield "prompt_id", np.repeat(np.array([f"p{i:05d}" for i in prompts], dtype=object), rows)
    yield "pos", np.tile(np.repeat(np.arange(TOKENS, dtype=np.int32), len(COMPONENTS)), len(prompts))
    yield "component", np.tile(np.array(COMPONENTS, dtype=object), n)
    yield "head", np.tile(np.array([-1, *range(HEADS), -1], dtype=np.int16), n)
    yield "expert", np.full(n * len(COMPONENTS), -1, dtype=np.int16)


def _gates(rate: float, n: int = 8192) -> dict[str, object]:
    """Random patterns at n places, of which the tuned model flips a share."""
    generator = np.random.default_rng(1)
    flips = generator.random((n, D_FF), dtype=np.float32) < rate
    given: dict[str, object] = {
        "prompt_id": np.repeat(np.array([f"p{i:05d}" for i in range(n // 128)], dtype=object), 128),
        "pos": np.tile(np.arange(128, dtype=np.int32), n // 128),
        "gate_base": generator.integers(0, 256, (n, D_FF // 8), dtype=np.uint8),
        "gate_xor": np.packbits(flips, axis=1),
        "n_flips": flips.sum(1, dtype=np.int32),
        "expert": np.full(n, -1, dtype=np.int16),
        "gated": True,
    }
    names = [name for name in SCHEMAS["gates"].names if name not in PARTITIONS["gates"]]
    return {name: given[name] if name in given else generator.random(n, dtype=np.float32) for name in names}


if __name__ == "__main__":
    main()
