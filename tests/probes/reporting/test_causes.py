"""Components are named where their interval of all at once leaves 0 out; else the text says why none is."""

import numpy as np
import pandas as pd
import pytest

from probes.reporting.behaviour import compare_behaviour
from probes.reporting.causes import agreement_sentences, causes_sentences, shown_domain, told_method
from probes.store.schemas import ALL_DOMAINS


def _behaviour() -> pd.DataFrame:
    """Nothing that was measured."""
    values = pd.DataFrame(columns=["prompt_id", "model", "metric", "value"])
    return compare_behaviour(values, "new", pd.DataFrame(columns=["prompt_id", "domain", "cluster"]), {})


def _effects(lo: float = 1.0, n: float = 48.0, **columns: object) -> pd.DataFrame:
    """Rows as `gather` reads them; `lo` is the lower end for the only component that may stand out."""
    rows = [
        ("graft", ALL_DOMAINS, 2, "mlp", 1.5, 1.0, 2.0, 1e-6, 1.2),
        ("graft", "medical", 2, "mlp", 3.0, lo, 4.0, 1e-6, 2.5),
        ("graft", "medical", 1, "attn", -0.5, -1.0, 0.1, 0.4, -0.1),
        ("graft", "math", 1, "attn", 0.2, -0.1, 0.3, 0.4, 0.1),
        ("revert", "medical", 2, "mlp", 2.0, -0.5, 3.0, 0.03, 1.0),
        ("revert", "medical", 1, "attn", 0.1, -1.0, 1.1, 0.9, 0.0),
    ]
    names = ["method", "domain", "layer", "component", "effect", "lo_all", "hi_all", "p", "held_out"]
    table = pd.DataFrame(rows, columns=names).assign(metric="logit_diff", n=n, within_noise=False)
    return table.assign(lo=table.lo_all, hi=table.hi_all, q=table.p, **columns)


def test_causes_name_components_with_the_interval_of_all_and_what_is_held_out() -> None:
    behaviour = pd.DataFrame([dict(domain="medical", metric="logit_diff", n=48, change=4.0)])
    text = " ".join(causes_sentences(_effects(), behaviour))
    assert text.startswith("Exact effects on the logit difference over medical prompts (n = 48), where it changed most")
    assert "Graft: mlp 2 +3.00 [+1.00, +4.00], held out +2.50. 1 of 2 components have q < 0.05." in text
    assert "Revert: no single component has a clear effect; the largest is mlp 2 +2.00 [−0.500, +3.00]" in text
    assert "The whole change there is +4.00; single effects add up to +2.50 by graft and +2.10 by revert" in text
    assert "On the other domains none of 1 effects of single components is clear of 0." in text
    assert told_method(_effects().query("domain == 'medical'")) == "graft"


def test_the_domain_that_changed_most_is_explained_not_that_of_the_largest_effect() -> None:
    rows = [dict(domain=name, metric="logit_diff", n=48, change=by) for name, by in (("medical", 0.5), ("math", -4.0))]
    assert shown_domain(_effects(), pd.DataFrame(rows)) == "math"
    effects = _effects()
    few = effects.assign(n=effects.n.where(effects.domain != "math", 5.0))
    assert shown_domain(few, pd.DataFrame(rows)) == "medical"  # five prompts of math have no interval
    assert shown_domain(_effects(), _behaviour()) == "medical"  # nothing known of logit_diff: the largest effect


def test_effects_that_cannot_be_told_from_zero_are_not_named_causes() -> None:
    text = " ".join(causes_sentences(_effects(-0.1), _behaviour()))
    assert "Graft: no single component has a clear effect; the largest is mlp 2 +3.00 [−0.100, +4.00], held out" in text
    assert told_method(_effects(-0.1).query("domain == 'medical'")) == ""
    assert causes_sentences(_effects().head(0), _behaviour()) == []


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"within_noise": True}, "none moves it by more than rounding alone can"),
        ({"effect": np.nan, "within_noise": False}, "none moves it by more than rounding alone can"),
        ({"n": 5.0, "lo": np.nan, "lo_all": np.nan}, "an interval, which needs 8: medical (5)"),
        (
            {"n": 9.0, "lo_all": np.nan},
            "9 prompts, or clusters of them, are too few to distinguish any of 4 effects from 0",
        ),
        ({"n": np.nan, "lo_all": np.nan, "within_noise": None}, "this run is older than intervals that hold for all"),
    ],
)
def test_where_nothing_can_be_named_the_text_says_why(columns: dict[str, object], reason: str) -> None:
    behaviour = pd.DataFrame([dict(domain="medical", metric="logit_diff", n=48, change=4.0)])
    effects = _effects().assign(**columns)
    assert any(reason in sentence for sentence in causes_sentences(effects, behaviour))
    assert "mlp 2" not in " ".join(causes_sentences(effects, behaviour))


def test_exact_heads_no_shares_and_together_is_said_where_intervals_part() -> None:
    path = _effects().assign(method="path")
    assert causes_sentences(path, _behaviour())[0].startswith("Shares of the change (path) on")
    both = pd.concat([path, _effects()], ignore_index=True)
    assert causes_sentences(both, _behaviour())[0].startswith("Effects of components on")
    together = "No component alone shows a clear effect (graft); taking one away does (revert)."
    rows = _effects(-0.1)
    rows.loc[4, ["lo_all", "hi_all"]] = [1.5, 3.0]  # told from 0, but within what graft allows
    assert together not in causes_sentences(rows, _behaviour())
    rows.loc[4, ["lo_all", "hi_all"]] = [4.5, 9.0]
    assert together in causes_sentences(rows, _behaviour())


def test_one_domain_is_all_prompts_and_few_prompts_elsewhere_are_said_to_be_few() -> None:
    alone = _effects(n=5.0, lo=np.nan, lo_all=np.nan).query("domain == @ALL_DOMAINS")
    first, reason = causes_sentences(alone, _behaviour())
    assert first == "Exact effects on the logit difference over all prompts (n = 5)."
    assert reason.endswith("needs 8: all prompts (5).")
    behaviour = pd.DataFrame([dict(domain="medical", metric="logit_diff", n=48, change=4.0)])
    few = _effects()
    few.loc[few.domain == "math", "n"] = 7.0
    assert causes_sentences(few, behaviour)[-1] == (
        "On the other domains no effect is clear of 0: too few prompts or clusters for an interval, which needs "
        "8: math (7)."
    )


@pytest.mark.parametrize(
    ("rho", "lo", "hi", "said"),
    [
        (0.9, 0.7, 0.97, "agree on the order of the components: rank correlation 0.90 [0.70, 0.97] over 14 components"),
        (0.36, 0.05, 0.6, "only partly agree on the order of the components"),
        (0.36, -0.2, 0.7, "do not clearly agree"),
        (-0.5, -0.8, -0.1, "in opposite ways"),
        (0.9, np.nan, np.nan, "do not clearly agree on the order of the components: rank correlation 0.90 over"),
    ],
)
def test_agreement_is_told_once_and_by_its_interval(rho: float, lo: float, hi: float, said: str) -> None:
    row = dict(method="graft", reference="revert", rho=rho, lo=lo, hi=hi, n=14)
    (told,) = agreement_sentences(pd.DataFrame([row, row | {"method": "path", "rho": 0.1}]))
    assert said in told and told.endswith("14 components, all prompts.")
    assert agreement_sentences(pd.DataFrame()) == [] == agreement_sentences(pd.DataFrame([row | {"rho": np.nan}]))
