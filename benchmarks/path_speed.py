"""What the method `path` costs: `python benchmarks/path_speed.py [--before FOLDER]`.

On the embedded pair, and with `--shape` on a random pair of SmolLM2-135M's shape, in CPU seconds, every round doing all
of it once with this build and then, if given, with the build in FOLDER:

- `forward`: the base over the prompts, nothing else
- `node`: one node of the integral, with every module, head, neuron and token
- `path`: the method with its defaults; not with `--node`

Also printed: the nodes that a prompt took, and the completeness gap.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
NODES = 4


def main() -> None:
    """Rounds of every build in turn, then the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="a checkout of the build to compare with")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tuned", default="medical", help="which embedded model")
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--shape", action="store_true", help="a random pair of SmolLM2-135M's shape")
    parser.add_argument("--step", type=float, default=0.02, help="of the random pair: |T| / |W|")
    parser.add_argument("--node", action="store_true", help="a node alone, not the whole method")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help="write the ratios there too")
    options = parser.parse_args()
    if options.serve:
        _serve(options)
    else:
        _compare(options)


def _compare(options: argparse.Namespace) -> None:
    from results import ratio, report

    builds = {"ours": HERE, **({"before": options.before.resolve()} if options.before else {})}
    workers = {name: _started(build) for name, build in builds.items()}
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in builds}
    for i in range(options.rounds + 1):
        for name, worker in workers.items():
            found = _asked(worker)
            if i:  # the first round warms up
                rounds[name].append(found)
    for worker in workers.values():
        worker.communicate()
    seconds = {
        name: {what: [found[what] for found in own] for what in ("forward", "node", "path")[: 2 if options.node else 3]}
        for name, own in rounds.items()
    }
    for name, own in rounds.items():
        for what, values in seconds[name].items():
            print(f"{name}, {what}: {statistics.median(values):.3f} ({min(values):.3f}–{max(values):.3f}) CPU s")
        print(f"{name}: {own[0]['nodes']:.2f} nodes a prompt, gap {own[0]['gap']:.5f}, peak {own[0]['peak']:.0f} MiB")
    where = "SmolLM2-135M's shape" if options.shape else f"embedded, {options.tuned}"
    ours = seconds["ours"]
    ratios = [ratio(f"path, {where}", ("a forward", ours["forward"]), ("a node", ours["node"]))]
    if "before" in seconds:
        before = seconds["before"]
        ratios += [
            ratio(f"path, {where}: {what}", ("before", before[what]), ("ours", ours[what])) for what in [*ours][1:]
        ]
    report(ratios, options.json)


def _started(build: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(build), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "benchmarks" / "path_speed.py"), *sys.argv[1:], "--serve"]
    return subprocess.Popen(
        command, env=environment, cwd=HERE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def _asked(worker: subprocess.Popen[str]) -> dict[str, float]:
    assert worker.stdin and worker.stdout
    worker.stdin.write("go\n")
    worker.stdin.flush()
    found: dict[str, float] = json.loads(worker.stdout.readline())
    return found


def _serve(options: argparse.Namespace) -> None:
    """One round for each line read."""
    import resource

    from probes.attribution.forwards import values
    from probes.attribution.methods.path import path_effects
    from probes.attribution.metric import metric_of
    from tv.prompts.encoding import batches

    pair, encoded = _random(options) if options.shape else _embedded(options)
    several = batches(encoded, options.batch, pair.pad_id)
    metric = metric_of("logit_diff", pair.tuned, several)
    for _ in sys.stdin:
        forward, _ = _timed(lambda: values(pair.base, several, metric))
        fixed, once = _timed(
            lambda: path_effects(pair, encoded, metric, batch_size=options.batch, nodes=NODES, most_nodes=NODES)
        )
        if options.node:
            path, found = fixed, once
        else:
            path, found = _timed(lambda: path_effects(pair, encoded, metric, batch_size=options.batch))
        seconds = {"forward": forward, "node": (fixed - 2 * forward) / NODES, "path": path}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        result = {**seconds, "nodes": _evaluated(found.nodes), "gap": found.gap, "peak": peak}
        print(json.dumps(result), flush=True)


def _evaluated(nodes: Sequence[int]) -> float:
    """Nodes a prompt that were computed: the build before doubled from 8, and began again each time."""
    from probes.attribution.methods import path

    again = hasattr(path, "HELPS")
    spent = [2 * n - path.NODES if again else n for n in nodes]
    return float(sum(spent)) / len(spent)


def _timed(run: Callable[[], object]) -> tuple[float, object]:
    start = time.process_time()
    result = run()
    return time.process_time() - start, result


def _embedded(options: argparse.Namespace) -> tuple:
    from probes.attribution.metric import answerable
    from probes.capture.pair import make_pair
    from tv.checkpoints.live import load_model, load_tokenizer
    from tv.prompts.encoding import encode
    from tv.prompts.files import PromptSet, read_prompts

    models = HERE / "data" / "models"
    base, tuned = (load_model(models / name) for name in ("base", options.tuned))
    pair = make_pair(base, tuned, load_tokenizer(models / "base"))
    prompts = read_prompts([PromptSet(file=path) for path in sorted((HERE / "data" / "prompts").glob("*.jsonl"))])
    encoded = answerable(encode(prompts, pair.tokenizer, pair.architecture.context), "logit_diff")
    return pair, encoded[:: max(1, len(encoded) // options.prompts)][: options.prompts]


def _random(options: argparse.Namespace) -> tuple:
    from random_pair import Shape, live_pair, random_prompts, word_tokenizer

    from probes.capture.pair import make_pair

    base, tuned = live_pair(Shape(576, 1536, 30, 9, 3, 49152, True), step=options.step)
    tokenizer = word_tokenizer(49152)
    return make_pair(base, tuned, tokenizer), random_prompts(options.prompts, 100, tokenizer)


if __name__ == "__main__":
    main()
