"""A discovery that several processes share finds what one finds, to the bit."""

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pandas as pd
import pytest

from probes.capture.loading import Pairs
from probes.discovery import elsewhere
from probes.discovery.discover import Search, discoveries
from probes.discovery.elsewhere import Elsewhere, Share, phases, shares_of, spread_over
from probes.discovery.joining import joined
from probes.discovery.kept import Kept
from probes.discovery.observing import sides_of
from probes.discovery.part import PARTS
from probes.errors import RunError
from probes.suite import Discovery
from tests.probes.discovery.planted import context_of, planted_pair
from tv.runtime.compute import Compute

WANTED = Discovery(parts=["all"], draws=2, null_texts=8)


class _Here(Pairs):
    """The planted pair; workers are this process."""

    def __init__(self) -> None:
        self.compute = Compute(workers=2)

    def on(self, device: str) -> Pairs:
        return self

    def pair(self, tuned: str) -> Any:
        return planted_pair()


class _Team:
    def __init__(self, work: Callable[[Share], None], kill_after: int | None) -> None:
        self.work, self.left = work, kill_after

    def finished(self, shares: list[Share], *, name: Callable[[Share], str]) -> Iterator[tuple[Share, None]]:
        for share in reversed(shares):  # they may end in any order
            if self.left == 0:
                raise KeyboardInterrupt
            self.left = None if self.left is None else self.left - 1
            assert name(share).startswith("controls ")
            yield share, self.work(share)


def _found(folder: Path, monkeypatch: pytest.MonkeyPatch, kill_after: int | None = None) -> dict[str, pd.DataFrame]:
    @contextmanager
    def team(work_on: Callable[[str], Callable[[Share], None]], compute: Compute) -> Iterator[_Team]:
        work = cast("Elsewhere", work_on("cpu"))
        work.kept = pickle.loads(pickle.dumps(work.kept))
        yield _Team(work, kill_after)

    monkeypatch.setattr(elsewhere, "team", team)
    encoded = context_of(planted_pair()).texts.encoded
    spread = spread_over(_Here(), "tuned", encoded, WANTED, 8, 0)
    return discoveries(planted_pair(), encoded, WANTED, batch_size=8, seed=0, kept=Kept(folder), spread=spread)


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")  # with two draws little can be said
def test_every_part_finds_the_same_to_the_bit_also_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = context_of(planted_pair()).texts.encoded
    expected = discoveries(planted_pair(), encoded, WANTED, batch_size=8, seed=0)
    assert set(PARTS) <= {part for table in expected.values() if "part" in table for part in table.part} | {
        *("topics", "difference_growth", "activation_shifts", "direction_words", "patchscope", "steered", "amplified")
    }
    with pytest.raises(KeyboardInterrupt):
        _found(tmp_path, monkeypatch, kill_after=1)
    assert any(tmp_path.glob("sides-*"))
    found = _found(tmp_path, monkeypatch)
    assert found.keys() == expected.keys()
    for name, table in expected.items():
        pd.testing.assert_frame_equal(found[name], table, check_exact=True)
    assert not any(tmp_path.glob("sides-*"))


def test_shams_come_before_what_is_held_against_them() -> None:
    assert phases(sides_of(("random", "sham"), 3)) == [2, 5, 8]
    assert phases(sides_of(("random",), 3)) == [2, 5]
    assert [str(share) for share in shares_of(5, 8, workers=2)] == [f"controls {i} to {i}" for i in (5, 6, 7)]


def test_ray_leaves_a_discovery_to_this_process() -> None:
    pairs = _Here()
    pairs.compute = Compute(workers=2, engine="ray")
    assert spread_over(pairs, "tuned", (), WANTED, 8, 0) is None


def test_what_two_have_made_of_one_value_is_no_finding() -> None:
    with pytest.raises(TypeError, match="each another"):
        joined({"mean": 1.0}, [{"mean": 2.0}, {"mean": 3.0}])


def test_a_part_that_cannot_be_kept_is_refused_before_other_processes_start(tmp_path: Path) -> None:
    encoded = context_of(planted_pair()).texts.encoded
    less = WANTED.model_copy(update={"parts": ["token_shifts"]})
    spread = spread_over(_Here(), "tuned", encoded, less, 8, 0)
    search = Search.of(planted_pair(), encoded, less, 8, 0)
    search.parts["token_shifts"].held = object()  # type: ignore[attr-defined]
    with pytest.raises(RunError, match="leave workers out"):
        spread(search, Kept(tmp_path), lambda _: None)  # type: ignore[misc]
