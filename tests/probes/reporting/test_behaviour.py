"""What is said of behaviour: paired, corrected, above the floor, and no more than the tests allow."""

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
import pytest

from probes.reporting.behaviour import compare_behaviour
from probes.reporting.behaviour_sentences import (
    behaviour_sentences,
    few_sentences,
    said_of_each,
    worse_sentences,
)
from probes.reporting.claim import sentence
from probes.reporting.summary import learnt_and_lost
from probes.reporting.tables import behaviour_rows
from probes.reporting.words import interval, points

#: By domain and metric: the values of the base and of the tuned model, a prompt each.
Answers = Mapping[tuple[str, str], tuple[object, object]]


def compared(
    answers: Answers, floors: Mapping[tuple[str, str], float] | None = None, clusters: int | None = None
) -> pd.DataFrame:
    """The table of these answers; with `clusters`, the prompts of each domain fall into so many."""
    rows, names = [], {}
    for (domain, metric), sides in answers.items():
        for model, values in zip(("base", "new"), sides, strict=True):
            for i, value in enumerate(np.asarray(values, float)):
                rows.append((f"{domain}{i}", model, metric, value))
                names[f"{domain}{i}"] = (domain, None if clusters is None else f"{domain}-{i % clusters}")
    prompts = pd.DataFrame([(name, *of) for name, of in names.items()], columns=["prompt_id", "domain", "cluster"])
    values = pd.DataFrame(rows, columns=["prompt_id", "model", "metric", "value"]).dropna()
    return compare_behaviour(values, "new", prompts, floors or {})


def turned() -> pd.DataFrame:
    """Medical answers become right, general ones wrong."""
    answers: dict[tuple[str, str], tuple[object, object]] = {}
    drift = 0.01 * np.arange(20)
    for domain, before, after in (("general", 1.0, np.arange(20) >= 8), ("medical", 0.0, np.arange(20) > 0)):
        first, second = np.full(20, before), after.astype(float)
        answers |= {
            (domain, "exact_match"): (first, second),
            (domain, "target_nll_per_token"): (5 - 4 * first + drift, 5 - 4 * second + drift**2),
            (domain, "target_nll"): (10 - 8 * first + drift, 10 - 8 * second + drift**2),
        }
    return compared(answers | {("medical", "kl"): (np.full(20, np.nan), np.full(20, 2.0))})


def test_behaviour_is_paired_counted_and_sorted_by_what_it_did() -> None:
    table = turned()
    assert table.domain.iloc[0] == "medical"  # it changed most
    kl = table[table.metric == "kl"].iloc[0]
    assert kl.tuned == 2.0 and np.isnan(kl.base) and np.isnan(kl.change) and kl.said == ""
    sentences = behaviour_sentences(table)
    exact = "exact match 0 % → 95 % (+95 pp [+70.4 pp, +99.1 pp]; 19 gained, 0 lost)"
    assert sentences[0].startswith(f"medical (n = 20): {exact}; ")
    assert "target NLL" not in sentences[0] and "NLL per token 5.10 → 1.21 (−3.88 [" in sentences[0]
    assert "general (n = 20): exact match 100 % → 60 % (−40 pp [−61.3 pp, −15.8 pp]; 0 gained, 8 lost)" in sentences[1]
    worse = worse_sentences(table)
    assert worse[0].startswith("general: exact match −40 pp [−") and "NLL per token +1.5" in worse[0]
    assert worse[1] == "Of the 4 measured domain × metric pairs, 2 got better."
    better = worse_sentences(table[table.domain == "medical"])
    assert better == [
        "None of the 2 measured domain × metric pairs got worse: 2 got better. This holds for these prompts only."
    ]
    assert said(table) == (
        "On medical prompts exact match rises from 0 % to 95 % (19 of 20 answers gained, 0 lost; +95 pp [+70.4 pp, "
        "+99.1 pp]).",
        "On general prompts exact match falls from 100 % to 60 % (0 of 20 answers gained, 8 lost; −40 pp [−61.3 pp, "
        "−15.8 pp]).",
    )


def said(table: pd.DataFrame) -> tuple[str, ...]:
    """The sentences on what was learnt and what was lost."""
    return tuple(map(sentence, learnt_and_lost(table, pd.DataFrame())))


def test_four_lost_answers_are_no_claim() -> None:
    """McNemar gives p = .125."""
    lost = np.r_[np.zeros(4), np.ones(44)]
    table = compared({("general", "exact_match"): (np.ones(48), lost)})
    row = table.iloc[0]
    assert row.said == "cannot tell" and row.p == pytest.approx(0.125) and row.change_lo < -0.15 < 0 < row.change_hi
    assert worse_sentences(table)[0].startswith(
        "None of the 1 measured domain × metric pairs got worse: 1 cannot be decided"
    )
    assert said(table) == (
        "No measured change is clearly for the better; 1 of 1 changes cannot be distinguished from chance.",
        "On general prompts 4 of 48 right answers become wrong, which these prompts cannot distinguish from chance "
        f"(exact match 100 % → 92 %; −8.3 pp {interval(row.change_lo, row.change_hi, points)}).",
    )
    drift = np.linspace(0.5, 4.0, 48)
    beside = {("math", "exact_match"): (np.zeros(48),) * 2, ("math", "target_nll_per_token"): (1 + drift, 5 + drift**2)}
    assert compared({("general", "exact_match"): (np.ones(48), lost), **beside}).domain.iloc[0] == "general"


@pytest.mark.parametrize("size", [1e-6, 4e-3])
def test_a_change_below_the_floor_is_noise_however_sure(size: float) -> None:
    drift = size * (1 + 0.1 * np.sin(np.arange(48)))
    answers = {("medical", "target_nll_per_token"): (np.ones(48), 1 + drift)}
    table = compared(answers, {("medical", "target_nll_per_token"): 5e-3})
    assert table.p.iloc[0] < 1e-6 and table.said.iloc[0] == "within noise"
    assert worse_sentences(table)[0].endswith("1 stayed within rounding noise. This holds for these prompts only.")
    assert said(table)[1] == "No measured change is clearly for the worse: all are within rounding noise."
    assert compared(answers).said.iloc[0] == ("within noise" if size < 1e-5 else "negligible")


def test_what_is_surely_small_is_negligible() -> None:
    drift = 0.01 + 0.002 * np.sin(np.arange(48))
    table = compared(
        {("math", "target_nll_per_token"): (np.ones(48), 1 + drift), ("math", "logit_diff"): (np.ones(48), 3 - drift)}
    )
    assert table.set_index("metric").said.to_dict() == {"target_nll_per_token": "negligible", "logit_diff": "changed"}
    assert "1 changed by less than what matters" in worse_sentences(table)[0]


def test_too_few_prompts_or_clusters_give_no_interval_and_no_claim() -> None:
    up = ("medical", "target_nll_per_token"), (np.ones(7), 2 + 0.1 * np.arange(7))
    few = compared(dict([up]))
    reason = "too few prompts or clusters for an interval, which needs 8: medical (7)"
    assert said(few) == tuple(f"No measured change is clearly for the {way}: {reason}." for way in ("better", "worse"))
    beside = compared({**dict([up]), ("law", "logit_diff"): (np.zeros(24), np.cos(np.arange(24)))})
    assert said(beside)[0].endswith(f"better; 1 of 1 changes cannot be distinguished from chance; {reason}.")
    assert few.said.tolist() == ["cannot tell"] and few.change_lo.isna().all() and few.p_holm.isna().all()
    assert few_sentences(few) == ["Too few prompts or clusters for an interval, which needs 8: medical (7)."]
    turned = said(compared({("medical", "exact_match"): (np.r_[1.0, 0, 0], np.r_[1.0, 1, 1])}))
    assert turned[0].startswith("2 of 3 answers gained, but no measured change is clearly for the better: too few")
    assert turned[1].startswith("No measured change")
    answers = {("math", "exact_match"): (np.ones(48), np.zeros(48))}
    four = compared(answers, clusters=4)
    assert four.said.tolist() == ["cannot tell"] and four[["base_lo", "tuned_hi", "change_lo"]].isna().all(axis=None)
    assert four.units.tolist() == [4] and behaviour_rows(four)[0]["n"] == "48 in 4"
    twelve = compared(answers, clusters=12)
    assert behaviour_sentences(twelve)[0].startswith("math (n = 48 in 12 clusters): exact match 100 % → 0 % (−100 pp [")
    assert twelve.said.tolist() == ["changed"]
    assert few_sentences(twelve) == ["Fewer than 20 prompts or clusters make rough intervals: math (12)."]
    assert few_sentences(compared(answers)) == []


def test_what_one_test_shows_a_family_may_not() -> None:
    """p of about .03 is a change by itself, and none among three."""
    shift = np.sin(np.arange(24)) + 0.33
    answers: Answers = {("math", "logit_diff"): (np.zeros(24), -shift)}
    alone = compared(answers)
    assert 0.02 < alone.p.iloc[0] < 0.05 and said_of_each(alone).said.tolist() == ["worse"]
    still = {(domain, "logit_diff"): (np.zeros(24), np.cos(np.arange(24))) for domain in ("law", "art")}
    among = compared({**answers, **still}).set_index("domain")
    assert among.p["math"] < 0.05 < among.p_holm["math"] and among.said["math"] == "cannot tell"
    told = {text.split()[0]: text for text in behaviour_sentences(among.reset_index())}
    assert "−0.0" in told["math"] and told["math"].endswith("; cannot tell, corrected for the number of changes).")
    assert told["law"].endswith("; cannot tell).")  # its own interval says so


def test_prompts_that_changed_both_ways_did_not_stay_within_noise() -> None:
    """As many answers gained as lost, or ±2 of a logit: their mean of 0 is luck, not what rounding does."""
    turned = np.arange(48) % 2.0
    both_ways = {("math", "exact_match"): (turned, 1 - turned), ("math", "logit_diff"): (np.zeros(48), 4 * turned - 2)}
    table = compared(both_ways)
    assert (table.change == 0).all() and table.said.tolist() == ["cannot tell"] * 2
    few = compared({("math", "logit_diff"): (np.zeros(2), np.array([-2.0, 2.0]))})
    assert few.said.tolist() == ["cannot tell"]
    rounded = compared({("math", "logit_diff"): (np.zeros(48), 1e-5 * (4 * turned - 2))})  # one by one, above the floor
    assert rounded.said.tolist() == ["within noise"]


def test_clusters_count_once() -> None:
    """Twelve prompts of each of eight templates say no more than eight prompts."""
    shift = np.tile([0.9, -0.4, 0.5, 0.8, -0.2, 0.1, 0.7, -0.3], 12)
    answers = {("math", "target_nll_per_token"): (np.ones(96), 1 + shift)}
    assert compared(answers).said.tolist() == ["changed"] and compared(answers, clusters=8).said.tolist() == [
        "cannot tell"
    ]


def test_what_cannot_move_comes_last_and_what_repeats_is_left_out() -> None:
    """Exact match stays at 0; a model whose answers are one token has the same accuracy and the same loss twice."""
    nll = np.linspace(8, 9, 24), np.linspace(4, 6, 24) ** 1.1
    zero = np.zeros(24), np.zeros(24)
    answers = {("math", "exact_match"): zero, ("math", "target_nll"): nll, ("math", "target_nll_per_token"): nll}
    part = np.tile([0.25, 0.5, 0.25], 8), np.tile([0.5, 0.75, 1.0], 8)
    table = compared({**answers, ("math", "token_accuracy"): part})
    assert said(table)[0].startswith("On math prompts NLL per token falls from 8.50 to 5.88 (−2.62 [")
    assert behaviour_sentences(table)[0].endswith(
        "exact match 0 % → 0 % (0 pp [−13.8 pp, +13.8 pp]; 0 gained, 0 lost; within noise)."
    )
    assert list(said_of_each(table).metric) == ["exact_match", "target_nll_per_token", "token_accuracy"]
    alike = compared({**answers, ("math", "token_accuracy"): zero})
    assert list(said_of_each(alike).metric) == ["exact_match", "target_nll_per_token"]


def test_long_answers_do_not_choose_the_domain() -> None:
    """Summed over 40 tokens a small change per token is larger than a large one of a single token."""
    ramp = np.linspace(-0.1, 0.1, 16)
    answers: Answers = {
        ("essays", "target_nll"): (40 * (2 + ramp), 40 * (1.9 + ramp**2)),
        ("essays", "target_nll_per_token"): (2 + ramp, 1.9 + ramp**2),
        ("facts", "target_nll"): (3 + ramp, 1 + ramp**2),
        ("facts", "target_nll_per_token"): (3 + ramp, 1 + ramp**2),
    }
    assert compared(answers).domain.iloc[0] == "facts"


def test_the_report_shows_floor_p_and_what_is_said() -> None:
    rows = behaviour_rows(turned())
    assert rows[0]["said"] == "changed" and rows[0]["p"] == "p < 0.001" and rows[0]["floor"] == "0 pp"
    (kl,) = (row for row in rows if row["metric"].startswith("KL"))
    assert kl["said"] == kl["p"] == "" and kl["change"] == "–"


NULLS: dict[str, Callable[[np.random.Generator, int], tuple[object, object]]] = {
    "exact_match": lambda rng, n: (rng.random(n) < 0.8, rng.random(n) < 0.8),
    "target_nll_per_token": lambda rng, n: (np.zeros(n), rng.lognormal(0, 1, n) - np.exp(0.5)),
    "logit_diff": lambda rng, n: (np.zeros(n), rng.normal(0, 2, n)),
}


@pytest.mark.thorough
@pytest.mark.parametrize("n", [8, 24])
def test_nothing_got_worse_where_nothing_changed(n: int) -> None:
    """Of reports on three domains and three metrics whose mean did not change, at most 5 % say "worse"."""
    rng, alarms, reports = np.random.default_rng(n), 0, 25
    for _ in range(reports):
        answers = {(domain, name): null(rng, n) for domain in ("a", "b", "c") for name, null in NULLS.items()}
        alarms += "worse" in set(said_of_each(compared(answers)).said)
    assert alarms <= 0.05 * reports


def test_sentences_on_a_model_without_values_and_of_one_that_lost_nothing() -> None:
    gone = compared({("math", "logit_diff"): (np.ones(9), np.full(9, np.nan))})
    assert "was measured of both models" in said(gone)[0] and worse_sentences(gone) == []
    better = compared({("math", "logit_diff"): (np.zeros(9), 3 + np.sin(np.arange(9)))})
    assert said(better)[1] == "No measured change is clearly for the worse."


def test_all_that_got_worse_is_named_whatever_the_domains_are_called() -> None:
    names = ["a", "b", "c", "d", "e {} {0}", "f"]
    table = compared({(name, "logit_diff"): (3 + np.sin(np.arange(9)), np.zeros(9)) for name in names})
    better, worse = said(table)
    assert better.startswith("No measured change is clearly for the better")
    assert worse.count("logit difference falls") == 4 and worse.endswith("also worse: e {} {0} and f.")
    assert said(compared({("{0}", "exact_match"): (np.ones(2), np.ones(2))}))[0].endswith("which needs 8: {0} (2).")


def test_newcombes_interval_may_leave_zero_out_where_mcnemars_test_cannot_tell() -> None:
    """Five of fourteen lost: p = .0625, and the interval is just below 0."""
    lost = compared({("math", "exact_match"): (np.ones(14), (np.arange(14) >= 5).astype(float))})
    assert lost.p.iloc[0] == pytest.approx(0.0625) and lost.change_hi.iloc[0] < 0
    assert behaviour_sentences(lost)[0].endswith("0 gained, 5 lost; cannot tell by the exact test).")
