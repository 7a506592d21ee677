"""Planted changes of gains and bases are the same function on every architecture, and are undone; training is not."""

import copy

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import tv
from tests.pairs import build_model, perturb
from tests.tv.matching.test_matching import MATCHED
from tv.checkpoints.checkpoint import Checkpoint
from tv.checkpoints.pairing import open_pair
from tv.matching.conventions import Conventions
from tv.matching.matching import match_pair
from tv.matching.reordered import Reordering
from tv.matching.units import Heads, units_of


def _rewritten(model: PreTrainedModel) -> tuple[Checkpoint, set[str]]:
    """The same function in other gains and bases, and the kinds of change that were made."""
    torch.manual_seed(4)
    checkpoint = tv.open_checkpoint(model)
    conventions = Conventions(checkpoint.config, checkpoint.architecture)
    order, kinds = Reordering(checkpoint), set()
    for norm in (module for module in checkpoint.architecture.modules if module.kind == "norm"):
        offset, readers = conventions.offset(norm), conventions.readers(norm)
        if offset is not None and readers:
            factor = torch.exp(0.3 * torch.randn(norm.shape))
            order.gain(norm, factor, offset)
            for reader in {(one.parameter, one.expert): one for one in readers}.values():
                order.inputs(reader, torch.arange(len(factor)), 1 / factor)
            kinds.add("norms")
    for unit in units_of(open_pair(model, model))[0]:
        if isinstance(unit, Heads):
            kinds |= _rewrite_heads(order, unit, conventions)
    return order.checkpoint(), kinds


def _rewrite_heads(order: Reordering, unit: Heads, conventions: Conventions) -> set[str]:
    groups, d = unit.k.n_heads, unit.k.shape[0] // unit.k.n_heads
    share, pairs = unit.q.n_heads // groups, conventions.rotary_pairs
    values = torch.eye(d).double() + 0.1 * torch.randn(groups, d, d).double()
    order.mix_outputs(unit.v, values)
    order.mix_inputs(unit.o, values.inverse().repeat_interleave(share, 0))
    assert pairs is not None
    if not unit.gains:
        keys = torch.stack([_compatible(d, pairs) for _ in range(groups)])
        order.mix_outputs(unit.k, keys)
        order.mix_outputs(unit.q, keys.inverse().mT.repeat_interleave(share, 0))
        return {"values", "keys"}
    if any(gain.shape != (d,) for gain in unit.gains):
        return {"values"}
    factor = torch.empty(d)
    factor[pairs] = torch.exp(0.3 * torch.randn(len(pairs), 1)).expand(-1, 2)
    for gain in unit.gains:
        offset = conventions.offset(gain)
        assert offset is not None
        order.gain(gain, factor if gain.name == "k_norm" else 1 / factor, offset)
    return {"values", "keys"}


def _compatible(d: int, pairs: Tensor) -> Tensor:
    """A change of basis that rotary embedding does not see: any one of the dimensions that are not rotated."""
    change = torch.zeros(d, d, dtype=torch.float64)
    rest = torch.tensor(sorted({*range(d)} - {*pairs.flatten().tolist()}), dtype=torch.long)
    change[rest[:, None], rest] = torch.eye(len(rest)).double() + 0.1 * torch.randn(len(rest), len(rest)).double()
    for first, second in pairs.tolist():
        a, b = torch.randn(2).tolist()
        change[first, first] = change[second, second] = a
        change[first, second], change[second, first] = -b, b
    return change


def _says(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return torch.as_tensor(model(torch.arange(3, 15)[None]).logits)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("architecture", MATCHED)
def test_another_writing_is_the_same_function_and_is_undone(architecture: str) -> None:
    base = build_model(architecture)
    checkpoint, kinds = _rewritten(base)
    other = copy.deepcopy(base)
    own = dict(other.named_parameters())
    with torch.no_grad():
        for name in checkpoint.names:
            own[name].copy_(checkpoint.read(name))
    torch.testing.assert_close(_says(other), _says(base), atol=1e-4, rtol=1e-3)

    found = match_pair(base, other)
    assert set(found.sameness.changes) == kinds
    assert found.sameness.explained > 0.99999
    for name in found.tuned.names:
        expected = dict(base.named_parameters())[name].detach()
        torch.testing.assert_close(found.tuned.read(name), expected, atol=1e-4, rtol=1e-3)


def test_what_each_architecture_can_be_written_in() -> None:
    """Keys in any basis where nothing rotates them; only by pairs where all is rotated; norms before their readers."""
    made = {name: _rewritten(build_model(name))[1] for name in ("llama", "gpt2", "olmo2")}
    assert made == {
        "llama": {"norms", "values", "keys"},
        "gpt2": {"norms", "values", "keys"},
        "olmo2": {"norms", "values"},  # of its norms the final one, before an unembedding of its own
    }
    pairs = {}
    for name in ("llama", "gpt2", "neox"):
        checkpoint = tv.open_checkpoint(build_model(name))
        pairs[name] = Conventions(checkpoint.config, checkpoint.architecture).rotary_pairs
    assert pairs["llama"].tolist() == [[i, i + 8] for i in range(8)]
    assert pairs["gpt2"].shape == (0, 2) and len(pairs["neox"]) < 8


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("architecture", "step"), [("llama", 0.002), *((name, 0.3) for name in MATCHED)])
def test_training_is_no_change_of_writing(architecture: str, step: float) -> None:
    base = build_model(architecture)
    tuned = copy.deepcopy(base)
    perturb(tuned, step, seed=1)
    found = match_pair(base, tuned)
    assert found.is_identity and not found.sameness.changes and not found.sameness.rounding
    assert found.sameness.explained == 0


@pytest.mark.parametrize("factor", [1.08, 1.3])
@pytest.mark.parametrize("part", ["norm", "v_proj", "q_proj", "up_proj", "k_norm"])
def test_one_factor_alone_is_no_change_of_writing(part: str, factor: float) -> None:
    """What a reparametrisation would do to one tensor, with nothing that undoes it in the others."""
    base = build_model("qwen3")
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if f"{part}." in name or (part == "norm" and "layernorm" in name):
                parameter.mul_(factor)
    found = match_pair(base, tuned)
    assert found.is_identity and not found.sameness.rounding
    for name in found.tuned.names:
        assert torch.equal(found.tuned.read(name), dict(tuned.named_parameters())[name])
