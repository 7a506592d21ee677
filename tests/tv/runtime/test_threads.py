"""How many threads torch computes with."""

import pytest
import torch

from tv.runtime.threads import one_thread


def test_one_for_as_long_as_the_context_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    with pytest.raises(ValueError, match="odd"), one_thread():
        assert asked == [1]
        raise ValueError("odd")
    assert asked == [1, 3]
