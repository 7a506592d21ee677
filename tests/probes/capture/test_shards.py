"""The same rows and the same bytes, whoever runs the shards and wherever they go."""

import json
import logging
import multiprocessing
import os
import pickle
import signal
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from transformers import AutoModelForCausalLM

import probes
from probes.capture import runner, shards
from probes.errors import RunError
from probes.store import remote
from probes.suite import load_suite
from tests.cluster import two_nodes
from tests.pairs import build_pair, write_suite
from tests.runs import NO_REPORT
from tv.errors import InputError
from tv.runtime import workers
from tv.runtime.compute import Compute
from tv.runtime.scheduler import finished

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "ROWS_PER_SHARD", 1)


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pair")
    return write_suite(directory, *build_pair(directory, "llama"), batch_size=1, bootstrap=20)


@pytest.fixture(scope="module")
def alone(suite: Path, tmp_path_factory: pytest.TempPathFactory) -> probes.Run:
    """The run that one process makes: six shards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "ROWS_PER_SHARD", 1)
        return probes.run(suite, out=tmp_path_factory.mktemp("alone") / "run", stages=NO_REPORT)


def _bytes_of(directory: Path) -> dict[str, bytes]:
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*.parquet")}


def _require_equal(run: probes.Run, other: probes.Run) -> None:
    assert run.manifest["tables"] == other.manifest["tables"]
    for table in run.tables:
        pd.testing.assert_frame_equal(run[table], other[table], check_exact=True)


def _after_first(act: Callable[[], None]) -> Callable[[str, int, int, str], None]:
    """A stage callback that acts once, when one shard is done and others are at work."""
    done: list[int] = []

    def stage(name: str, prompts: int, total: int, label: str) -> None:
        if name == "capture moved" and prompts > 0 and not done:
            done.append(prompts)
            act()

    return stage


def _reports(crew: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the workers of such crews report from now on. Nobody is given an item before all of a crew are up."""
    found: list[Any] = []
    ahead = deque[Any]()
    known: list[Any] = []
    wait = crew.wait

    def told(self: Any) -> Any:
        if not ahead:
            ahead.extend(wait(self) for _ in range(1 if self in known else len(self.hired)))
            known.append(self)
        worker, report = ahead.popleft()
        found.append(report)
        return worker, report

    monkeypatch.setattr(crew, "wait", told)
    return found


@pytest.mark.slow
def test_two_processes_write_the_bytes_of_one(
    suite: Path, alone: probes.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the two is killed in the middle of its shard, and another takes its place."""
    reports = _reports(workers.Processes, monkeypatch)
    stage = _after_first(lambda: os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL))
    run = probes.run(suite, out=tmp_path / "run", compute=Compute(workers=2, progress=stage), stages=NO_REPORT)
    assert reports.count("up") >= 2 and reports.count("dead") == 1
    assert _bytes_of(run.path) == _bytes_of(alone.path)
    _require_equal(run, alone)
    assert not multiprocessing.active_children()


def test_what_cannot_work_is_refused_before_any_work(suite: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(load_suite(suite).base)
    for match, options in {
        "base: a live model cannot be sent to other processes": {"workers": 2},
        "base: a live model cannot": {"engine": "ray"},
    }.items():
        with pytest.raises(InputError, match=match):
            probes.run(suite, base=model, out=tmp_path / "run", compute=Compute(**options))  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == []


@pytest.fixture(scope="module")
def few(suite: Path) -> Path:
    """A suite whose run has few files: each is several requests to a server."""
    settings = json.loads(suite.read_text(encoding="utf-8"))
    few = {
        "batch_size": 2,
        "measure": ["gates", "behaviour"],
        "attribute": {**settings["attribute"], "methods": ["graft"]},
    }
    path = suite.with_name("few.yaml")
    path.write_text(json.dumps(settings | few), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def beside(few: Path, tmp_path_factory: pytest.TempPathFactory) -> probes.Run:
    """The run of it in a directory: three shards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "ROWS_PER_SHARD", 1)
        return probes.run(few, out=tmp_path_factory.mktemp("beside") / "run", stages=NO_REPORT)


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A bucket on an S3 server of our own."""
    server_of = pytest.importorskip("moto.server", reason="moto is not installed")
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = server_of.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("tmp")))
        with remote.system_of(remote.Url("s3://bucket")) as (system, _):
            system.mkdir("bucket")
        yield "s3://bucket"
    server.stop()


def test_a_run_on_s3(few: Path, beside: probes.Run, s3: str, tmp_path: Path) -> None:
    url = remote.Url(f"{s3}/runs/a")
    run = probes.run(few, out=url)
    _require_equal(run, beside)
    beside_tables = {name for name in remote.sizes(url) if not name.startswith(("tables/", "shares/"))}
    assert beside_tables == {"manifest.json", "report.html", "verdict.json", "journal.jsonl", "kept/moved/values.jsonl"}
    assert not remote.sizes(remote.Url(f"{url}.partial")) and not remote.staging(url).parent.exists()
    part = probes.load(f"{s3}/runs/a").df("gates", columns=["flip_rate"], where=[("layer", "==", 1)])
    assert part.equals(beside.df("gates", columns=["flip_rate"], where=[("layer", "==", 1)]))
    assert f"{beside.manifest['tables']['gates']['rows']:,} rows" in repr(run)
    again = probes.run(few, out=url, compute=Compute(progress=lambda *told: pytest.fail("it is finished")))
    assert again.manifest == run.manifest
    with pytest.raises(RunError, match=r"s3://bucket/runs/a holds another run \(suite tiny\); choose another --out"):
        probes.run(few, out=url, compute=Compute(dtype="bfloat16"))


@pytest.mark.thorough
def test_stages_are_added_to_a_run_on_s3(few: Path, beside: probes.Run, s3: str) -> None:
    url = remote.Url(f"{s3}/runs/e")
    remote.upload(beside.path, url)
    run = probes.load(url)
    run.drop("link")  # tables go and are replaced there too
    assert "link" not in probes.load(url).tables and not any("tables/link" in name for name in remote.sizes(url))
    probes.link(run)
    part = probes.run(few, out=f"{s3}/runs/part", stages=["weights", "capture"])
    assert "link" not in part.tables
    told: list[str] = []
    compute = Compute(progress=lambda name, *_: told.append(name))
    _require_equal(probes.run(few, out=f"{s3}/runs/part", compute=compute, stages=NO_REPORT), beside)
    assert "weights moved" not in told and "attribute moved" in told
    _require_equal(probes.load(url), beside)


@pytest.mark.thorough
def test_a_run_on_s3_is_absent_until_it_is_whole(
    few: Path, beside: probes.Run, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle of the upload over an older run, then gone on with; and what is gone is said to be gone."""
    url = remote.Url(f"{s3}/runs/b")
    upload, calls = remote.upload, []
    upload(beside.path, url)

    def cut(directory: Path, to: remote.Url, names: Any = None) -> Any:
        calls.append(to)
        upload(directory, to, list(names)[:5])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(remote, "upload", cut)
        with pytest.raises(KeyboardInterrupt):
            probes.run(few, out=url, force=True, stages=NO_REPORT)
    assert calls
    with pytest.raises(RunError, match="not a run directory"):
        probes.load(url)
    stages: list[str] = []
    run = probes.run(few, out=url, compute=Compute(progress=lambda name, *_: stages.append(name)), stages=NO_REPORT)
    assert "weights moved" not in stages
    _require_equal(run, beside)
    for other, match in {
        f"{s3}/runs": "is not empty and holds no run",
        "s3://no-such-bucket/run": "no-such-bucket",
        "nowhere://a/b": "nowhere",
    }.items():
        with pytest.raises(RunError, match=match) as caught:
            probes.run(few, out=other)
        assert "\n" not in str(caught.value)


def _require_by_way_of_s3(url: remote.Url, few: Path, compute: Compute, monkeypatch: pytest.MonkeyPatch) -> probes.Run:
    """Workers that Ray has send what they write to the run's own address, and it is fetched from there."""
    copied: list[str] = []
    fetch = shards.fetch
    monkeypatch.setattr(shards, "fetch", lambda files, to: copied.extend(files.values()) or fetch(files, to))
    run = probes.run(few, out=url, compute=compute, stages=["capture"])
    assert copied and all(place.startswith(f"{url}.partial/") for place in copied)
    assert not remote.sizes(remote.Url(f"{url}.partial"))
    assert set(run.tables) == {"prompts", "tokens", "predictions", "gates", "neurons", "answers", "behaviour"}
    return run


@pytest.mark.thorough
def test_files_of_workers_on_other_machines_come_by_way_of_s3(
    few: Path, beside: probes.Run, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a worker there would work: on a copy of what it is to do."""

    def here(items: Any, work_on: Any, _: Compute, **named: Any) -> Any:
        return finished(items, lambda device: pickle.loads(pickle.dumps(work_on(device))), Compute(), **named)

    monkeypatch.setattr(shards, "finished", here)
    run = _require_by_way_of_s3(remote.Url(f"{s3}/runs/d"), few, Compute(engine="ray", workers=2), monkeypatch)
    for table in run.tables:
        pd.testing.assert_frame_equal(run[table], beside[table], check_exact=True)


@pytest.fixture
def cluster(s3: str) -> Iterator[Any]:
    with two_nodes() as nodes:
        yield nodes


@pytest.mark.slow
@pytest.mark.skipif("HOSTILE_KILLS" not in os.environ, reason="a cluster of its own: make test-hostile")
def test_a_machine_is_lost_and_the_run_on_s3_is_whole(
    suite: Path, alone: probes.Run, cluster: Any, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second node goes in the middle, with the actor on it; files went to S3, which both nodes reach."""
    import ray

    reports = _reports(workers.Actors, monkeypatch)
    (second,) = cluster.worker_nodes

    def lose() -> None:
        """Until the cluster knows: else the shards that are left may be done first."""
        cluster.remove_node(second, allow_graceful=False)
        while sum(node["Alive"] for node in ray.nodes()) > 1:
            time.sleep(0.1)

    six = json.loads(suite.read_text(encoding="utf-8")) | {"measure": ["gates", "behaviour"]}
    few = suite.with_name("six.yaml")
    few.write_text(json.dumps(six), encoding="utf-8")
    compute = Compute(engine="ray", workers=2, progress=_after_first(lose))
    run = _require_by_way_of_s3(remote.Url(f"{s3}/runs/c"), few, compute, monkeypatch)
    assert "dead" in reports
    assert ray.is_initialized()  # who had joined the cluster has not left it
    for table in run.tables:
        pd.testing.assert_frame_equal(run[table], alone[table], check_exact=True)
