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
    *("docs/test_commands", "probes/test_job", "store/test_resume", "data/test_models", "capture/test_workers"),
    *("hostile/test_hostile_input", "tests/test_demo", "examples/test_notebooks", "hostile/test_kill"),
    *("reporting/test_report", "reporting/test_diagnose", "reporting/test_compare", "experiments/test_experiments"),
    *("parity/test_backends", "hostile/test_offline"),
)


#: Folders whose tests start programs, train or load real models, or compare backends.
_SLOW = ("hostile", "parity", "docs", "examples", "data", "experiments", "extending")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: i for i, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: rank.get(f"{item.path.parent.name}/{Path(item.path).stem}", len(rank)))
    for item in items:
        if item.path.parent.name in _SLOW or f"{item.path.parent.name}/{item.path.stem}" in _LONGEST:
            item.add_marker(pytest.mark.slow)
