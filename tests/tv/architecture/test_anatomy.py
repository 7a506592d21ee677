"""What a module takes of a stored tensor, and where a parameter belongs."""

import pickle
from dataclasses import replace

import pytest
import torch

from tests.pairs import build_model
from tv.architecture.anatomy import Module
from tv.architecture.resolve import resolve

STORED = torch.arange(3 * 8 * 5.0).view(3, 8, 5)


def test_a_module_takes_its_rows_of_its_expert() -> None:
    module = Module(0, "up", "linear", "mlp", "mlp.experts", "mlp.experts.w", (4, 5), ranges=((4, 8),), expert=2)
    assert torch.equal(module.matrix(STORED), STORED[2, 4:])
    assert torch.equal(module.matrix(STORED[2]), STORED[2, 4:])
    turned = replace(module, transposed=True, shape=(2, 8), ranges=((3, 5),))
    assert torch.equal(turned.matrix(STORED), STORED[2].T[3:5])
    assert module.matrix(STORED).data_ptr() == STORED[2, 4:].data_ptr()  # a view


def test_heads_are_rows_of_queries_and_columns_of_o() -> None:
    matrix = torch.arange(48.0).view(8, 6)
    queries = Module(0, "q", "linear", "attn", "q", "q.weight", (8, 6), n_heads=4)
    assert [head.shape for head in queries.heads(matrix)] == [(2, 6)] * 4
    output = replace(queries, name="o", n_heads=3)
    assert torch.equal(torch.cat(output.heads(matrix), 1), matrix)
    assert replace(queries, n_heads=0).heads(matrix) == []


def test_modules_are_found_by_layer_name_and_expert() -> None:
    arch = resolve(build_model("qwen2_moe"))
    assert arch.module(2, "down", 1).expert == 1
    assert arch.module(1, "down").expert == -1
    with pytest.raises(KeyError, match="no module 'down' in layer 2"):
        arch.module(2, "down")
    with pytest.raises(KeyError, match="no module 'down' in layer 2, expert 3"):
        arch.module(2, "down", 3)


def test_a_parameter_without_a_module_belongs_to_what_is_nearest() -> None:
    arch = resolve(build_model("gemma2"))
    assert arch.component_of("model.layers.1.self_attn.sinks") == (1, "attn")
    assert arch.component_of("model.layers.1.mlp.scale") == (1, "mlp")
    assert arch.component_of("model.layers.1.post_attention_layernorm.bias") == (1, "attn")
    assert arch.component_of("model.scale") == arch.component_of("nowhere") == (-1, "embed")
    assert resolve(build_model("llama")).component_of("model.layers.1.post_attention_layernorm.weight") == (1, "mlp")


def test_an_architecture_can_be_sent_to_another_process() -> None:
    arch = resolve(build_model("qwen2_moe"))
    arch.module(0, "q")
    assert pickle.loads(pickle.dumps(arch)) == arch
