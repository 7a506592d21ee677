"""What states of the base usually are at every depth: their mean and covariance, to take both out of a difference."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from probes.discovery.observing import Seen

Means = Float[Tensor, "depth d_model"]

#: Tokens whose states are kept.
TOKENS = 512


@dataclass
class Sample:
    """States of the base at evenly chosen tokens, the first of a text left out: its state is of another size."""

    every: int  # one in so many tokens
    _kept: list[Float[Tensor, "depth some d_model"]] = field(default_factory=list)
    _n: int = 0

    @classmethod
    def of(cls, n_tokens: int) -> Sample:
        """At most `TOKENS` of so many."""
        return cls(max(1, -(-n_tokens // TOKENS)))

    def add(self, seen: Seen) -> None:
        """A batch's states."""
        behind = (seen.pos > 0).nonzero()[:, 0]
        chosen = behind[(torch.arange(len(behind)) + self._n) % self.every == 0]
        self._n += len(behind)
        self._kept.append(seen.base.resid[:, chosen].cpu())

    def states(self) -> Usual:
        """What they say."""
        return Usual.of(torch.cat(self._kept, 1))


@dataclass(frozen=True)
class Usual:
    """Mean, size and covariance of the base's states at every depth.

    The covariance is (1 − a)·S + a·μ·I, of S's leading directions and the rest of the space alike.
    """

    mean: Means
    size: Float[Tensor, " depth"]  # the mean of ‖h‖
    directions: Float[Tensor, "depth rank d_model"]  # eigenvectors of S
    factors: Float[Tensor, "depth rank"]  # of whitening, along them
    rest: Float[Tensor, " depth"]  # of whitening, across all of them

    @classmethod
    def of(cls, states: Float[Tensor, "depth n d_model"]) -> Usual:
        """From sampled states.

        Source: O. Ledoit, M. Wolf (2004), A well-conditioned estimator for large-dimensional covariance matrices.
        """
        n, d_model = states.shape[1:]
        mean = states.mean(1)
        centred = states - mean[:, None]
        _, sizes, directions = torch.linalg.svd(centred, full_matrices=False)
        eigen = sizes.square() / n
        level = eigen.sum(1) / d_model
        apart = eigen.square().sum(1) - d_model * level.square()  # ‖S − μI‖²
        noise = (centred.square().sum(2).square().sum(1) / n - eigen.square().sum(1)) / n
        a = (noise / apart.clamp(min=1e-30)).clamp(0, 1)
        floor = (a * level)[:, None].clamp(min=1e-12)
        factors, rest = ((1 - a)[:, None] * eigen + floor).rsqrt(), floor.rsqrt()[:, 0]
        scale = level.sqrt()  # so that a state of the usual spread keeps its size
        size = states.norm(dim=2).mean(1)
        return cls(mean, size, directions, factors * scale[:, None], rest * scale)

    def without_mean(self, means: Means) -> Means:
        """Less its projection on the mean state."""
        unit = self.mean / self.mean.norm(dim=1, keepdim=True).clamp(min=1e-30)
        return means - (means * unit).sum(1, keepdim=True) * unit

    def whitened(self, means: Means) -> Means:
        """Times the covariance to the power −½, which turns no eigenvector of it."""
        along = torch.einsum("lrd,ld->lr", self.directions, means)
        return self.rest[:, None] * means + torch.einsum(
            "lr,lrd->ld", (self.factors - self.rest[:, None]) * along, self.directions
        )

    def at(self, depths: list[int]) -> Usual:
        """At some depths; in memory as it is read from a file, so that sums are the same to the bit."""
        return Usual(
            *(of[depths].contiguous() for of in (self.mean, self.size, self.directions, self.factors, self.rest))
        )
