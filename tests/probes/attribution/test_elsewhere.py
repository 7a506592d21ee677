"""The tables of an attribution are the same, bit for bit, whoever does its tasks; no task is lost with a worker."""

import multiprocessing
import os
import pickle
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pytest

from probes.attribution import elsewhere
from probes.attribution.attributor import Attributor, Tables
from probes.attribution.elsewhere import helped
from probes.attribution.kept import Kept
from probes.attribution.known import Known
from probes.capture.loading import Pairs
from probes.suite import Attribution, load_suite
from tests.cluster import two_nodes
from tests.pairs import build_pair, write_suite
from tv.prompts.encoding import encode
from tv.prompts.files import read_prompts
from tv.runtime import workers
from tv.runtime.compute import Compute

EVERY = Attribution(
    methods=["path", "graft", "revert", "patch", "gradient", "depth", "split", "shapley"],
    granularity=["component", "head"],
    controls=["random", "shuffled"],
    control_draws=2,
    component_controls=True,
    orders=1,
    nodes=2,
    most_nodes=3,
    curve_draws=1,
    curve_points=3,
)
FEW = EVERY.model_copy(update={"methods": ["path", "graft"], "controls": ["random"], "granularity": ["component"]})


def pairs_of(directory: Path, architecture: str, compute: Compute = Compute()) -> Pairs:
    suite = directory / "suite.yaml"
    if not suite.exists():
        write_suite(directory, *build_pair(directory, architecture, step=0.5))
    return Pairs(load_suite(suite), compute)


def attributed(pairs: Pairs, wanted: Attribution, known: Known | None = None) -> Tables:
    pair = pairs.pair("moved")
    encoded = encode(read_prompts(pairs.suite.prompts), pair.tokenizer, pair.architecture.context)
    attributor = Attributor(pair, encoded, wanted, batch_size=1, seed=3, known=known)
    with helped(attributor.work, pairs, "moved") as team:
        return attributor.tables(bootstrap=20, bases=pairs.bases, scores={}, team=team)


def require_equal(tables: Tables, others: Tables) -> None:
    assert tables.keys() == others.keys() and len(tables["prompt_effects"])
    for name, table in tables.items():
        pd.testing.assert_frame_equal(table, others[name], check_exact=True)


class Sent:
    """A team whose workers are in this process: what they get and give is pickled, and the last one is done first."""

    size = 2
    tasks: ClassVar[list[Any]] = []

    def __init__(self, work: Any) -> None:
        self.work = pickle.loads(pickle.dumps(work))

    def finished(self, items: Sequence[Any], **_options: Any) -> Iterator[tuple[Any, Any]]:
        assert len(set(items)) == len(items) and all(" at 0x" not in str(item) for item in items)
        for item in reversed(items):
            self.tasks.append(item)
            yield item, pickle.loads(pickle.dumps(self.work(pickle.loads(pickle.dumps(item)))))


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """All the tasks that were sent."""
    monkeypatch.setattr(Sent, "tasks", [])

    class Entered(Sent):
        def __init__(self, work_on: Any, compute: Compute) -> None:
            super().__init__(work_on(compute.device))

        def __enter__(self) -> Sent:
            return self

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(elsewhere, "team", Entered)
    return Sent.tasks


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("architecture", "wanted"),
    [
        ("llama", EVERY),
        ("mixtral", FEW.model_copy(update={"metric": "target_nll"})),  # experts that no token chose
        ("mamba", FEW.model_copy(update={"metric": "kl"})),  # padded batches, one variant after the other
        ("gpt2", FEW.model_copy(update={"metric": "first_divergence"})),
    ],
)
def test_the_tables_do_not_depend_on_who_does_the_tasks(
    architecture: str, wanted: Attribution, sent: list[Any], tmp_path: Path
) -> None:
    alone = attributed(pairs_of(tmp_path, architecture), wanted)
    assert not sent
    pairs = pairs_of(tmp_path, architecture, Compute(workers=2))
    tables = attributed(pairs, wanted)
    require_equal(tables, alone)
    kinds = {type(task).__name__ for task in sent}
    reads = {"Padded"} if architecture == "mamba" else {"Stacked", "Padded"}
    assert {"Node"} <= kinds and kinds & reads
    if wanted is EVERY:
        assert {"Patched", "Gradient"} <= kinds


def test_what_workers_compute_is_kept_and_not_sent_again(sent: list[Any], tmp_path: Path) -> None:
    pairs = pairs_of(tmp_path, "llama", Compute(workers=2))
    first = attributed(pairs, FEW, Kept(tmp_path / "kept"))
    n = len(sent)
    again = attributed(pairs, FEW, Kept(tmp_path / "kept"))
    assert n > 10 and len(sent) == n
    require_equal(again, first)


def test_loaded_models_stay_where_they_are(tmp_path: Path) -> None:
    pairs = pairs_of(tmp_path, "llama")
    pair = pairs.pair("moved")
    other = pickle.loads(pickle.dumps(pairs))
    assert other._pair is None and other._base is None and other.suite == pairs.suite and pairs.pair("moved") is pair


def _killing(crew: Any, kill: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What workers report from now on. `kill` is called once, when two are up and several tasks are done."""
    wait, reports, ahead, up, killed = crew.wait, list[Any](), deque[Any](), list[Any](), list[Any]()

    def told(self: Any) -> Any:
        while not ahead or len(up) < len(self.hired) == 2:  # no one is far ahead of the other
            worker, report = wait(self)
            ahead.append((worker, report))
            up.extend([worker] * (report == "up"))
        worker, report = ahead.popleft()
        reports.append(report)
        if len(up) == 2 and sum(isinstance(each, workers.Done) for each in reports) >= 5 and not killed:
            killed.append(kill())
        return worker, report

    monkeypatch.setattr(crew, "wait", told)
    return reports


@pytest.mark.thorough
def test_two_processes_give_the_tables_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the two is killed in the middle, and another takes its place."""
    alone = attributed(pairs_of(tmp_path, "llama"), FEW)
    hired: list[Any] = []
    hire = workers.Processes.hire
    monkeypatch.setattr(workers.Processes, "hire", lambda self, number: hired.append(number) or hire(self, number))
    reports = _killing(workers.Processes, lambda: multiprocessing.active_children()[0].kill(), monkeypatch)
    require_equal(attributed(pairs_of(tmp_path, "llama", Compute(workers=2)), FEW), alone)
    assert reports.count("dead") == 1 and len(hired) == 3  # once for all methods, and once for the dead one
    assert not multiprocessing.active_children()


@pytest.fixture
def cluster() -> Iterator[Any]:
    with two_nodes() as nodes:
        yield nodes


@pytest.mark.slow
@pytest.mark.skipif("HOSTILE_KILLS" not in os.environ, reason="a cluster of its own: make test-hostile")
def test_a_machine_of_the_cluster_is_lost(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second node goes in the middle, with the actor on it."""
    alone = attributed(pairs_of(tmp_path, "llama"), FEW)
    (second,) = cluster.worker_nodes
    reports = _killing(workers.Actors, lambda: cluster.remove_node(second, allow_graceful=False), monkeypatch)
    require_equal(attributed(pairs_of(tmp_path, "llama", Compute(engine="ray", workers=2)), FEW), alone)
    assert reports.count("dead") == 1
