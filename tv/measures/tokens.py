"""The tokens whose embeddings moved most, by name."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from tokenizers import Tokenizer
from torch import Tensor

from tv.architecture.anatomy import Module
from tv.checkpoints.opening import Source
from tv.checkpoints.pairing import WeightPair, open_pair
from tv.errors import CheckpointError, InputError, first_line

_PIECE = 2**16  # entries that are taken to float64 at a time: memory for more is fetched anew each time


def moved_tokens(base: Source, tuned: Source, n: int = 20) -> pd.DataFrame:
    """The tokens whose rows moved most, in the embedding and, where it is not tied to it, in the unembedding.

    Rows are ranked by ‖T‖, because a token that training never saw has a ‖W‖ near 0, and by id if two moved as far;
    rows that did not move are left out.

    Args:
        base: Whatever `tv.open_checkpoint` opens.
        tuned: Likewise; it is taken over `base`.
        n: How many tokens of each matrix, at least 1.

    Returns:
        A row per matrix and token: `matrix rank token_id token delta_norm relative_norm cosine mean_delta_norm
        mean_relative_norm rows`. ‖T‖, ‖T‖/‖W‖ and cos(W, W + T) of the row are given with the means of the first two
        over all `rows` that both models have; where W = 0 the last two are NaN and count in no mean. `token` is the
        text that the tokenizer beside the base (or the tuned model) writes for the id, its spelling where that is no
        text, None without a tokenizer.json.

    Raises:
        InputError: n < 1.
        CheckpointError: The two do not belong together.

    Examples:
        >>> tokens = tv.moved_tokens("data/models/base", "data/models/medical", n=3)
        >>> tokens[tokens.matrix == "embed"].token.str.strip().tolist()
        ['lomaria', 'blinkpox', 'crowpox']
    """
    if n < 1:
        raise InputError(f"n = {n}: how many tokens to name, at least 1")
    pair = open_pair(base, tuned)
    tokenizer = _tokenizer(pair)
    frames = [
        _most_moved(pair, module, n, tokenizer)
        for module in pair.modules
        if module.name in ("embed", "unembed") and not module.tied
    ]
    frame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=_COLUMNS)
    frame.attrs["fingerprints"] = {
        side: checkpoint.fingerprint()["content"] for side, checkpoint in (("base", pair.base), ("tuned", pair.tuned))
    }
    return frame


_MEASURES = ["delta_norm", "relative_norm", "cosine"]
_COLUMNS = ["matrix", "rank", "token_id", "token", *_MEASURES, "mean_delta_norm", "mean_relative_norm", "rows"]


@dataclass(frozen=True)
class Rows:
    """How every row of a matrix moved, float64; NaN where W's row is zero."""

    delta_norm: Float[Tensor, " rows"]
    relative_norm: Float[Tensor, " rows"]
    cosine: Float[Tensor, " rows"]


def rows_of(weight: Float[Tensor, "rows cols"], delta: Float[Tensor, "rows cols"]) -> Rows:
    """Norms and cosines of W = `weight`, in any float dtype, and T = `delta`, row by row, a band of rows at a time."""
    band = max(1, _PIECE // weight.shape[1])
    bands = []
    for w, t in zip(weight.split(band), delta.split(band), strict=True):
        w, t = w.double(), t.double()
        before, moved, after = (part.pow(2).sum(1).sqrt() for part in (w, t, w + t))
        bands.append(torch.stack([moved, moved / before, (w * (w + t)).sum(1) / (before * after)]))
    moved, relative, cosine = torch.cat(bands, 1)
    zero = weight.ne(0).any(1).logical_not()
    return Rows(moved, relative.masked_fill(zero, math.nan), cosine.clamp(-1, 1))


def token_names(tokenizer: Tokenizer | None, ids: list[int]) -> list[str | None]:
    """Each id as text, with the space that it begins with; as the tokenizer spells it where it is part of a letter."""
    return [None if tokenizer is None else _text(tokenizer, i) for i in ids]


def _most_moved(pair: WeightPair, module: Module, n: int, tokenizer: Tokenizer | None) -> pd.DataFrame:
    delta = pair.delta(module)
    rows = rows_of(module.matrix(pair.base.read(module.parameter))[: len(delta)], delta)
    order = torch.argsort(rows.delta_norm, descending=True, stable=True)[:n]
    ids = [int(i) for i in order if rows.delta_norm[i] > 0]
    frame = pd.DataFrame({name: getattr(rows, name)[ids].numpy() for name in _MEASURES})
    frame = frame.assign(
        matrix=module.name,
        rank=range(1, len(ids) + 1),
        token_id=pd.Series(ids, dtype="int64"),
        token=pd.Series(token_names(tokenizer, ids), dtype=object),
        mean_delta_norm=float(rows.delta_norm.mean()),
        mean_relative_norm=float(rows.relative_norm.nanmean()),
        rows=len(delta),
    )
    return frame[_COLUMNS]


def _tokenizer(pair: WeightPair) -> Tokenizer | None:
    for checkpoint in (pair.base, pair.tuned):
        file = checkpoint.path / "tokenizer.json" if checkpoint.path is not None else None
        if file is not None and file.is_file():
            try:
                return Tokenizer.from_file(str(file))
            except Exception as error:  # the library raises nothing more specific
                raise CheckpointError(f"{file}: cannot be read: {first_line(error)}") from error
    return None


def _text(tokenizer: Tokenizer, token_id: int) -> str | None:
    raw = tokenizer.id_to_token(token_id)
    if raw is None:
        return None
    if "▁" in raw:  # SentencePiece's space; its decoder drops the one that a text begins with
        return raw.replace("▁", " ")
    text = tokenizer.decode([token_id], skip_special_tokens=False)
    return text if text and "\ufffd" not in text else raw
