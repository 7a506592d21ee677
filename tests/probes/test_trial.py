"""A model without weights is tried for a short while, block after block."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from probes import trial
from probes.trial import Pace, some_of, tried
from tests.pairs import build_model
from tv.checkpoints.opening import outline
from tv.errors import CheckpointError, LackOfMemory
from tv.prompts.encoding import Encoded
from tv.prompts.files import Prompt


def _prompts(*lengths: int) -> list[Encoded]:
    return [Encoded(Prompt(f"p{i}", "s", "d", "x"), (0,) * n, n, n - 1, 0, 0) for i, n in enumerate(lengths)]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    build_model("qwen2_moe").config.save_pretrained(tmp_path)
    return tmp_path / "config.json"


def test_all_blocks_count_where_some_were_tried(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block takes two seconds of a clock that goes on at each look, whether two or all three are run."""
    calls = list[int]()

    class Clock:
        def __init__(self) -> None:
            self.now = 0.0

        def read(self) -> Pace:
            self.now += 2.0
            calls.append(1)
            return Pace(self.now, self.now / 2)

    monkeypatch.setattr(trial, "_Clock", Clock)
    for seconds, blocks in ((99.0, 3), (1.5, 2)):
        calls.clear()
        monkeypatch.setattr(trial, "SECONDS", seconds)
        found = tried(outline(config), _prompts(5, 7, 6), 2, "float32", "cpu")
        assert len(calls) == 3 * blocks + 2  # on two tokens, on all, on one; and the logits twice
        assert found.token == Pace(0.5, 0.25)  # two prompts of six tokens, the shorter one padded
        assert found.logits == Pace(2 / trial._ROWS, 1 / trial._ROWS)


def test_time_passes(config: Path) -> None:
    found = tried(outline(config), _prompts(5), 1, "bfloat16", "cpu")
    assert 0 < found.token.wall < 1 and found.token.cpu > 0 and found.logits.wall > 0


def test_prompts_of_middle_length_are_tried() -> None:
    lengths = [3, 90, 100, 110, 120, 500]
    assert [len(item.ids) for item in some_of(_prompts(*lengths), 9)] == [110, 100, 120]
    assert [len(item.ids) for item in some_of(_prompts(*lengths), 2)] == [110, 100]


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (RuntimeError("no kernel\nfor this"), CheckpointError, "no forward pass can be tried: no kernel"),
        (LackOfMemory("too large"), LackOfMemory, "too large"),
    ],
)
def test_what_cannot_be_tried_is_said(
    error: Exception, kind: type[Exception], said: str, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> torch.nn.Module:
        raise error

    monkeypatch.setattr(trial, "stand_in", failing)
    with pytest.raises(kind, match=said) as caught:
        tried(outline(config), _prompts(5), 1, "float32", "cpu")
    assert "\n" not in str(caught.value)
