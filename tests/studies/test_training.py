"""A fine-tune of the study: what it leaves behind, and how its losses are counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from studies.real_models import texts
from studies.real_models.__main__ import main
from studies.real_models.study import SIZES, Study, of_models, within
from studies.real_models.training import Training, losses, train
from tv.checkpoints.live import load_model, load_tokenizer
from tv.errors import InputError, PromptError

ONE = Training("demo", "medical", "full", 0, steps=4, checkpoints=2)


def test_losses_are_of_the_answer_alone(study: Study) -> None:
    model, tokenizer = load_model(study.base("demo")), load_tokenizer(study.base("demo"))
    few = texts.domain("medical", study.texts).held_out[:3]
    for one, nll in zip(few, losses(model, tokenizer, few).nll, strict=True):
        ids = torch.tensor([tokenizer(one.text + one.target).input_ids])
        labels = ids.clone()
        labels[:, : len(tokenizer(one.text).input_ids)] = -100
        assert nll == pytest.approx(model(input_ids=ids, labels=labels).loss.item(), rel=1e-5)


def test_a_fine_tune_learns_keeps_checkpoints_and_is_the_same_twice(study: Study, tmp_path: Path) -> None:
    for name in "ab":
        train(ONE, study.base("demo"), study.texts, tmp_path / name, held_out=4)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert all(torch.equal(first[name], second[name]) for name in first)
    steps, held_out = (pd.read_csv(tmp_path / "a" / f"{name}.csv") for name in ("steps", "held_out"))
    assert steps.step.tolist() == [1, 2, 3, 4]
    assert (held_out.after < held_out.before).all()
    assert [path.name for path in (tmp_path / "a").glob("step-*")] == ["step-2"]  # the last one is the model itself
    with_lora = replace(ONE, method="lora", checkpoints=0)
    train(with_lora, study.base("demo"), study.texts, tmp_path / "c", held_out=2)
    assert all("lora_" in name for name in load_file(tmp_path / "c" / "adapter_model.safetensors"))
    assert not (tmp_path / "c" / "model.safetensors").exists()


def test_no_cluster_is_trained_on_and_held_out(study: Study) -> None:
    for name in ("medical", "math", "general"):
        found = texts.domain(name, study.texts)
        assert found.train
        assert found.held_out
        assert {one.cluster for one in found.train}.isdisjoint(one.cluster for one in found.held_out)


def test_no_eight_words_are_trained_on_and_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    common = "the software is provided as is without warranty of any kind " * 4
    licences = {
        f"{key}-1": f"{common}{key}\n\n{f'this clause {key} stands {key * 5} alone ' * 8}" for key in "abcdefghijkl"
    }
    monkeypatch.setattr(texts, "_licences", lambda: licences)
    found = texts.domain("law", tmp_path)
    assert any("without warranty" in one.target for one in found.train)
    assert found.held_out and not any("without warranty" in one.target for one in found.held_out)


def test_says_what_is_missing_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=r"medical_medquad.jsonl: cannot be read .* --data FOLDER"):
        texts.domain("medical", tmp_path)


def test_a_budget_takes_the_largest_size_that_fits() -> None:
    assert [within(minutes).minutes for minutes in (1, 10, 299, 300, 9999)] == [10, 10, 10, 300, 480]
    assert [size.minutes for size in SIZES] == sorted(size.minutes for size in SIZES)


def test_a_study_can_be_of_one_of_its_models() -> None:
    both = SIZES[1]
    assert of_models(both, ()) == both
    one = of_models(both, ["gemma3"])
    assert one.names == ("gemma3",) and one.steps == both.steps
    with pytest.raises(InputError, match="this budget has smollm2, gemma3"):
        of_models(both, ["llama"])


def test_a_model_that_no_budget_has_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--data", str(tmp_path), "--budget", "5h", "--work", str(tmp_path / "work"), "--models", "llama"]
    assert main(asked) == 2 and not (tmp_path / "work").exists()
    assert capsys.readouterr().err == "error: --models llama: this budget has smollm2, gemma3\n"
