"""The bench asks as the settings say: its conversations are those of `tv.evaluate`."""

from pathlib import Path
from typing import Any

import pytest

from tests.pairs import build_pair
from tests.tv.checkpoints.test_own_tokenizer import TEMPLATE, with_template
from tests.tv.evaluation.test_decoding import task_file
from tv.errors import InputError
from tv.experiments.bench import Bench, Point, Settings
from tv.experiments.cells import Cells


def test_a_conversation_by_the_tuned_models_template(tmp_path: Path) -> None:
    base, tuned = build_pair(tmp_path, "llama")
    with_template().save_pretrained(tuned)
    task = task_file(tmp_path)

    def answers(chat: Any, **settings: Any) -> list[str]:
        chosen = Settings("x", task, chat=chat, limit=2, **settings)
        return Bench(base, base, chosen, Cells(tmp_path / "cells"), [tuned]).items([Point("base")]).response.tolist()

    lent = answers("tuned")
    assert lent == answers(True, tokenizer=tuned) != answers(False)
    assert lent != answers({"template": "tuned", "system": "Be brief."})  # another cell
    with pytest.raises(InputError, match="no chat template; take the tuned model's with chat: tuned"):
        answers(True)
    with_template(TEMPLATE + "!").save_pretrained(tuned)
    assert lent != answers("tuned")  # of another template, so another cell too
