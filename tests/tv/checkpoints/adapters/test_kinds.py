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

Bases = Callable[[str], tuple[tv.Checkpoint, PreTrainedModel]]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    """A base by its architecture: opened, and live."""
    directory = tmp_path_factory.mktemp("bases")
    made: dict[str, tuple[tv.Checkpoint, PreTrainedModel]] = {}

    def of(architecture: str) -> tuple[tv.Checkpoint, PreTrainedModel]:
        if architecture not in made:
            path = build_base(directory, architecture)
            made[architecture] = tv.open_checkpoint(path), load_base(path)
        return made[architecture]

    return of


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.sampled(8)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_it_is_what_peft_runs_and_merges(name: str, bases: Bases, tmp_path: Path) -> None:
    case = CASES[name]
    checkpoint, model = bases(case.architecture)
    wrapped(case, copy.deepcopy(model)).save_pretrained(tmp_path)
    running = PeftModel.from_pretrained(copy.deepcopy(model), tmp_path).eval()
    expected = running(IDS).logits
    assert error(expected, model(IDS).logits) > 1e-3
    assert error(load_model(tmp_path, base=model)(IDS).logits, expected) < 1e-5

    tuned = tv.open_checkpoint(tmp_path, base=checkpoint)
    base = tuned.base
    assert base is not None
    if case.moved:
        assert {"model.embed_tokens.weight", "lm_head.weight"} & set(tuned.moved) == case.moved
    merged = running.merge_and_unload()
    assert (error(merged(IDS).logits, expected) < 1e-4) == case.merges
    assert any("what peft merges" in note for note in tuned.notes) != case.merges
    if case.merges:
        parameters = dict(merged.named_parameters(remove_duplicate=False))
        steps = {name: parameters[name].double() - base.tensor(name).double() for name in base.names}
        moved = [name for name in base.names if bool(steps[name].any())]
        assert set(moved) == set(tuned.moved)
        found = torch.cat([tuned.delta(name, base).flatten() for name in moved])
        assert error(found, torch.cat([steps[name].flatten() for name in moved])) < 1e-5
