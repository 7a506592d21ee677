"""CPU time and memory of the main job, stage by stage: `python benchmarks/main_job.py [--before FOLDER]`.

The suite of the demo on the embedded pairs, or another suite, or with `--shape` the prompts of
examples/suites/smollm2-135m.yaml on a random pair of SmolLM2-135M's shape. Every run is a process of its own, imports
included; every round does this build's and then, if given, that of the build in FOLDER. Each does its demo once before,
which compiles its bytecode. Printed are medians with their range, ratios of the same round, and whether both come to
the same conclusions: the verdict's sentences and the leading components of every method.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from results import add_option, allowed, ratio, report

ROOT = Path(__file__).resolve().parent.parent
#: What a job may take at most: MiB on the embedded models, CPU seconds on a real pair of 135 M parameters.
MEMORY, SECONDS = 650, 1500

#: Run by either build, so it stands on what both have.
_ONCE = """
import json, resource, sys, time
import probes
cpu = lambda: sum(getattr(resource.getrusage(who), key) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
                  for key in ("ru_utime", "ru_stime"))
seconds, last = {"import": cpu()}, cpu()
def stage(name, done, total, label):
    global last
    now = cpu(); seconds[name] = seconds.get(name, 0.0) + now - last; last = now
settings = json.loads(sys.argv[3])
began = time.perf_counter()
run = probes.run(sys.argv[1], out=sys.argv[2], compute=probes.Compute(progress=stage), **settings)
seconds["rest"] = cpu() - last
effects = run["effects"]
real = effects[(effects.control == "") & (effects.domain == "all") & (effects.granularity == "component")]
leading = {}
for key, part in real.groupby(["tuned", "method", "direction"]):
    top = part.reindex(part.effect.abs().sort_values(ascending=False).index)[:5]
    leading[" ".join(key)] = [f"{c} {l}" for c, l in zip(top.component, top.layer)]
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
wall = time.perf_counter() - began
print(json.dumps({"seconds": seconds, "cpu": cpu(), "wall": wall, "MiB": peak, "leading": leading}))
"""


def main() -> None:
    """Rounds of every build in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", type=Path, default=ROOT / "data" / "suites" / "demo.yaml")
    parser.add_argument("--base", type=Path, help="another base than the suite's")
    parser.add_argument("--tuned", type=Path, help="another tuned model than the suite's")
    parser.add_argument("--shape", action="store_true", help="a random pair of SmolLM2-135M's shape, with its suite")
    parser.add_argument("--settings", default="{}", help="keys that win over the suite's, as JSON")
    parser.add_argument("--before", type=Path, metavar="FOLDER", help="a checkout of the build to compare with")
    parser.add_argument("--rounds", type=int, default=3)
    add_option(parser)
    options = parser.parse_args()
    builds = {"ours": ROOT, **({"before": options.before.resolve()} if options.before else {})}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in builds}
    with tempfile.TemporaryDirectory() as folder:
        suite = options.suite.resolve()
        settings = {"settings": json.loads(options.settings)}
        settings |= {name: str(path.resolve()) for name in ("base", "tuned") if (path := getattr(options, name))}
        if options.shape:
            suite = ROOT / "examples" / "suites" / "smollm2-135m.yaml"
            settings |= _random_pair(Path(folder))
        for build in builds.values():
            _once(build, build / "data" / "suites" / "demo.yaml", Path(folder), {})
        for _ in range(options.rounds):
            for name, build in builds.items():
                own = build / suite.relative_to(ROOT) if suite.is_relative_to(ROOT) else suite  # in its own words
                found[name].append(_once(build, own, Path(folder), settings))
                print(f"{name}: {found[name][-1]['cpu']:.0f} CPU s, {found[name][-1]['leading']}", flush=True)
    for name, runs in found.items():
        _show(name, runs)
    what = "whole job, SmolLM2-135M's shape" if options.shape else f"whole job, {suite.stem}"
    both = {name: {key: [run[key] for run in runs] for key in ("cpu", "MiB")} for name, runs in found.items()}
    ratios = [
        allowed(f"{what}, CPU", SECONDS, "s", both["ours"]["cpu"]),
        allowed(f"{what}, peak memory", MEMORY, "MiB", both["ours"]["MiB"]),
    ]
    if options.before:
        ratios += [
            ratio(f"{what}, {kind}", ("before", both["before"][key]), ("ours", both["ours"][key]))
            for kind, key in (("CPU", "cpu"), ("peak memory", "MiB"))
        ]
        _compare(found["before"][0]["leading"], found["ours"][0]["leading"])
    report(ratios, options.json)


def _once(build: Path, suite: Path, folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    out = folder / "run"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"PYTHONPATH": str(build), "PYTHONPYCACHEPREFIX": str(folder / f"compiled-{build.name}")}
    if "base" not in settings:  # the embedded models are so small that several threads wait for each other
        environment["OMP_NUM_THREADS"] = "1"
    command = [sys.executable, "-P", "-W", "ignore", "-c", _ONCE, str(suite), str(out), json.dumps(settings)]
    done = subprocess.run(command, env=environment, cwd=suite.parent, stdout=subprocess.PIPE, text=True, check=True)
    shutil.rmtree(out)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _random_pair(folder: Path) -> dict[str, str]:
    """Llamas of SmolLM2-135M's shape with the embedded model's tokenizer, as bfloat16."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "data" / "models" / "base")
    sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49152}
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads, eos_token_id=None)).to(torch.bfloat16)
    sides = {}
    for name in ("base", "tuned"):
        sides[name] = str(folder / name)
        model.save_pretrained(sides[name])
        tokenizer.save_pretrained(sides[name])
        for parameter in model.parameters():
            noise = torch.randn_like(parameter.data, dtype=torch.float32)
            step = 0.02 * parameter.data.float().norm() / noise.norm()
            parameter.data.add_((noise * step).to(parameter.dtype))
    return sides


def _show(name: str, runs: list[dict[str, Any]]) -> None:
    print(f"\n{name + ', CPU seconds':<28}{'median':>9}{'min':>9}{'max':>9}   ({len(runs)} runs)")
    stages = dict.fromkeys(stage for run in runs for stage in run["seconds"])
    rows = {stage: [run["seconds"].get(stage, 0.0) for run in runs] for stage in stages}
    rows |= {"all": [run["cpu"] for run in runs], "wall": [run["wall"] for run in runs]}
    rows["peak memory, MiB"] = [run["MiB"] for run in runs]
    for stage, values in rows.items():
        print(f"{stage:<28}{statistics.median(values):>9.1f}{min(values):>9.1f}{max(values):>9.1f}")


def _compare(before: dict[str, list[str]], ours: dict[str, list[str]]) -> None:
    for method in before.keys() & ours.keys():
        shared = len(set(before[method]) & set(ours[method]))
        first = "the same first" if before[method][0] == ours[method][0] else "another first"
        print(f"{method}: {shared} of the {len(before[method])} leading components are the same, {first}")


if __name__ == "__main__":
    main()
