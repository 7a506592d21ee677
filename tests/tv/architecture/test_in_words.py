"""An architecture in a line."""

from dataclasses import replace

import pytest

from tests.pairs import build_model
from tv.architecture.in_words import in_words
from tv.architecture.resolve import resolve


@pytest.mark.parametrize(
    ("architecture", "said"),
    [
        ("llama", "3 layers, d_model 48, 4 heads, 2 key-value heads, GLU"),
        ("falcon", "3 layers, d_model 48, 4 heads, 1 key-value heads, no GLU"),
        ("mamba", "3 layers (3 × ssm), d_model 48, no MLP"),
        (
            "qwen3_next",
            "3 layers (2 × linear_attn + mlp, 1 × attn + mlp), d_model 48, 4 heads, 2 key-value heads, GLU",
        ),
        ("openai-gpt", "3 layers, d_model 48, 4 heads, 4 key-value heads"),
    ],
)
def test_what_a_model_consists_of(architecture: str, said: str) -> None:
    assert in_words(resolve(build_model(architecture))) == said


def test_sizes_that_differ_by_layer_are_all_named() -> None:
    arch = resolve(build_model("llama"))
    modules = [replace(m, n_heads=8) if (m.layer, m.name) == (1, "q") else m for m in arch.modules]
    said = in_words(replace(arch, n_heads=0, modules=tuple(modules)))
    assert said == "3 layers, d_model 48, 4 or 8 heads by layer, 2 key-value heads, GLU"
