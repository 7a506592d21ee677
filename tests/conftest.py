"""What every test needs: one thread a process, and no network."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

#: Files that take longest, by folder and name. They go first, so that no process is left with one at the end.
_LONGEST = (
    *("docs/test_commands", "probes/test_engine", "probes/test_job", "probes/test_resume", "tests/test_demo"),
    *("data/test_models", "hostile/test_kill", "tv/test_engine", "experiments/test_experiments"),
    *("probes/test_cli", "parity/test_backends", "probes/test_diagnose"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: i for i, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: rank.get(f"{item.path.parent.name}/{Path(item.path).stem}", len(rank)))
