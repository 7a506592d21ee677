"""The states that a run's suite kept, in place of running its models again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from probes.directions.states import Place, States
from probes.errors import RunError
from probes.store.run import Run
from tv.prompts.encoding import Encoded, Positions, positions


def kept_states(
    run: Run, tuned: str, encoded: Sequence[Encoded], places: Sequence[Place], which: Positions
) -> States | None:
    """The states at these places as the run keeps them (float16); None where it lacks any.

    Args:
        run: A finished run.
        tuned: The tuned model of the pair.
        encoded: The prompts.
        places: Sites and layers.
        which: The positions of each prompt.
    """
    if "vectors" not in run.tables:
        return None
    at = [(i, pos) for i, item in enumerate(encoded) for pos in positions(item, which)]
    wanted = [(encoded[i].prompt.id, pos) for i, pos in at]
    found: tuple[dict[Place, torch.Tensor], dict[Place, torch.Tensor]] = ({}, {})
    for place in places:
        for into, model in zip(found, ("base", "tuned"), strict=True):
            try:
                rows, vectors = run.vectors(*place, tuned=tuned, model=model)
            except RunError:
                return None
            row = {key: i for i, key in enumerate(zip(rows.prompt_id.astype(str), rows.pos.astype(int), strict=True))}
            if any(key not in row for key in wanted):
                return None
            into[place] = torch.from_numpy(vectors[[row[key] for key in wanted]].astype(np.float32))
    text, pos = (torch.tensor(column) for column in zip(*at, strict=True))
    return States(tuple(encoded), text, pos, *found)
