"""`python -m fuzz TARGET SECONDS`: bytes are changed towards code not reached yet, until a reader breaks its word.

What breaks it lies in reports/fuzz/TARGET afterwards, as `crash-…`, beside the bytes that reached most.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import atheris

from fuzz import NAMES

_INSTRUMENTED = [
    "fuzz",
    "probes.suite",
    "tv.prompts.files",
    "tv.prompts.logs",
    "tv.checkpoints.tensors",
    "yaml",
    "json",
    "csv",
]


def main() -> None:
    """Fuzz one target for a time; the exit status is 0 where nothing was found."""
    if len(sys.argv) != 3 or sys.argv[1] not in NAMES or not sys.argv[2].isdigit():
        sys.exit(f"usage: python -m fuzz {'|'.join(NAMES)} SECONDS")
    name, seconds = sys.argv[1:]
    with atheris.instrument_imports(include=_INSTRUMENTED):
        module = importlib.import_module(f"fuzz.{name}")
    corpus = Path("reports") / "fuzz" / name
    corpus.mkdir(parents=True, exist_ok=True)
    for i, seed in enumerate(module.SEEDS):
        (corpus / f"seed-{i}").write_bytes(seed)

    def once(data: bytes) -> None:
        module.target(data)

    options = [f"-max_total_time={seconds}", "-timeout=60", f"-artifact_prefix={corpus}/", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], str(corpus), *options], once)
    atheris.Fuzz()


main()
