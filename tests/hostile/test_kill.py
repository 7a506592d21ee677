"""A run that is killed at any moment and gone on with ends as one that was left alone."""

from __future__ import annotations

import os
import random
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import probes
from probes import cli, runner
from tests.hostile.forked import Ended, command, forked, tree
from tests.pairs import build_pair, write_suite

#: How many kills. `make test-hostile` asks for more, and of a run on the embedded models.
KILLS = int(os.environ.get("HOSTILE_KILLS", "9"))
FULL = KILLS >= 40
MODELS = Path(__file__).resolve().parents[2] / "data" / "models"


@pytest.fixture(autouse=True, scope="module")
def _small_shards() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "ROWS_PER_SHARD", 1)
        yield


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory, _small_shards: None) -> Path:
    directory = tmp_path_factory.mktemp("pair")
    quick = {"methods": ["graft"], "controls": [], "curves": False}
    pair = (MODELS / "base", MODELS / "medical") if FULL else build_pair(directory)
    return write_suite(directory, *pair, batch_size=2, bootstrap=5, noise_floor=False, attribute=quick)


@pytest.fixture(scope="module")
def whole(suite: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A run that was left alone, and the seconds it took in a child."""
    out = tmp_path_factory.mktemp("whole") / "run"
    probes.run(suite, out=tmp_path_factory.mktemp("warm") / "run")  # what is set up once, every child inherits
    start = time.monotonic()
    assert forked(_run(suite, out)).status == 0
    return out, time.monotonic() - start


def _run(suite: Path, out: Path) -> Callable[[], None]:
    return command(cli.main, "run", suite, "--out", out)


def _until_rename(n: int, run: Callable[[], None]) -> Callable[[], None]:
    """Killed just before the n-th rename of this process."""

    def work() -> None:
        replace, left = os.replace, [n]

        def counting(source: Any, target: Any) -> None:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(source, target)

        os.replace = counting  # type: ignore[assignment]
        run()

    return work


def _require_equal(out: Path, other: Path) -> None:
    """The same tables byte for byte, and no file that the other has not."""
    ours, theirs = tree(out), tree(other)
    assert ours.keys() == theirs.keys()
    assert {p: v for p, v in ours.items() if p.startswith("tables")} == {
        p: v for p, v in theirs.items() if p.startswith("tables")
    }


def _require_no_half(partial: Path) -> None:
    """Whatever bears a shard's name can be read to its end."""
    for file in partial.rglob("*.parquet"):
        pd.read_parquet(file, partitioning=None)


def test_killed_again_and_again(suite: Path, whole: tuple[Path, float], tmp_path: Path) -> None:
    """A run that is killed and gone on with until it ends, over and over: at seeded moments of its time, and as seeded
    files get their names."""
    draw, (reference, seconds) = random.Random(8), whole
    kills = attempts = 0
    while kills < KILLS:
        out = tmp_path / str(attempts) / "run"
        for _ in range(3):  # deaths of one run
            attempts += 1
            if attempts % 3:
                ended = forked(_run(suite, out), kill_after=seconds * draw.random())
            else:
                ended = forked(_until_rename(1 + draw.randrange(60), _run(suite, out)))
            assert ended.status in (0, -signal.SIGKILL), ended
            kills += ended.status != 0
            _require_no_half(out.parent)
            if not ended.status:
                break
        else:
            again = forked(_run(suite, out))
            assert again.status == 0, again
        assert os.listdir(out.parent) == ["run"]
        _require_equal(out, reference)
        assert attempts < 3 * KILLS


def _require_one_line(ended: Ended) -> None:
    assert ended.status == 2, ended
    *before, last = ended.err.strip().splitlines()  # what the pair is was said before
    assert last.startswith("error: ") and "Traceback" not in ended.err, ended.err
    assert not any(line.startswith("error: ") for line in before)


@pytest.mark.parametrize("size", [200, 4_000])
def test_files_that_may_not_grow(size: int, suite: Path, whole: tuple[Path, float], tmp_path: Path) -> None:
    """A full disk, as any user can have one: writes beyond `size` bytes of a file fail with EFBIG."""
    out = tmp_path / "run"

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        _run(suite, out)()

    _require_one_line(forked(work))
    _require_no_half(tmp_path)
    assert forked(_run(suite, out)).status == 0
    assert os.listdir(tmp_path) == ["run"]
    _require_equal(out, whole[0])


def test_a_directory_that_turns_read_only(suite: Path, whole: tuple[Path, float], tmp_path: Path) -> None:
    """Half a run is kept, and gone on with once its directory can be written again."""
    out = tmp_path / "run"
    forked(_run(suite, out), kill_after=whole[1] * 0.6)

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
    _require_equal(out, whole[0])
