"""Latents as causes: what each writes into Δh given to the base, or taken from the tuned model, and the metric read.

Each latent's part in Δh at a place, a_tuned d_tuned − a_base d_base, is added to what the base has at the site (base→
tuned), or subtracted from what the tuned model has there (tuned→base), at every place of the prompt; activations are
those of the two models as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from probes.attribution.effects import BACKWARD, FORWARD, Effects, in_domains
from probes.attribution.forwards import Floats, frozen
from probes.attribution.halves import halves
from probes.attribution.units import Unit
from probes.attribution.work import Rows, Work
from probes.capture.editing import edited
from probes.capture.skipping import recording, skipping
from probes.directions.features.dictionary import Activations, Dictionary
from probes.directions.states import Place, States, each_batch
from probes.errors import RunError
from tv.prompts.encoding import Batch, batches
from tv.runtime.seeds import seed_of
from tv.stats.means import mean_interval

#: How many lead together: points of the curve, and at last every latent.
TOGETHER = (0, 1, 10, 50)
#: Draws of random directions in the curve.
DRAWS = 5
#: The controls: another latent that fires as often, and a random direction of the same norm.
LATENT, DIRECTION = "random latent", "random direction"


@dataclass(frozen=True)
class _Read:
    """One batch, and what both models have at the site."""

    batch: Batch
    states: States
    place: Place

    @cached_property
    def delta(self) -> Float[Tensor, "n d_model"]:
        return self.states.delta(self.place)

    @cached_property
    def at(self) -> tuple[Tensor, Tensor]:
        """(prompt, position) of every place."""
        return self.states.text, self.states.pos

    def over_places(self, part: Float[Tensor, "n d_model"]) -> Float[Tensor, "places d_model"]:
        """What is written at places, as (batch · pos, d_model); 0 at padding."""
        whole = part.new_zeros(*self.batch.input_ids.shape, part.shape[1])
        whole[self.at] = part
        return whole.flatten(0, 1)

    def active(self, dictionary: Dictionary) -> Activations:
        """What the dictionary makes of it; of many latents it is large, and not kept."""
        return dictionary.activations(self.states.base[self.place], self.states.tuned[self.place])

    @property
    def prompts(self) -> list[str]:
        return [item.prompt.id for item in self.batch.encoded]


def feature_effects(
    work: Work, dictionary: Dictionary, place: Place, *, features: int, fires: Floats
) -> Iterator[Effects | Rows]:
    """The effects of the leading latents with their controls, and how much the first n do together.

    Args:
        work: The pair, the prompts and the metric.
        dictionary: Its latents.
        place: The site and layer that it reads.
        features: How many latents are moved one by one: those of the largest mean first-order effect, the latent's part
            times ∇M of the base half way along Δh; of a metric without a gradient, those with the largest part.
        fires: (latents,), how often each fires, for controls that fire as often.

    Yields:
        Effects of both directions, for the latents and for each control; the rows of `feature_curves`.

    Raises:
        RunError: The dictionary is of another width than the site.
    """
    reads = list(_reads(work, dictionary, place))
    prompts = tuple(prompt for read in reads for prompt in read.prompts)
    expected = np.concatenate([_first_order(work, dictionary, read) for read in reads])
    weight = np.abs(np.nanmean(expected, 0))
    chosen = np.argsort(-weight, kind="stable")[: min(features, int((weight > 0).sum()))].tolist()
    units = tuple(Unit("feature", place[1], place[0], neuron=feature) for feature in chosen)
    if not units:
        return
    beside = _beside(chosen, fires, work.seed)
    random = _random(dictionary, len(chosen), work.seed)
    done, total = 0, 2 * len(reads) * (1 + 3 * len(chosen))
    for direction, side, sign in ((FORWARD, 0, 1.0), (BACKWARD, 1, -1.0)):
        values: dict[str, list[Floats]] = {"": [], LATENT: [], DIRECTION: []}
        for read in reads:
            active, (start, before) = read.active(dictionary), _start(work, side, read)
            parts = {
                "": [dictionary.parts(active, torch.tensor([j])) for j in chosen],
                LATENT: [dictionary.parts(active, torch.tensor([j])) for j in beside],
            }
            parts[DIRECTION] = [part.norm(dim=1, keepdim=True) * u for part, u in zip(parts[""], random, strict=True)]
            for control, each in parts.items():
                moved = [_metric(work, side, read, sign * part, before) for part in each]
                values[control].append(np.stack([sign * (value - start) for value in moved]))
                done += len(each)
                if work.told:
                    work.told(min(done, total), total)
        for control, of_batches in values.items():
            yield Effects("feature", direction, units, prompts, np.concatenate(of_batches, 1), control)
    yield Rows("feature_curves", _curves(work, dictionary, reads, expected))


def _reads(work: Work, dictionary: Dictionary, place: Place) -> Iterator[_Read]:
    width = dictionary.bias.shape[1]
    for batch in work.batches:
        (states,) = each_batch(work.pair, batch.encoded, [place], positions="all", batch_size=len(batch.encoded))
        found = states.base[place].shape[1]
        if found != width:
            raise RunError(f"the dictionary reads {width} numbers, and {place[0]} of layer {place[1]} has {found}")
        (again,) = batches(states.encoded, len(states.encoded), work.pair.pad_id)
        yield _Read(again, states, place)


def _start(work: Work, side: int, read: _Read) -> tuple[Floats, dict[int, Any]]:
    """The metric of base (0) or tuned (1) as it is, (prompts,), and what the blocks before the site give."""
    model, architecture, outputs = work.pair.models[side], work.pair.architecture, dict[int, Any]()
    early = replace(architecture, blocks=tuple(b for b in architecture.blocks if b.layer < read.place[1]))
    with torch.inference_mode(), recording(model, early, outputs):
        return _numbers(work.metric.of(model, read.batch)), outputs


def _metric(work: Work, side: int, read: _Read, part: Float[Tensor, "n d_model"], before: dict[int, Any]) -> Floats:
    """(prompts,): the same with something added at every place of the site."""
    model, architecture, (site, layer) = work.pair.models[side], work.pair.architecture, read.place
    added = read.over_places(part)
    with (
        torch.inference_mode(),
        skipping(model, architecture, before, layer),
        edited(model, architecture, site, layer, lambda value: value + added.to(value)),
    ):
        return _numbers(work.metric.of(model, read.batch))


def _first_order(work: Work, dictionary: Dictionary, read: _Read) -> Floats:
    """(prompts, latents): Σ over places of ∇M of the base, half way along Δh, times what the latent writes into Δh.

    Of a metric without a gradient, the square of what it writes.
    """
    slope, active = _gradient(work, read) if work.metric.smooth else None, read.active(dictionary)
    d_base, d_tuned = dictionary.decoder
    if slope is None:
        worth = active.tuned.square() * d_tuned.square().sum(1) - active.base.square() * d_base.square().sum(1)
        worth = worth.abs()
    else:
        worth = active.tuned * (slope @ d_tuned.T) - active.base * (slope @ d_base.T)
    total = worth.new_zeros(len(read.prompts), worth.shape[1]).index_add(0, read.at[0], worth)
    return total.double().numpy()


def _gradient(work: Work, read: _Read) -> Float[Tensor, "n d_model"]:
    """The gradient of the metric, summed over prompts, by what the base has at the site: half way along Δh."""
    site, layer = read.place
    model = work.pair.base
    added = read.over_places(read.delta / 2).requires_grad_()
    with (
        frozen(model),
        torch.enable_grad(),
        edited(model, work.pair.architecture, site, layer, lambda value: value + added.to(value)),
    ):
        value = work.metric.of(model, read.batch)
        known = ~value.isnan()
        if bool(known.any()):
            value[known].sum().backward()
    slope = torch.zeros_like(added) if added.grad is None else added.grad
    return slope.detach().view(*read.batch.input_ids.shape, -1)[read.at]


def _curves(work: Work, dictionary: Dictionary, reads: Sequence[_Read], expected: Floats) -> pd.DataFrame:
    """The share of the whole change that the leading n latents, principal components or random directions carry.

    What leads is chosen on one half of the prompts, clusters whole, and measured on the other; both ways.
    """
    prompts = [prompt for read in reads for prompt in read.prompts]
    clusters = [work.clusters[prompt] for prompt in prompts]
    first = next(halves(clusters, work.seed), None)
    if first is None:
        return pd.DataFrame(columns=["ranking", "n", "domain", "effect", "share", "lo", "hi", "prompts"])
    base, tuned = (np.concatenate([_start(work, side, read)[0] for read in reads]) for side in (0, 1))
    values: dict[tuple[str, int], Floats] = {}
    of_prompt = dict(zip(prompts, range(len(prompts)), strict=True))
    for half in (first, ~first):
        sign = np.sign(np.nanmean((tuned - base)[half])) if work.metric.smooth else 1.0
        order = np.argsort(-sign * np.nanmean(expected[half], 0), kind="stable")
        fit = torch.cat([read.delta[torch.from_numpy(half[_rows(read, of_prompt)])[read.at[0]]] for read in reads])
        mean = fit.mean(0)
        components = torch.linalg.eigh((fit - mean).double().T @ (fit - mean).double()).eigenvectors.flip(1).float()
        for read in reads:
            rows = _rows(read, of_prompt)
            measured = ~half[rows]
            if not measured.any():
                continue
            start, before = _start(work, 0, read)
            for name, n, part in _together(dictionary, read, order, mean, components, work.seed):
                moved = _metric(work, 0, read, part, before) - start
                into = values.setdefault((name, n), np.zeros(len(prompts)))
                draws = DRAWS if name == "random directions" and n else 1
                into[rows[measured]] += moved[measured] / draws
    frame = []
    for (name, n), moved in values.items():
        for domain, inside in in_domains(work.domains).items():
            at = [i for i, prompt in enumerate(prompts) if prompt in inside and not np.isnan(tuned[i] - base[i])]
            share = share_of(moved[at], (tuned - base)[at], [clusters[i] for i in at])
            frame.append((name, n, domain, float(moved[at].mean()) if at else np.nan, *share, len(at)))
    return pd.DataFrame(frame, columns=["ranking", "n", "domain", "effect", "share", "lo", "hi", "prompts"])


def share_of(part: Floats, whole: Floats, clusters: Sequence[str]) -> tuple[float, float, float]:
    """(share, lo, hi): mean part over mean whole, with the 95 % interval of a ratio of means (linearised)."""
    mean = float(whole.mean()) if len(whole) else 0.0
    if not mean:
        return float("nan"), float("nan"), float("nan")
    share = float(part.mean()) / mean
    off = mean_interval(part - share * whole, clusters)
    ends = sorted((share + float(off.lo) / mean, share + float(off.hi) / mean))
    return share, ends[0], ends[1]


def _together(
    dictionary: Dictionary, read: _Read, order: NDArray[np.int64], mean: Tensor, components: Tensor, seed: int
) -> Iterator[tuple[str, int, Float[Tensor, "n d_model"]]]:
    """What is added to the base: the mean of Δh and the first n of each kind; at last all of Δh."""
    shift, active = dictionary.bias[1] - dictionary.bias[0], read.active(dictionary)
    apart = read.delta - mean
    width = components.shape[1]
    for n in (*TOGETHER, dictionary.size):
        if n <= dictionary.size:
            part = shift.expand_as(read.delta)
            if n:
                part = part + dictionary.parts(active, torch.from_numpy(order[:n].copy()))
            yield "features", n, part
        if n <= width and n in TOGETHER:
            leading = components[:, :n]
            yield "principal components", n, mean + apart @ leading @ leading.T
            for draw in range(DRAWS if n else 1):
                generator = torch.Generator().manual_seed(seed_of(f"together {seed} {n} {draw}"))
                basis = torch.linalg.qr(torch.randn(width, max(n, 1), generator=generator)).Q[:, :n]
                yield "random directions", n, mean + apart @ basis @ basis.T
    yield "all of Δh", width, read.delta


def _rows(read: _Read, of_prompt: dict[str, int]) -> NDArray[np.int64]:
    return np.array([of_prompt[prompt] for prompt in read.prompts])


def _beside(chosen: Sequence[int], fires: Floats, seed: int) -> list[int]:
    """For each chosen latent, one of the eight others that fire most nearly as often, drawn."""
    generator = np.random.default_rng(seed_of(f"beside {seed}") % 2**32)
    free = np.setdiff1d(np.flatnonzero(fires > 0), chosen)
    if not len(free):
        free = np.arange(len(fires))
    near = (free[np.argsort(np.abs(np.log1p(fires[free]) - np.log1p(fires[j])), kind="stable")[:8]] for j in chosen)
    return [int(generator.choice(some)) for some in near]


def _random(dictionary: Dictionary, n: int, seed: int) -> Float[Tensor, "n d_model"]:
    generator = torch.Generator().manual_seed(seed_of(f"random directions {seed}"))
    drawn = torch.randn(n, dictionary.bias.shape[1], generator=generator)
    return drawn / drawn.norm(dim=1, keepdim=True)


def _numbers(values: Tensor) -> Floats:
    return values.double().cpu().numpy()
