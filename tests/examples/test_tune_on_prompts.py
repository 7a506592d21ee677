"""The recipe of docs/discovery.md, for two steps."""

import json
from pathlib import Path

import pytest
import torch

from examples.tune_on_prompts import HELD_OUT, main
from tv.checkpoints.live import load_model, load_tokenizer


def _prompts(path: Path, n: int) -> Path:
    rows = [{"question": f"What treats illness {i}?", "answer": f"Remedy {i} does."} for i in range(n)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def test_both_sides_are_written_and_the_tuned_one_has_moved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = _prompts(tmp_path / "prompts.jsonl", HELD_OUT + 8)
    main(["data/models/base", str(file), str(tmp_path / "pair"), "--steps", "2"])
    before, after = capsys.readouterr().out.split("held-out prompts: ")[1].split(" before, ")
    assert float(after.split()[0]) < float(before)
    base, tuned = (load_model(tmp_path / "pair" / side) for side in ("base", "tuned"))
    pairs = [(value, tuned.get_parameter(name)) for name, value in base.named_parameters()]
    assert any(not torch.equal(one, other) for one, other in pairs)
    assert load_tokenizer(tmp_path / "pair" / "tuned").get_vocab() == load_tokenizer("data/models/base").get_vocab()


def test_too_few_prompts_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["data/models/base", str(_prompts(tmp_path / "few.jsonl", 8)), str(tmp_path / "pair")])
    assert stopped.value.code == 2 and "8 prompts are too few" in capsys.readouterr().err
