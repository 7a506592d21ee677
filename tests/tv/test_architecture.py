"""Names of modules and sites, off the module tree alone."""

import pytest

from tests.pairs import SUPPORTED, build_model
from tv.architecture import resolve, skeleton
from tv.errors import ArchitectureError


@pytest.mark.parametrize("architecture", SUPPORTED)
def test_the_skeleton_resolves_as_the_live_model_does(architecture: str) -> None:
    model = build_model(architecture)
    live, meta = resolve(model), resolve(skeleton(model.config))
    assert live == meta
    assert (live.n_layers, live.vocab_size, live.context) == (3, 307, 64)
    assert live.gated == (architecture not in ("gpt2", "neox", "starcoder2"))


@pytest.mark.parametrize("architecture", SUPPORTED)
def test_every_matrix_is_named_and_every_parameter_has_one_component(architecture: str) -> None:
    model = build_model(architecture)
    arch = resolve(model)
    named = {module.parameter for module in arch.modules}
    assert named == {name for name, _ in model.named_parameters() if name.endswith("weight")}
    for module in arch.modules:
        if module.kind == "linear":
            covered = sum(stop - start for start, stop in module.ranges) or module.shape[0]
            assert covered == module.shape[0]
    units = {arch.component_of(name) for name, _ in model.named_parameters()}
    expected = {(layer, part) for layer in range(3) for part in ("attn", "mlp")} | {(-1, "embed"), (3, "unembed")}
    assert units == expected
    for module in arch.modules:
        if not module.tied:
            assert arch.component_of(module.parameter) == (
                module.layer if module.component in ("attn", "mlp") else {"embed": -1, "unembed": 3}[module.component],
                module.component,
            )


@pytest.mark.parametrize("architecture", SUPPORTED)
def test_fused_slices_cover_a_matrix_once(architecture: str) -> None:
    model = build_model(architecture)
    fused: dict[str, list[int]] = {}
    for module in resolve(model).modules:
        if module.ranges:
            fused.setdefault(module.path, []).extend(row for a, b in module.ranges for row in range(a, b))
    for path, rows in fused.items():
        weight = model.get_submodule(path).weight
        transposed = type(model.get_submodule(path)).__name__ == "Conv1D"
        assert sorted(rows) == list(range(weight.shape[1] if transposed else weight.shape[0]))


def test_a_mixture_of_experts_is_refused_in_words() -> None:
    with pytest.raises(ArchitectureError, match=r"mixture of experts.*layers.0.*not supported"):
        resolve(build_model("mixtral"))


def test_an_unknown_matrix_is_named() -> None:
    model = build_model("llama")
    attention = model.model.layers[1].self_attn
    attention.add_module("extra_proj", attention.q_proj)
    del attention.q_proj
    with pytest.raises(ArchitectureError, match=r"'extra_proj' in model.layers.1.self_attn"):
        resolve(model)
