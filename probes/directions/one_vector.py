"""Is the behaviour one vector? Steering at every layer, held out, beside placebos, with what it does elsewhere.

Prompts are in two halves, clusters whole. A vector made on one half is read on the other; so are the layer and the dose
that are chosen. Nothing that a prompt is measured with has seen it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from probes.attribution.effects import BACKWARD, FORWARD, Effects
from probes.attribution.forwards import Floats, Model, values
from probes.attribution.halves import halves
from probes.attribution.work import Rows, Work
from probes.capture.editing import site_at
from probes.capture.hooks.plan import plan
from probes.directions.choosing import Wanted, one_way
from probes.directions.sources import Making, is_domain, vectors_of
from probes.directions.states import Place
from probes.directions.steered_samples import steered_samples
from probes.directions.steering_rows import effects_of, one_vector_rows, steering_rows
from probes.directions.summed import summed
from probes.errors import RunError
from tv.errors import choices
from tv.runtime.seeds import seed_of

#: The model that is steered, and which way its effects go.
WAYS: tuple[tuple[Model, str], ...] = (("base", FORWARD), ("tuned", BACKWARD))


def direction(work: Work, wanted: Wanted) -> Iterator[Effects | Rows]:
    """What one vector does: the effects of each layer, doses, placebos, and the share of the whole change.

    Args:
        work: The pair, the prompts and the metric.
        wanted: The vector and where it is added.

    Yields:
        Effects of every layer and of the chosen one (layer −1) with its placebos; the tables `direction_effects`,
        `one_vector` and `direction_samples`.

    Raises:
        RunError: No such layer, site or domain, too few clusters of prompts to hold any out, or a source without a
            direction there.
    """
    places = _places(work, wanted)
    change = np.subtract(*(values(model, work.batches, work.metric) for model in (work.pair.tuned, work.pair.base)))
    making = _making(work, wanted, places, change)
    vectors = vectors_of(wanted.source, making, places)
    clusters = [work.clusters[prompt] for prompt in work.prompts]
    tables: dict[str, list[pd.DataFrame]] = {"direction_effects": [], "one_vector": []}
    ways = []
    for model, way in WAYS:
        found = one_way(work, model, way, wanted, making, vectors, change)
        ways.append(found)
        yield from effects_of(work, wanted, list(vectors), found)
        rows = steering_rows(work, list(vectors), found, change, clusters)
        tables["direction_effects"].append(rows)
        tables["one_vector"].append(one_vector_rows(rows, found))
    said = {"source": wanted.source, "op": wanted.op, "site": wanted.site, "positions": wanted.positions}
    for name, parts in tables.items():
        yield Rows(name, pd.concat(parts, ignore_index=True).assign(**said))
    if wanted.samples:
        steers = [found.chosen for found in ways]
        written = steered_samples(work, making, steers, wanted.positions, wanted.samples, wanted.tokens)
        yield Rows("direction_samples", written.assign(**said))


def _places(work: Work, wanted: Wanted) -> list[Place]:
    architecture = work.pair.architecture
    there = {site.layer for read in plan(architecture, (wanted.site,)) for site in read.sites}
    if not there:
        raise RunError(f"direction: no layer of this model has {wanted.site}; choose another site")
    layers = sorted({*wanted.layers}) or sorted(there)
    for layer in layers:
        site_at(architecture, wanted.site, layer)  # said before any work
    return [(wanted.site, layer) for layer in layers]


def _making(work: Work, wanted: Wanted, places: Sequence[Place], change: Floats) -> Making:
    """The prompts' states, their halves, and the domain whose mean Δh is meant: where behaviour changes most."""
    domains = np.array([work.domains[prompt] for prompt in work.prompts])
    domain = is_domain(wanted.source) or _most_changed(domains, change)
    inside = domains == domain
    if not inside.any():
        there = sorted(set(domains.tolist()))
        raise RunError(f"direction {wanted.source!r}: no prompt of domain {domain!r}{choices(domain, there)}")
    states = summed(work.pair, work.encoded, places, wanted.positions, work.batch_size)
    return Making(work.pair, states, _halves(work, inside, domain), inside, wanted.positions, work.batch_size)


def _most_changed(domains: NDArray[np.str_], change: Floats) -> str:
    known = np.isfinite(change)
    if not known.any():
        raise RunError("direction: the metric has no value for any prompt; choose another metric")
    sizes = {name: abs(change[known & (domains == name)].mean()) for name in sorted(set(domains[known].tolist()))}
    return max(sizes, key=lambda name: sizes[name])


def _halves(work: Work, inside: NDArray[np.bool_], domain: str) -> NDArray[np.int64]:
    """The half of every prompt: those of the domain are split evenly, others by their names; clusters stay whole."""
    names = [work.clusters[prompt] for prompt in work.prompts]
    chosen = [name for name, own in zip(names, inside, strict=True) if own]
    first = next(halves(chosen, work.seed), None)
    if first is None:
        raise RunError(
            f"direction: domain {domain!r} has prompts of {len(set(chosen))} clusters; a vector that is made on one "
            "half and read on the other needs 4"
        )
    own = dict(zip(chosen, (~first).astype(int).tolist(), strict=True))
    return np.array([own.get(name, seed_of(f"half {work.seed} {name}") % 2) for name in names], dtype=np.int64)
