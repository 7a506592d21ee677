"""`tv apply` against mergekit, whole processes: `python benchmarks/apply_speed.py MERGEKIT_PYTHON`.

    python -m venv mergekit-env && mergekit-env/bin/pip install mergekit

The same merge (0.7 and 0.3 of two tuning vectors, task arithmetic, TIES, DARE) of the same bfloat16 checkpoints, random
and shaped like a few layers of Qwen2-0.5B, into a bfloat16 checkpoint. Each round starts every command once, from
nothing: what is timed is what a person waits for, imports included, and the peak is the process's own. Ours runs with
its defaults: it measures how the vectors conflict too, and `plain` is the sum without.
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
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path

from results import Ratio, add_option, ratio, report

SCALES = (0.7, 0.3)
METHODS = {"sum": "task_arithmetic", "ties": "ties", "dare": "dare_linear"}
DENSITY = {"ties": 0.2, "dare": 0.5}  # our defaults


def main() -> None:
    """One interleaved run after a round that does not count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", type=Path, help="the interpreter of an environment with mergekit")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--vocab", type=int, default=32000)
    parser.add_argument("--rounds", type=int, default=3)
    add_option(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sources = _models(Path(folder))
        # In a process of its own: the peak of a process that starts another counts as the other's.
        making = get_context("spawn").Process(target=_write_models, args=(sources, options.layers, options.vocab))
        making.start()
        making.join()
        commands = {
            (method, name): command
            for method in METHODS
            for name, command in (
                ("ours", _ours(sources, method)),
                ("mergekit", _theirs(options.python, sources, method, Path(folder))),
            )
        }
        commands["sum", "plain"] = [*commands["sum", "ours"], "--no-conflicts"]
        seconds, peaks = (
            defaultdict[tuple[str, str], list[float]](list),
            defaultdict[tuple[str, str], list[float]](list),
        )
        for turn in range(-1, options.rounds):
            for key, command in commands.items():
                out = Path(folder) / "out"
                shutil.rmtree(out, ignore_errors=True)
                took, peak = _measured([*command, str(out)] if key[1] == "mergekit" else [*command, "-o", str(out)])
                assert (out / "config.json").exists(), f"{key} wrote nothing"
                if turn >= 0:
                    seconds[key].append(took)
                    peaks[key].append(peak)
                    print(f"round {turn + 1}: {' '.join(key)} {took:.1f} s, {peak:.0f} MiB", flush=True)
    both = ("with conflicts", seconds["sum", "ours"]), ("without", seconds["sum", "plain"])
    measuring = ratio("merge by sum, seconds", *both)
    report([*_ratios(seconds, "seconds"), *_ratios(peaks, "peak memory"), measuring], options.json)


def _ratios(found: dict[tuple[str, str], list[float]], unit: str) -> list[Ratio]:
    return [
        ratio(
            f"merge by {method}, {unit}", ("mergekit", found[method, "mergekit"]), ("tv apply", found[method, "ours"])
        )
        for method in METHODS
    ]


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


def _ours(sources: Sequence[Path], method: str) -> list[str]:
    added = [part for path, scale in zip(sources[1:], SCALES, strict=True) for part in ("--add", f"{path}:{scale}")]
    return [
        sys.executable,
        "-m",
        "tv",
        "apply",
        str(sources[0]),
        *added,
        "--method",
        method,
        "--out-dtype",
        "bfloat16",
    ]


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


def _measured(command: Sequence[str]) -> tuple[float, float]:
    """Seconds, and the peak of resident memory in MiB."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed:\n{said[-2000:]}")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


if __name__ == "__main__":
    main()
