"""States that a run has kept: where its suite keeps a site at every place, the hooks need not read it again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from probes.directions.states import Place, States
from probes.store.run import Run
from tv.prompts.encoding import Encoded


def kept_states(run: Run, tuned: str, place: Place, encoded: Sequence[Encoded]) -> States | None:
    """The states of both models at every place of these prompts, as float16 kept them; None where any is missing."""
    site, layer = place
    if "vectors" not in run.tables or site not in (run.manifest["suite"].get("keep") or ()):
        return None
    values = []
    for model in ("base", "tuned"):
        rows, vectors = run.vectors(site, layer, tuned=tuned, model=model)
        at = {key: i for i, key in enumerate(zip(rows.prompt_id, rows.pos, strict=True))}
        wanted = [at.get((item.prompt.id, pos), -1) for item in encoded for pos in range(len(item.ids))]
        if min(wanted) < 0:
            return None
        values.append(torch.from_numpy(np.asarray(vectors[wanted], np.float32)))
    lengths = torch.tensor([len(item.ids) for item in encoded])
    text = torch.repeat_interleave(torch.arange(len(encoded)), lengths)
    pos = torch.cat([torch.arange(len(item.ids)) for item in encoded])
    return States(tuple(encoded), text, pos, {place: values[0]}, {place: values[1]})
