"""Models where and in the precision that a run asks for."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from transformers import AutoModelForCausalLM

import probes
from probes.capture.loading import Pairs
from probes.suite import load_suite
from tests.pairs import build_pair, write_suite
from tests.runs import NO_REPORT
from tv.checkpoints.live import load_model
from tv.checkpoints.opening import open_checkpoint
from tv.errors import CheckpointError, InputError
from tv.measures import cache
from tv.measures.decomposition import Decomposition, decompose
from tv.runtime.compute import Compute


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pair")
    return write_suite(directory, *build_pair(directory, "llama"), bootstrap=20)


@pytest.fixture(scope="module")
def plain(suite: Path, tmp_path_factory: pytest.TempPathFactory) -> probes.Run:
    return probes.run(suite, out=tmp_path_factory.mktemp("plain") / "run", stages=NO_REPORT)


def test_what_is_not_to_be_had_is_refused(suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for match, options in {
        "no device 'tpu9'; use cpu, cuda": {"device": "tpu9"},
        "device 'cuda': torch sees no GPU here; use cpu": {"device": "cuda"},
        "no dtype 'int8'; there are float32": {"dtype": "int8"},
    }.items():
        with pytest.raises(InputError, match=match):
            probes.run(suite, out=tmp_path / "run", compute=Compute(**options))  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == []
    if torch.version.cuda is None:
        with pytest.raises(CheckpointError, match=r"device 'cuda:0': .*base: "):
            load_model(load_suite(suite).base, device="cuda:0")


def test_one_model_may_stay_on_the_cpu(suite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which device each model is asked for; there need be none."""
    asked: list[Any] = []
    monkeypatch.setattr("probes.capture.loading.load_model", lambda source, **options: asked.append(options["device"]))
    for compute in (Compute("meta"), Compute("meta", offload=True), Compute("auto")):
        pairs = Pairs(load_suite(suite), compute)
        pairs.load()
        pairs.load("moved")
    assert asked == ["meta", "meta", "meta", "cpu", "auto", "auto"]


def test_models_are_loaded_once_and_one_at_a_time(suite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_suite(suite)
    tuned = settings.tuned["moved"]
    settings = settings.model_copy(update={"tuned": {"a": tuned, "b": tuned}})
    loaded: list[Any] = []
    monkeypatch.setattr(
        "probes.capture.loading.load_model", lambda source, **o: loaded.append(source) or load_model(source, **o)
    )
    pairs = Pairs(settings)
    sessions = [pairs.session(name) for name in ("a", "a", "b", "b")]
    assert loaded == [settings.base, tuned, tuned]
    assert sessions[0] is sessions[1] is not sessions[2] is sessions[3]
    assert sessions[0].pair.base is sessions[2].pair.base and pairs.pair("b") is sessions[2].pair


def test_accelerate_decides_where_models_go(suite: Path, plain: probes.Run, tmp_path: Path) -> None:
    """Without a GPU that is here; what matters is that its hooks, on every block, and ours do not meet."""
    stages = ("weights", "capture", "attribute")
    auto = probes.run(suite, out=tmp_path / "auto", compute=Compute("auto"), stages=stages)
    settings = load_suite(suite)
    models = [
        AutoModelForCausalLM.from_pretrained(p, dtype="float32") for p in (settings.base, settings.tuned["moved"])
    ]
    for model in models:
        for block in model.model.layers:
            add_hook_to_module(block, AlignDevicesHook(execution_device="cpu", io_same_device=True))
    hooked = probes.run(suite, base=models[0], tuned={"moved": models[1]}, out=tmp_path / "hooked", stages=stages)
    for table in ("gates", "changes", "ledger", "effects"):
        for run in (auto, hooked):
            # Where accelerate spreads the base there is no copy of it, so no noise floor but the least.
            left, right = (each[table].drop(columns="within_noise", errors="ignore") for each in (run, plain))
            pd.testing.assert_frame_equal(left, right, check_exact=True)


def test_a_run_in_another_precision(suite: Path, plain: probes.Run, tmp_path: Path) -> None:
    run = probes.run(suite, out=tmp_path / "run", compute=Compute(dtype="bfloat16"), stages=NO_REPORT)
    assert run.manifest["computed"] == {"device": "cpu", "dtype": "bfloat16", "offload": False, "remote": False}
    keys = ["layer", "prompt_id", "pos", "component", "head"]
    both = [r["changes"].sort_values(keys, ignore_index=True) for r in (run, plain)]
    error = (both[0].norm_base - both[1].norm_base).abs() / both[1].norm_base
    assert both[0][keys].equals(both[1][keys]) and 1e-4 < error.median() < 0.05


def test_a_run_decomposes_each_matrix_of_the_base_once(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weight tables of two tuned models, the ledger, split and the link share them; nothing of them is left."""
    seen: Counter[bytes] = Counter()

    def counting(weight: torch.Tensor) -> Decomposition:
        seen[weight.contiguous().numpy().tobytes()] += 1
        return decompose(weight)

    monkeypatch.setattr(cache, "decompose", counting)
    moved = load_suite(suite).tuned["moved"]
    wanted = {"methods": ["split"], "metric": "logit_diff", "curves": False, "controls": []}
    settings = {**json.loads(suite.read_text(encoding="utf-8")), "tuned": {"a": moved, "b": moved}, "attribute": wanted}
    several = suite.with_name("several.yaml")
    several.write_text(json.dumps(settings), encoding="utf-8")
    run = probes.run(several, out=tmp_path / "run", stages=NO_REPORT)
    base = open_checkpoint(load_suite(suite).base)
    matrices = [base.matrix(module).float().contiguous() for module in base.architecture.modules if not module.tied]
    whole = [matrix.numpy().tobytes() for matrix in matrices if matrix.ndim == 2]
    assert len(whole) >= 16 and [seen[matrix] for matrix in whole] == [1] * len(whole)
    assert set(seen.values()) == {1}  # heads too
    assert {"link", "ledger", "effects"} <= set(run.tables) and not (run.path / "decompositions").exists()


def test_a_cache_of_the_user_is_kept(suite: Path, tmp_path: Path) -> None:
    pairs = Pairs(load_suite(suite), Compute(cache=tmp_path / "own"))
    pairs.keep_decompositions(tmp_path / "other")
    pairs.session("moved")
    assert os.listdir(tmp_path) == ["own"]
    plain = Pairs(load_suite(suite))
    plain.pair("moved")
    for module, basis in plain.bases().items():
        torch.testing.assert_close(basis.vectors, pairs.bases()[module].vectors, rtol=0, atol=0)
