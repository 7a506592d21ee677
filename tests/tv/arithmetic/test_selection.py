"""Patterns that name parts of a model."""

import pytest

import tv
from tests.pairs import build_model
from tv.architecture.resolve import resolve
from tv.arithmetic.methods.layout import Piece, layout
from tv.arithmetic.selection import select


def pieces_of(architecture: str) -> dict[str, list[Piece]]:
    model = build_model(architecture)
    return layout(resolve(model), {name: tuple(value.shape) for name, value in model.named_parameters()})


LLAMA = pieces_of("llama")
CASES = {
    "layer=1": {name for name in LLAMA if ".layers.1." in name},
    "layer=0-1": {name for name in LLAMA if ".layers.0." in name or ".layers.1." in name},
    "layer=-1": {"model.embed_tokens.weight"},
    "mlp": {name for name in LLAMA if ".mlp." in name or "post_attention_layernorm" in name},
    "gate": {name for name in LLAMA if "gate_proj" in name},
    "norm": {name for name in LLAMA if "norm" in name},
    "embed": {"model.embed_tokens.weight"},
    "unembed": {"lm_head.weight", "model.norm.weight"},
    "layer=0-1,gate": {f"model.layers.{i}.mlp.gate_proj.weight" for i in (0, 1)},
    "model.layers.*.mlp.*": {name for name in LLAMA if ".mlp." in name},
    "lm_head.weight": {"lm_head.weight"},
}


@pytest.mark.parametrize("pattern", CASES)
def test_only_and_except_part_the_model(pattern: str) -> None:
    chosen, others = select(LLAMA, [pattern]), select(LLAMA, [], [pattern])
    assert set(chosen) == CASES[pattern] and set(chosen) | set(others) == set(LLAMA)
    assert not set(chosen) & set(others)


def test_patterns_add_up_and_exceptions_take_away() -> None:
    assert set(select(LLAMA, ["gate", "up"], ["layer=0-1"])) == {
        f"model.layers.2.mlp.{part}_proj.weight" for part in ("gate", "up")
    }


def test_slices_biases_and_experts() -> None:
    fused = select(pieces_of("phi3"), ["q"])
    assert [[piece.name for piece in own] for own in fused.values()] == [["q"]] * 3
    gpt2 = select(pieces_of("gpt2"), ["k"])
    assert {name.rpartition(".")[2] for name in gpt2} == {"weight", "bias"}
    assert {name for name in select(pieces_of("qwen2"), ["bias"])} == {
        f"model.layers.{i}.self_attn.{part}_proj.bias" for i in range(3) for part in "qkv"
    }
    expert = select(pieces_of("mixtral"), ["expert=1"])
    assert len(expert) == 6 and all(piece.expert == 1 for own in expert.values() for piece in own)


@pytest.mark.parametrize("pattern", ["layer=7", "attention", "layer=0,embed", "model.layers.9.*", "", "layer="])
def test_a_pattern_that_names_nothing(pattern: str) -> None:
    for only, exclude in (([pattern], []), ([], [pattern]), (["mlp", pattern], [])):
        with pytest.raises(tv.InputError, match=r"names no parameter.*layer=0-3"):
            select(LLAMA, only, exclude)


def test_patterns_that_leave_nothing() -> None:
    with pytest.raises(tv.InputError, match="leave no parameter"):
        select(LLAMA, ["mlp"], ["mlp"])
