"""How much live text excites the directions that T's matrices answer to: own texts against the others.

A matrix adds σ u (v·x) to what it gives of an input x, along a leading pair of singular directions. A text's excitation
of v is the mean of |v·x| over its tokens, the first left out, with x of the base: the inputs are the same for every
vector that is compared with T.

Own texts are those that a side changes. Where the texts are of several domains, they are the domain with the largest
mean KL in the half that chooses, and are measured on the other half. Where they are of one, they are the texts with a
KL above the median; nothing is chosen, so that all texts measure. Every sham has own texts of its own, found alike.

AUROC is how often an own text excites a direction more than another text does. Own texts may have other inputs
altogether, so that random directions of the same matrix have an AUROC away from 0.5: their mean is taken off. What is
left (`excess`) is compared with random directions and with the directions of shams.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor
from torch.nn.functional import normalize

from probes.capture.pair import Pair
from probes.directions.leading import Leading
from probes.discovery.differences import GROUPS, jackknifed
from probes.discovery.null import beyond
from probes.discovery.observing import CHOOSE, MEASURE, Seen, Texts, group_of
from probes.discovery.sides import SHAM, TUNED, Side
from probes.discovery.word_lists import LEVEL
from tv.prompts.encoding import Batch
from tv.runtime.seeds import seed_of
from tv.stats.families import benjamini_hochberg

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

#: Random directions of every matrix.
RANDOM = 256
#: With fewer own texts, or fewer others, there is no AUROC.
FEWEST = 4
#: A direction with less of the energy of T is how float32 rounds.
_LEAST = 1e-6


@dataclass(frozen=True)
class Packed:
    """Directions by matrix, in one tensor: what is kept of a side is one file."""

    shapes: list[tuple[int, int, int]]  # matrix, directions, width
    numbers: Float[Tensor, " n"]

    def by_module(self) -> dict[int, Float[Tensor, "directions cols"]]:
        """By matrix."""
        parts = self.numbers.split([n * width for _, n, width in self.shapes])
        return {index: own.view(n, width) for (index, n, width), own in zip(self.shapes, parts, strict=True)}


@dataclass
class Excitation:
    """Of the tuned model and every sham: KL by text, and the directions that their matrices answer to."""

    kl: dict[Side, dict[str, float]] = field(default_factory=dict)  # mean over a text's tokens, nats
    right: dict[Side, Packed] = field(default_factory=dict)
    shares: dict[int, list[float]] = field(default_factory=dict)  # by matrix, of the tuned model's

    def see(self, side: Side, seen: Seen) -> None:
        """A batch under a side."""
        if seen.in_null and side.name in (TUNED, SHAM):
            own = self.kl.setdefault(side, {})
            kl = seen.kl.cpu()
            own |= {item.prompt.id: float(kl[seen.text == i].mean()) for i, item in enumerate(seen.encoded)}

    def put(self, side: Side, found: Sequence[Leading]) -> None:
        """A side's directions."""
        if found:
            shapes = [(one.module, len(one.right), one.right.shape[1]) for one in found]
            self.right[side] = Packed(shapes, torch.cat([one.right.flatten() for one in found]))
        if side.name == TUNED:
            self.shares = {one.module: one.shares.tolist() for one in found}

    def rows(self, pair: Pair, texts: Texts, seed: int) -> pd.DataFrame:
        """The table `direction_excitation`; empty where the texts are too few or nothing moved."""
        own = {side: own_texts(kl, texts) for side, kl in self.kl.items()}
        mine = own.get(Side(TUNED))
        if mine is None or not self.shares:
            return pd.DataFrame()
        excited = excitations(pair, texts, {side: packed.by_module() for side, packed in self.right.items()}, seed)
        shams = {side: of for side, of in own.items() if side.name == SHAM and of and side in self.right}
        sizes = {"own": mine.name, "n_own": int(mine.own.sum()), "n_other": int((~mine.own).sum())}
        found = pd.DataFrame(
            [
                {"layer": module.layer, "module": module.name, "expert": module.expert} | sizes | row
                for index, of in excited.items()
                for module in (pair.architecture.modules[index],)
                for row in _rows(of, self.shares[index], mine, shams, texts)
            ]
        )
        if found.empty:
            return found
        found["q"] = benjamini_hochberg(found.p)
        return found.assign(stands_out=(found.excess > found["sham"]) & (found.lo > 0) & (found.q < LEVEL))


@dataclass(frozen=True)
class OwnTexts:
    """Which texts count, and which of these are a side's own."""

    name: str
    counts: Flags  # of all texts on which nulls are drawn
    own: Flags  # of those that count


def own_texts(kl: Mapping[str, float], texts: Texts) -> OwnTexts | None:
    """Those that a side changes, or None where they or the others are too few to tell."""
    values = np.array([kl[item.prompt.id] for item in texts.null])
    half = np.array([texts.halves[item.prompt.id] for item in texts.null])
    domain = np.array([item.prompt.domain for item in texts.null])
    there = [one for one in dict.fromkeys(domain.tolist()) if ((domain == one) & (half == CHOOSE)).any()]
    if len(there) > 1:
        most = max(there, key=lambda one: values[(domain == one) & (half == CHOOSE)].mean())
        found = OwnTexts(f"domain {most}", half == MEASURE, (domain == most)[half == MEASURE])
    else:
        found = OwnTexts("KL above the median", values == values, values > np.median(values))
    return found if _enough(found.own, FEWEST) else None


def _enough(own: Flags, fewest: int) -> bool:
    return fewest <= int(own.sum()) <= len(own) - fewest


@dataclass(frozen=True)
class Excited:
    """How much every text excites directions of one matrix: those of sides, and behind them random ones."""

    scores: Floats  # (texts, directions)
    columns: dict[Side, slice]

    def aurocs(self, side: Side, own: Flags, which: NDArray[np.int64]) -> tuple[Floats, Floats]:
        """Of a side's directions and of the random ones, on some of the texts."""
        of = auroc(self.scores[which], own)
        return of[self.columns[side]], of[-RANDOM:]


def _rows(
    of: Excited, shares: Sequence[float], mine: OwnTexts, shams: Mapping[Side, OwnTexts], texts: Texts
) -> Iterator[dict[str, float]]:
    """The tuned model's directions of one matrix, beside their nulls."""
    tuned, counted = Side(TUNED), np.flatnonzero(mine.counts)
    groups = np.array([group_of(texts.null[i], GROUPS) for i in counted])
    rests = [rest for one in np.unique(groups) if _enough(mine.own[rest := groups != one], 1)]
    aurocs, random = of.aurocs(tuned, mine.own, counted)
    control = float(random.mean())
    left = [_excess(of.aurocs(tuned, mine.own[rest], counted[rest])) for rest in rests]
    excess, lo, hi = jackknifed(aurocs - control, left)
    of_shams = [
        _excess(of.aurocs(side, own.own, np.flatnonzero(own.counts)))
        for side, own in shams.items()
        if side in of.columns
    ]
    reached = np.array(of_shams).reshape(-1, len(shares))
    for i, share in enumerate(shares):
        if share < _LEAST:
            continue
        noise, sham = beyond(excess[i : i + 1], (random - control)[:, None]), beyond(excess[i : i + 1], reached[:, [i]])
        yield {
            "singular": i,
            "share": share,
            "auroc": aurocs[i],
            "control": control,
            "excess": excess[i],
            "lo": lo[i],
            "hi": hi[i],
            "random": np.quantile(random - control, 0.95),
            "sham": sham.null[0],
            "p": np.fmax(noise.p[0], sham.p[0]),
        }


def _excess(aurocs: tuple[Floats, Floats]) -> Floats:
    own, random = aurocs
    return own - random.mean()


def excitations(pair: Pair, texts: Texts, right: Mapping[Side, Mapping[int, Tensor]], seed: int) -> dict[int, Excited]:
    """One pass of the base over the texts of the nulls, with all directions of all sides at once.

    Args:
        pair: Its base reads.
        texts: The texts.
        right: By side and matrix, directions of the matrix's inputs.
        seed: Of the random directions.

    Returns:
        By matrix. Experts are left out, as each sees some of the tokens, and so is what no module of its own computes.
    """
    modules = pair.architecture.modules
    sides_of = {
        index: [side for side, of in right.items() if index in of]
        for index in right[Side(TUNED)]
        if modules[index].expert < 0
    }
    along = {index: torch.cat([right[side][index] for side in sides]) for index, sides in sides_of.items()}
    random = {width: _random(width, seed) for width in {of.shape[1] for of in along.values()}}
    by_path: dict[str, list[int]] = {}
    for index in along:
        by_path.setdefault(modules[index].path, []).append(index)
    found: dict[int, list[Tensor]] = {index: [] for index in along}
    batches = [batch for batch, in_null in texts.batches if in_null]
    for batch in batches:
        counts = batch.attention_mask.clone()
        counts[:, 0] = (counts.sum(1) == 1).long()  # the first token's state is of another size
        weights = (counts / counts.sum(1, keepdim=True)).to(pair.base.device)

        def look(path: str, given: Tensor, weights: Tensor = weights) -> None:
            for index in by_path[path]:
                own = along[index]
                if given.numel() == weights.numel() * own.shape[1]:
                    directions = torch.cat([own, random[own.shape[1]]]).to(given.device)
                    sizes = (given.reshape(*weights.shape, -1).float() @ directions.T).abs()
                    found[index].append(torch.einsum("bpn,bp->bn", sizes, weights).cpu())

        _look_at_inputs(pair, batch, by_path, look)
    read = {item.prompt.id: i for i, item in enumerate(item for batch in batches for item in batch.encoded)}
    order = [read[item.prompt.id] for item in texts.null]
    return {
        index: Excited(torch.cat(of)[order].double().numpy(), _columns(sides_of[index], right, index))
        for index, of in found.items()
        if len(of) == len(batches)
    }


def _columns(sides: Sequence[Side], right: Mapping[Side, Mapping[int, Tensor]], index: int) -> dict[Side, slice]:
    ends = np.cumsum([len(right[side][index]) for side in sides]).tolist()
    return {side: slice(start, end) for side, start, end in zip(sides, [0, *ends], ends, strict=False)}


def _random(width: int, seed: int) -> Float[Tensor, "random width"]:
    generator = torch.Generator().manual_seed(seed_of(f"excitation {seed} {width}"))
    return normalize(torch.randn(RANDOM, width, generator=generator), dim=1)


def _look_at_inputs(pair: Pair, batch: Batch, paths: Iterable[str], look: Callable[[str, Tensor], None]) -> None:
    """One forward pass of the base; what enters a module is shown, where it is one tensor, and not kept."""

    def entering(path: str) -> Any:
        def show(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = args[0] if args else next(iter(kwargs.values()), None)
            if isinstance(given, Tensor):
                look(path, given)

        return show

    base = pair.base
    handles = [base.get_submodule(path).register_forward_pre_hook(entering(path), with_kwargs=True) for path in paths]
    try:
        with torch.inference_mode():
            ids, mask = batch.input_ids.to(base.device), batch.attention_mask.to(base.device)
            base.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()


def auroc(scores: Float[NDArray[np.float64], "texts n"], own: Bool[NDArray[np.bool_], " texts"]) -> Floats:
    """(n,): how often the score of an own text is above that of another; ties count half.

    Examples:
        >>> auroc(np.array([[3.0], [2.0], [1.0]]), np.array([True, False, True])).tolist()
        [0.5]
    """
    n = int(own.sum())
    above = rankdata(scores, axis=0)[own].sum(0) - n * (n + 1) / 2
    return np.asarray(above / (n * (len(own) - n)), np.float64)
