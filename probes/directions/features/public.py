"""Dictionaries that others trained, from local files: of SAELens, and of the dictionary-learning format."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from probes.directions.features.dictionary import Above, Dictionary, Form, Gated, Largest, Rule
from probes.errors import RunError
from tv.errors import choices

Tensors = Mapping[str, Tensor]
#: Where the names of SAELens's hooks read.
_SITES = {
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "hook_attn_out": "attn_out",
    "hook_mlp_out": "mlp_out",
}
#: What the dictionary-learning format calls its kinds.
_PLAIN, _TOP, _BATCH, _JUMP, _GATED = (
    "AutoEncoder",
    "AutoEncoderTopK",
    "BatchTopKSAE",
    "JumpReluAutoEncoder",
    "GatedAutoEncoder",
)
_CROSS, _BATCH_CROSS = "CrossCoder", "BatchTopKCrossCoder"


def read_public(folder: Path) -> tuple[Dictionary, dict[str, Any]]:
    """A public dictionary of the base, from a directory.

    Args:
        folder: Of SAELens (cfg.json, sae_weights.safetensors; standard, topk, jumprelu, gated), or of the
            dictionary-learning format (config.json beside one safetensors file).

    Returns:
        The dictionary, and what its files say of it: `source kind`, and `site layer` where they name them.

    Raises:
        RunError: In one line: no such files, a pickle, a kind that is not read, or tensors that do not fit.
    """
    if not folder.is_dir():
        raise RunError(
            f"{folder}: no directory; a dictionary is a directory with its weights and a cfg.json or config.json"
        )
    if (folder / "cfg.json").is_file():
        return _of_saelens(folder, _json(folder / "cfg.json"))
    if (folder / "config.json").is_file():
        return _of_dictionary_learning(folder, _json(folder / "config.json"))
    pickled = next((path.name for path in folder.glob("*.pt")), None)
    if pickled:
        raise _pickle(folder / pickled)
    raise RunError(f"{folder}: neither cfg.json (SAELens) nor config.json (dictionary-learning) is there")


def _of_saelens(folder: Path, config: Mapping[str, Any]) -> tuple[Dictionary, dict[str, Any]]:
    path = folder / "sae_weights.safetensors"
    if not path.is_file():
        raise RunError(f"{path}: it is missing; SAELens writes it beside cfg.json")
    tensors = _tensors(path)
    kind = str(config.get("architecture", "standard"))
    if kind not in ("standard", "topk", "jumprelu", "gated"):
        raise RunError(f"{folder}: architecture {kind!r} is not read; standard, topk, jumprelu and gated are")
    for name in ("normalize_activations", "reshape_activations"):
        if config.get(name, "none") not in ("none", None):
            raise RunError(
                f"{folder}: {name}: {config[name]} changes what the dictionary reads, which is not supported; fold it "
                "into the weights and save it again with none"
            )
    function = str(config.get("activation_fn", config.get("activation_fn_str", "relu")))
    k = config.get("k", (config.get("activation_fn_kwargs") or {}).get("k"))
    if function not in ("relu", "topk"):
        raise RunError(f"{folder}: activation function {function!r} is not read; relu and topk are")
    if kind == "standard" and function == "topk":
        kind = "topk"
    w_enc, w_dec = _named(tensors, path, "W_enc"), _named(tensors, path, "W_dec")
    b_dec = _named(tensors, path, "b_dec")
    b_enc = torch.zeros(w_enc.shape[-1]) if kind == "gated" else _named(tensors, path, "b_enc")
    if config.get("apply_b_dec_to_input", True):
        b_enc = b_enc - b_dec @ w_enc
    if config.get("rescale_acts_by_decoder_norm"):
        size = w_dec.norm(dim=1)
        w_enc, b_enc, w_dec = w_enc * size, b_enc * size, w_dec / size[:, None]
    rule: Rule
    if kind == "topk":
        rule = Largest(_whole(k, folder))
    elif kind == "gated":
        gate, size, worth = (_named(tensors, path, name) for name in ("b_gate", "r_mag", "b_mag"))
        rule = Gated(gate, size.exp(), worth)
    else:
        least = _named(tensors, path, "threshold").clamp(min=0) if kind == "jumprelu" else torch.zeros_like(b_enc)
        rule = Above(least)
    metadata = config.get("metadata") or {}
    place = _place(str(metadata.get("hook_name", config.get("hook_name", ""))))
    built = _built(folder, "public", w_enc[None], b_enc, torch.stack([w_dec] * 2), torch.stack([b_dec] * 2), rule)
    return built, {"source": "SAELens", "kind": kind, **place}


def _of_dictionary_learning(folder: Path, config: Mapping[str, Any]) -> tuple[Dictionary, dict[str, Any]]:
    trainer = config.get("trainer", config)
    kind = str(trainer.get("dict_class", config.get("dict_class", "")))
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = next(iter(sorted(folder.glob("*.pt"))), None)
        raise _pickle(pickled) if pickled else RunError(f"{folder}: no safetensors file beside config.json")
    if len(files) > 1:
        raise RunError(
            f"{folder}: {len(files)} safetensors files beside config.json; leave the dictionary's alone there"
        )
    path, tensors = files[0], _tensors(files[0])
    if not kind:
        kind = _CROSS if "decoder.weight" in tensors and tensors["decoder.weight"].ndim == 3 else ""
    if kind in (_CROSS, _BATCH_CROSS):
        found = _crosscoder(folder, path, tensors, kind, trainer)
    elif kind == _JUMP:
        w_enc, w_dec, b_enc, b_dec = (_named(tensors, path, name) for name in ("W_enc", "W_dec", "b_enc", "b_dec"))
        rule: Rule = Above(_named(tensors, path, "threshold").clamp(min=0))
        found = _built(folder, "public", w_enc[None], b_enc, torch.stack([w_dec] * 2), torch.stack([b_dec] * 2), rule)
    elif kind in (_PLAIN, _TOP, _BATCH, _GATED):
        found = _autoencoder(folder, path, tensors, kind, trainer)
    else:
        known = ", ".join((_PLAIN, _TOP, _BATCH, _JUMP, _GATED, _CROSS, _BATCH_CROSS))
        raise RunError(f"{folder}: dict_class {kind!r} is not read; {known} are")
    place = {"layer": int(trainer["layer"])} if isinstance(trainer.get("layer"), int) else {}
    return found, {"source": "dictionary-learning", "kind": kind, **place}


def _autoencoder(folder: Path, path: Path, tensors: Tensors, kind: str, trainer: Mapping[str, Any]) -> Dictionary:
    w_enc, w_dec = _named(tensors, path, "encoder.weight").T, _named(tensors, path, "decoder.weight").T
    bias = _named(tensors, path, "b_dec" if kind in (_TOP, _BATCH) else "decoder_bias" if kind == _GATED else "bias")
    if kind == _GATED:
        b_enc = torch.zeros(w_enc.shape[1])
        scale = _named(tensors, path, "r_mag").exp()
        rule: Rule = Gated(_named(tensors, path, "gate_bias"), scale, _named(tensors, path, "mag_bias"))
    else:
        b_enc = _named(tensors, path, "encoder.bias")
        if kind == _PLAIN:
            rule = Above(torch.zeros_like(b_enc))
        elif kind == _TOP:
            rule = Largest(_whole(trainer.get("k", tensors.get("k")), folder))
        else:
            rule = Above(torch.full_like(b_enc, max(float(_named(tensors, path, "threshold")), 0.0)))
    b_enc = b_enc - bias @ w_enc
    return _built(folder, "public", w_enc[None], b_enc, torch.stack([w_dec] * 2), torch.stack([bias] * 2), rule)


def _crosscoder(folder: Path, path: Path, tensors: Tensors, kind: str, trainer: Mapping[str, Any]) -> Dictionary:
    w_enc, w_dec = _named(tensors, path, "encoder.weight"), _named(tensors, path, "decoder.weight")
    b_enc, bias = _named(tensors, path, "encoder.bias"), _named(tensors, path, "decoder.bias")
    if w_enc.ndim != 3 or len(w_enc) != 2:
        raise RunError(
            f"{path}: a crosscoder of {len(w_enc)} layers or models; one of base and tuned, in this order, is read"
        )
    least = torch.zeros_like(b_enc)
    if kind == _BATCH_CROSS:
        coded = str(trainer.get("code_normalization", "CROSSCODER")).rpartition(".")[2].lower()
        if coded not in ("crosscoder", "none"):
            raise RunError(f"{folder}: code_normalization {coded!r} is not read; crosscoder and none are")
        size = w_dec.norm(dim=2).sum(0) if coded == "crosscoder" else torch.ones_like(b_enc)
        least = float(_named(tensors, path, "threshold")) / size.clamp(min=1e-12)
    return _built(folder, "crosscoder", w_enc, b_enc, w_dec, bias, Above(least.clamp(min=0)))


def _built(
    folder: Path, form: Form, encoder: Tensor, encoder_bias: Tensor, decoder: Tensor, bias: Tensor, rule: Rule
) -> Dictionary:
    width, latents = bias.shape[-1], len(encoder_bias)
    fits = encoder.shape[1:] == (width, latents) and decoder.shape[1:] == (latents, width) and bias.shape == (2, width)
    if not fits:
        raise RunError(
            f"{folder}: its tensors do not fit: an encoder {tuple(encoder.shape)}, {latents} latents, a decoder "
            f"{tuple(decoder.shape)}, a bias {tuple(bias.shape)}"
        )
    return Dictionary(form, encoder, encoder_bias, decoder, bias, rule)


def _place(hook: str) -> dict[str, Any]:
    found = re.fullmatch(r"blocks\.(\d+)\.(\w+)", hook)
    return {"site": _SITES[found[2]], "layer": int(found[1])} if found and found[2] in _SITES else {}


def _pickle(path: Path) -> RunError:
    return RunError(
        f"{path}: a pickle, which can run any program as it is read; where you trust it, write its tensors with "
        "safetensors.torch.save_file(torch.load(path, weights_only=True), 'ae.safetensors') and remove the .pt"
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(read, dict):
        raise RunError(f"{path}: no JSON object")
    return read


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return {name: value.float() for name, value in load_file(path).items()}
    except (OSError, SafetensorError, ValueError) as error:
        raise RunError(f"{path}: cannot be read as safetensors: {str(error).splitlines()[0]}") from None


def _named(tensors: Tensors, path: Path, name: str) -> Tensor:
    if name not in tensors:
        raise RunError(f"{path}: no tensor {name!r}{choices(name, sorted(tensors))}")
    return tensors[name]


def _whole(k: Any, folder: Path) -> int:
    if k is None or int(k) < 1:
        raise RunError(f"{folder}: k, the number of latents that fire, is not given")
    return int(k)
