"""One pair read through a dictionary, from the states of both models to tables, beside the same of two null pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from probes.capture.pair import Pair
from probes.directions.features import quality
from probes.directions.features.classes import FIRES, MOVED, Thresholds, classes, ranks, shares, thresholds
from probes.directions.features.dictionary import Dictionary, read_dictionary, read_tensors, save_dictionary
from probes.directions.features.latents import Latents, measure
from probes.directions.features.reading import LISTED, firing_rates, top_texts, written_words
from probes.directions.features.training import Training, train
from probes.directions.nulls import ROUNDED, null_pair
from probes.directions.states import Place, States, each_batch, joined
from probes.errors import RunError
from tv.prompts.encoding import Encoded
from tv.runtime.seeds import seed_of

#: The sides that are read alike: the pair, and two pairs of which nobody expects anything.
REAL, RANDOM = "real", "random"
SIDES = (REAL, ROUNDED, RANDOM)
#: One cluster of texts in so many is held out for FVU.
_HELD_OUT = 10
#: So many of the suite's batches are read at once: of a batch only its states at one site are kept.
_AT_ONCE = 4
#: What a step tells: a label, how much is done, of how much.
Told = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Wanted:
    """What is read, and how."""

    place: Place
    training: Training
    seeds: int = 2
    tokens: int = 60_000
    batch_size: int = 16
    device: str = "cpu"  # where dictionaries are trained and read
    public: tuple[Dictionary, str] | None = None  # in place of training, and whose format it has
    kept: Callable[[Sequence[Encoded]], States | None] | None = None  # the pair's states, where they need no hooks


@dataclass(frozen=True)
class _Side:
    """One dictionary of one side, measured."""

    side: str
    seed: int
    dictionary: Dictionary
    latents: Latents
    row: dict[str, Any]


@dataclass(frozen=True)
class Study:
    """The tables of one pair, and the file of its dictionary."""

    tables: dict[str, pd.DataFrame]
    file: Path
    fires: NDArray[np.float64]
    dictionary: Dictionary
    states: States  # of the pair, which the tables are of
    place: Place

    def listed(self, features: Sequence[int], pair: Pair) -> dict[str, pd.DataFrame]:
        """`feature_texts` and `feature_words` with these latents too, such as those that were moved."""
        there = set(self.tables["feature_words"].feature)
        more = [feature for feature in dict.fromkeys(features) if feature not in there]
        if not more:
            return {}
        added = {
            "feature_texts": top_texts(self.dictionary, self.states, self.place, more, pair),
            "feature_words": written_words(self.dictionary, more, pair),
        }
        of = {"form": self.dictionary.form, "site": self.place[0], "layer": self.place[1]}
        found = {name: [self.tables[name], rows.assign(**of)] for name, rows in added.items()}
        return {name: pd.concat(parts, ignore_index=True) for name, parts in found.items()}


def study(pair: Pair, encoded: Sequence[Encoded], wanted: Wanted, folder: Path, stamp: str, told: Told) -> Study:
    """Train (or take) the dictionaries of the pair and of its nulls, and measure every latent.

    Args:
        pair: Both models.
        encoded: The texts.
        wanted: The site, the form and the training.
        folder: For the dictionaries. One that was trained already, on the same, is not trained again.
        stamp: What models and texts are, so that other ones are not taken for these.
        told: Called at each step.

    Returns:
        The tables `dictionaries features feature_rates feature_texts feature_words`.

    Raises:
        RunError: Too few texts, or a public dictionary of another width.
    """
    chosen = some_texts(encoded, wanted.tokens, wanted.training.seed)
    held_out = _held_out(chosen, wanted.training.seed)
    if wanted.public is not None:
        _require_width(pair, chosen[:1], wanted)
    folder.mkdir(parents=True, exist_ok=True)
    measured: list[_Side] = []
    real: States | None = None
    seeds = range(wanted.training.seed, wanted.training.seed + wanted.seeds)
    kept = None if wanted.kept is None else wanted.kept(chosen)
    for side in SIDES:
        states: States | None = kept if side == REAL else None
        of = f"{stamp} {wanted.place}{' kept' if states is not None else ''}"
        for seed in seeds:
            if states is None or side == RANDOM:
                steps = partial(told, f"{side} {seed}: states")
                with nullcontext(pair) if side == REAL else null_pair(pair, side, seed, wanted.training.seed) as both:
                    states = _read(both, chosen, wanted, steps)
            real = states if side == REAL else real
            measured.append(_one(side, seed, states, held_out, wanted, folder, of, told))
    assert real is not None
    return _tables(pair, real, measured, wanted, folder)


def some_texts(encoded: Sequence[Encoded], tokens: int, seed: int) -> list[Encoded]:
    """Texts of at most so many tokens together, the first at least: which, their ids and the seed draw."""
    drawn = sorted(encoded, key=lambda item: seed_of(f"features {seed} {item.prompt.id}"))
    total = 0
    ids: set[str] = set()
    for item in drawn:
        if ids and total + len(item.ids) > tokens:
            break
        total += len(item.ids)
        ids.add(item.prompt.id)
    return [item for item in encoded if item.prompt.id in ids]


def _held_out(encoded: Sequence[Encoded], seed: int) -> set[str]:
    """The clusters of texts that are held out: one in ten."""
    names = {item.prompt.cluster or item.prompt.id for item in encoded}
    order = sorted(names, key=lambda name: seed_of(f"held out {seed} {name}"))
    if len(order) < 4:
        raise RunError(f"features: {len(order)} texts, or clusters of them; a dictionary needs at least four")
    return set(order[: max(1, len(order) // _HELD_OUT)])


def _read(pair: Pair, encoded: Sequence[Encoded], wanted: Wanted, told: Callable[[int, int], None]) -> States:
    parts, done = [], 0
    for part in each_batch(pair, encoded, [wanted.place], positions="all", batch_size=_AT_ONCE * wanted.batch_size):
        parts.append(part)
        done += len(part.encoded)
        told(done, len(encoded))
    return joined(parts, [wanted.place])


def _one(
    side: str, seed: int, states: States, held_out: set[str], wanted: Wanted, folder: Path, stamp: str, told: Told
) -> _Side:
    base, tuned = states.base[wanted.place], states.tuned[wanted.place]
    out = torch.from_numpy(np.isin(states.clusters, list(held_out)))
    training = replace(wanted.training, seed=seed)
    if wanted.public is None:
        dictionary = _trained(
            base[~out].to(wanted.device),
            tuned[~out].to(wanted.device),
            training,
            folder / f"{side}-{seed}.safetensors",
            stamp,
            partial(told, f"{side} {seed}: training"),
        )
        components = training.k
    else:
        dictionary = wanted.public[0]
        components = 0
    dictionary = dictionary.to(wanted.device)
    latents = measure(dictionary, base, tuned)
    fvu, l0 = quality.unexplained(dictionary, base[out], tuned[out])
    components = components or min(max(1, round(l0)), base.shape[1])
    sides = (base, tuned, tuned - base)
    pca = [quality.pca_unexplained(x[~out], x[out], min(components, x.shape[1])) for x in sides]
    alive = latents.fires >= FIRES
    row = {
        "side": side,
        "seed": seed,
        "source": "trained" if wanted.public is None else wanted.public[1],
        "latents": dictionary.size,
        "k": training.k if wanted.public is None else None,
        "places": int((~out).sum()) if wanted.public is None else None,
        "places_held_out": int(out.sum()),
        **dict(zip(("fvu_base", "fvu_tuned", "fvu_delta"), fvu, strict=True)),
        **dict(zip(("pca_base", "pca_tuned", "pca_delta"), pca, strict=True)),
        "l0": l0,
        "dead": float(1 - alive.mean()),
        "stability": np.nan,
        "change_largest": _of(np.max, latents.change[alive]),
        "cosine_least": _of(np.min, latents.cosine[alive]),
        "share_least": _of(np.min, shares(latents)[0][alive]),
    }
    return _Side(side, seed, dictionary, latents, row)


def _require_width(pair: Pair, first: Sequence[Encoded], wanted: Wanted) -> None:
    """Raise RunError, before texts are read, where a public dictionary is of another width than the site."""
    assert wanted.public is not None
    (states,) = each_batch(pair, first, [wanted.place])
    reads, found = wanted.public[0].bias.shape[1], states.base[wanted.place].shape[1]
    if reads != found:
        site, layer = wanted.place
        raise RunError(f"the dictionary reads {reads} numbers, and {site} of layer {layer} has {found}")


def _trained(
    base: torch.Tensor,
    tuned: torch.Tensor,
    training: Training,
    path: Path,
    stamp: str,
    told: Callable[[int, int], None],
) -> Dictionary:
    """The dictionary in this file where it is of the same training on the same; else trained, and put there."""
    said = {"training": vars(training), "stamp": stamp}
    if path.is_file():
        try:
            if all(read_tensors(path)[1].get(key) == value for key, value in said.items()):
                return read_dictionary(path)[0]
        except RunError:
            pass  # another program's file, or half of one: it is written again
    kept = path.with_suffix(".unfinished.safetensors")
    dictionary = train(base, tuned, training, kept=kept, stamp=stamp, told=told)
    save_dictionary(dictionary, path, said)
    return dictionary


def _tables(pair: Pair, real: States, measured: Sequence[_Side], wanted: Wanted, folder: Path) -> Study:
    first = measured[0]
    (site, layer), form = wanted.place, first.dictionary.form
    of = {"form": form, "site": site, "layer": layer}
    setters = [one for one in measured if one.side != REAL and one.seed == first.seed]
    beyond = thresholds([one.latents for one in setters])
    found = classes(first.latents, beyond, form)
    rows, again = [], np.full(first.dictionary.size, np.nan)
    for one in measured:
        others = [other for other in measured if other.side == one.side and other.seed != one.seed]
        row = dict(one.row)
        if others and wanted.public is None:
            alive = [each.latents.fires >= FIRES for each in (one, others[0])]
            cosines = quality.matched(one.dictionary, others[0].dictionary, alive[0], alive[1])
            row["stability"] = _of(np.mean, cosines[~np.isnan(cosines)])
            again = cosines if one is first else again
        if one not in setters:
            called = classes(one.latents, beyond, form)
            counts = {name: int((called == name).sum()) for name in MOVED}
            row |= {**counts, "called": sum(counts.values()) / max(1, int((called != "dead").sum()))}
        rows.append(row)
    place = ranks(first.latents, found)
    listed = np.argsort(place)[: min(LISTED, int((found != "dead").sum()))].tolist()
    tables = {
        "dictionaries": pd.DataFrame(rows),
        "features": _features(first, found, place, beyond, again, len(real.text)),
        "feature_rates": firing_rates(first.dictionary, real, wanted.place),
        "feature_texts": top_texts(first.dictionary, real, wanted.place, listed, pair),
        "feature_words": written_words(first.dictionary, listed, pair),
    }
    file = folder / "dictionary.safetensors"
    fires = first.latents.fires
    save_dictionary(first.dictionary, file, {**of, "fires": fires.astype(int).tolist()})
    made = {name: rows.assign(**of) for name, rows in tables.items()}
    return Study(made, file, fires, first.dictionary, real, wanted.place)


def _features(
    first: _Side,
    found: NDArray[np.str_],
    place: NDArray[np.int64],
    beyond: Thresholds,
    again: NDArray[np.float64],
    n: int,
) -> pd.DataFrame:
    latents = first.latents
    return pd.DataFrame(
        {
            "feature": np.arange(len(found)),
            "rank": place,
            "class": found,
            "fires": latents.fires.astype(int),
            "rate_base": latents.fires_base / n,
            "rate_tuned": latents.fires_tuned / n,
            **{name: getattr(latents, name) for name in ("norm_base", "norm_tuned", "cosine", "size", "change")},
            "change_null": beyond.change,
            "energy": latents.energy,
            **{name: getattr(latents, name) for name in vars(latents) if name.startswith("nu_")},
            "cosine_null": beyond.cosine,
            "share_base_null": beyond.nu_base,
            "share_tuned_null": beyond.nu_tuned,
            "found_again": again,
        }
    ).sort_values("rank")


def _of(of: Callable[..., Any], values: NDArray[np.float64]) -> float:
    values = values[~np.isnan(values)]
    return float(of(values)) if len(values) else float("nan")
