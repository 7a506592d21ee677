"""A run that is stopped at any moment, by a kill or by its disk, and gone on with ends as one that was left alone."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest

import probes
from probes import cli
from probes.capture import runner
from probes.store.journal import Journal
from tests.hostile.forked import Ended, command, forked, kill_me, tree
from tests.pairs import build_pair, write_suite

#: How many kills at least. `make test-hostile` asks for more, and of a run on the embedded models.
KILLS = int(os.environ.get("HOSTILE_KILLS", "5"))
FULL = KILLS >= 40
MODELS = Path(__file__).resolve().parents[2] / "data" / "models"
STAGES = ("weights", "capture", "attribute", "link", "report")


class Spent(NamedTuple):
    """What a stage of a whole run takes."""

    seconds: float
    renames: int  # files that get their names in it


class Whole(NamedTuple):
    """A run that was left alone."""

    path: Path
    stages: dict[str, Spent]


@pytest.fixture(autouse=True, scope="module")
def _small_shards() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "ROWS_PER_SHARD", 1)
        yield


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory, _small_shards: None) -> Path:
    directory = tmp_path_factory.mktemp("pair")
    quick = {"methods": ["graft"], "controls": [], "curves": False}
    pair = (MODELS / "base", MODELS / "medical") if FULL else build_pair(directory)
    measure = ["gates", "changes", "behaviour"]
    return write_suite(directory, *pair, measure=measure, batch_size=2, bootstrap=5, noise_floor=False, attribute=quick)


@pytest.fixture(scope="module")
def whole(suite: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The second of two runs here: what is set up once, every child inherits. They are equal to the last byte."""
    first, second = (tmp_path_factory.mktemp("whole") / "run" for _ in range(2))
    probes.run(suite, out=first)
    found = Whole(second, _spent(suite, second))
    assert tree(first) == tree(second)
    return found


def _spent(suite: Path, out: Path) -> dict[str, Spent]:
    renames, begun, replace = [0], list[tuple[str, float, int]](), os.replace

    def counting(source: Any, target: Any) -> None:
        renames[0] += 1
        replace(source, target)

    def told(stage: str, *_: object) -> None:
        if not begun or stage.split()[0] != begun[-1][0]:
            begun.append((stage.split()[0], time.monotonic(), renames[0]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", counting)
        probes.run(suite, out=out, compute=probes.Compute(progress=told))
    ends = [*begun[1:], ("", time.monotonic(), renames[0])]
    return {name: Spent(at - start, n - m) for (name, start, m), (_, at, n) in zip(begun, ends, strict=True)}


def _run(suite: Path, out: Path) -> Callable[[], None]:
    return command(cli.main, "run", suite, "--out", out)


def _at(stage: str, then: Callable[[], None], run: Callable[[], None], told: Path | None = None) -> Callable[[], None]:
    """The run, with `then` called as a stage begins; which stage it is in is written to `told`."""

    def work() -> None:
        tell, begun = probes.Compute.tell, set[str]()

        def telling(compute: probes.Compute, name: str, *rest: Any) -> None:
            if name.split()[0] not in begun:
                begun.add(name.split()[0])
                if told:
                    told.write_text(name.split()[0])
                if name.startswith(stage):
                    then()
            tell(compute, name, *rest)

        probes.Compute.tell = telling  # type: ignore[method-assign]  # in a process of its own
        run()

    return work


def _at_rename(n: int) -> None:
    """Be killed just before the n-th rename from now."""
    replace, left = os.replace, [n]

    def counting(source: Any, target: Any) -> None:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = counting  # type: ignore[assignment]


def _require_whole(out: Path, other: Path) -> None:
    """The same bytes in the same files, and nothing beside them."""
    assert os.listdir(out.parent) == [out.name]
    assert tree(out) == tree(other)


def _require_no_half(partial: Path) -> None:
    """Whatever bears a shard's name can be read to its end."""
    for file in partial.rglob("*.parquet"):
        pd.read_parquet(file, partitioning=None)


@pytest.mark.thorough  # store/test_resume.py kills a run in every stage, at fewer moments
def test_killed_in_every_stage_again_and_again(suite: Path, whole: Whole, tmp_path: Path) -> None:
    """One run dies in each of its stages in turn and is gone on with; at a seeded moment of one stage's time, as a
    seeded file of the next gets its name, and the other way round in the next run."""
    draw, kills, runs, told = random.Random(8), Counter[str](), 0, tmp_path / "told"
    while kills.total() < KILLS or len(kills) < len(STAGES):
        out = tmp_path / str(runs) / "run"
        for place, stage in enumerate(STAGES):
            seconds, renames = whole.stages[stage]
            moment, number = seconds * draw.random(), draw.randint(1, renames)
            by_name = (runs + place) % 2
            then = (lambda n=number: _at_rename(n)) if by_name else (lambda s=moment: kill_me(s))
            ended = forked(_at(stage, then, _run(suite, out), told))
            assert ended.status in (0, -signal.SIGKILL), ended
            _require_no_half(out.parent)
            if not ended.status:
                break
            kills[told.read_text()] += 1
        else:
            again = forked(_run(suite, out))
            assert again.status == 0, again
        _require_whole(out, whole.path)
        runs += 1
    print(f"{kills.total()} kills of {runs} runs: {dict(kills)}")
    assert all(kills[stage] >= max(1, KILLS // 10) for stage in STAGES), kills


def _require_one_line(ended: Ended) -> None:
    assert ended.status == 2, ended
    *before, last = ended.err.strip().splitlines()  # what the pair is was said before
    assert last.startswith("error: ") and "Traceback" not in ended.err, ended.err
    assert not any(line.startswith("error: ") for line in before)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 64 MiB of memory."""
    path = tmp_path / "disk"
    path.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", path], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a file system cannot be mounted here: {getattr(error, 'stderr', None) or error!r}")
    yield path
    subprocess.run(["umount", path], check=True)


def _complete(partial: Path) -> dict[Path, int]:
    """The files of all that the journal says is finished, and when each was written."""
    rows = Journal(partial / "journal.jsonl").rows.values()
    folders = [(partial / "tables" / table, row["shard"]) for row in rows for table in row["tables"]]
    files = [file for folder, shard in folders for file in folder.rglob(f"part-{shard}.parquet")]
    return {file.relative_to(partial): file.stat().st_mtime_ns for file in files}


@pytest.mark.thorough
def test_a_disk_that_fills_up_in_every_stage(suite: Path, whole: Whole, disk: Path) -> None:
    """One line each time; what was complete stays as it is, and the run ends once there is room."""
    out, ballast = disk / "run", disk / "ballast"

    def fill() -> None:
        free = os.statvfs(disk)
        with open(ballast, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_bsize)

    fill()
    _require_one_line(forked(_run(suite, out)))
    assert os.listdir(disk) == [ballast.name]
    ballast.unlink()
    complete: dict[Path, int] = {}
    for stage in STAGES:
        ended = forked(_at(stage, fill, _run(suite, out)))
        _require_one_line(ended)
        assert "No space left" in ended.err and ballast.exists(), ended.err
        ballast.unlink()
        _require_no_half(disk)
        assert complete.items() <= _complete(disk / "run.partial").items()
        complete = _complete(disk / "run.partial")
    assert len(complete) > 10
    assert forked(_run(suite, out)).status == 0
    assert all((out / file).stat().st_mtime_ns == written for file, written in complete.items())
    _require_whole(out, whole.path)


def test_files_that_may_not_grow(suite: Path, whole: Whole, tmp_path: Path) -> None:
    """A limit that cuts a file in its middle, as any user can have one: writes beyond fail with EFBIG."""
    out = tmp_path / "run"

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, 4_000))
        _run(suite, out)()

    _require_one_line(forked(work))
    _require_no_half(tmp_path)
    assert forked(_run(suite, out)).status == 0
    _require_whole(out, whole.path)


def test_a_directory_that_turns_read_only(suite: Path, whole: Whole, tmp_path: Path) -> None:
    """Half a run is kept, and gone on with once its directory can be written again."""
    out = tmp_path / "run"
    assert forked(_at("attribute", lambda: kill_me(0), _run(suite, out))).status == -signal.SIGKILL

    def work() -> None:
        if os.geteuid() == 0:  # whom modes do not bind
            os.chdir(tmp_path)
            os.seteuid(65534)
        _run(suite, out)()

    for directory in (tmp_path, *tmp_path.parents):
        if directory.stat().st_uid == os.geteuid() and directory.name.startswith("pytest"):
            directory.chmod(0o755)
    before = tree(tmp_path)
    folders = [tmp_path, *(path for path in tmp_path.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        ended = forked(work)
    finally:
        for folder in folders:
            folder.chmod(0o755)
    _require_one_line(ended)
    assert tree(tmp_path) == before
    assert forked(_run(suite, out)).status == 0
    _require_whole(out, whole.path)
