"""The capture's speed against the model's own and its neighbours': `python benchmarks/capture_speed.py`.

A random float32 pair shaped like Qwen2-0.5B, prompts of random tokens with a target and a foil, two threads. The ways:

- `bare`: both forward passes with no hook
- `full`: gates, contributions and changes at all positions, heads and DLA included, and the ledger at target positions,
  into closed Parquet files, one shard a batch
- `light`: the same without heads and ledger
- `ledger_all`: `full` with the ledger at all positions
- `no_ledger`: `full` without the ledger, what the neighbours make too
- `lens`: the logit lens alone, where a suite reads it by default
- `transformer_lens`, `nnsight`: see `neighbours.py`; `…_all` cache everything (ask with --only: it needs much memory)

Every batch runs all ways, each batch beginning with another, so that noise hits all alike; a short batch that does not
count comes first. Every ratio is one of times on the same batch; `--clock CPU` counts this process's CPU seconds, for a
machine that does other work too (with `--threads 1`: threads that wait for each other count). What a pair needs once
(bases, Grams) is timed apart. At the end the ways' `changes` of the last batch are held against each other.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import neighbours
import pandas as pd
import pyarrow.dataset as ds
import torch
from random_pair import QWEN2_05B, SMOLLM2_135M, bare, live_pair, random_prompts, suite_of, word_tokenizer
from results import add_option, ratio, report

from probes.capture.pair import Pair, make_pair
from probes.capture.runner import Session, Shard, output_bases, run_shard
from tv.prompts.encoding import Batch, batches

Way = Callable[[Batch, Path], object]
TABLES = ("gates", "contributions", "changes")
OURS = ("full", "light", "ledger_all", "no_ledger", "lens")
SHAPES = {"0.5B": (QWEN2_05B, "Qwen2-0.5B"), "135M": (SMOLLM2_135M, "SmolLM2-135M")}
CLOCKS = {"wall": time.perf_counter, "CPU": time.process_time}
THEIRS = ("transformer_lens", "nnsight")
NEIGHBOURS = (*THEIRS, *(f"{name}_all" for name in THEIRS))
ALL = ("bare", *OURS, *NEIGHBOURS)
#: numerator and denominator
RATIOS = (
    *(("bare", name) for name in ("full", "light", "ledger_all", "lens")),
    *((n, "no_ledger") for n in NEIGHBOURS),
)


def main() -> None:
    """One interleaved run, then the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=1, help="how often every batch runs all ways")
    parser.add_argument("--shape", choices=SHAPES, default="0.5B", help="whose sizes the models have")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--layers", type=int, help="fewer, for a quick try")
    parser.add_argument("--vocab", type=int, help="fewer, for a quick try")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default=",".join(("bare", *OURS[:4], *THEIRS)), help=", ".join(ALL))
    parser.add_argument("--directory", type=Path, help="where the temporary directory goes")
    add_option(parser)
    options = parser.parse_args()
    names = options.only.split(",")
    if unknown := set(names) - set(ALL):
        parser.error(f"no way is called {', '.join(sorted(unknown))}; there are {', '.join(ALL)}")
    torch.set_num_threads(options.threads)
    shape, model = SHAPES[options.shape]
    clock = CLOCKS[options.clock]
    shape = shape.cut(options.layers, options.vocab)
    tokenizer = word_tokenizer(shape.vocab)
    pair = make_pair(*live_pair(shape), tokenizer)
    print(f"{shape}; {options.prompts} prompts × {options.tokens} tokens, batches of {options.batch}", flush=True)
    ways = _ways(names, pair, options.batch)
    work = batches(random_prompts(options.prompts, options.tokens, tokenizer), options.batch, pair.pad_id)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory(dir=options.directory) as folder:
        short = batches(random_prompts(2, 16, tokenizer), 2, pair.pad_id)[0]
        for name, way in ways.items():
            way(short, Path(folder) / name)
        for turn in range(options.rounds * len(work)):
            start = turn % len(names)
            for name in names[start:] + names[:start]:
                directory = Path(folder) / name
                shutil.rmtree(directory, ignore_errors=True)
                begin = clock()
                ways[name](work[turn % len(work)], directory)
                seconds[name].append(clock() - begin)
            print(f"batch {turn + 1}: " + ", ".join(f"{n} {s[-1]:.2f}" for n, s in seconds.items()), flush=True)
        _compare_tables(Path(folder), [name for name in names if name not in ("bare", "lens")])
    _print(seconds, options.batch * options.tokens)
    size = f"{options.layers} layers of {model}'s width" if options.layers else f"{model}'s shape"
    what = f"both forward passes, {size}, {options.clock}"
    report(
        [ratio(what, (a, seconds[a]), (b, seconds[b])) for a, b in RATIOS if {a, b} <= set(names)],
        options.json,
    )


def _ways(names: Sequence[str], pair: Pair, batch_size: int) -> dict[str, Way]:
    begin = time.perf_counter()
    suites = {
        "full": suite_of((*TABLES, "ledger"), batch_size),
        "light": suite_of(TABLES, batch_size, sites=("gate", "attn_out", "mlp_out")),
        "ledger_all": suite_of((*TABLES, "ledger"), batch_size, ledger_positions="all"),
        "no_ledger": suite_of(TABLES, batch_size),
        "lens": suite_of(("lens",), batch_size),
    }
    ways: dict[str, Way] = {"bare": lambda batch, _: bare(pair.base, pair.tuned, batch)}
    sessions: dict[str, Session] = {}
    with_ledger = [name for name in ("full", "ledger_all") if name in names]
    bases = output_bases(pair) if with_ledger else {}
    sessions |= {name: Session.open(pair, suites[name], bases) for name in with_ledger}
    sessions |= {name: Session.open(pair, suites[name]) for name in ("light", "no_ledger", "lens") if name in names}
    print(f"bases, Grams and plan, once a pair: {time.perf_counter() - begin:.1f} s", flush=True)
    for name, session in sessions.items():
        ways[name] = partial(_capture, session)
    models = (pair.base, pair.tuned)
    for name in set(names) & set(NEIGHBOURS):
        everything = name.endswith("_all")
        if name.startswith("nnsight"):
            caches = [neighbours.nnsight(model, everything=everything) for model in models]
        else:
            caches = [neighbours.transformer_lens(m, pair.tokenizer, everything=everything) for m in models]
        ways[name] = partial(neighbours.write_tables, models, caches)
    return {name: ways[name] for name in names}


def _capture(session: Session, batch: Batch, directory: Path) -> None:
    run_shard(Shard("tuned", 0, batch.encoded, True), session, directory)


def _compare_tables(folder: Path, names: Sequence[str]) -> None:
    """Rows, bytes, and the largest difference of the last batch's `changes` from the first way's."""
    first: pd.DataFrame | None = None
    keys = ["prompt_id", "pos", "layer", "component", "head"]
    for name in names:
        files = [path for path in (folder / name).rglob("*.parquet") if "changes" in path.parts[-4:]]
        rows = pd.concat([ds.dataset(path).to_table().to_pandas().assign(layer=_layer_of(path)) for path in files])
        rows = rows.astype({"prompt_id": str, "component": str}).sort_values(keys, ignore_index=True)
        size = sum(path.stat().st_size for path in (folder / name).rglob("*.parquet"))
        line = f"{name}: {len(rows):,} rows of changes in {len(files)} files; all tables {size / 1e6:.1f} MB"
        if first is None:
            first = rows
        elif len(rows) == len(first):
            assert rows[keys].equals(first[keys].astype(rows[keys].dtypes))
            measures = ["norm_base", "norm_tuned", "delta_norm", "relative_change", "cosine", "dla_base", "dla_tuned"]
            gap = max(float((rows[m] - first[m]).abs().max() / first[m].abs().max()) for m in measures)
            line += f"; differs from {names[0]}'s by {gap:.1e} of each measure's largest value"
        print(line)


def _layer_of(path: Path) -> int:
    return int(str(path).split("layer=")[1].split("/")[0].removesuffix(".parquet"))


def _print(seconds: dict[str, list[float]], tokens: int) -> None:
    print(f"\n{'way':<22}{'s/batch':>9}{'min':>9}{'max':>9}{'tokens/s':>10}")
    for name, values in seconds.items():
        middle = statistics.median(values)
        print(f"{name:<22}{middle:>9.2f}{min(values):>9.2f}{max(values):>9.2f}{tokens / middle:>10.0f}")
    print()


if __name__ == "__main__":
    main()
