"""The one-minute form: how far a tuning moves predictions on general texts, beside random T."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from probes.gating.estimates import Average
from probes.gating.judging import Bound, Verdict, judge
from probes.gating.random_vectors import Form, form_of, move
from tv.architecture.values import values_of
from tv.arithmetic.variants import Mover, of_one_form
from tv.checkpoints.extraction import extract
from tv.checkpoints.live import load_model, load_tokenizer
from tv.checkpoints.opening import open_checkpoint
from tv.errors import InputError
from tv.experiments.cells import Cells, identity
from tv.runtime.compute import Compute
from tv.runtime.seeds import seed_of
from tv.stats.means import Floats, mean_interval

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: What a tuning is among random T.
Standing = Literal["more than random", "less than random", "like random", "nothing moved"]
#: How many random T are drawn first, and in all where these do not settle it: 2/(1 + 39) is 5 %.
FIRST, DRAWS = 20, 39
LEVEL = 0.05
#: Tokens of a text that are read, at most.
LONGEST = 10
_AT_ONCE = 32  # texts
_WIDER = "compute in float32"
_UNSOUND = f"look for NaN in its weights, or {_WIDER}"
#: The base's logits, and what they give each token.
Base = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Checked:
    """What a tuning does on general texts.

    Attributes:
        kl: Mean KL(base ‖ tuned) of a token over the whole vocabulary, then over texts, nats; NaN where nothing moved.
        lo: The lower end of its 95 % interval over texts.
        hi: The upper end.
        texts: How many texts were read.
        tokens: How many of their places.
        random: The same mean for each random T.
        p: Two-sided: twice the smaller of `p_more` and `p_less`, at most 1; NaN where nothing moved.
        p_more: (1 + random T that reach it)/(1 + random T).
        p_less: (1 + random T that it reaches)/(1 + random T).
        standing: What it is among random T.
        verdict: "pass" if it differs from random T and is at most `at_most`; "fail" if nothing moved or it is larger;
            otherwise "cannot tell".
        notes: What a reader should know.

    Examples:
        >>> found = probes.check("data/models/base", "data/models/base")
        >>> found.standing, found.verdict, found.random
        ('nothing moved', 'fail', ())
    """

    kl: float
    lo: float
    hi: float
    texts: int
    tokens: int
    random: tuple[float, ...]
    p: float
    p_more: float
    p_less: float
    standing: Standing
    verdict: Verdict
    notes: tuple[str, ...] = ()


def check(
    base: str | Path,
    tuned: str | Path,
    *,
    texts: Sequence[str] | None = None,
    at_most: float | None = None,
    draws: int = DRAWS,
    longest: int = LONGEST,
    seed: int = 0,
    keep: str | Path | None = None,
    compute: Compute = Compute(),
) -> Checked:
    """Compare a tuning's effect on general texts with that of random T.

    A random T has T's norm and its effective rank in every matrix, so that a random adapter is one more of them.
    If T lies among the first twenty, no further one could set it apart, and none is drawn.

    Args:
        base: The pretrained checkpoint.
        tuned: The fine-tuned side: a checkpoint, an adapter, or a vector.
        texts: The texts; default: those that come with the package.
        at_most: The KL that is allowed, nats per token; without it any is.
        draws: Random T, at most.
        longest: Tokens of a text that are read.
        seed: Of the random T.
        keep: A directory that keeps what each random T gave, so that a check that was stopped resumes. Results for
            other models, texts, seeds or dtypes are not reused.
        compute: Where and how to compute.

    Returns:
        The KL and its null.

    Raises:
        InputError: A pair that does not belong together, too few draws or texts, or values that are not finite.

    Examples:
        >>> found = probes.check("data/models/base", "data/models/medical", longest=3)
        >>> found.texts, len(found.random), found.standing
        (32, 39, 'more than random')
    """
    if draws < DRAWS:
        raise InputError(f"{draws} random T: by rank nothing can stand out of fewer than {DRAWS}; draw {DRAWS} or more")
    if longest < 2:
        raise InputError(f"{longest} tokens of a text: read at least 2")
    chosen = list(texts) if texts is not None else general_texts()
    if at_most is not None and not at_most >= 0:
        raise InputError(f"at most {at_most} nats per token: a KL is 0 or more; give such a number")
    kept = Cells(keep)
    vector = extract(base, tuned)
    tokenizer = load_tokenizer(base)
    model = load_model(base, dtype=compute.dtype, device=compute.device)
    model, (vector,) = of_one_form(model, [vector])
    batches, notes = _encoded(chosen, tokenizer, longest, model)
    with torch.inference_mode():
        read = [_logits(model, *batch) for batch in batches]
        if not all(logits.isfinite().all() for logits in read):
            raise InputError(f"{base}: its predictions in {compute.dtype} are not finite numbers; {_UNSOUND}")
        before = [(logits, logits.softmax(-1)) for logits in read]
        starts = {tensor: tensor.detach().clone() for tensor in _moving(model, vector.shapes)}
        with Mover(model, [vector]) as mover:
            mover.to({vector: 1.0})
            values = _kl(model, batches, before)
            forms = {tensor: _forms(tensor - start) for tensor, start in starts.items()}
        if not np.isfinite(values).all():
            raise InputError(f"{tuned}: its predictions in {compute.dtype} are not finite numbers; {_UNSOUND}")
        if not any(form.norm for each in forms.values() for form in each):
            return Checked(
                *(math.nan, math.nan, math.nan, len(values), _places(batches), ()),
                *(math.nan, math.nan, math.nan, "nothing moved", "fail", tuple(notes)),
            )
        value = float(values.mean())
        random: list[float] = []
        asked = {
            "check": [open_checkpoint(base).fingerprint()["content"], identity(vector)],
            "forms": [[astuple(form) for form in each] for each in forms.values()],
            "texts": [ids[mask.bool()].tolist() for ids, mask, _ in batches],
            "dtype": compute.dtype,
        }
        for drawn in _drawn(model, starts, forms, batches, before, seed, draws, compute, kept, asked):
            if not math.isfinite(drawn):
                raise InputError(f"random T of T's norms give no finite numbers in {compute.dtype}; {_WIDER}")
            random.append(drawn)
            if len(random) >= FIRST and _two_sided(value, random, draws) > LEVEL:
                break
    more, less = ((1 + sum(side)) / (1 + len(random)) for side in _reaching(value, random))
    p = min(1.0, 2 * min(more, less))
    standing: Standing = "like random" if p > LEVEL else "more than random" if more < less else "less than random"
    _, lo, hi = (float(part) for part in mean_interval(values)[:3])
    verdict = _verdict(values, standing, at_most)
    return Checked(
        value, lo, hi, len(values), _places(batches), tuple(random), p, more, less, standing, verdict, tuple(notes)
    )


def general_texts() -> list[str]:
    """The texts that come with the package: prose, code, dialogue, lists, four languages."""
    return files("probes.gating").joinpath("texts.txt").read_text(encoding="utf-8").strip().split("\n\n")


def _verdict(values: Floats, standing: Standing, at_most: float | None) -> Verdict:
    bounded = "pass" if at_most is None else judge([Average(values, None)], [Bound(at_most)])[0].verdict
    if bounded == "fail":
        return "fail"
    return "cannot tell" if bounded == "cannot tell" or standing == "like random" else "pass"


def _two_sided(value: float, random: Sequence[float], draws: int) -> float:
    """The least p that is possible once all are drawn."""
    return 2 * (1 + min(sum(side) for side in _reaching(value, random))) / (1 + draws)


def _reaching(value: float, random: Sequence[float]) -> tuple[list[bool], list[bool]]:
    return [drawn >= value for drawn in random], [drawn <= value for drawn in random]


def _moving(model: PreTrainedModel, names: Mapping[str, object]) -> list[Tensor]:
    """The tensors that a vector of these names moves, each once."""
    there = values_of(model) | dict(model.named_parameters(remove_duplicate=False))
    return list(dict.fromkeys(there[name] for name in names if name in there))


def _forms(delta: Tensor) -> list[Form]:
    """Of a fused tensor, each expert's."""
    return [form_of(part) for part in (delta if delta.ndim > 2 else delta[None])]


def _drawn(
    model: PreTrainedModel,
    starts: Mapping[Tensor, Tensor],
    forms: Mapping[Tensor, Sequence[Form]],
    batches: Sequence[tuple[Tensor, Tensor, Tensor]],
    before: Sequence[Base],
    seed: int,
    draws: int,
    compute: Compute,
    kept: Cells,
    asked: Mapping[str, object],
) -> Iterator[float]:
    """The mean KL of one random T after another, those that are kept first; the model is as it was at the end."""
    try:
        for draw in range(draws):
            key = {**asked, "seed": seed, "draw": draw}
            found = kept.find(key)
            if found is None:
                generator = torch.Generator().manual_seed(seed_of(f"check {seed} {draw}"))
                for tensor, start in starts.items():
                    fused = tensor.ndim > 2
                    for form, out, part in zip(
                        forms[tensor], tensor if fused else tensor[None], start if fused else start[None], strict=True
                    ):
                        move(part, form, out, generator)
                found = kept.keep(key, pd.DataFrame({"kl": [float(_kl(model, batches, before).mean())]}))
            yield float(found.kl[0])
            compute.tell("random T", draw + 1, draws, "")
    finally:
        for tensor, start in starts.items():
            tensor.copy_(start)


def _encoded(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, longest: int, model: PreTrainedModel
) -> tuple[list[tuple[Tensor, Tensor, Tensor]], list[str]]:
    """(ids, attention, the places that count) in batches, right-padded; what a text begins with does not count."""
    special, rows = set(tokenizer.all_special_ids), model.get_input_embeddings().weight.shape[0]
    cut = [tokenizer(text, verbose=False).input_ids[:longest] for text in texts]
    encoded = [ids for ids in cut if sum(i not in special for i in ids) > 1]
    if len(encoded) < 8:
        raise InputError(f"{len(encoded)} texts of two tokens or more: intervals need at least 8; give more texts")
    if (largest := max(max(ids) for ids in encoded)) >= rows:
        raise InputError(f"the tokenizer gives id {largest}, and the model's embedding has {rows} rows; resize it")
    unknown = tokenizer.unk_token_id
    n_unknown = sum(i == unknown for ids in encoded for i in ids) if unknown is not None else 0
    n_all = sum(map(len, encoded))
    notes = [f"{n_unknown} of {n_all} tokens are unknown to this tokenizer"] if n_unknown > n_all / 20 else []
    encoded.sort(key=len)
    batches = []
    for first in range(0, len(encoded), _AT_ONCE):
        part = encoded[first : first + _AT_ONCE]
        width = max(map(len, part))
        ids = torch.tensor([[*row, *[row[-1]] * (width - len(row))] for row in part], device=model.device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in part], device=model.device)
        counts = torch.tensor([[_from(row, special) <= i < len(row) for i in range(width)] for row in part])
        batches.append((ids, mask, counts.to(model.device)))
    return batches, notes


def _from(ids: Sequence[int], special: set[int]) -> int:
    """The first place behind what every text begins with."""
    return next(i for i, token in enumerate(ids) if token not in special)


def _logits(model: PreTrainedModel, ids: Tensor, mask: Tensor, counts: Tensor) -> Tensor:
    """(places that count, vocabulary)."""
    return model(input_ids=ids, attention_mask=mask, use_cache=False).logits[counts].float()


def _kl(model: PreTrainedModel, batches: Sequence[tuple[Tensor, Tensor, Tensor]], before: Sequence[Base]) -> Floats:
    """The mean KL of each text."""
    means = []
    for batch, base in zip(batches, before, strict=True):
        values = _kl_of_logits(*base, _logits(model, *batch)).double().cpu()
        means += [part.mean().item() for part in values.split(batch[2].sum(1).tolist())]
    return np.array(means)


def _kl_of_logits(base: Tensor, p: Tensor, moved: Tensor) -> Tensor:
    """KL(base ‖ moved) at every place: log Σ p·e^d − Σ p·d of what the logits moved by, d.

    So written it is exact where they hardly moved, and the base's logarithms are not taken again for each T.
    """
    apart = moved.sub_(base)
    apart -= (p * apart).sum(-1, keepdim=True)
    return (p * apart.expm1_()).sum(-1).log1p().clamp(min=0)


def _places(batches: Sequence[tuple[Tensor, Tensor, Tensor]]) -> int:
    return sum(int(counts.sum()) for _, _, counts in batches)
