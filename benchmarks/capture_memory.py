"""Peak memory of the capture, and that prompts do not add to it: `python benchmarks/capture_memory.py`.

A random float32 pair shaped like Qwen2-0.5B. Every kind of work runs in a process of its own:

- `models`: both models, loaded and left alone
- `bare`: both forward passes over one batch with no hook
- `capture`: gates, contributions, changes and ledger over `--prompts` prompts, through to closed Parquet files
- `capture × 10`: the same over ten times the prompts

The peak is that of the resident memory since the models stood there; making them does not count. One batch's
activations are the bytes of the float tensors at all sites, logits included, of both models. Bound: peak ≤ two models
+ 1.5 × one batch's activations, at ten times the prompts as well.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from results import add_option, ratio, report

BOUND = 1.5
_MIB = 2**20


def main() -> None:
    """Measure each kind of work in its own process and print one row a kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--layers", type=int, help="fewer, for a quick try")
    parser.add_argument("--vocab", type=int, help="fewer, for a quick try")
    parser.add_argument("--width", type=int, help="d_model, for a quick try")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--directory", type=Path, help="where the temporary directory goes")
    parser.add_argument("--work", choices=("sizes", "models", "bare", "capture"), help=argparse.SUPPRESS)
    add_option(parser)
    options = parser.parse_args()
    if options.work:
        print(json.dumps(_measure(options)))
        return
    sizes = _in_process("sizes", options.prompts)
    models, activations = sizes["models"], sizes["activations"]
    bound = models + BOUND * activations
    print(f"two models {models:.0f} MiB, one batch's activations {activations:.0f} MiB, bound {bound:.0f} MiB")
    heading = "(peak − imports − models)/activations"
    print(f"{'work':<14}{'prompts':>8}{'imports':>13}{'peak':>13}{heading:>40}{'seconds':>9}")
    peaks: dict[int, list[float]] = {options.prompts: [], 10 * options.prompts: []}
    for name, work, prompts in options.rounds * (
        ("models", "models", 0),
        ("bare", "bare", options.batch),
        ("capture", "capture", options.prompts),
        ("capture × 10", "capture", 10 * options.prompts),
    ):
        found = _in_process(work, prompts)
        own = found["peak"] - found["imports"]
        share = (own - models) / activations
        verdict = ("within" if own <= bound else "OVER") + f" {BOUND}" if work == "capture" else ""
        print(
            f"{name:<14}{prompts:>8}{found['imports']:>9.0f} MiB{found['peak']:>9.0f} MiB{share:>27.2f} {verdict:<12}"
            f"{found['seconds']:>9.0f}",
            flush=True,
        )
        if work == "capture":
            peaks[prompts].append(own)
    few, many = ((f"{n} prompts", own) for n, own in peaks.items())
    report([ratio("peak memory of capture", few, many)], options.json)


def _in_process(work: str, prompts: int) -> dict[str, float]:
    """What `_measure` finds in a fresh process; later options win over the first."""
    command = [sys.executable, __file__, *sys.argv[1:], "--work", work, "--prompts", str(prompts)]
    found: dict[str, float] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return found


def _measure(options: argparse.Namespace) -> dict[str, float]:
    """Resident memory in MiB after the imports, and at its highest since both models were there."""
    import torch
    from random_pair import QWEN2_05B, bare, live_pair, random_prompts, word_tokenizer

    import probes  # noqa: F401
    from tv.prompts.encoding import batches

    torch.set_num_threads(options.threads)
    shape = QWEN2_05B.cut(options.layers, options.vocab, options.width)
    tokenizer = word_tokenizer(shape.vocab)
    batch = batches(random_prompts(options.batch, options.tokens, tokenizer), options.batch, 0)[0]
    imports = _resident("VmRSS")
    models = live_pair(shape)
    if options.work == "sizes":
        sizes = [x.numel() * x.element_size() for model in models for x in model.parameters()]
        return {"models": sum(sizes) / _MIB, "activations": _activations(models, batch)}
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak starts from here
    start = time.perf_counter()
    if options.work == "bare":
        bare(*models, batch)
    elif options.work == "capture":
        _capture(models, tokenizer, options)
    return {"imports": imports, "peak": _resident("VmHWM"), "seconds": time.perf_counter() - start}


def _capture(models: tuple[Any, Any], tokenizer: Any, options: argparse.Namespace) -> None:
    from random_pair import random_prompts, suite_of

    from probes.capture.pair import make_pair
    from probes.capture.runner import Session, run_shard, shards

    pair = make_pair(*models, tokenizer)
    suite = suite_of(("gates", "contributions", "changes", "ledger"), options.batch)
    session = Session.open(pair, suite)
    encoded = random_prompts(options.prompts, options.tokens, tokenizer)
    with tempfile.TemporaryDirectory(dir=options.directory) as folder:
        for shard in shards(encoded, suite, "tuned", pair.architecture):
            run_shard(shard, session, Path(folder) / "tables")


def _activations(models: tuple[Any, Any], batch: Any) -> float:
    """MiB of the float tensors at all sites of one batch, in both models; those of one storage count once."""
    from probes.capture.hooks.plan import SITES, Read, Seen, plan
    from probes.capture.hooks.torch_backend import lockstep
    from tv.architecture.resolve import resolve

    total = 0

    def add(read: Read, *both: Seen) -> None:
        nonlocal total
        for seen in both:
            sites = [seen.at(site) for site in read.sites]
            total += sum({x.data_ptr(): x.numel() * x.element_size() for x in sites if x.is_floating_point()}.values())

    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    lockstep(*models, plan(resolve(models[0]), SITES), inputs, add)
    return total / _MIB


def _resident(field: str) -> float:
    """A field of this process's memory, in MiB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


if __name__ == "__main__":
    main()
