"""Which weights are a head's, an expert's or a module's, where a family counts its own way."""

import torch

from probes.attribution.units import head_granularity, pieces, units_of
from tests.architectures.tiny import tiny_model
from tv.architecture.resolve import resolve
from tv.architecture.values import values_of


def _counts(model_type: str, granularity: str) -> dict[str, torch.Tensor]:
    """How many units of a granularity each number of the parameters belongs to."""
    model = tiny_model(model_type)
    architecture, parameters = resolve(model), values_of(model)
    counts = {name: torch.zeros_like(value, dtype=torch.int) for name, value in parameters.items()}
    for unit in units_of(architecture, granularity):
        for piece in pieces(architecture, unit, parameters):
            into = counts[piece.parameter] if piece.expert < 0 else counts[piece.parameter][piece.expert]
            if piece.index is None:
                into += 1
            else:
                into.index_add_(piece.dim, piece.index, torch.ones_like(into.index_select(piece.dim, piece.index)))
    return counts


def test_the_bias_of_an_expert_is_its_matrixs_and_no_unit_of_its_own() -> None:
    counts = _counts("gpt_oss", "module")
    assert all(bool((count == 1).all()) for count in counts.values())
    assert any(name.endswith("experts.gate_up_proj_bias") for name in counts)


def test_two_queries_make_one_head_of_diffllama_so_that_no_rows_are_one_heads() -> None:
    assert not any(bool(count.any()) for count in _counts("diffllama", "head").values())


def test_key_value_heads_of_a_second_attention_are_those_of_its_own_queries() -> None:
    model = tiny_model("inkling2_text")
    architecture = resolve(model)
    for granularity, name in (("kv_head", "k_2"), ("head", "q_2")):
        assert head_granularity(architecture.module(1, name), architecture) == granularity


def test_two_mixers_in_a_layer_count_their_heads_each_for_itself() -> None:
    """Falcon-H1's attention and its state space have other numbers of heads."""
    counts = _counts("falcon_h1", "head")
    for matrix in ("q_proj.weight", "o_proj.weight", "out_proj.weight"):
        own = [count for name, count in counts.items() if name.endswith(matrix)]
        assert own and all(bool((count == 1).all()) for count in own)
