"""A discovery's controls on other processes: each looks at some, beginning with what the tuned model showed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from probes.capture.loading import Pairs
from probes.discovery.discover import Search, Spread
from probes.discovery.joining import joined
from probes.discovery.kept import Kept, give
from probes.discovery.sides import SHAM, Side
from probes.errors import RunError
from probes.suite import Discovery
from tv.prompts.encoding import Encoded
from tv.runtime.scheduler import team


def spread_over(
    pairs: Pairs, tuned: str, encoded: Sequence[Encoded], wanted: Discovery, batch_size: int, seed: int
) -> Spread | None:
    """What has other processes look; None where there are none. Processes of this machine alone share a discovery.

    Args:
        pairs: Where each of them loads the models from.
        tuned: The tuned model's name.
        encoded: As for `discoveries`, and the rest too.
        wanted: Which parts, against which controls.
        batch_size: Texts in one forward pass.
        seed: Of all that is drawn.
    """
    compute = pairs.compute
    if compute.workers == 1 or compute.engine != "local":
        return None

    def spread(search: Search, kept: Kept, told: Callable[[int], None]) -> None:
        own, *others = phases(search.which)
        if kept.done < own:
            search.see(kept.done, own, told)
            _keep(search, kept, own)
        with team(
            lambda device: Elsewhere(pairs.on(device), tuned, tuple(encoded), wanted, batch_size, seed, kept), compute
        ) as workers:
            for last in others:
                shares = shares_of(kept.done, last, compute.workers)
                done = kept.done + sum(share.n for share in shares if share.is_done(kept))
                for share, _ in workers.finished([share for share in shares if not share.is_done(kept)], name=str):
                    done += share.n
                    told(done)
                if shares:
                    _join(search, kept, shares)

    return spread


def phases(which: Sequence[Side]) -> list[int]:
    """How many sides are seen at the end of each phase: no null, then shams, then what is compared with these too."""
    own = sum(not side.is_null for side in which)
    shams = sum(side.name == SHAM for side in which)
    return list(dict.fromkeys((own, own + shams, len(which))))


@dataclass(frozen=True)
class Share:
    """The sides of these numbers, up to and without the last."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"controls {self.first} to {self.last - 1}"

    @property
    def n(self) -> int:
        """How many they are."""
        return self.last - self.first

    def found(self, kept: Kept) -> Kept:
        """Where what is found under them is kept, of a discovery that is kept there."""
        return kept.beside(f"{self.first}-{self.last}")

    def is_done(self, kept: Kept) -> bool:
        """Whether all of them have been seen."""
        return self.found(kept).done == self.last


def shares_of(first: int, last: int, workers: int) -> list[Share]:
    """Two shares for every worker, so that none waits long for another.

    Examples:
        >>> [(share.first, share.last) for share in shares_of(2, 9, workers=2)]
        [(2, 4), (4, 6), (6, 8), (8, 9)]
    """
    n = max(1, -(-(last - first) // (2 * workers)))
    return [Share(at, min(at + n, last)) for at in range(first, last, n)]


@dataclass
class Elsewhere:
    """What a worker does with a share: it looks at its sides, beginning with what is kept."""

    pairs: Pairs
    tuned: str
    encoded: tuple[Encoded, ...]
    wanted: Discovery
    batch_size: int
    seed: int
    kept: Kept

    def __call__(self, share: Share) -> None:
        search = self._search.anew()
        self.kept.restore(search.parts)
        search.see(share.first, share.last, lambda _: None)
        share.found(self.kept).keep(share.last, search.parts, last=True)

    @cached_property
    def _search(self) -> Search:
        return Search.of(self.pairs.pair(self.tuned), self.encoded, self.wanted, self.batch_size, self.seed)


def _join(search: Search, kept: Kept, shares: Sequence[Share]) -> None:
    """Make the parts those that have seen all shares, and keep them."""
    start, ends = kept.found(), [share.found(kept).found() for share in shares]
    for name, part in search.parts.items():
        give(part, joined(start[name], [end[name] for end in ends]))
    _keep(search, kept, shares[-1].last)
    for share in shares:
        share.found(kept).forget()


def _keep(search: Search, kept: Kept, done: int) -> None:
    kept.keep(done, search.parts, last=True)
    if kept.done != done:
        raise RunError("discover: what a part finds cannot be kept for other processes; leave workers out")
