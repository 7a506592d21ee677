"""`tv apply` against mergekit, whole processes: `python benchmarks/apply_speed.py MERGEKIT_PYTHON`.

    python -m venv mergekit-env && mergekit-env/bin/pip install mergekit

The same merge (0.7 and 0.3 of two tuning vectors, task arithmetic, TIES, DARE) of the same bfloat16 checkpoints, random
and shaped like a few layers of Qwen2-0.5B, into a bfloat16 checkpoint. Each round starts every command once, from
nothing, and its CPU seconds (user and system), the seconds that a person waits, and the process's own peak are taken,
imports included. Ours runs with its defaults: it measures how the vectors conflict too, and `plain` is the sum without.
With `--busy` there is no mergekit: the sum runs alone (`quiet`), and beside a process that keeps one core busy.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

from results import Ratio, add_option, ratio, report

SCALES = (0.7, 0.3)
METHODS = {"sum": "task_arithmetic", "ties": "ties", "dare": "dare_linear"}
_KINDS = ("CPU", "seconds", "peak memory")
DENSITY = {"ties": 0.2, "dare": 0.5}  # our defaults


def main() -> None:
    """One interleaved run after a round that does not count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", type=Path, nargs="?", help="the interpreter of an environment with mergekit")
    parser.add_argument("--busy", action="store_true", help="beside a busy core instead")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--vocab", type=int, default=32000)
    parser.add_argument("--rounds", type=int, default=3)
    add_option(parser)
    options = parser.parse_args()
    if not options.busy and options.python is None:
        parser.error("give the interpreter of an environment with mergekit, or --busy")
    with tempfile.TemporaryDirectory() as folder:
        sources = _models(Path(folder))
        # In a process of its own: the peak of a process that starts another counts as the other's.
        making = get_context("spawn").Process(target=_write_models, args=(sources, options.layers, options.vocab))
        making.start()
        making.join()
        ways = _busy(sources) if options.busy else _both(sources, options.python, Path(folder))
        found: dict[tuple[str, str], list[tuple[float, float, float]]] = defaultdict(list)
        for turn in range(-1, options.rounds):
            for key, command in ways.items():
                out = Path(folder) / "out"
                shutil.rmtree(out, ignore_errors=True)
                with _busy_core(key[1] == "busy"):
                    took = _measured([*command, str(out)])
                assert (out / "config.json").exists(), f"{key} wrote nothing"
                if turn >= 0:
                    found[key].append(took)
                    print(f"round {turn + 1}: {' '.join(key)} {took[0]:.1f} CPU s, {took[1]:.1f} s, {took[2]:.0f} MiB")
    taken = {key: dict(zip(_KINDS, zip(*rounds, strict=True), strict=True)) for key, rounds in found.items()}
    report(_busy_ratios(taken) if options.busy else _ratios(taken), options.json)


def _both(sources: Sequence[Path], python: Path, folder: Path) -> dict[tuple[str, str], list[str]]:
    names = [(method, name) for method in METHODS for name in ("ours", "mergekit")]
    ways = {
        (method, name): _ours(sources, method) if name == "ours" else _theirs(python, sources, method, folder)
        for method, name in names
    }
    return ways | {("sum", "plain"): _ours(sources, "sum", "--no-conflicts")}


def _busy(sources: Sequence[Path]) -> dict[tuple[str, str], list[str]]:
    return {("sum", name): _ours(sources, "sum") for name in ("quiet", "busy")}


def _ratios(taken: dict[tuple[str, str], dict[str, tuple[float, ...]]]) -> list[Ratio]:
    ratios = [
        ratio(
            f"tv apply with its defaults, whole process, {method}, {kind}",
            ("mergekit", taken[method, "mergekit"][kind]),
            ("ours", taken[method, "ours"][kind]),
        )
        for kind in _KINDS
        for method in METHODS
    ]
    without, both = (("without", taken["sum", "plain"]["CPU"]), ("with", taken["sum", "ours"]["CPU"]))
    return [*ratios, ratio("measuring conflicts in a merge by sum, CPU", without, both)]


def _busy_ratios(taken: dict[tuple[str, str], dict[str, tuple[float, ...]]]) -> list[Ratio]:
    quiet, busy = ((name, taken["sum", name]["seconds"]) for name in ("quiet", "busy"))
    return [ratio("tv apply beside a process that keeps a core busy, seconds", quiet, busy)]


@contextmanager
def _busy_core(wanted: bool) -> Iterator[None]:
    """A process beside us that does nothing but compute."""
    if not wanted:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _models(folder: Path) -> tuple[Path, ...]:
    return folder / "base", folder / "first", folder / "second"


def _write_models(paths: Sequence[Path], layers: int, vocab: int) -> None:
    """A base, and two models tuned from it."""
    import torch
    from random_pair import QWEN2_05B, live_pair, word_tokenizer

    base, first = live_pair(QWEN2_05B.cut(layers, vocab))
    _, second = live_pair(QWEN2_05B.cut(layers, vocab), step=0.03)
    for path, model in zip(paths, (base, first, second), strict=True):
        model.to(torch.bfloat16).save_pretrained(path)
        word_tokenizer(vocab).save_pretrained(path)


def _ours(sources: Sequence[Path], method: str, *more: str) -> list[str]:
    added = [part for path, scale in zip(sources[1:], SCALES, strict=True) for part in ("--add", f"{path}:{scale}")]
    command = [sys.executable, "-m", "tv", "apply", str(sources[0]), *added, "--method", method]
    return [*command, "--out-dtype", "bfloat16", *more, "-o"]


def _theirs(python: Path, sources: Sequence[Path], method: str, folder: Path) -> list[str]:
    models = [
        {"model": str(path), "parameters": {"weight": scale, "density": DENSITY.get(method, 1.0)}}
        for path, scale in zip(sources[1:], SCALES, strict=True)
    ]
    config = {"merge_method": METHODS[method], "base_model": str(sources[0]), "models": models, "dtype": "bfloat16"}
    config["parameters"] = {"normalize": False}
    file = folder / f"{method}.yaml"
    file.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    return [str(python), "-m", "mergekit.scripts.run_yaml", str(file)]


def _measured(command: Sequence[str]) -> tuple[float, float, float]:
    """CPU seconds, seconds, and the peak of resident memory in MiB: `_KINDS`."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed:\n{said[-2000:]}")
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime, time.perf_counter() - start, usage.ru_maxrss / 1024


if __name__ == "__main__":
    main()
