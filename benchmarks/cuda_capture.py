"""The capture's speed on a CUDA device against the model's own: `python benchmarks/cuda_capture.py`.

A random bfloat16 pair shaped like Qwen2-7B (15 GB a model), made on the device. Every batch runs, in turn,

- `bare`: both forward passes with no hook
- `full`: gates, contributions and changes at all positions, heads and DLA included, and the ledger at target positions,
  into closed Parquet files, one shard a batch
- `light`: the same without heads and ledger

timed by CUDA events around each, what follows on the host included. Bound: bare/full ≥ 0.90, the median. Then one more
batch of `full` counts what made the host wait for the device, by the line that did, while the models run. Exits 2 where
there is no CUDA device.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from random_pair import QWEN2_7B, bare, live_pair, random_prompts, suite_of, word_tokenizer

from probes.capture.pair import make_pair
from probes.capture.runner import Session, Shard, run_shard
from tv.prompts.encoding import batches

TABLES = ("gates", "contributions", "changes")
BOUND = 0.90


def main() -> None:
    """One interleaved run after a batch that does not count, then the table and the waits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--layers", type=int, help="fewer, for a quick try")
    parser.add_argument("--vocab", type=int, help="fewer, for a quick try")
    parser.add_argument("--directory", type=Path, help="where the temporary directory goes")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("cuda_capture: no CUDA device here; run it on a machine that has one", file=sys.stderr)
        sys.exit(2)
    shape = QWEN2_7B.cut(options.layers, options.vocab)
    tokenizer = word_tokenizer(shape.vocab)
    pair = make_pair(*live_pair(shape, dtype=torch.bfloat16, device="cuda"), tokenizer)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; {shape}")
    print(f"{options.prompts} prompts × {options.tokens} tokens, batches of {options.batch}", flush=True)
    sessions = {
        "full": Session.open(pair, suite_of((*TABLES, "ledger"), options.batch)),
        "light": Session.open(pair, suite_of(TABLES, options.batch, sites=("gate", "attn_out", "mlp_out"))),
    }
    work = batches(random_prompts(options.prompts, options.tokens, tokenizer), options.batch, pair.pad_id)
    names = ["bare", *sessions]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory(dir=options.directory) as folder:
        for turn, batch in enumerate([work[0], *work]):
            shard = Shard("tuned", 0, batch.encoded, True)
            ways: dict[str, Callable[[], object]] = {
                name: partial(run_shard, shard, session, Path(folder) / name) for name, session in sessions.items()
            }
            ways["bare"] = partial(bare, pair.base, pair.tuned, batch)
            start = turn % len(names)
            for name in names[start:] + names[:start]:
                shutil.rmtree(Path(folder) / name, ignore_errors=True)
                elapsed = _seconds(ways[name])
                seconds[name] += [elapsed] if turn else []
        waits = _waits(ways["full"])
    _print(seconds, options.batch * options.tokens)
    print(f"\npeak on the device: {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
    print(f"waits for the device in one batch of `full`: {sum(waits.values())}")
    for line, count in waits.most_common(12):
        print(f"{count:>8}  {line}")


def _seconds(way: Callable[[], object]) -> float:
    """From an idle device to an idle device."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    way()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def _waits(way: Callable[[], object]) -> Counter[str]:
    """Which lines made the host wait for the device, and how often."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            way()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    found = [w for w in caught if "synchronizing CUDA operation" in str(w.message)]
    return Counter(f"{w.filename}:{w.lineno}" for w in found)


def _print(seconds: dict[str, list[float]], tokens: int) -> None:
    print(f"\n{'way':<10}{'s/batch':>9}{'min':>9}{'max':>9}{'tokens/s':>10}{'bare/way':>10}{'min':>9}{'max':>9}")
    for name, values in seconds.items():
        middle = statistics.median(values)
        ratios = [a / b for a, b in zip(seconds["bare"], values, strict=True)]
        share = statistics.median(ratios)
        verdict = f"   ≥ {BOUND:.2f} {'met' if share >= BOUND else 'MISSED'}" if name != "bare" else ""
        cells = f"{middle:>9.3f}{min(values):>9.3f}{max(values):>9.3f}{tokens / middle:>10.0f}"
        print(f"{name:<10}{cells}{share:>10.3f}{min(ratios):>9.3f}{max(ratios):>9.3f}{verdict}")


if __name__ == "__main__":
    main()
