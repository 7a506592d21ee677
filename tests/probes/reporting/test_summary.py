"""Where the change comes from, in a sentence: no more than the tables can say."""

from dataclasses import fields
from typing import Any

import numpy as np
import pandas as pd

from probes.attribution.curves import RANDOM
from probes.attribution.effects import BACKWARD, FORWARD
from probes.reporting.causes import together_sentences
from probes.reporting.claim import sentence
from probes.reporting.evidence import Evidence
from probes.reporting.summary import summary

_COMPONENT = {"layer": 0, "method": "graft", "domain": "all", "metric": "logit_diff", "n": 1}
_EFFECT = {"effect": 0.0, "within_noise": True, "lo": np.nan, "hi": np.nan, "lo_all": np.nan, "hi_all": np.nan}


def _where(areas: pd.DataFrame, moved: float = 0.1) -> str:
    """The sentence of a run of three components, whose one matrix moved so far."""
    nothing: dict[str, Any] = {field.name: pd.DataFrame() for field in fields(Evidence)}
    evidence = nothing | {
        "areas": areas,
        "behaviour": pd.DataFrame(columns=["domain", "metric", "n", "base", "change"]),
        "effects": pd.DataFrame([{"component": name, **_COMPONENT, **_EFFECT} for name in ("embed", "attn", "mlp")]),
        "n_layers": 1,
        "trained": "",
        "unseen": "",
        "weights": pd.DataFrame([{"module": "q", "layer": 0, "relative_norm": moved}]),
    }
    return sentence(summary(Evidence(**evidence), pd.DataFrame()).where)


def _areas(lo: float) -> pd.DataFrame:
    rows = [("path", FORWARD, 3), ("path", BACKWARD, 1), *((RANDOM, BACKWARD, n) for n in (3, 1, 2))]
    rows += [(RANDOM, FORWARD, 3)] * 2
    return pd.DataFrame(rows, columns=["ranking", "direction", "n_enough"]).assign(lo=lo)


def test_components_together_stand_beside_the_range_of_random_orders() -> None:
    areas = _areas(0.1)
    assert _where(areas).startswith("Only all 3 components, put into the base together, give 80 % of the change on all")
    assert together_sentences(areas) == [
        "In the base, 80 % of the change needs 3 components (all prompts; ranked by path, 3 in random order).",
        "Undoing 80 % of it takes 1 component (all prompts; ranked by path, 1 to 3 in random order).",
    ]


def test_of_a_change_that_is_not_clear_of_0_no_share_is_told() -> None:
    assert "80 %" not in _where(_areas(np.nan)) and "no single component" in _where(_areas(np.nan)).lower()
    (told,) = together_sentences(_areas(np.nan))
    assert told.startswith("The change on all prompts together is not clear of 0")


def test_two_equal_checkpoints_are_told_to_be_equal() -> None:
    assert _where(pd.DataFrame(), moved=0.0).endswith("no weight moved: the models have the same weights.")
