"""Our names of modules against TransformerLens's adapters, for every architecture that both know."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from tests.pairs import MEASURED, build_model, build_tokenizer
from tv.architecture.anatomy import Module
from tv.architecture.resolve import resolve, skeleton

#: Our name of a role, and where TransformerLens keeps it.
COMPONENTS = {
    "embed": "embed",
    "pos_embed": "pos_embed",
    "attn_norm": "blocks.{}.ln1",
    "q": "blocks.{}.attn.q",
    "k": "blocks.{}.attn.k",
    "v": "blocks.{}.attn.v",
    "q_norm": "blocks.{}.attn.q_norm",
    "k_norm": "blocks.{}.attn.k_norm",
    "o": "blocks.{}.attn.o",
    "attn_post_norm": "blocks.{}.ln1_post",
    "mlp_norm": "blocks.{}.ln2",
    "gate": "blocks.{}.mlp.gate",
    "up": "blocks.{}.mlp.in",
    "down": "blocks.{}.mlp.out",
    "router": "blocks.{}.mlp.router",
    "mlp_post_norm": "blocks.{}.ln2_post",
    "final_norm": "ln_final",
    "unembed": "unembed",
}
_FUSED = "it splits the fused matrix once the model is wrapped; until then its path leads nowhere"
_ROUTER = "it keeps the router as mlp.gate, and so has no role of that name"
_EXPERTS = "it wraps the experts whole; what it calls mlp.gate is the router"
_DENSE = "it takes every layer for a mixture, the dense ones too"
#: Where the two differ: what TransformerLens answers (None: nothing), and why.
DIFFERENT: dict[tuple[str, str], tuple[str | None, str]] = {
    **{("phi3", name): (f"model.layers.{{}}.self_attn.{name}", _FUSED) for name in "qkv"},
    ("phi3", "gate"): ("model.layers.{}.mlp.gate", _FUSED),
    ("phi3", "up"): ("model.layers.{}.mlp.in", _FUSED),
    **{("gpt2", name): (f"transformer.h.{{}}.attn.{name}", _FUSED) for name in "qkv"},
    **{("neox", name): (f"gpt_neox.layers.{{}}.attention.{name}", _FUSED) for name in "qkv"},
    **{("falcon", name): (f"transformer.h.{{}}.self_attention.{name}", _FUSED) for name in "qkv"},
    **{(name, "router"): (None, _ROUTER) for name in ("mixtral", "qwen2_moe", "qwen3_moe")},
    **{(name, "gate"): ("model.layers.{}.mlp.gate", _EXPERTS) for name in ("mixtral", "qwen3_moe")},
    **{("gpt_oss", name): (None, _EXPERTS) for name in ("gate", "up", "down")},
    **{(name, part): (None, _EXPERTS) for name in ("mixtral", "qwen3_moe") for part in ("up", "down")},
    ("qwen2_moe", "gate"): ("model.layers.{}.mlp.gate", _EXPERTS + "; " + _DENSE),
    **{("qwen2_moe", part): (None, _EXPERTS + "; " + _DENSE) for part in ("up", "down")},
}


@pytest.mark.parametrize("architecture", [*MEASURED, "mistral"])
def test_both_name_the_same_places(architecture: str) -> None:
    adapter = _adapter(architecture)
    compared = set()
    for module in _modules(architecture):
        place = COMPONENTS[module.name].format(module.layer)
        try:
            theirs = adapter.translate_transformer_lens_path(place)
        except ValueError:
            theirs = None
        expected, why = DIFFERENT.get((architecture, module.name), (module.path, ""))
        assert theirs == (expected and expected.format(module.layer)), f"{module.name} of layer {module.layer} ({why})"
        compared.add(module.name)
    assert {"embed", "q", "k", "v", "o", "up", "down", "final_norm", "unembed"} <= compared


def test_every_difference_is_one() -> None:
    for (architecture, name), (theirs, why) in DIFFERENT.items():
        ours = [module for module in _modules(architecture) if module.name == name]
        assert ours and why
        assert all(theirs is None or theirs.format(module.layer) != module.path for module in ours)


@pytest.mark.parametrize("architecture", ["mixtral", "qwen2_moe", "qwen3_moe"])
def test_what_it_calls_the_gate_of_a_mixture_is_the_router(architecture: str) -> None:
    adapter, model = _adapter(architecture), build_model(architecture)
    router = resolve(model).module(0, "router")
    assert adapter.translate_transformer_lens_path("blocks.0.mlp.gate") == router.path
    assert router.shape == (3, 48)


@pytest.mark.parametrize("architecture", ["phi3", "gpt2", "neox"])
def test_our_slices_of_a_fused_matrix_are_what_it_splits_it_into(architecture: str, tmp_path: Path) -> None:
    bridges = pytest.importorskip("transformer_lens.model_bridge")
    model = build_model(architecture)
    arch = resolve(model)
    build_tokenizer().save_pretrained(tmp_path)
    bridge = bridges.TransformerBridge.boot_transformers(
        architecture,
        hf_model=build_model(architecture),
        tokenizer=AutoTokenizer.from_pretrained(tmp_path),
        device="cpu",
    )
    for name in "qkv":
        module = arch.module(1, name)
        theirs = getattr(bridge.blocks[1].attn, name).original_component.weight
        torch.testing.assert_close(module.matrix(model.get_parameter(module.parameter)), theirs)


def _modules(architecture: str) -> Iterator[Module]:
    """The modules that have a place in TransformerLens; a tied unembedding and a shared expert have none."""
    model = build_model(architecture)
    return (module for module in resolve(model).modules if module.name in COMPONENTS)


def _adapter(architecture: str):
    pytest.importorskip("transformer_lens")
    from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
    from transformer_lens.model_bridge.sources import build_bridge_config_from_hf

    model = skeleton(build_model(architecture).config)
    config = build_bridge_config_from_hf(model.config, type(model).__name__, "x", torch.float32)
    return ArchitectureAdapterFactory.select_architecture_adapter(config)
