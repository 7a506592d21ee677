"""The capture's tables made with TransformerLens and with nnsight, for `capture_speed.py`.

Each caches what the tables need as its documentation shows (`run_with_cache` with a names filter, `tracer.cache` of
named modules), one model after the other, and shares everything after that: whole-tensor PyTorch, no Python loop over
places, heads by the contraction that TransformerLens's own `compute_head_results` does, one layer at a time. Gates,
contributions, changes (heads and DLA included) and tokens are written as zstd Parquet files, one a table and layer. The
ledger, edit distances and counts by neuron are left out, so the neighbours have a little less to do.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tv.prompts import behaviour
from tv.prompts.encoding import Batch


@dataclass(frozen=True)
class Seen:
    """What one model's cache holds of a batch, by name whatever the library."""

    embed: Float[Tensor, "batch pos d_model"]
    final: Float[Tensor, "batch pos d_model"]  # the residual stream that the final norm reads
    logits: Float[Tensor, "batch pos vocab"]
    layer: Callable[[int], Layer]


@dataclass(frozen=True)
class Layer:
    """One layer of it."""

    gate: Float[Tensor, "batch pos d_ff"]
    z: Float[Tensor, "batch pos heads d_head"]
    w_o: Float[Tensor, "heads d_head d_model"]
    attn: Float[Tensor, "batch pos d_model"]
    mlp: Float[Tensor, "batch pos d_model"]


Cache = Callable[[Batch], Seen]


def transformer_lens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, everything: bool = False) -> Cache:
    """`run_with_cache` on a bridge; `everything` without a names filter, as the first example in its docs."""
    from transformer_lens.model_bridge import TransformerBridge

    with tempfile.TemporaryDirectory() as folder:  # for the configuration alone
        model.config.save_pretrained(folder)
        bridge = TransformerBridge.boot_transformers(
            folder, hf_model=_own(model), tokenizer=copy.deepcopy(tokenizer), device="cpu", dtype=model.dtype
        )
    blocks = range(len(bridge.blocks))
    last = f"blocks.{blocks[-1]}.hook_resid_post"
    sites = ("attn.hook_z", "hook_attn_out", "mlp.gate.hook_out", "hook_mlp_out")
    names = ["hook_embed", last, *(f"blocks.{i}.{site}" for i in blocks for site in sites)]

    def run(batch: Batch) -> Seen:
        with torch.inference_mode():
            logits, cache = bridge.run_with_cache(
                batch.input_ids, attention_mask=batch.attention_mask, names_filter=None if everything else names
            )

        def layer(i: int) -> Layer:
            z, attn, gate, mlp = (cache[f"blocks.{i}.{site}"] for site in sites)
            return Layer(gate, z, bridge.blocks[i].attn.W_O, attn, mlp)

        return Seen(cache["hook_embed"], cache[last], logits, layer)

    return run


def nnsight(model: PreTrainedModel, *, everything: bool = False) -> Cache:
    """`tracer.cache` in a trace; `everything` of every module, as the first example in its docs."""
    from nnsight import NNsight

    wrapped, heads = NNsight(_own(model)), model.config.num_attention_heads
    blocks = range(model.config.num_hidden_layers)
    sites = ("self_attn.o_proj", "mlp.gate_proj", "mlp")
    embed, norm, layers = (
        f"model.model.{name}" for name in ("embed_tokens", "norm", "layers")
    )  # from the wrapper down
    names = [embed, norm, "model.lm_head", *(f"{layers}.{i}.{site}" for i in blocks for site in sites)]

    def run(batch: Batch) -> Seen:
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False}
        with torch.no_grad():  # noqa: SIM117 (in one statement with the trace it is silently ignored)
            with wrapped.trace(**inputs) as tracer:
                cache = tracer.cache(modules=None if everything else names, include_inputs=True)

        def layer(i: int) -> Layer:
            o, gate, mlp = (cache[f"{layers}.{i}.{site}"] for site in sites)
            w_o = model.model.layers[i].self_attn.o_proj.weight.T.unflatten(0, (heads, -1))
            return Layer(gate.output, o.input.unflatten(-1, (heads, -1)), w_o, o.output, mlp.output)

        return Seen(cache[embed].output, cache[norm].input, cache["model.lm_head"].output, layer)

    return run


def write_tables(
    models: Sequence[PreTrainedModel], caches: Sequence[Cache], batch: Batch, directory: Path, *, tuned: str = "tuned"
) -> None:
    """Capture one batch in both models and write its tables below `directory`."""
    seen = [cache(batch) for cache in caches]
    with torch.inference_mode():
        pulls = [_pull(model, own.final, batch) for model, own in zip(models, seen, strict=True)]
        rows = _places(batch)
        base_seen, tuned_seen = seen
        _write_changes(directory, -1, rows, tuned, {"embed": _whole(base_seen.embed, tuned_seen.embed, pulls)})
        for i in range(models[0].config.num_hidden_layers):
            base, other = (own.layer(i) for own in seen)
            components = {
                "attn": _whole(base.attn, other.attn, pulls),
                "mlp": _whole(base.mlp, other.mlp, pulls),
                "head": _heads(base, other, pulls),
            }
            _write_changes(directory, i, rows, tuned, components)
            _write(directory, "gates", i, {"tuned": tuned, **rows, **_gates(base.gate, other.gate)})
        _write(directory, "tokens", -1, {"tuned": tuned, **rows, **_tokens(batch, *(own.logits for own in seen))})


def _own(model: PreTrainedModel) -> PreTrainedModel:
    """A model of its own modules over the same weights, so that no library's wrapping shows in another's timing."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def _pull(model: PreTrainedModel, final: Tensor, batch: Batch) -> Float[Tensor, "batch pos d_model"]:
    """What a contribution is multiplied with for its share of logit[target] − logit[foil], the final scale frozen."""
    target, foil = (torch.tensor([getattr(item, name) for item in batch.encoded]) for name in ("target_id", "foil_id"))
    unembed, norm = model.lm_head.weight, model.model.norm
    direction = (unembed[target] - unembed[foil]) * norm.weight
    scale = (final.square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()
    return direction[:, None] / scale


def _whole(base: Tensor, tuned: Tensor, pulls: Sequence[Tensor]) -> dict[str, Tensor]:
    return _compare(base, tuned, *((x * pull).sum(-1) for x, pull in zip((base, tuned), pulls, strict=True)))


def _heads(base: Layer, tuned: Layer, pulls: Sequence[Tensor]) -> dict[str, Tensor]:
    results = [torch.einsum("...hd,hdm->...hm", own.z, own.w_o) for own in (base, tuned)]
    shares = [(x @ pull[..., None])[..., 0] for x, pull in zip(results, pulls, strict=True)]
    return _compare(*results, *shares)


def _compare(base: Tensor, tuned: Tensor, dla_base: Tensor, dla_tuned: Tensor) -> dict[str, Tensor]:
    norm_base, norm_tuned, delta_norm = base.norm(dim=-1), tuned.norm(dim=-1), (tuned - base).norm(dim=-1)
    return {
        "norm_base": norm_base,
        "norm_tuned": norm_tuned,
        "delta_norm": delta_norm,
        "relative_change": delta_norm / norm_base,
        "cosine": torch.cosine_similarity(base, tuned, dim=-1),
        "dla_base": dla_base,
        "dla_tuned": dla_tuned,
    }


def _gates(base: Tensor, tuned: Tensor) -> dict[str, NDArray | list[bytes]]:
    bits, bits_tuned = ((gate > 0).flatten(0, 1) for gate in (base, tuned))
    flips, both, either = bits ^ bits_tuned, bits & bits_tuned, bits | bits_tuned
    n_flips, active, active_tuned = flips.sum(-1), bits.float().mean(-1), bits_tuned.float().mean(-1)
    return {
        "gate_base": np.packbits(bits.numpy(), axis=-1),
        "gate_xor": np.packbits(flips.numpy(), axis=-1),
        "n_flips": n_flips.int().numpy(),
        "flip_rate": (n_flips / bits.shape[-1]).numpy(),
        "chance_flip_rate": (active + active_tuned - 2 * active * active_tuned).numpy(),
        "jaccard": (both.sum(-1) / either.sum(-1)).numpy(),
        "active_base": active.numpy(),
        "active_tuned": active_tuned.numpy(),
    }


def _tokens(batch: Batch, base: Tensor, tuned: Tensor) -> dict[str, NDArray]:
    both = list(zip(base, tuned, batch.input_ids, strict=True))  # prompt by prompt
    columns = {
        "token_id": batch.input_ids,
        "nll_base": torch.stack([behaviour.token_nll(logits, ids) for logits, _, ids in both]),
        "nll_tuned": torch.stack([behaviour.token_nll(logits, ids) for _, logits, ids in both]),
        "kl": torch.stack([behaviour.kl_divergence(logits, other) for logits, other, _ in both]),
    }
    return {name: values.flatten().numpy() for name, values in columns.items()}


def _places(batch: Batch) -> dict[str, NDArray]:
    """prompt_id and pos of every place. These batches have no padding."""
    n_prompts, length = batch.input_ids.shape
    ids = np.array([item.prompt.id for item in batch.encoded], dtype=object)
    return {
        "prompt_id": np.repeat(ids, length),
        "pos": np.tile(np.arange(length, dtype=np.int32), n_prompts),
    }


def _write_changes(
    directory: Path, layer: int, rows: dict[str, NDArray], tuned: str, components: Mapping[str, dict[str, Tensor]]
) -> None:
    """`changes`, and `contributions` of both models, whole components and heads of one layer."""
    parts = list(_frames(rows, components))
    changes = pd.concat(parts, ignore_index=True)
    _write(directory, "changes", layer, changes.assign(tuned=tuned))
    by_model = [
        changes[["prompt_id", "pos", "component", "head"]].assign(
            model=model, norm=changes[f"norm_{side}"], dla=changes[f"dla_{side}"]
        )
        for model, side in (("base", "base"), (tuned, "tuned"))
    ]
    _write(directory, "contributions", layer, pd.concat(by_model, ignore_index=True))


def _frames(rows: dict[str, NDArray], components: Mapping[str, dict[str, Tensor]]) -> Iterator[pd.DataFrame]:
    for component, measures in components.items():
        n_heads = measures["norm_base"].shape[2] if component == "head" else 1
        columns = {name: np.repeat(values, n_heads) for name, values in rows.items()}
        head = np.arange(n_heads, dtype=np.int16) if component == "head" else np.array([-1], dtype=np.int16)
        columns["head"] = np.tile(head, len(rows["pos"]))
        columns["component"] = np.full(len(columns["head"]), "attn" if component == "head" else component, dtype=object)
        yield pd.DataFrame(columns | {name: values.flatten().numpy() for name, values in measures.items()})


def _write(directory: Path, table: str, layer: int, columns: pd.DataFrame | Mapping[str, Any]) -> None:
    path = directory / table / f"layer={layer}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(columns, pd.DataFrame):
        body = pa.Table.from_pandas(columns, preserve_index=False)
    else:
        n = len(columns["pos"])
        body = pa.table({name: _array(values, n) for name, values in columns.items()})
    pq.write_table(body, path, compression="zstd")


def _array(values: object, n: int) -> pa.Array:
    if isinstance(values, np.ndarray) and values.ndim == 2:
        width = pa.binary(values.shape[1])
        return pa.FixedSizeBinaryArray.from_buffers(width, n, [None, pa.py_buffer(values.tobytes())])
    return pa.array([values] * n if isinstance(values, str) else values)
