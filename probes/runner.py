"""Both models over the prompts, batch by batch, through the hooks and into tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from probes.errors import ActivationError
from probes.hooks import Read, lockstep, plan
from probes.hooks.plan import MODULE
from probes.pair import Pair
from probes.reduce import BatchReducer, OutputBasis, Piece, Places, matrix_of
from probes.residual import HeadGrams, head_grams, readout
from probes.store import RunWriter
from probes.suite import Suite
from probes.tables import Columns, ShardTables, located
from tv import behaviour
from tv.decomposition import decompose, fixed_k, k_of, left_basis
from tv.prompts import Batch, Encoded, Positions, batches, positions

Progress = Callable[[int, int, str], None]
Bases = Mapping[tuple[int, str], OutputBasis]

#: The SSA threshold whose subspace splits the ledger's direct term.
LEDGER_EPSILON = 0.05
#: A shard is closed after this many batches, which bounds what waits in memory.
BATCHES_PER_SHARD = 32


def capture(
    pair: Pair,
    tuned: str,
    suite: Suite,
    encoded: Sequence[Encoded],
    writer: RunWriter,
    *,
    bases: Bases,
    with_base: bool = True,
    progress: Progress | None = None,
) -> None:
    """Run both models over `encoded` and write tokens, gates, contributions, changes, ledger and behaviour.

    `with_base` writes the base's own `contributions` too (once is enough for several tuned models). Raises
    ActivationError, naming model, site and prompt, where an activation is not finite.
    """
    work = batches(encoded, suite.batch_size, pair.pad_id)
    reads = plan(pair.architecture, sites_of(suite))
    grams = _grams(pair) if "head_out" in sites_of(suite) else {}
    tables = ShardTables(writer, suite, tuned, pair.architecture, with_base)
    for i, batch in enumerate(work):
        tables.add(*_run_batch(pair, tuned, suite, batch, reads, grams, bases), batch)
        if (i + 1) % BATCHES_PER_SHARD == 0:
            tables.flush()
        if progress:
            progress(i + 1, len(work), tuned)
    tables.flush()


def sites_of(suite: Suite) -> set[str]:
    """The sites that a suite's measurements need, no others."""
    sites: set[str] = set()
    if "gates" in suite.measure and "gate" in suite.sites:
        sites.add("gate")
    if {"contributions", "changes"} & set(suite.measure):
        sites |= {"embed_out", "resid_final", *(set(suite.sites) - {"gate"})}
    if "ledger" in suite.measure:
        sites.add(MODULE)
    return sites


def output_bases(pair: Pair) -> Bases:
    """The pretrained output subspaces that the ledger splits by, for every matrix of every block."""
    found = {}
    for module in pair.architecture.modules:
        if module.kind == "linear" and module.component in ("attn", "mlp"):
            decomposition = decompose(matrix_of(module, pair.base.get_submodule(module.path)))
            k, k10 = k_of(decomposition, LEDGER_EPSILON), fixed_k(decomposition, module.shape[0])
            found[module.layer, module.name] = OutputBasis(left_basis(decomposition, max(k, k10)), k, k10)
    return found


def _run_batch(
    pair: Pair,
    tuned: str,
    suite: Suite,
    batch: Batch,
    reads: Sequence[Read],
    grams: Mapping[int, HeadGrams],
    bases: Bases,
) -> tuple[list[Piece], Columns, Columns]:
    """(pieces, token columns, behaviour columns) of one batch."""
    places, ledger_places = _places(batch, suite.positions), _places(batch, suite.ledger_positions)
    target, foil = (
        torch.tensor([getattr(item, name) for item in batch.encoded])[places.row] for name in ("target_id", "foil_id")
    )
    form = pair.norms[pair.architecture.final_norm]
    read_base, read_tuned = (readout(m, pair.architecture, form, target, foil) for m in (pair.base, pair.tuned))
    reducer = BatchReducer(pair, places, ledger_places, read_base, read_tuned, grams, bases)
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    logits = lockstep(pair.base, pair.tuned, reads, inputs, reducer)
    _require_finite(reducer, logits, batch, tuned)
    pieces = [_with_dla(piece, reducer.scales) if piece.table == "changes" else piece for piece in reducer.pieces]
    return pieces, _token_columns(pair, batch, places, *logits), _behaviour_columns(batch, tuned, *logits)


def _places(batch: Batch, which: Positions) -> Places:
    chosen = [(i, p) for i, item in enumerate(batch.encoded) for p in positions(item, which)]
    row, pos = (torch.tensor(values) for values in zip(*chosen, strict=True))
    return Places(row, pos)


def _grams(pair: Pair) -> dict[int, HeadGrams]:
    grams = {}
    for block in pair.architecture.blocks:
        module = pair.architecture.module(block.layer, "o")
        matrices = [matrix_of(module, model.get_submodule(module.path)).float() for model in (pair.base, pair.tuned)]
        if block.attn_post_norm is not None:
            form = pair.norms[block.attn_post_norm]
            gains = [form.gain(model.get_submodule(block.attn_post_norm)) for model in (pair.base, pair.tuned)]
            matrices = [matrix * gain[:, None] for matrix, gain in zip(matrices, gains, strict=True)]
        grams[block.layer] = head_grams(matrices[0], matrices[1], module.n_heads)
    return grams


def _with_dla(piece: Piece, scales: tuple[Tensor, Tensor] | None) -> Piece:
    """`piece` with its pushes divided by the final norm's scale, which only the end of the forward knows."""
    assert scales is not None
    columns = dict(piece.columns)
    for side, scale in zip(("base", "tuned"), scales, strict=True):
        push = columns.pop(f"push_{side}")
        columns[f"dla_{side}"] = push / (scale if push.ndim == 1 else scale[:, None])
    norm, delta = columns["norm_base"], columns["delta_norm"]
    columns["relative_change"] = torch.where(norm > 0, delta / norm, torch.zeros_like(norm))
    return Piece(piece.table, piece.layer, piece.labels, columns, piece.places, piece.site)


def _require_finite(reducer: BatchReducer, logits: tuple[Tensor, Tensor], batch: Batch, tuned: str) -> None:
    """Every site's norms in execution order, then the logits: the first that is not finite is named."""
    for piece in reducer.pieces:
        for column, model in (("norm_base", "base"), ("norm_tuned", tuned), ("delta_norm", tuned)):
            values = piece.columns.get(column)
            if values is not None and not bool(values.isfinite().all()):
                bad = (~values.isfinite()).flatten(1).any(1) if values.ndim > 1 else ~values.isfinite()
                row = piece.places.row[bad.nonzero()[0, 0]]
                _refuse(model, str(piece.site), batch.encoded[int(row)])
    for model, values in zip(("base", tuned), logits, strict=True):
        for i, item in enumerate(batch.encoded):
            if not bool(values[i, : len(item.ids)].isfinite().all()):
                _refuse(model, "logits", item)


def _refuse(model: str, site: str, item: Encoded) -> None:
    raise ActivationError(
        f"model {model!r}: {site} is NaN or Inf on prompt {item.prompt.id!r}; "
        "check that checkpoint (an overflow in its weights), or leave the prompt out"
    )


def _token_columns(pair: Pair, batch: Batch, places: Places, base: Tensor, tuned: Tensor) -> Columns:
    nll: dict[str, list[Tensor]] = {"nll_base": [], "nll_tuned": [], "kl": []}
    texts: list[str] = []
    for i, item in enumerate(batch.encoded):
        at = places.pos[places.row == i]
        ids = torch.tensor(item.ids)
        for name, logits in (("nll_base", base), ("nll_tuned", tuned)):
            nll[name].append(behaviour.token_nll(logits[i, : len(ids)], ids)[at])
        nll["kl"].append(behaviour.kl_divergence(base[i, at], tuned[i, at]))
        texts += [pair.tokenizer.decode([item.ids[p]]) for p in at.tolist()]
    columns: Columns = {name: torch.cat(parts).numpy() for name, parts in nll.items()}
    columns["token_id"] = batch.input_ids[places.row, places.pos].numpy()
    columns["token"] = np.array(texts, dtype=object)
    return located(batch, places) | columns


def _behaviour_columns(batch: Batch, tuned: str, base: Tensor, logits: Tensor) -> Columns:
    rows: list[tuple[str, str, str, float]] = []
    ids = [item.prompt.id for item in batch.encoded]
    for model, values in (("base", base), (tuned, logits)):
        for metric, found in behaviour.metrics(values, batch).items():
            rows += [(i, model, metric, float(v)) for i, v in zip(ids, found, strict=True) if not torch.isnan(v)]
    for i, item in enumerate(batch.encoded):
        at = list(positions(item, "target"))
        divergence = behaviour.kl_divergence(base[i, at], logits[i, at]).mean()
        rows.append((item.prompt.id, tuned, "kl", float(divergence)))
    names = ("prompt_id", "model", "metric", "value")
    return {name: np.array(values, dtype=object) for name, values in zip(names, zip(*rows, strict=True), strict=True)}
