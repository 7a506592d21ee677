"""What a change is due to, in sentences: projections, what cancels, and new directions beside W's own."""

import numpy as np
import pandas as pd
import pytest

from probes.reporting.evidence import _ledger
from probes.reporting.own_weights import ledger_sentences

_ROW = {
    "prompt_id": "a",
    **{"layer": 0, "module": "q", "delta_norm": 2.0},
    **{"direct_norm": 1.0, "inherited_norm": 2.0, "interaction_norm": 0.1},
    **{"direct_share": 0.25, "inherited_share": 0.7, "interaction_share": 0.05},
    **{"new_share": 0.3, "new_share_null": 0.1, "new_share_of_w": 0.05},
    **{"new_share_10": 0.8, "new_share_10_of_w": 0.45},
}


def sentences(*changes: dict[str, object]) -> list[str]:
    return ledger_sentences(_ledger(pd.DataFrame([_ROW | change for change in changes])))


def test_shares_are_projections_and_new_stands_beside_w() -> None:
    down = {"module": "down", "direct_share": 0.05, "inherited_share": 0.9, "new_share_10": 0.5}
    own, new = sentences({}, down)
    assert own.startswith(
        "15 % of the change of a module's output is due to the module's own weights, on average: most"
    )
    assert "most in q (25 %), least in down (5.0 %). 80 % is inherited through its input, and 5.0 % is the" in own
    assert "outside the leading 10 % of pretrained output directions: down 50 % (W x: 45 %), q 80 % (W x: 45 %)" in new
    assert new.endswith("has 90 %. That is more than W x itself on the same inputs in down and q.")


def test_a_negative_share_is_shown_as_such() -> None:
    own, _ = sentences({}, {"module": "down", "direct_share": -1.0, "inherited_share": 2.5, "interaction_share": -0.5})
    assert "least in down (−100 %, where they pushed against it)" in own


def test_more_of_w_is_not_called_new() -> None:
    (_, new) = sentences({"new_share_10": 0.46})
    assert new.endswith("That is as much as W x itself writes there.")
    assert sentences({"new_share_10": 0.30})[1].endswith("That is less than W x itself in q.")


def test_terms_that_cancel_are_said_to_and_get_no_share() -> None:
    nothing = dict.fromkeys(("direct_share", "inherited_share", "interaction_share"), np.nan)
    undone, new = sentences(nothing | {"delta_norm": 1e-6})
    assert undone == (
        "In q (at 100 % of places) the terms cancel: the inherited change undoes what the module's own weights did, so "
        "no shares are given."
    )
    assert new.startswith("Share of this direct change")


@pytest.mark.parametrize("still", [{"direct_norm": 0.0, "new_share_10": np.nan, "direct_share": 0.0}])
def test_modules_that_did_not_move_have_no_part_in_it(still: dict[str, float]) -> None:
    assert sentences({}, still | {"module": "k"}) == sentences({})
    assert sentences(still) == [] == ledger_sentences(_ledger(pd.DataFrame(columns=list(_ROW))))


def test_a_run_of_before_says_what_it_knows() -> None:
    """Without shares and without W's own: what is new, beside its null alone."""
    unknown = ("direct_share", "inherited_share", "interaction_share", "new_share_of_w", "new_share_10_of_w")
    (new,) = sentences(dict.fromkeys(unknown, np.nan))
    assert new.endswith("directions: q 80 %; a T with no preferred direction has 90 %.")


def test_prompts_count_alike_however_long_they_are() -> None:
    long = [{"prompt_id": "b", "direct_share": 0.05}] * 9
    assert "15 % of the change" in sentences({}, *long)[0]
