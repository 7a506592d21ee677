"""The one-minute check: real tunings stand out, random adapters do not."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import probes
import tv
from probes.cli import main
from probes.gating.check import general_texts
from probes.gating.random_vectors import form_of, move
from tests.command import call
from tests.docs.commands import ROOT

BASE = ROOT / "data" / "models" / "base"
TEXTS = [text for text in general_texts() if text.isascii()][:10]
QUICK: dict[str, Any] = {"texts": TEXTS, "longest": 5}


def _adapter(path: Path, seed: int, size: float = 0.02, rank: int = 4) -> Path:
    """A LoRA adapter with random factors; of size 0 it moves nothing."""
    path.mkdir()
    generator = torch.Generator().manual_seed(seed)
    shapes = tv.extract(BASE, ROOT / "data" / "models" / "medical").shapes
    tensors = {}
    for layer in range(6):
        for name in ("q_proj", "v_proj"):
            key = f"model.layers.{layer}.self_attn.{name}"
            rows, columns = shapes[f"{key}.weight"]
            a, b = torch.randn(rank, columns, generator=generator), torch.randn(rows, rank, generator=generator)
            tensors[f"base_model.model.{key}.lora_A.weight"] = a * columns**-0.5
            tensors[f"base_model.model.{key}.lora_B.weight"] = b * size
    save_file(tensors, path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["q_proj", "v_proj"]}
    (path / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(BASE)}))
    return path


def test_a_tuning_stands_out_and_a_bound_is_kept_to() -> None:
    found = probes.check(BASE, ROOT / "data" / "models" / "medical", at_most=0.01, **QUICK)
    assert found.standing == "more than random" and len(found.random) == 39 and found.p == pytest.approx(0.05)
    assert found.lo < found.kl < found.hi and found.verdict == "fail"  # above what is allowed


def test_a_random_adapter_is_one_more_random_vector(tmp_path: Path) -> None:
    found = [probes.check(BASE, _adapter(tmp_path / f"an adapter {seed}", seed), **QUICK) for seed in range(3)]
    assert [one.standing for one in found].count("like random") >= 2
    assert all(0.5 < one.kl / sorted(one.random)[len(one.random) // 2] < 2 for one in found)


def test_a_check_that_was_stopped_resumes(tmp_path: Path) -> None:
    asked: dict[str, Any] = {**QUICK, "longest": 3, "keep": tmp_path / "kept here"}
    adapter = _adapter(tmp_path / "adapter", 0)

    def stop(stage: str, done: int, total: int, name: str) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        probes.check(BASE, adapter, **asked, compute=tv.Compute(progress=stop))
    first = {path: path.stat().st_mtime_ns for path in asked["keep"].iterdir()}
    assert len(first) == 2
    found = probes.check(BASE, adapter, **asked)
    assert {path: path.stat().st_mtime_ns for path in first} == first
    assert found == probes.check(BASE, adapter, **{**asked, "keep": None})
    with pytest.raises(KeyboardInterrupt):
        probes.check(BASE, adapter, **{**asked, "seed": 1}, compute=tv.Compute(progress=stop))
    assert len(list(asked["keep"].iterdir())) == len(found.random) + 2  # of another question nothing is taken


def test_numbers_that_are_not_finite_decide_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([np.ones(10), np.full(10, math.nan)])
    monkeypatch.setattr("probes.gating.check._kl", lambda *_: next(values))
    with pytest.raises(tv.InputError, match="random T of T's norms give no finite numbers"):
        probes.check(BASE, ROOT / "data" / "models" / "medical", **QUICK)
    with pytest.raises(tv.InputError, match="a KL is 0 or more"):
        probes.check(BASE, BASE, at_most=math.nan, **QUICK)


def test_nothing_moved_is_null(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    status, out, _ = call(monkeypatch, capsys, main, "check", BASE, _adapter(tmp_path / "none", 0, size=0.0))
    assert status == 3 and "nothing changed" in out
    for wrong, said in (({"draws": 20}, "draw 39"), ({"texts": ["one text"]}, "give more texts")):
        with pytest.raises(tv.InputError, match=said):
            probes.check(BASE, BASE, **{**QUICK, **wrong})


@pytest.mark.parametrize(("rank", "found"), [(4, 4), (16, 16), (0, 0)])
def test_a_random_matrix_has_the_norm_and_the_width_of_the_spectrum(rank: int, found: int) -> None:
    generator = torch.Generator().manual_seed(0)
    factors = torch.randn(96, rank or 1, generator=generator) @ torch.randn(rank or 1, 128, generator=generator)
    form = form_of(factors if rank else torch.randn(96, 128, generator=generator))
    assert abs(form.rank - found) <= rank / 4
    start, out = torch.ones(96, 128), torch.empty(96, 128)
    move(start, form, out, generator)
    again = form_of(out - start)
    assert again.norm == pytest.approx(form.norm, rel=1e-4) and abs(again.rank - form.rank) <= 2


def test_the_texts_are_diverse() -> None:
    texts = general_texts()
    assert len(texts) == len(set(texts)) >= 24 and not all(text.isascii() for text in texts)
