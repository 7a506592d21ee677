"""Every kind of adapter is what peft's running model computes, and what peft merges where that is the same."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import PreTrainedModel

import tv
from tests.adapters import CASES, IDS, build_base, load_base, wrapped
from tv.checkpoints.live import load_model

Bases = Callable[[str], tuple[Path, PreTrainedModel]]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    """A base by its architecture: where it lies, and live."""
    directory = tmp_path_factory.mktemp("bases")
    live: dict[str, PreTrainedModel] = {}

    def of(architecture: str) -> tuple[Path, PreTrainedModel]:
        path = build_base(directory, architecture)
        if architecture not in live:
            live[architecture] = load_base(path)
        return path, live[architecture]

    return of


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_it_is_what_peft_runs_and_merges(name: str, bases: Bases, tmp_path: Path) -> None:
    case = CASES[name]
    path, model = bases(case.architecture)
    wrapped(case, copy.deepcopy(model)).save_pretrained(tmp_path)
    running = PeftModel.from_pretrained(copy.deepcopy(model), tmp_path).eval()
    expected = running(IDS).logits
    assert error(expected, model(IDS).logits) > 1e-3

    pair = tv.open_pair(path, tmp_path)
    assert error(load_model(tmp_path, base=path)(IDS).logits, expected) < 1e-5
    assert error(load_model(running)(IDS).logits, expected) < 1e-5  # the live model
    assert torch.equal(running(IDS).logits, expected)  # which stays as it was
    if case.moved:
        ends = {"model.embed_tokens.weight", "lm_head.weight"}
        assert ends & set(pair.tuned.moved) == case.moved

    merged = running.merge_and_unload()
    same = error(merged(IDS).logits, expected) < 1e-4
    assert same == case.merges
    if same:
        parameters = dict(merged.named_parameters())
        moved = {n: parameters[n].double() - pair.base.tensor(n).double() for n in pair.base.names if n in parameters}
        moved = {n: step for n, step in moved.items() if bool(step.any())}
        assert moved.keys() == set(pair.tuned.moved)
        found, whole = (torch.cat([t[n].flatten() for n in moved]) for t in (_deltas(pair), moved))
        assert error(found, whole) < 1e-5


def _deltas(pair: tv.WeightPair) -> dict[str, torch.Tensor]:
    return {name: pair.tuned.delta(name, pair.base) for name in pair.tuned.moved}
