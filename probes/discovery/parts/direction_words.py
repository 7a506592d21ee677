"""Words of T: the leading singular directions of every matrix's T, read as tokens, and which texts excite them.

A matrix that writes into the residual stream (o, down) has directions there: each is read through the final norm's gain
and the unembedding. One that reads it (q, k, v, gate, up) reads directions there, and tokens' embeddings lie along
them. A direction has no sign; it is taken where its scores are skewed to the right.

Beside T stand random directions, as many of each matrix, with the shares of those that they stand for; and the
directions of shams (see `probes.discovery.sides`), because any gradient lies where activations are, and reads as words.
No text is needed for that; how much texts excite what a matrix answers to is in `probes.discovery.excitation`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from probes.directions.leading import Leading, leading_of
from probes.discovery.excitation import Excitation
from probes.discovery.observing import Seen
from probes.discovery.part import Context, Part, discovery_part
from probes.discovery.sides import SHAM, TUNED, Model, Side
from probes.discovery.word_lists import WordLists, Words
from tv.architecture.values import values_of
from tv.runtime.common_rows import common_rows
from tv.runtime.seeds import seed_of

Use = Literal["writes", "reads"]

#: Sets of random directions; and shams, where no control of the discovery is one.
DRAWS, SHAMS = 20, 8
#: Tokens of every direction in the table `direction_words`.
SHOWN = 5


@discovery_part("direction_words")
@dataclass
class DirectionWords(Part):
    """Two readings, `writes` and `reads`: the mean over matrices of a token's z² along the leading directions."""

    context: Context
    lists: WordLists = field(default_factory=lambda: WordLists("direction_words"))
    shares: dict[Use, list[Tensor]] = field(default_factory=dict)  # by use, of the tuned model's matrices
    shown: list[dict[str, object]] = field(default_factory=list)  # of the tuned model, a word each
    excitation: Excitation = field(default_factory=Excitation)

    def see(self, side: Side, seen: Seen) -> None:
        self.excitation.see(side, seen)

    def close(self, side: Side, model: Model) -> None:
        """The direction of a sham is in its weights, so that its gradient is not taken again."""
        if side.name not in (TUNED, SHAM):
            return
        before, after = values_of(self.context.pair.base), values_of(model.live)

        def step(name: str) -> Tensor:
            old, new = common_rows(before[name].detach(), after[name].detach().to(before[name].device))
            return new - old

        found = list(leading_of(self.context.pair.architecture, step))
        self.excitation.put(side, found)
        self._read(side, found)

    def results(self) -> Iterator[tuple[str, pd.DataFrame]]:
        architecture = self.context.pair.architecture
        if not self.lists.of:  # no matrix moved
            return
        unseen = (Side(SHAM, draw) for draw in range(SHAMS) if Side(SHAM, draw) not in self.excitation.right)
        for side in unseen:
            self._read(side, leading_of(architecture, self.context.sides.sham_step(side.draw).get))
        for use, shares in self.shares.items():
            tokens = self._tokens(use)
            for draw in range(DRAWS):
                generator = torch.Generator().manual_seed(seed_of(f"directions {self.context.seed} {draw}"))
                directions = [torch.randn(len(own), architecture.d_model, generator=generator) for own in shares]
                self._put(use, Side("random", draw), tokens, directions, shares)
        yield "discovered_words", self.lists.rows(self.context.pair.tokenizer, {})
        yield "direction_words", pd.DataFrame(self.shown)
        excited = self.excitation.rows(self.context.pair, self.context.texts, self.context.seed)
        if len(excited):
            yield "direction_excitation", excited

    def _read(self, side: Side, found: Iterable[Leading]) -> None:
        """A side's words, of every matrix that has a side in the residual stream."""
        architecture = self.context.pair.architecture
        by_use: dict[Use, list[tuple[Leading, Tensor]]] = {}
        for one in found:
            module = architecture.modules[one.module]
            writes = module.from_heads or module.name in ("down", "shared_down")
            directions = one.left if writes else one.right
            if directions.shape[1] == architecture.d_model:
                by_use.setdefault("writes" if writes else "reads", []).append((one, directions))
        for use, own in by_use.items():
            shares, tokens = [one.shares for one, _ in own], self._tokens(use)
            self._put(use, side, tokens, [directions for _, directions in own], shares)
            if side.name == TUNED:
                self.shares[use] = shares
                for one, directions in own:
                    self.shown += self._rows(one, use, _along(tokens, directions))

    def _put(
        self, use: Use, side: Side, tokens: Tensor, directions: Sequence[Tensor], shares: Sequence[Tensor]
    ) -> None:
        """The words of a side: every matrix counts the same, as a sham has few directions and T many."""
        total = torch.zeros(len(tokens))
        for own, share in zip(directions, shares, strict=True):
            total += (share / share.sum()) @ _along(tokens, own).clamp(min=0).square()
        scores = (total / len(shares)).double().numpy()
        self.lists.put(use, side, Words.of(scores, scores))

    def _tokens(self, use: Use) -> Float[Tensor, "vocab d_model"]:
        """Every token's row in the residual stream, less their mean.

        Of what is written, the unembedding's, behind the final norm's gain; of what is read, the embedding's.
        """
        pair, architecture = self.context.pair, self.context.pair.architecture
        path = architecture.unembed if use == "writes" else architecture.embed
        weight = cast("Tensor", pair.base.get_submodule(path).weight)  # a tied one is no parameter of its own
        matrix = weight.detach().float().cpu()
        if use == "writes":
            norm = pair.base.get_submodule(architecture.final_norm)
            matrix = pair.norms[architecture.final_norm].readout(norm, matrix)
        return matrix - matrix.mean(0)

    def _rows(self, one: Leading, use: Use, z: Float[Tensor, "directions vocab"]) -> Iterator[dict[str, object]]:
        module = self.context.pair.architecture.modules[one.module]
        for i, scores in enumerate(z):
            best = scores.topk(min(SHOWN, len(scores)))
            for rank, (score, token) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
                yield {
                    "layer": module.layer,
                    "module": module.name,
                    "expert": module.expert,
                    "use": use,
                    "singular": i,
                    "share": float(one.shares[i]),
                    "rank": rank,
                    "token_id": token,
                    "token": self.context.pair.tokenizer.decode([token]),
                    "z": score,
                }


def _along(tokens: Float[Tensor, "vocab d"], directions: Float[Tensor, "n d"]) -> Float[Tensor, "n vocab"]:
    """z of every token along every direction, over the vocabulary, towards the longer tail."""
    along = directions @ tokens.T
    z = (along - along.mean(1, keepdim=True)) / along.std(1, keepdim=True).clamp(min=1e-30)
    return torch.where(z.pow(3).mean(1, keepdim=True) < 0, -z, z)
