"""Whole models whose neurons and heads were put in another order, on every architecture: found, and put back."""

import copy

import pytest
import torch
from transformers import PreTrainedModel

import tv
from tests.pairs import MEASURED, build_model, perturb
from tv.checkpoints.checkpoint import Checkpoint
from tv.checkpoints.pairing import open_pair
from tv.matching.reordered import Reordering
from tv.matching.units import Heads, Neurons, units_of, whole_heads


def _shuffled(model: PreTrainedModel) -> Checkpoint:
    """The same function: every FFN's neurons, key-value groups, and queries within a group in another order."""
    torch.manual_seed(3)
    checkpoint = tv.open_checkpoint(model)
    order = Reordering(checkpoint)
    units, _ = units_of(open_pair(model, model))
    for unit in units:
        if isinstance(unit, Neurons):
            moves = torch.randperm(unit.up.shape[0])
            for module in (unit.gate, unit.up):
                if module is not None:
                    order.outputs(module, moves)
            order.inputs(unit.down, moves)
        else:
            groups = torch.arange(unit.k.n_heads).roll(1)
            width = unit.q.n_heads // unit.k.n_heads
            heads = torch.cat([group * width + torch.randperm(width) for group in groups])
            _move_heads(order, unit, groups, heads)
    return order.checkpoint()


def _move_heads(order: Reordering, unit: Heads, groups: torch.Tensor, heads: torch.Tensor) -> None:
    for module, moves in ((unit.q, heads), (unit.k, groups), (unit.v, groups)):
        order.outputs(module, whole_heads(moves, module.shape[0] // len(moves)))
    for gain in unit.gains:
        moves = heads if gain.name == "q_norm" else groups
        if gain.shape[0] == len(moves) * (unit.q.shape[0] // unit.q.n_heads):
            order.outputs(gain, whole_heads(moves, gain.shape[0] // len(moves)))
    order.inputs(unit.o, whole_heads(heads, unit.o.shape[1] // unit.q.n_heads))


def _says(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(3, 15)[None]).logits


#: GPT-OSS has a sink of its own for each head, and biases for each expert's neurons.
MATCHED = [name for name in MEASURED if name != "gpt_oss"]


@pytest.mark.sampled(5)
@pytest.mark.parametrize("architecture", MATCHED)
def test_another_order_is_the_same_function_and_is_undone(architecture: str) -> None:
    base = build_model(architecture)
    shuffled = _shuffled(base)
    moved = copy.deepcopy(base)
    own = dict(moved.named_parameters())
    with torch.no_grad():
        for name in shuffled.names:
            own[name].copy_(shuffled.read(name))
    assert any(not torch.equal(own[name], parameter) for name, parameter in base.named_parameters())
    torch.testing.assert_close(_says(moved), _says(base), atol=1e-5, rtol=1e-4)

    table = tv.align(base, shuffled)
    rewritten = table.kind.isin(["norms", "values", "keys"])
    still = (table.kind == "queries") | ((table.kind == "kv_groups") & (architecture == "falcon"))  # one of them
    assert (table[~rewritten & ~still].moved_fraction > 0).all()
    assert (table[rewritten].moved_fraction == 0).all()
    assert table.mean_score.min() > 0.999 and table.gain.max() > 0.1
    back = tv.matched(base, shuffled)
    for name in back.names:
        torch.testing.assert_close(back.read(name), dict(base.named_parameters())[name].detach())


@pytest.mark.parametrize(("architecture", "what"), [("gpt_oss", "self_attn.sinks'"), ("mamba", ""), ("qwen3_next", "")])
def test_what_heads_or_neurons_have_beside_known_matrices_keeps_them_in_their_order(
    architecture: str, what: str
) -> None:
    """A gate beside each head's query, which no rule reorders with it; a mixer that has no heads."""
    base = build_model(architecture)
    tuned = copy.deepcopy(base)
    perturb(tuned, 0.02, seed=1)
    if architecture == "qwen3_next":  # its MLPs can be matched
        table = tv.align(base, tuned)
        assert {"neurons", "shared_neurons"} <= set(table.kind) and "queries" not in set(table.kind)
        assert not (table[table.kind == "norms"].layer < 3).any()
        return
    with pytest.raises(tv.InputError, match=f"no FFN or attention whose roles are known.*{what}"):
        tv.align(base, tuned)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("architecture", MATCHED)
def test_a_fine_tune_stays_where_it_is(architecture: str) -> None:
    base = build_model(architecture)
    tuned = copy.deepcopy(base)
    perturb(tuned, 0.02, seed=1)
    table = tv.align(base, tuned)
    assert (table.moved_fraction == 0).all() and table.gain.abs().max() < 1e-6
    checkpoint = tv.open_checkpoint(tuned, base=tv.open_checkpoint(base))
    assert tv.matched(base, checkpoint) is checkpoint
