"""A pair larger than memory: `python benchmarks/stream.py [--shape 3B] [--limit-gib 5] [--work attribution]`.

A random bfloat16 pair is written, layer by layer, into `--directory`. Then the capture (or graft of every component and
path, four nodes of it) runs in processes of its own, read a layer at a time (`stream`) and in memory (`whole`, where
`--rounds` is not 0), one after the other. Printed are
CPU seconds (user and system), wall seconds, the peak of the resident memory, and

- the bound on the peak: imports + 2.5 × the largest layer of both models + what a batch's activations take
- the CPU seconds of `whole` over those of `stream`

With `--limit-gib` the streamed process runs under it from before its imports: the system refuses private, writable
memory beyond it (RLIMIT_DATA), for which Arrow takes its memory from the system: the pool of its own reserves 1 GiB of
addresses that it does not use. A line says whether its resident peak, pages of mapped files included, was below it too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from results import add_option, allowed, ratio, report

if TYPE_CHECKING:
    from collections.abc import Sequence

    from probes.capture.pair import Pair
    from tv.prompts.encoding import Encoded

PEAK = 2.5
_NAMES = {"135M": "SmolLM2-135M's shape", "0.5B": "Qwen2-0.5B's shape", "3B": "a 3B shape"}


def main() -> None:
    """Write the pair, run both sides in turn, and print medians with ranges."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("135M", "0.5B", "3B"), default="0.5B")
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()) / "stream-pair")
    parser.add_argument("--layers", type=int, help="fewer than the shape has")
    parser.add_argument("--work", choices=("capture", "attribution"), default="capture")
    parser.add_argument("--dtype", default="float32", help="that the models compute in")
    parser.add_argument("--measure", default="gates,contributions,changes,behaviour")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3, help="of both sides in turn; 0: streamed alone, once")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit-gib", type=float, help="of private memory, enforced while the pair is streamed")
    parser.add_argument("--keep", action="store_true", help="leave the pair where it is")
    add_option(parser)
    parser.add_argument("--side", choices=("stream", "whole"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        if options.limit_gib and options.side == "stream":
            _limit(round(options.limit_gib * 2**30))
        print(json.dumps(_measure(options)))
        return
    from random_pair import QWEN2_05B, SHAPE_3B, SMOLLM2_135M, write_pair

    shapes = {"135M": SMOLLM2_135M, "0.5B": QWEN2_05B, "3B": SHAPE_3B}
    if not (options.directory / "tuned" / "config.json").is_file():
        write_pair(options.directory, shapes[options.shape].cut(options.layers), threads=options.threads)
    found: dict[str, list[dict[str, float]]] = {"stream": [], "whole": []}
    for i in range(max(options.rounds, 1)):
        for side in found if options.rounds else ("stream",):
            found[side].append(_in_process(side))
            print(f"round {i + 1} {side}: {found[side][-1]}", flush=True)
    _tell(found, options)
    if options.limit_gib:
        peak = max(row["peak"] for row in found["stream"]) / 1024
        verdict = "within" if peak <= options.limit_gib else "OVER"
        print(
            f"done under a limit of {options.limit_gib} GiB of private memory; resident peak {peak:.2f} GiB: {verdict}"
        )
    if not options.keep:
        for file in (*options.directory.glob("*/*"),):
            file.unlink()


def _limit(n_bytes: int) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_DATA, (n_bytes, n_bytes))


def _tell(found: dict[str, list[dict[str, float]]], options: argparse.Namespace) -> None:
    for side, rows in found.items():
        for name in ("cpu", "wall", "peak") if rows else ():
            values = [row[name] for row in rows]
            print(f"{side:<7}{name:<5}{statistics.median(values):>9.1f}  ({min(values):.1f} to {max(values):.1f})")
    row = found["stream"][0]
    bound = row["imports"] + PEAK * row["largest"] + row["activations"]
    print(
        f"peak {row['peak']:.0f} MiB, bound {bound:.0f} MiB = {row['imports']:.0f} imports + {PEAK} × "
        f"{row['largest']:.0f} + {row['activations']:.0f}"
    )
    peaks = [row["peak"] for row in found["stream"]]
    work, shape = options.work, _NAMES[options.shape] + (f", {options.layers} layers" if options.layers else "")
    ratios = [ratio(f"{work} layer by layer, peak memory", ("what is allowed", [bound] * len(peaks)), ("ours", peaks))]
    if found["whole"]:
        whole, stream = ([row["cpu"] for row in found[side]] for side in ("whole", "stream"))
        what = f"{work}, {shape}, CPU"
        ratios.append(ratio(what, ("in memory", whole), ("layer by layer", stream)))
        same = {row["digest"] for rows in found.values() for row in rows}
        print("the same tables" if len(same) == 1 else "OTHER TABLES")
    if options.limit_gib:
        what = f"{work} layer by layer, {shape}, resident peak under an enforced limit"
        ratios.append(allowed(what, 1024 * options.limit_gib, "MiB", peaks))
    report(ratios, options.json)


def _in_process(side: str) -> dict[str, Any]:
    command = [sys.executable, __file__, *sys.argv[1:], "--side", side]
    environment = os.environ | {"ARROW_DEFAULT_MEMORY_POOL": "system"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    import hashlib

    import torch
    from random_pair import random_prompts, suite_of, word_tokenizer

    import probes.job.job  # noqa: F401
    from probes.capture.loading import Pairs
    from probes.capture.runner import run_shard, shards
    from tv.runtime.compute import Compute

    torch.set_num_threads(options.threads)
    imports = _peak()
    streams = options.side == "stream"
    sources = {"base": str(options.directory / "base"), "tuned": {"tuned": str(options.directory / "tuned")}}
    suite = suite_of(options.measure.split(","), options.batch, **sources, attribute=None)
    pairs = Pairs(suite, Compute(dtype=options.dtype, stream=streams))
    encoded = random_prompts(options.prompts, options.tokens, word_tokenizer(_vocab(options.directory)))
    start, before = time.perf_counter(), time.process_time()
    session = pairs.session("tuned")
    loaded = time.process_time() - before
    if options.work == "capture":
        with tempfile.TemporaryDirectory() as folder:
            for shard in shards(encoded, suite, "tuned", session.pair.architecture):
                run_shard(shard, session, Path(folder) / "tables")
            files = [file.read_bytes() for file in sorted(Path(folder).rglob("*.parquet"))]
    else:
        files = _attribute(session.pair, encoded, options.batch)
    digest = hashlib.sha256(b"".join(files))
    cpu, wall = time.process_time() - before, time.perf_counter() - start
    base = session.pair.base
    width = base.dtype.itemsize
    # Of a batch in both models: logits as computed and in float32, and of a block what goes in, out and between.
    of = session.pair.architecture
    block = sum(module.shape[0] for module in of.modules if module.layer == 0) + 2 * of.d_model
    activations = options.batch * options.tokens * 2 * (of.vocab_size * (width + 4) + 2 * block * width)
    largest = 2 * base.weights.largest / 2**20 if streams else 0.0
    read = base.weights.reads / (width * sum(value.numel() for value in base.parameters())) if streams else 1.0
    return {
        "cpu": cpu,
        "wall": wall,
        "peak": _peak(),
        "opened": loaded,
        "imports": imports,
        "largest": largest,
        "activations": activations / 2**20,
        "times read": read,
        "digest": digest.hexdigest(),
    }


def _attribute(pair: Pair, encoded: Sequence[Encoded], batch: int) -> list[bytes]:
    """Graft of every component, and path; what they found, to three digits."""
    import numpy as np

    from probes.attribution.methods.exact import graft
    from probes.attribution.methods.path import path_effects
    from probes.attribution.metric import metric_of
    from probes.attribution.units import components
    from probes.attribution.work import Work
    from tv.prompts.encoding import batches

    several = batches(encoded, batch, pair.pad_id)
    metric = metric_of("logit_diff", pair.tuned, several)
    (grafted,) = graft(Work(pair, metric, several, batch), components(pair.architecture))
    path = path_effects(pair, encoded, metric, batch_size=batch, nodes=4, most_nodes=4)
    print(f"path's gap {path.gap:.2g}, effects {np.abs(grafted.values).mean():.4g}", file=sys.stderr)
    return [np.array([f"{value:.2e}" for value in grafted.values.ravel()]).tobytes()]


def _peak() -> float:
    """The most resident memory of this process so far, in MiB. Not `ru_maxrss`, which begins with the parent's."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def _vocab(directory: Path) -> int:
    config = json.loads((directory / "base" / "config.json").read_text(encoding="utf-8"))
    return int(config["vocab_size"])


if __name__ == "__main__":
    main()
