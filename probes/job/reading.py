"""The states of a finished run's prompts: kept ones, or its models run again; and those of nulls."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import get_args

from jaxtyping import Float
from torch import Tensor

from probes.capture.loading import Pairs
from probes.directions.kept_states import kept_states
from probes.directions.nulls import ROUNDED, null_pair
from probes.directions.states import Place, States, read_states
from probes.errors import RunError
from probes.store.prompts import prompts_of
from probes.store.run import Run
from tv.errors import choices
from tv.prompts.encoding import Encoded, Positions, encode

#: Sites of d_model numbers of which every block has one.
SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
#: The control that has T's norm in every parameter, and no direction.
RANDOM = "random"


def layers_of(run: Run, layers: Sequence[int] | None) -> list[int]:
    """The layers that are asked for; all without a choice. Raises RunError for one that the model lacks."""
    n = int(run.manifest["architecture"]["n_layers"])
    for layer in layers or ():
        if not 0 <= layer < n:
            raise RunError(f"no layer {layer}; the model has layers 0 to {n - 1}")
    return list(dict.fromkeys(layers)) if layers else list(range(n))


def require_site(site: str, positions: str) -> None:
    """Raise RunError for a site, or positions, that nobody knows."""
    if site not in SITES:
        raise RunError(f"no site {site!r}{choices(site, SITES)}")
    if positions not in get_args(Positions):
        raise RunError(f"no positions {positions!r}{choices(positions, get_args(Positions))}")


def states_of(run: Run, models: Pairs, name: str, places: Sequence[Place], positions: Positions) -> States:
    """The states of both models of a pair: as the suite kept them, or read again."""
    encoded = encode(prompts_of(run), models.tokenizer, sys.maxsize)
    kept = kept_states(run, name, encoded, places, positions)
    return _read(models, name, encoded, places, positions) if kept is None else kept


def null_states(
    models: Pairs, name: str, encoded: Sequence[Encoded], places: Sequence[Place], positions: Positions, draws: int
) -> Iterator[tuple[str, States]]:
    """The base beside itself in another precision ("rounded"), then beside draws of base + random T ("random")."""
    pair = models.pair(name)
    for null, count in ((ROUNDED, 1), (RANDOM, draws)):
        for draw in range(count):
            with null_pair(pair, null, draw, models.suite.seed) as both:
                yield null, read_states(both, encoded, places, positions=positions, batch_size=models.suite.batch_size)


def by_prompt(states: States, values: Float[Tensor, "n d_model"], prompts: Sequence[str]) -> Float[Tensor, "k d_model"]:
    """The mean of each prompt's places, a row a prompt, in the order of these ids."""
    row = {item.prompt.id: i for i, item in enumerate(states.encoded)}
    return states.by_prompt(values)[[row[prompt] for prompt in prompts]]


def _read(
    models: Pairs, name: str, encoded: Sequence[Encoded], places: Sequence[Place], positions: Positions
) -> States:
    size = models.suite.batch_size
    return read_states(models.pair(name), encoded, places, positions=positions, batch_size=size)
