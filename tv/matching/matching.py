"""Whether a tuned model is written as its base is, in the same order, sizes and bases; and the tuned model so written.

Models that were trained from one base keep their writing, and the check confirms it. In a model whose neurons were
permuted, or that was trained separately, T is mostly the difference between two orders: match it first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

import pandas as pd
from torch import Tensor

from tv.checkpoints.adapters.live import base_beside
from tv.checkpoints.checkpoint import Checkpoint
from tv.checkpoints.live import LiveSource, load_model
from tv.checkpoints.own_tokenizer import encoder
from tv.checkpoints.pairing import WeightPair, open_pair
from tv.errors import InputError
from tv.matching.coactivity import Sums, gather_sums
from tv.matching.conventions import Conventions
from tv.matching.permutation import Matching
from tv.matching.reordered import Reordering
from tv.matching.rewriting import Rewriting, rewrite_heads, rewrite_norm, settle_norm
from tv.matching.sameness import Sameness, sameness
from tv.matching.units import Heads, Neurons, units_of
from tv.prompts.behaviour import PromptSource, batched, gather
from tv.prompts.files import Prompts
from tv.prompts.notes import prompt_notes
from tv.runtime.compute import Compute

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

On = Literal["weights", "activations"]

_MEMORY = 2**31  # bytes of sums held at a time; both models pass over the prompts once for each such part


def align(
    base: LiveSource | Checkpoint,
    tuned: LiveSource | Checkpoint,
    *,
    on: On = "weights",
    prompts: PromptSource | Sequence[PromptSource] = (),
    batch_size: int = 16,
    compute: Compute = Compute(),
) -> pd.DataFrame:
    """Check before any comparison which parts of the tuned model are the base's, written differently.

    Every layer's neurons and heads are matched with the base's by linear assignment, those of each expert among
    themselves; then norm gains and the bases of values and keys are compared. For fine-tunes of one base expect the
    identity: 0 moved, gain 0.

    Args:
        base: Whatever `tv.open_checkpoint` opens; on activations not an open checkpoint, which cannot run.
        tuned: Likewise.
        on: "weights" compares matrices (see `tv.matching.permutation`), "activations" what neurons and heads do over
            `prompts`, both models on the same tokens. Experts that a router chooses are compared by weights in either
            case.
        prompts: JSONL files, `tv.PromptSet`s or `tv.Prompt`s, one or several; for activations only.
        batch_size: Prompts in one forward pass.
        compute: Where models compute, in which dtype, and the callback for progress.

    Returns:
        A row per layer, expert and kind (`neurons`; `shared_neurons` of an expert that every token passes; `kv_groups`;
        `queries`; `norms` by channel; `values` and `keys` by key-value group): `layer kind expert n moved_fraction
        sign_flipped_fraction scale_moved_fraction mean_score identity_score gain on`. The fractions of sign and scale
        are NaN for what has no such symmetry (MLPs without a GLU, and all but neurons). Scores are means of cosines in
        [−1, 1], and `gain` = mean_score − identity_score. `attrs["sameness"]` says what that explains of T.

    Raises:
        InputError: The two do not belong together, nothing in them can be matched, or `prompts` do not fit `on`.

    Source: arXiv 2209.04836 (weights), arXiv 1511.07543 (activations).

    Examples:
        >>> table = tv.align("data/models/base", "data/models/medical")
        >>> float(table.moved_fraction.max()), table.attrs["sameness"]["sentence"]
        (0.0, 'no part of T is a reparametrisation: it can be read as it is')
    """
    return match_pair(base, tuned, on=on, prompts=prompts, batch_size=batch_size, compute=compute).table


def matched(
    base: LiveSource | Checkpoint,
    tuned: LiveSource | Checkpoint,
    *,
    on: On = "weights",
    prompts: PromptSource | Sequence[PromptSource] = (),
    batch_size: int = 16,
    compute: Compute = Compute(),
) -> Checkpoint:
    """The tuned side written as the base is, in its order, sizes and bases: the same function, as it is read.

    It can be used wherever a tuned side can, as in `tv.ssa(base, tv.matched(base, tuned))`; nothing is written.

    Args:
        base: As in `tv.align`.
        tuned: The side that is written as the base is.
        on: As in `tv.align`: "weights" or "activations".
        prompts: As in `tv.align`.
        batch_size: Prompts in one forward pass.
        compute: Where models compute, in which dtype, and the callback for progress.

    Returns:
        An open checkpoint; the tuned one itself where nothing has to move.

    Raises:
        InputError: As `tv.align` does.

    Source: arXiv 2209.04836 (weights), arXiv 1511.07543 (activations).

    Examples:
        >>> tv.matched("data/models/base", "data/models/medical")
        Checkpoint('data/models/medical', 57 tensors)
    """
    return match_pair(base, tuned, on=on, prompts=prompts, batch_size=batch_size, compute=compute).tuned


@dataclass(frozen=True)
class PairMatching:
    """What `align` and `matched` find, from one matching."""

    table: pd.DataFrame
    tuned: Checkpoint  # as `matched` returns it
    is_identity: bool  # nothing had to move
    sameness: Sameness  # what that explains of T


def match_pair(
    base: LiveSource | Checkpoint,
    tuned: LiveSource | Checkpoint,
    *,
    on: On = "weights",
    prompts: PromptSource | Sequence[PromptSource] = (),
    batch_size: int = 16,
    compute: Compute = Compute(),
) -> PairMatching:
    """Compare all norms, then every FFN and every attention layer, one at a time; see `align` and `matched`."""
    _check(on, prompts)
    base = base_beside(base, tuned)
    pair = open_pair(base, tuned)
    units, notes = units_of(pair)
    if not units:
        raise InputError(
            f"{pair.tuned.source}: {pair.base.architecture.name} has no FFN or attention whose roles are known, so "
            f"nothing can be matched{': ' + notes[0] if notes else ''}"
        )
    responses: Iterator[Sums | None] = iter([None] * len(units))
    if on == "activations":
        for source in (base, tuned):
            if isinstance(source, Checkpoint):
                raise InputError(f"{source.source}: an open checkpoint does not run; pass its path or a live model")
        assert not isinstance(base, Checkpoint) and not isinstance(tuned, Checkpoint)
        asked = gather(prompts)
        tokenizer, said = encoder(base, [pair.tuned], asked)
        notes += [*(note for note in said if note not in pair.facts.notes), *prompt_notes(asked, tokenizer)]
        responses = _responses(base, tuned, pair, units, asked, tokenizer, batch_size, compute)
    order, conventions = Reordering(pair.tuned), Conventions(pair.base.config, pair.base.architecture)

    def written() -> WeightPair:
        return replace(pair, tuned=order.checkpoint())

    rows, moved_gains = [], []
    for norm in (module for module in pair.modules if module.kind == "norm"):
        rewriting = rewrite_norm(order, pair, norm, conventions)
        if rewriting is not None:
            rows.append(_rewritten(rewriting))
            moved_gains += [norm] * bool(rewriting.changed)
    for i, (unit, sums) in enumerate(zip(units, responses, strict=True)):
        matchings = unit.match(written(), sums, compute.tensor_device)
        unit.reorder(order, matchings)
        rows += [
            {"layer": unit.layer, "kind": kind, "expert": unit.expert}
            | _row(matching)
            | {"on": "weights" if sums is None else "activations"}
            for kind, matching in zip(unit.kinds, matchings, strict=True)
        ]
        if isinstance(unit, Heads):
            rows += [_rewritten(found) for found in rewrite_heads(order, written(), unit, conventions)]
        compute.tell("matching", i + 1, len(units), f"{unit.kinds[0].replace('_', ' ')} {unit.layer}")
    for norm in moved_gains:
        settle_norm(order, written(), norm, conventions)
    table = pd.DataFrame(rows).sort_values(["layer", "expert"], kind="stable", ignore_index=True)
    found = sameness(pair, order, _changes(table))
    table.attrs["fingerprints"] = {
        "base": pair.base.fingerprint()["content"],
        "tuned": pair.tuned.fingerprint()["content"],
    }
    table.attrs["notes"] = [*pair.facts.notes, *notes]
    table.attrs["sameness"] = found.as_dict()
    tuned_there = order.checkpoint()
    return PairMatching(table, tuned_there, tuned_there is pair.tuned, found)


def _responses(
    base: LiveSource,
    tuned: LiveSource,
    pair: WeightPair,
    units: Sequence[Neurons | Heads],
    prompts: Prompts,
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int,
    compute: Compute,
) -> Iterator[Sums | None]:
    """The sums of each unit, in order; one pass takes as many units as fit into memory."""
    load = partial(load_model, dtype=compute.dtype, device=compute.device)
    models = load(base), load(tuned, base=base)
    batches, _ = (batched(prompts, model, tokenizer, batch_size) for model in models)  # both can take the prompts
    waiting: list[Sums | None] = []
    passing: dict[str, Sums] = {}
    held = 0
    for unit in units:
        sums, size = unit.sums()
        if held + 4 * size > _MEMORY and passing:
            gather_sums(*models, batches, passing)
            yield from waiting
            waiting, passing, held = [], {}, 0
        if unit.site is not None:
            passing[unit.site] = sums
            held += 4 * size
        waiting.append(sums if unit.site is not None else None)
    gather_sums(*models, batches, passing)
    yield from waiting


def _row(matching: Matching) -> dict[str, float]:
    glu = matching.scale is not None
    score, identity = _mean(matching.score), _mean(matching.identity_score)
    return {
        "n": len(matching.permutation),
        "moved_fraction": _mean(matching.moved),
        "sign_flipped_fraction": _mean(matching.flipped) if glu else math.nan,
        "scale_moved_fraction": _mean(matching.rescaled) if glu else math.nan,
        "mean_score": score,
        "identity_score": identity,
        "gain": score - identity,
    }


def _rewritten(found: Rewriting) -> dict[str, object]:
    return {
        "layer": found.layer,
        "kind": found.kind,
        "expert": -1,
        "n": found.n,
        "moved_fraction": found.changed / found.n,
        "sign_flipped_fraction": math.nan,
        "scale_moved_fraction": math.nan,
        "mean_score": found.score,
        "identity_score": found.identity_score,
        "gain": found.score - found.identity_score,
        "on": "weights",
    }


def _changes(table: pd.DataFrame) -> dict[str, list[int]]:
    """The layers of each kind in which something changes its writing."""
    shares = table[["moved_fraction", "sign_flipped_fraction", "scale_moved_fraction"]]
    changed = table[shares.gt(0).any(axis=1)]
    return {str(kind): sorted(set(rows.layer.tolist())) for kind, rows in changed.groupby("kind", sort=False)}


def _mean(values: Tensor) -> float:
    return math.fsum(values.tolist()) / len(values)


def _check(on: On, prompts: PromptSource | Sequence[PromptSource]) -> None:
    if on not in ("weights", "activations"):
        raise InputError(f"on {on!r}: match on weights or on activations")
    given = isinstance(prompts, str) or not isinstance(prompts, Sequence) or len(prompts) > 0
    if on == "activations" and not given:
        raise InputError("on 'activations': activations come from prompts; give a JSONL file of them")
    if on == "weights" and given:
        raise InputError("on 'weights': prompts would not be read; match on activations, or leave them out")
