"""The link names what stands out of shuffled units, and nothing else."""

import numpy as np
import pandas as pd
import pytest

from probes.reporting.link_sentences import link_sentences, stands_out


def _pairs(**changes: object) -> pd.DataFrame:
    """Three pairs of modules, all with an interval far from 0; raw SSA goes with the direct share most of all."""
    rows = [
        ("ssa_left", "direct_share", 0.99, 0.9, 1.0, 0.001),
        ("relative_norm", "direct_share", 0.5, 0.2, 0.8, 0.21),
        ("kappa_left", "direct_share", -0.7, -0.9, -0.3, 0.62),
    ]
    names = ["weight_measure", "activation_measure", "rho", "lo", "hi", "p_family"]
    return pd.DataFrame(rows, columns=names).assign(kind="module", n=42, p=0.001, **changes)


def test_an_interval_clear_of_0_is_no_claim() -> None:
    (said,) = link_sentences(_pairs())
    assert said == (
        "Over 42 modules that moved, ranked within their type, direct share of the change: none of 2 pairs with a "
        "weight measure is clear of chance (shuffled units; smallest p 0.21 over all pairs)."
    )
    assert stands_out(_pairs()).tolist() == [True, False, False]


def test_what_stands_out_is_named_with_its_p() -> None:
    (said,) = link_sentences(_pairs(p_family=[0.001, 0.03, 0.002]))
    assert "2 of 2 pairs with a weight measure are clear of chance (shuffled units)" in said
    assert "most of all κ (ε = 0.05), output side with direct share of the change, ρ = −0.70 [−0.900, −0.300]" in said
    assert said.endswith("p = 0.0020 over all pairs.") and "raw SSA" not in said
    (bare,) = link_sentences(_pairs(p_family=[0.001, 0.03, 0.2], lo=np.nan, hi=np.nan))
    assert "1 of 2 pairs" in bare and "ρ = 0.50, p = 0.030 over all pairs." in bare


@pytest.mark.parametrize("p", [np.nan, None])
def test_a_run_that_tested_nothing_claims_nothing(p: float | None) -> None:
    """Runs of earlier versions have no p of the family."""
    (said,) = link_sentences(_pairs(p_family=p))
    assert said.endswith("2 pairs with a weight measure, not tested in this run; `probes link` tests them.")
    assert not stands_out(_pairs(p_family=p)).any()


def test_each_kind_of_unit_has_its_sentence() -> None:
    components = _pairs().assign(kind="component", n=12, activation_measure=["graft", "graft", "revert"])
    said = link_sentences(pd.concat([_pairs(), components]))
    assert len(said) == 2 and "Over 12 components that moved" in said[1]
    assert "graft effect, all prompts and revert effect, all prompts: none of 2 pairs" in said[1]
    assert link_sentences(_pairs(rho=np.nan)) == link_sentences(_pairs()[:0]) == []
