"""Kinds of models, each once: what the rules read off the names and shapes of its parts."""

import pytest
import torch
from torch import Tensor, nn

from tests.architectures.tiny import TEXT_IDS, tiny_model
from tv.architecture.resolve import resolve


@pytest.mark.parametrize(
    ("model_type", "component", "heads", "each"),
    [("zamba", "ssm", 2, "mamba.D"), ("xlstm", "rnn", 4, "mlstm_layer.igate_preact.bias")],
)
def test_a_mixer_has_the_heads_that_its_module_or_its_norm_counts(
    model_type: str, component: str, heads: int, each: str
) -> None:
    """A parameter with a row for each head moves that head's slice of z, and no other."""
    model = tiny_model(model_type)
    block = resolve(model).blocks[0]
    writer = block.writer(component)
    assert writer.head_module.n_heads == heads
    parameter = model.get_parameter(f"{block.path}.{each}")
    assert len(parameter) == heads
    plain = _input_of(model, writer.head_in)
    for head in range(heads):
        saved = parameter.detach().clone()
        with torch.no_grad():
            parameter[head] *= 1.3
        moved = (_input_of(model, writer.head_in) - plain).abs().flatten(0, 1).amax(0).view(heads, -1).amax(1)
        with torch.no_grad():
            parameter.copy_(saved)
        assert (moved > 0).nonzero()[:, 0].tolist() == [head]


def test_queries_that_work_in_pairs_are_not_cut_as_heads_of_z_are() -> None:
    arch = resolve(tiny_model("diffllama"))
    assert {name: arch.module(0, name).n_heads for name in "qkvo"} == dict(q=0, k=0, v=0, o=2)


def test_a_sequence_of_two_matrices_is_an_mlp() -> None:
    model = tiny_model("ctrl")
    arch = resolve(model)
    block = arch.blocks[1]
    assert (block.gate, block.up, block.act) == (arch.module(1, "up"), None, "transformer.h.1.ffn.1")
    assert arch.module(1, "down").path == "transformer.h.1.ffn.2"


def test_a_gain_for_each_head_is_no_matrix() -> None:
    arch = resolve(tiny_model("chameleon"))
    assert not any(module.name in ("q_norm", "k_norm") for module in arch.modules)
    rows = {row.name: row.shape for row in arch.others if row.layer == 0}
    assert rows["self_attn.q_norm"] == (4, 12) and rows["self_attn.k_norm"] == (2, 12)


@pytest.mark.parametrize(
    ("model_type", "tower"),
    [("chameleon", "model.vqmodel"), ("phi4_multimodal", "model.embed_tokens_extend"), ("evolla", "protein_encoder")],
)
def test_a_tower_inside_the_text_model_is_one_group(model_type: str, tower: str) -> None:
    model = tiny_model(model_type)
    arch = resolve(model)
    (group,) = arch.groups
    assert group.parameter.endswith(tower)
    inside = {name for name, _ in model.named_parameters() if name.startswith(f"{group.parameter}.")}
    assert len(inside) > 5 and not any(row.parameter in inside for row in arch.others)
    assert {arch.component_of(name) for name in inside} == {(-1, group.component)}


def _input_of(model: nn.Module, path: str) -> Tensor:
    """What the module at `path` reads of a prompt."""
    read: list[Tensor] = []
    handle = model.get_submodule(path).register_forward_pre_hook(lambda _module, args: read.append(args[0].clone()))
    ids = torch.randint(0, TEXT_IDS, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    handle.remove()
    return read[0]
