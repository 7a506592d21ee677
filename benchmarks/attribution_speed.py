"""What attribution costs, on the embedded pair: `python benchmarks/attribution_speed.py`.

In one interleaved run, every round doing all of it once on the same prompts:

- `forward`: the base over the prompts, nothing else
- `path`: one node of integrated gradients, with every module, head, neuron and token
- `graft`: every module moved and read, all of them together
- `reload`: the same for a few modules, each by writing a patched checkpoint, loading it and reading it, as one does
  without the instrument; counted a module

Ratios are of times in the same round; medians with their spread over rounds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from results import add_option, ratio, report
from transformers import AutoModelForCausalLM

from probes.attribution.forwards import from_model, swapped, values
from probes.attribution.methods.exact import graft
from probes.attribution.methods.path import path_effects
from probes.attribution.metric import answerable, metric_of
from probes.attribution.units import units_of
from probes.attribution.work import Work
from probes.capture.pair import make_pair
from tv.checkpoints.live import load_model, load_tokenizer
from tv.prompts.encoding import batches, encode
from tv.prompts.files import PromptSet, read_prompts

HERE = Path(__file__).resolve().parents[1] / "data"
NODES = 8


def main() -> None:
    """One interleaved run, then the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--reloads", type=int, default=4, help="modules that are reloaded in every round")
    parser.add_argument("--threads", type=int, default=1)
    add_option(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    base, tuned = (load_model(HERE / "models" / name) for name in ("base", "medical"))
    pair = make_pair(base, tuned, load_tokenizer(HERE / "models" / "base"))
    prompts = read_prompts([PromptSet(file=HERE / "prompts" / "medical.jsonl")])
    encoded = answerable(encode(prompts, pair.tokenizer, pair.architecture.context), "logit_diff")
    several = batches(encoded, args.batch, pair.pad_id)
    metric = metric_of("logit_diff", tuned, several)
    modules = units_of(pair.architecture, "module")

    def reload() -> None:
        for unit in modules[:: max(1, len(modules) // args.reloads)][: args.reloads]:
            with tempfile.TemporaryDirectory() as directory:
                with swapped(base, from_model(base, tuned, pair.architecture, [unit])):
                    base.save_pretrained(directory)
                values(AutoModelForCausalLM.from_pretrained(directory).eval(), several, metric)

    ways: dict[str, Callable[[], object]] = {
        "forward": lambda: values(base, several, metric),
        "path": lambda: path_effects(
            pair, encoded, metric, batch_size=args.batch, nodes=NODES, most_nodes=NODES, tolerance=0.5
        ),
        # A new work each time: it knows no value yet, and proves anew that variants can be read together.
        "graft": lambda: list(graft(Work(pair, metric, several, args.batch), modules)),
        "reload": reload,
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(args.rounds + 1):
        for name, way in ways.items():
            start = time.process_time()
            way()
            if i:  # the first round warms up
                times[name].append(time.process_time() - start)
    print(f"{len(encoded)} prompts, {len(modules)} modules, {args.threads} thread(s), {args.rounds} rounds")
    for name, seconds in times.items():
        print(f"{name:8} median {statistics.median(seconds):.2f} s")
    # Nodes alone: both ends are read once a call.
    node = [(path - 2 * one) / NODES for path, one in zip(times["path"], times["forward"], strict=True)]
    moved = [seconds / len(modules) for seconds in times["graft"]]
    reloaded = [seconds / args.reloads for seconds in times["reload"]]
    ratios = [
        ratio("attribution, embedded, CPU", ("a forward", times["forward"]), ("a node of path", node)),
        ratio("effect of a module, embedded, CPU", ("reloaded checkpoint", reloaded), ("graft", moved)),
    ]
    report(ratios, args.json)


if __name__ == "__main__":
    main()
