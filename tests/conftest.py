"""What every test needs: one thread a process, and no network."""

import gc
import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TUNING_PROBES_CACHE", "off")  # what one test keeps, no other finds

# No machine loses its power here, and what is written outlives a process that is killed: nothing waits for the disk.
os.fsync = os.fstat  # type: ignore[assignment]

#: Files that take longest, by folder and name. They go first, so that no process is left with one at the end.
_LONGEST = (
    *("docs/test_commands", "discovery/test_discover", "store/test_resume", "capture/test_shards", "probes/test_job"),
    *("data/test_models", "hostile/test_hostile_input", "hostile/test_kill", "docs/test_examples"),
    *("reporting/test_report", "reporting/test_compare", "reporting/test_page", "measures/test_tables"),
    *("examples/test_notebooks", "store/test_additions", "tests/test_demo", "parity/test_backends"),
    *("runtime/test_scheduler", "experiments/test_experiments", "attribution/test_streaming"),
    *("parts/test_activation_shifts", "discovery/test_scale", "reporting/test_diagnose", "discovery/test_finding"),
    *("architectures/test_representatives", "hostile/test_offline"),
)


#: Files that take five seconds or more beside them: left out of `make test-fast` too.
_LONG = (
    *("cli/test_probes_cli", "measures/test_cosine", "measures/test_nulls"),
    *("arithmetic/test_apply", "arithmetic/test_lora", "attribution/test_path", "capture/test_estimate"),
    *("gating/test_check", "gating/test_pytest_plugin"),
    *("capture/test_loading", "store/test_query", "probes/test_plot", "tv/test_exports"),
    "architectures/test_agreement",
    *("viewing/test_page", "viewing/test_session"),
)
#: Folders whose tests start programs, train or load real models, or compare backends.
_SLOW = ("hostile", "parity", "docs", "examples", "data", "experiments", "extending")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--sample", action="store_true", help="the cases that `make test` runs: not all of every table")


def pytest_configure(config: pytest.Config) -> None:
    """Libraries are set up where tests run: a process that only hands them out starts the others sooner without."""
    if config.getoption("dist", "no") != "no" and config.getoption("tx", None):
        return
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def pytest_collection_finish() -> None:
    """What is loaded by now stays, and the rest is small: looking for garbage in it takes a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    files = {f"{path.parent.name}/{path.stem}" for path in Path(__file__).parent.rglob("test_*.py")}
    assert files >= {*_LONGEST, *_LONG}, "tests/conftest.py names a file that has moved"
    rank = {name: i for i, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: rank.get(f"{item.path.parent.name}/{Path(item.path).stem}", len(rank)))
    for item in items:
        if item.path.parent.name in _SLOW or f"{item.path.parent.name}/{item.path.stem}" in (*_LONGEST, *_LONG):
            item.add_marker(pytest.mark.slow)
    if config.getoption("sample"):
        left_out = _beyond_the_sample(items)
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = [item for item in items if item not in left_out]


def _beyond_the_sample(items: list[pytest.Item]) -> set[pytest.Item]:
    """What `make test` leaves to `make test-all`: thorough tests, and all but evenly spread cases of sampled ones."""
    cases: dict[tuple[Path, str], list[pytest.Item]] = {}
    for item in items:
        cases.setdefault((item.path, getattr(item, "originalname", item.name)), []).append(item)
    left_out = {item for item in items if item.get_closest_marker("thorough")}
    for of_one in cases.values():
        if mark := of_one[0].get_closest_marker("sampled"):
            kept = min(mark.args[0], len(of_one))
            places = {round(i * (len(of_one) - 1) / max(kept - 1, 1)) for i in range(kept)}
            left_out |= {item for place, item in enumerate(of_one) if place not in places}
    return left_out
