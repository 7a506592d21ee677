"""Patchscope of Δh: what a model says next if mean Δh is the state of the last token of a token-identity prompt.

The prompt repeats tokens, so that a model that has understood it repeats what the patched state stands for. Δh replaces
the state where it enters a block, as a direction times a scale times the base's mean ‖h‖ there, by base and by tuned (a
control reads by its own weights). Of the scales that are tried, the one counts, at every depth, whose next-token
distribution has the lowest entropy on the half that chooses: there the model is surest. A word's score is the mean over
depths of its log-probability's z over the vocabulary, and of this what no sham has (`probes.discovery.surprise`).

How far to trust it: a model must copy for this to work. The embedded base never does (of 100 tokens' own embeddings,
put in before the first block, it names none, and 500 of 1800 tokens are likelier than the right one), and by the base
next to nothing is read from any depth. By the tuned model the lists are those of the lens in `difference_lens`: from
the same states, through the blocks that are left. Read `patchscope_scales` first: its `copies` is the share of tokens
that the base names from their own embeddings.

Source: A. Ghandeharioun et al. (2024), Patchscopes, arXiv 2401.06102; of Δh: J. Minder et al. (2025), arXiv 2510.13900.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from probes.discovery.differences import Sums, read_at, standardised
from probes.discovery.observing import CHOOSE, MEASURE, Seen
from probes.discovery.part import Context, Part, discovery_part
from probes.discovery.patching import said_with
from probes.discovery.sides import TUNED, Model, Side
from probes.discovery.surprise import Surprises

#: A model that goes on with "?" has no other pattern to follow than to repeat.
PROMPT = "cat → cat; 1135 → 1135; hello → hello; ?"
SCALES = (1.0, 2.0, 4.0, 8.0)
#: Tokens whose own embeddings are put in, to see whether the base copies.
COPIED = 64


@dataclass(frozen=True)
class _Said:
    """Of one half, by depth and scale."""

    log_probs: Float[Tensor, "depth scale vocab"]

    @property
    def entropy(self) -> Float[Tensor, "depth scale"]:
        return -(self.log_probs.exp() * self.log_probs).sum(2)

    def scores(self, scale: Tensor) -> Float[Tensor, "depth vocab"]:
        """z at every depth's scale."""
        return standardised(self.log_probs[torch.arange(len(scale)), scale])


@discovery_part("patchscope")
@dataclass
class Patchscope(Part):
    """Readings `PLACE READER`, such as `first tuned`."""

    context: Context
    scores: Surprises = field(default_factory=lambda: Surprises("patchscope"))
    rows: list[dict[str, object]] = field(default_factory=list)
    size: Float[Tensor, " depth"] | None = None  # the base's mean ‖h‖

    def __post_init__(self) -> None:
        pair = self.context.pair
        n_layers = pair.architecture.n_layers
        self.depths = [depth for depth in read_at(n_layers) if depth < n_layers]
        self.vocab = min(len(model.get_input_embeddings().weight) for model in pair.models)
        self.ids = pair.tokenizer(PROMPT).input_ids
        self.copies = self._copies()

    def see(self, side: Side, seen: Seen) -> None:
        self.context.differences.see(side, seen)

    @property
    def sums(self) -> dict[str, Sums]:
        """Of the side that is seen."""
        return self.context.differences.sums

    def close(self, side: Side, model: Model) -> None:
        if self.size is None:
            self.size = self._size()[self.depths]
        places = [place for place, sums in self.sums.items() if sums.in_both]
        if not places:
            return
        choose, measure = (torch.stack([self.sums[place].mean(half) for place in places]) for half in (CHOOSE, MEASURE))
        every = torch.tensor(SCALES).expand(len(places), len(self.depths), -1)
        for name, reader in (("base", self.context.sides.base_model), ("tuned", model)):
            chosen = [_Said(own) for own in self._said(reader, choose, every)]
            scales = [own.entropy.argmin(1) for own in chosen]
            at_these = self._said(reader, measure, torch.tensor(SCALES)[torch.stack(scales)][:, :, None])
            for place, own, scale, measured in zip(places, chosen, scales, at_these, strict=True):
                scores = own.scores(scale).mean(0), standardised(measured[:, 0]).mean(0)
                self.scores.put(f"{place} {name}", side, *scores)
                if side.name == TUNED:
                    self.rows += self._rows(place, name, own, scale)

    def _said(
        self, reader: Model, means: Float[Tensor, "n depth d_model"], scales: Float[Tensor, "n read scale"]
    ) -> Float[Tensor, "n read scale vocab"]:
        """Log-probabilities by mean and depth that is read, at each of some scales."""
        assert self.size is not None
        unit = torch.nn.functional.normalize(means[:, self.depths], dim=2)
        vectors = unit[:, :, None] * self.size[:, None, None] * scales[..., None]
        depths = [depth for _ in means for depth in self.depths for _ in range(scales.shape[2])]
        logits = said_with(reader, self.ids, vectors.flatten(0, 2), depths)[:, : self.vocab]
        return logits.log_softmax(1).unflatten(0, tuple(scales.shape))

    def _size(self) -> Float[Tensor, " depth"]:
        """Of the tokens behind a BOS, whose state is of another size."""
        own = [sums for place, sums in self.sums.items() if place != "bos"] or list(self.sums.values())
        return torch.stack([sums.base for sums in own]).sum(0) / torch.stack([sums.n for sums in own]).sum()

    def _copies(self) -> float:
        """The share of tokens that the base names from their own embeddings, put in before the first block."""
        some = torch.arange(self.vocab)[:: max(1, self.vocab // COPIED)]
        embedded = self.context.pair.base.get_input_embeddings().weight.detach()[some].cpu().float()
        said = said_with(self.context.sides.base_model, self.ids, embedded, [0] * len(some))
        return float((said[:, : self.vocab].argmax(1) == some).float().mean())

    def _rows(self, place: str, reader: str, said: _Said, scale: Tensor) -> Iterator[dict[str, object]]:
        for depth, entropies, own in zip(self.depths, said.entropy.tolist(), scale.tolist(), strict=True):
            for i, entropy in enumerate(entropies):
                yield {
                    "place": place,
                    "reader": reader,
                    "depth": depth,
                    "scale": SCALES[i],
                    "entropy": entropy,
                    "counts": i == own,
                    "token": self._token(said.log_probs[self.depths.index(depth), i]),
                    "copies": self.copies,
                }

    def _token(self, log_probs: Tensor) -> str:
        return str(self.context.pair.tokenizer.decode([int(log_probs.argmax())]))

    def results(self) -> Iterator[tuple[str, pd.DataFrame]]:
        lists, intervals = self.scores.lists()
        yield "discovered_words", lists.rows(self.context.pair.tokenizer, intervals)
        yield "patchscope_scales", pd.DataFrame(self.rows)
