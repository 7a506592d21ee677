"""T stands among the draws of its control vectors."""

from dataclasses import fields
from typing import Any

import pandas as pd

from probes.reporting.controls import control_sentence
from probes.reporting.evidence import Evidence


def _evidence(whole: dict[str, float], draws: list[tuple[str, float]], within_noise: bool | None = False) -> Evidence:
    """Nothing but the effects of whole vectors on math prompts, and the draws of control vectors."""
    nothing: dict[str, Any] = {field.name: pd.DataFrame() for field in fields(Evidence)}
    effects = pd.DataFrame(whole.items(), columns=["control", "effect"]).assign(method="graft", domain="math")
    behaviour = pd.DataFrame(columns=["domain", "metric", "n", "change"])
    return Evidence(
        **nothing
        | {
            "effects": pd.DataFrame([{"domain": "math", "effect": 1.0, "metric": "logit_diff", "n": 8}]),
            "behaviour": behaviour,
            "whole": effects.assign(within_noise=within_noise),
            "control_draws": pd.DataFrame(draws, columns=["control", "effect"]).assign(domain="math"),
        }
    )


def test_p_is_the_rank_of_the_whole_vector_among_draws() -> None:
    draws = [("random", (-1.0) ** draw * 0.1 * draw) for draw in range(20)]
    assert control_sentence(_evidence({"": -1.85, "random": 0.0}, draws)) == (
        "all of T moves the logit difference on math prompts by −1.85, 20 random vectors of its norms by 0.950 at the "
        "median and 1.90 at most (p = 2/21)"
    )
    assert control_sentence(_evidence({"": 2.0}, draws)).endswith("(p = 1/21)")
    assert ", which rounding alone can do, 20" in control_sentence(_evidence({"": 1e-7}, draws, within_noise=True))
    two = control_sentence(_evidence({"": 2.0}, [*draws, ("shuffled", 3.0)]))
    assert two.endswith("(p = 1/21); a shuffled vector of its norms by +3.00")


def test_older_runs_have_one_draw_and_some_have_none() -> None:
    older = control_sentence(_evidence({"": 2.0, "random": 0.5}, [], within_noise=None))
    assert older.endswith("on math prompts by +2.00, a random vector of its norms by +0.500")
    assert control_sentence(_evidence({"": 2.0}, [])) == "no control vector was tried"
