"""Words of T: the leading singular directions of every matrix's T, read as tokens. No text is needed.

A matrix that writes into the residual stream (o, down) has directions there: each is read through the final norm's gain
and the unembedding. One that reads it (q, k, v, gate, up) reads directions there, and tokens' embeddings lie along
them. A direction has no sign; it is taken where its scores are skewed to the right.

Beside T stand random directions, as many of each matrix, with the shares of those that they stand for; and the
directions of shams (see `probes.discovery.sides`), because any gradient lies where activations are, and reads as words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy.sparse.linalg import eigsh
from torch import Tensor

from probes.discovery.part import Context, Part, discovery_part
from probes.discovery.sides import SHAM, TUNED, Model, Side
from probes.discovery.word_lists import WordLists, Words
from tv.architecture.anatomy import Module
from tv.architecture.values import values_of
from tv.runtime.seeds import seed_of

Use = Literal["writes", "reads"]

#: Leading directions of every matrix.
DIRECTIONS = 2
#: Sets of random directions, and shams.
DRAWS, SHAMS = 20, 8
#: Of matrices with at least so many rows and columns the leading directions alone are found.
_LARGE = 256
#: Tokens of every direction in the table `direction_words`.
SHOWN = 5


@dataclass(frozen=True)
class _Leading:
    """The leading directions of a matrix's T in the residual stream, and their share of its energy."""

    module: Module
    use: Use
    directions: Float[Tensor, "directions d_model"]
    shares: Float[Tensor, " directions"]


@discovery_part("direction_words")
@dataclass
class DirectionWords(Part):
    """Two readings, `writes` and `reads`: the mean over matrices of a token's z² along the leading directions."""

    context: Context
    seen: dict[Side, list[_Leading]] = field(default_factory=dict)

    def close(self, side: Side, model: Model) -> None:
        """The direction of a sham is in its weights, so that its gradient is not taken again."""
        if side.name == SHAM and side.draw < SHAMS:
            before, after = values_of(self.context.pair.base), values_of(model.live)
            self.seen[side] = list(self._leading(lambda name: after[name].detach() - before[name].detach()))

    def results(self) -> Iterator[tuple[str, pd.DataFrame]]:
        lists, rows = WordLists("direction_words"), []
        by_side = {Side(TUNED): list(self._leading(self._step)), **self.seen}
        for sham in (Side(SHAM, draw) for draw in range(SHAMS) if Side(SHAM, draw) not in self.seen):
            by_side[sham] = list(self._leading(self.context.sides.sham_step(sham.draw).get))
        for use in ("writes", "reads"):
            by_use = {side: [one for one in leading if one.use == use] for side, leading in by_side.items()}
            own = by_use[Side(TUNED)]
            if not own:
                continue
            by_use |= {Side("random", draw): list(self._random(own, draw)) for draw in range(DRAWS)}
            tokens = self._tokens(use)
            for side, leading in by_use.items():
                z = [_along(tokens, one.directions) for one in leading]
                total = torch.stack(
                    [_weights(one) @ of.clamp(min=0).square() for one, of in zip(leading, z, strict=True)]
                )
                scores = total.mean(0).double().numpy()
                lists.put(use, side, Words.of(scores, scores))
                if side.name == TUNED:
                    rows += [row for one, of in zip(leading, z, strict=True) for row in self._rows(one, of)]
        if not lists.of:  # no matrix moved
            return
        yield "discovered_words", lists.rows(self.context.pair.tokenizer, {})
        yield "direction_words", pd.DataFrame(rows)

    def _step(self, name: str) -> Tensor:
        before, after = values_of(self.context.pair.base)[name], values_of(self.context.pair.tuned)[name]
        return after.detach().to(before.device) - before.detach()

    def _leading(self, step_of: Callable[[str], Tensor | None]) -> Iterator[_Leading]:
        """Of every matrix that has a side in the residual stream and that moved."""
        architecture = self.context.pair.architecture
        for module in architecture.modules:
            if module.kind != "linear" or module.component == "unembed":
                continue
            whole = step_of(module.parameter)
            if whole is None:
                continue
            step = module.matrix(whole).float()
            use: Use = "writes" if module.from_heads or module.name in ("down", "shared_down") else "reads"
            if step.shape[0 if use == "writes" else 1] != architecture.d_model or not bool(step.any()):
                continue
            directions, shares = leading(step if use == "writes" else step.T)
            yield _Leading(module, use, directions.cpu(), shares.cpu())

    def _tokens(self, use: Use) -> Float[Tensor, "vocab d_model"]:
        """Every token's row in the residual stream, less their mean.

        Of what is written, the unembedding's, behind the final norm's gain; of what is read, the embedding's.
        """
        pair = self.context.pair
        architecture, values = pair.architecture, values_of(pair.base)
        path = architecture.unembed if use == "writes" else architecture.embed
        matrix = values[f"{path}.weight"].detach().float().cpu()
        if use == "writes":
            norm = pair.base.get_submodule(architecture.final_norm)
            matrix = pair.norms[architecture.final_norm].readout(norm, matrix)
        return matrix - matrix.mean(0)

    def _random(self, own: Sequence[_Leading], draw: int) -> Iterator[_Leading]:
        generator = torch.Generator().manual_seed(seed_of(f"directions {self.context.seed} {draw}"))
        for one in own:
            yield replace(one, directions=torch.randn(one.directions.shape, generator=generator))

    def _rows(self, one: _Leading, z: Float[Tensor, "directions vocab"]) -> Iterator[dict[str, object]]:
        for i, scores in enumerate(z):
            best = scores.topk(min(SHOWN, len(scores)))
            for rank, (score, token) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
                yield {
                    "layer": one.module.layer,
                    "module": one.module.name,
                    "expert": one.module.expert,
                    "use": one.use,
                    "singular": i,
                    "share": float(one.shares[i]),
                    "rank": rank,
                    "token_id": token,
                    "token": self.context.pair.tokenizer.decode([token]),
                    "z": score,
                }


def leading(step: Float[Tensor, "m n"]) -> tuple[Float[Tensor, "directions m"], Float[Tensor, " directions"]]:
    """The leading left singular directions, and their shares of the energy."""
    if min(step.shape) < _LARGE:
        left, sizes, _ = torch.linalg.svd(step, full_matrices=False)
        return left.T[:DIRECTIONS], (sizes.square() / sizes.square().sum())[:DIRECTIONS]
    gram = (step @ step.T).double().cpu().numpy()
    energies, directions = eigsh(gram, k=DIRECTIONS, v0=np.ones(len(gram)))  # the largest last
    shares = energies[::-1] / gram.trace()
    return torch.from_numpy(directions.T[::-1].copy()).float(), torch.from_numpy(shares.copy()).float()


def _weights(one: _Leading) -> Float[Tensor, " directions"]:
    """Every matrix counts the same: a sham has few directions, T many."""
    return one.shares / one.shares.sum()


def _along(tokens: Float[Tensor, "vocab d"], directions: Float[Tensor, "n d"]) -> Float[Tensor, "n vocab"]:
    """z of every token along every direction, over the vocabulary, towards the longer tail."""
    along = directions @ tokens.T
    z = (along - along.mean(1, keepdim=True)) / along.std(1, keepdim=True).clamp(min=1e-30)
    return torch.where(z.pow(3).mean(1, keepdim=True) < 0, -z, z)
