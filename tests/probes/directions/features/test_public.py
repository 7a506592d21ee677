"""Public dictionaries, in the files that others write: read as their formulas say, or refused in one line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from probes.directions.features.public import read_public
from probes.errors import RunError

D, M = 6, 10
Tensors = dict[str, torch.Tensor]


def drawn(**shapes: tuple[int, ...]) -> Tensors:
    generator = torch.Generator().manual_seed(0)
    return {name.replace("__", "."): torch.randn(*shape, generator=generator) for name, shape in shapes.items()}


def saelens(folder: Path, tensors: Tensors, **config: Any) -> Path:
    save_file(tensors, folder / "sae_weights.safetensors")
    whole = {"d_in": D, "d_sae": M, "apply_b_dec_to_input": True, "normalize_activations": "none", **config}
    (folder / "cfg.json").write_text(json.dumps(whole), encoding="utf-8")
    return folder


def learnt(folder: Path, tensors: Tensors, **trainer: Any) -> Path:
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "ae.safetensors")
    (folder / "config.json").write_text(json.dumps({"trainer": trainer}), encoding="utf-8")
    return folder


H = torch.randn(20, D, generator=torch.Generator().manual_seed(9))
PLAIN = {"W_enc": (D, M), "W_dec": (M, D), "b_enc": (M,), "b_dec": (D,)}


def _top(z: torch.Tensor, k: int) -> torch.Tensor:
    return torch.stack([torch.where(row >= row.sort().values[-k], row, 0.0).relu() for row in z])


@pytest.mark.parametrize("kind", ["standard", "topk", "jumprelu", "gated", "not applied"])
def test_saelens(kind: str, tmp_path: Path) -> None:
    more: dict[str, tuple[int, ...]] = {"jumprelu": {"threshold": (M,)}}.get(kind, {})
    if kind == "gated":
        more = {"b_gate": (M,), "r_mag": (M,), "b_mag": (M,)}
    t = drawn(**PLAIN, **more)
    if kind == "gated":
        del t["b_enc"]
    named = "standard" if kind == "not applied" else kind
    config = {"architecture": named, "k": 3, "metadata": {"hook_name": "blocks.2.hook_mlp_out"}}
    folder = saelens(tmp_path, t, apply_b_dec_to_input=kind != "not applied", **config)
    dictionary, said = read_public(folder)
    x = H if kind == "not applied" else H - t["b_dec"]
    z = x @ t["W_enc"] + t.get("b_enc", torch.zeros(M))
    expected = {
        "standard": z.relu(),
        "not applied": z.relu(),
        "topk": _top(z, 3),
        "jumprelu": torch.where(z > t.get("threshold", z), z, 0.0).relu(),
        "gated": (z + t.get("b_gate", z) > 0) * (z * t.get("r_mag", z).exp() + t.get("b_mag", z)).relu(),
    }[kind]
    active = dictionary.activations(H, 2 * H)
    assert torch.allclose(active.base, expected, atol=1e-5) and not torch.equal(active.base, active.tuned)
    assert torch.allclose(dictionary.written(active)[0], expected @ t["W_dec"] + t["b_dec"], atol=1e-5)
    assert said == {"source": "SAELens", "kind": named, "site": "mlp_out", "layer": 2}


@pytest.mark.parametrize("kind", ["AutoEncoder", "AutoEncoderTopK", "BatchTopKSAE", "JumpReluAutoEncoder"])
def test_dictionary_learning(kind: str, tmp_path: Path) -> None:
    if kind == "JumpReluAutoEncoder":
        t = drawn(**PLAIN, threshold=(M,))
        z, w_dec, bias = H @ t["W_enc"] + t["b_enc"], t["W_dec"], t["b_dec"]
    else:
        named = "bias" if kind == "AutoEncoder" else "b_dec"
        t = drawn(encoder__weight=(M, D), encoder__bias=(M,), decoder__weight=(D, M), **{named: (D,)})
        bias, w_dec = t[named], t["decoder.weight"].T
        z = (H - bias) @ t["encoder.weight"].T + t["encoder.bias"]
        if kind == "BatchTopKSAE":
            t["threshold"] = torch.tensor(0.7)
    expected = {
        "AutoEncoder": z.relu(),
        "AutoEncoderTopK": _top(z, 4),
        "BatchTopKSAE": torch.where(z > 0.7, z, 0.0),
        "JumpReluAutoEncoder": torch.where(z > t.get("threshold", z), z, 0.0).relu(),
    }[kind]
    dictionary, said = read_public(learnt(tmp_path, t, dict_class=kind, k=4, layer=5))
    active = dictionary.activations(H, H)
    assert torch.allclose(active.base, expected, atol=1e-5)
    assert torch.allclose(dictionary.written(active)[1], expected @ w_dec + bias, atol=1e-5)
    assert said["layer"] == 5


def test_a_crosscoder_of_the_dictionary_learning_format(tmp_path: Path) -> None:
    t = drawn(encoder__weight=(2, D, M), encoder__bias=(M,), decoder__weight=(2, M, D), decoder__bias=(2, D))
    t["threshold"] = torch.tensor(3.0)
    dictionary, _ = read_public(learnt(tmp_path, t, dict_class="BatchTopKCrossCoder"))
    z = (H @ t["encoder.weight"][0] + 2 * H @ t["encoder.weight"][1] + t["encoder.bias"]).relu()
    expected = z * (z * t["decoder.weight"].norm(dim=2).sum(0) > 3)
    active = dictionary.activations(H, 2 * H)
    assert dictionary.form == "crosscoder" and torch.allclose(active.base, expected, atol=1e-4)


def test_what_is_not_read_is_refused_in_one_line(tmp_path: Path) -> None:
    def refused(folder: Path, words: str) -> None:
        with pytest.raises(RunError, match=words) as error:
            read_public(folder)
        assert "\n" not in str(error.value)

    refused(tmp_path / "none", "no directory")
    refused(tmp_path, "neither cfg.json")
    (tmp_path / "ae.pt").write_bytes(b"")
    refused(tmp_path, "pickle")
    (tmp_path / "config.json").write_text('{"trainer": {"dict_class": "AutoEncoder"}}')
    refused(tmp_path, "pickle")
    (tmp_path / "config.json").write_text("[")
    refused(tmp_path, "JSON")
    t = drawn(**PLAIN)
    folder = tmp_path / "sae"
    folder.mkdir()
    refused(saelens(folder, t, architecture="matryoshka"), "architecture 'matryoshka'")
    refused(saelens(folder, t, normalize_activations="layer_norm"), "layer_norm")
    refused(saelens(folder, t, architecture="topk"), "k, the number")
    refused(saelens(folder, t, architecture="jumprelu"), "no tensor 'threshold'")
    refused(saelens(folder, t | {"W_dec": torch.ones(M, D + 1)}), "do not fit")
    (folder / "sae_weights.safetensors").write_bytes(b"\x00" * 20)
    refused(folder, "safetensors")
