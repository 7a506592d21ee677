"""The rows of the performance table: which benchmark finds each ratio, and what is wanted of its median.

A ratio is what the other way took over what ours took; a bound on a share of the other way is its inverse.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Run:
    """A benchmark as the table starts it. `{…}` in its arguments is an option of table.py, and has to be given."""

    script: str
    arguments: str = ""
    rounds: int | None = None  # None: the script has no rounds
    minutes: int = 15  # it is stopped after so many
    long: bool = False  # only with --long, or by name


@dataclass(frozen=True)
class Row:
    """One ratio, called by what its benchmark calls it."""

    run: str
    what: str
    theirs: str
    ours: str
    wanted: float | None = None  # the least median


_CPU = "--threads 1 --clock CPU"
RUNS = {
    "startup": Run("startup.py", rounds=7),
    "products": Run("products.py"),
    "apply": Run("apply_speed.py", "{mergekit}", rounds=3),
    "busy": Run("apply_speed.py", "--busy", rounds=2),
    "capture": Run(
        "capture_speed.py",
        f"--layers 4 --vocab 16000 --prompts 32 --batch 8 {_CPU} --only bare,light,full,ledger_all",
        rounds=2,
    ),
    "neighbours": Run(
        "capture_speed.py",
        f"--layers 4 --vocab 16000 --prompts 16 --batch 8 {_CPU} --only no_ledger,transformer_lens,nnsight",
        rounds=1,
    ),
    "lens": Run(
        "capture_speed.py", f"--shape 135M --prompts 12 --tokens 100 --batch 4 {_CPU} --only bare,lens", rounds=1
    ),
    "attribution": Run("attribution_speed.py", rounds=3),
    "path": Run("path_speed.py", "--prompts 24", rounds=5),
    "growth": Run("capture_memory.py", "--prompts 16 --tokens 64 --layers 4 --vocab 8000", rounds=3),
    "stream": Run("stream.py", "--shape 135M --prompts 32 --tokens 32 --threads 1", rounds=2),
    "stream_attribution": Run(
        "stream.py",
        "--shape 135M --layers 8 --work attribution --prompts 32 --tokens 32 --batch 16 --threads 1",
        rounds=3,
    ),
    "stream_3B": Run(
        "stream.py",
        "--shape 3B --limit-gib 5 --prompts 8 --tokens 32 --batch 8 --threads 1 --rounds 0",
        minutes=60,
        long=True,
    ),
    "ssa_3B": Run("ssa_large.py", "--before {before} --vocab 4096", rounds=1, minutes=60, long=True),
    "ssa_3B_memory": Run("ssa_large.py", minutes=60, long=True),
    "report": Run("report_page.py", "{run}", rounds=3),
    "demo": Run("main_job.py", "--before {before}", rounds=2, minutes=30),
    "ssa": Run("ssa_speed.py", "--threads 1", rounds=1),
    "slices": Run("run_slices.py", "--rows 2000000"),
    "shape": Run("main_job.py", "--shape --before {before}", rounds=1, minutes=240, long=True),
    "real": Run(
        "main_job.py",
        "--suite examples/suites/smollm2-135m.yaml --base {base} --tuned {tuned}",
        rounds=1,
        minutes=240,
        long=True,
    ),
    "path_shape": Run("path_speed.py", "--shape --node --prompts 4 --batch 4", rounds=1, minutes=60, long=True),
}

_CAPTURE = "both forward passes, 4 layers of Qwen2-0.5B's width, CPU"
_MERGE = "tv apply with its defaults, whole process,"
_PRODUCTS = (("SmolLM2-135M", 16), ("SmolLM2-135M", 1024), ("1B", 16), ("1B", 1024))
_SMALL = ("tv info BASE TUNED", "tv extract", "tv cosine", "tv geometry", "tv ssa", "tv apply")
ROWS = (
    *(Row("startup", f"{name}, whole process, CPU", "import torch", "ours", 1 / 1.45) for name in _SMALL),
    Row("startup", "probes run, a mistake, whole process, CPU", "0.5 s", "ours", 1),
    *(Row("products", f"products of {name}'s shape, {n} tokens, CPU", "torch", "ours") for name, n in _PRODUCTS),
    *(Row("apply", f"{_MERGE} {method}, CPU", "mergekit", "ours", 2) for method in ("sum", "ties", "dare")),
    *(Row("apply", f"{_MERGE} {method}, seconds", "mergekit", "ours") for method in ("sum", "ties", "dare")),
    *(Row("apply", f"{_MERGE} {method}, peak memory", "mergekit", "ours", 2) for method in ("sum", "ties", "dare")),
    Row("apply", "measuring conflicts in a merge by sum, CPU", "without", "with", 1 / 1.3),
    Row("busy", "tv apply beside a process that keeps a core busy, seconds", "quiet", "busy", 1 / 1.5),
    Row("capture", _CAPTURE, "bare", "light", 0.93),
    Row("capture", _CAPTURE, "bare", "full", 0.88),
    Row("capture", _CAPTURE, "bare", "ledger_all", 0.55),
    Row("path", "path, embedded, medical", "a forward", "a node", 1 / 3.5),
    Row("path_shape", "path, SmolLM2-135M's shape", "a forward", "a node", 1 / 3.5),
    Row("attribution", "effect of a module, embedded, CPU", "reloaded checkpoint", "graft", 8),
    Row("shape", "whole job, SmolLM2-135M's shape, CPU", "before", "ours", 2.5),
    Row("demo", "whole job, demo, CPU", "before", "ours", 2.2),
    Row("demo", "whole job, demo, peak memory", "650 MiB", "ours", 1),
    Row("lens", "both forward passes, SmolLM2-135M's shape, CPU", "bare", "lens", 1 / 1.5),
    Row("real", "whole job, smollm2-135m, CPU", "1500 s", "ours", 1),
    Row("growth", "peak memory of capture", "16 prompts", "160 prompts", 1 / 1.03),
    Row("stream", "capture, SmolLM2-135M's shape, CPU", "in memory", "layer by layer", 1 / 1.3),
    Row("stream", "capture layer by layer, peak memory", "what is allowed", "ours", 1),
    Row(
        "stream_attribution",
        "attribution, SmolLM2-135M's shape, 8 layers, CPU",
        "in memory",
        "layer by layer",
        1 / 1.3,
    ),
    Row(
        "stream_3B",
        "capture layer by layer, a 3B shape, resident peak under an enforced limit",
        "5120 MiB",
        "ours",
        1,
    ),
    Row("ssa_3B", "tv ssa, a block of a 3B shape, 4096 words, CPU", "before", "ours", 1.5),
    Row(
        "ssa_3B_memory",
        "tv ssa, a block of a 3B shape, 128256 words, resident peak under an enforced limit",
        "5120 MiB",
        "ours",
        1,
    ),
    Row("report", "report of the demo, size", "6 MB", "ours", 1),
    Row("report", "report of the demo, first text", "1 s", "ours", 1),
    Row("neighbours", _CAPTURE, "transformer_lens", "no_ledger"),
    Row("neighbours", _CAPTURE, "nnsight", "no_ledger"),
    Row("ssa", "SSA of a layer", "svd64", "grams"),
    Row("ssa", "SSA of a layer", "first", "second"),
    Row("slices", "one layer of a run's table", "all with pandas", "Run.df"),
    Row("slices", "one prompt of a run's table", "all with pandas", "Run.df"),
)
BOUNDS = {(row.what, row.theirs, row.ours): row.wanted for row in ROWS if row.wanted is not None}
