"""The gate: planted changes first, then shams, then what it refuses."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import yaml

import probes
from probes.cli import main
from probes.gating.estimates import Average, Exact, Found, Rank, average, moved_share
from probes.gating.judging import Bound, judge
from probes.gating.rule import RULES, RuleError
from tests.command import call
from tests.docs.commands import ROOT
from tests.probes.gating.runs import put, written

KEPT = {"behaviour": {"metric": "target_nll", "domain": "general", "worse_by_at_most": 0.05}}

TABLE = {"table": "behaviour", "column": "value"}
OF_FIRST = "SELECT prompt_id, kl AS value FROM tokens WHERE tuned = $tuned AND pos = 0"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> probes.Run:
    """General got worse by 0.3 nats, medicine better by 1."""
    return written(tmp_path_factory.mktemp("a room") / "run", {"general": 0.3, "medical": -1.0})


def _verdict(run: probes.Run, **rule: Any) -> Any:
    return probes.gate(run, [rule]).ruled[0]


@pytest.mark.parametrize(
    ("rule", "verdict", "value"),
    [
        (KEPT, "fail", 0.3),
        ({"behaviour": {"metric": "target_nll", "domain": "medical", "better_by_at_least": 0.8}}, "pass", 1.0),
        ({"behaviour": {"metric": "target_nll", "domain": "medical", "better_by_at_least": 1.2}}, "fail", 1.0),
        ({"behaviour": {"metric": "target_nll", "domain": "medical", "worse_by_at_most": 0}}, "pass", -1.0),
        ({"behaviour": {"metric": "target_nll", "domain": "medical", "changes_by_at_most": 0.5}}, "fail", -1.0),
        ({"behaviour": {"metric": "target_nll", "domain": "medical", "changes_by_at_most": 1.5}}, "pass", -1.0),
        ({"behaviour": {"metric": "exact_match", "worse_by_at_most": 0.2}}, "pass", 0.1),
        ({"behaviour": {"metric": "exact_match", "worse_by_at_most": 0.1}}, "cannot tell", 0.1),
        ({"behaviour": {"metric": "exact_match", "at_least": 0.99}}, "fail", 0.9),
        ({"kl": {"domain": "general", "at_most": 0.15}}, "pass", None),
        ({"kl": {"at_most": 0.01}}, "fail", None),
        ({"weights": {"modules": ["embed"], "share_of_T_at_most": 0.05}}, "fail", 1 / 9),
        ({"weights": {"layers": [0, 1], "share_of_T_at_least": 0.5}}, "pass", 8 / 9),
        ({"weights": {"relative_norm_at_most": 0.2}}, "pass", 0.3 / 3**0.5),
        ({"check": "no_op"}, "pass", 0),
        ({"check": {}}, "fail", 1),
        ({"calibration": {"domain": "general", "brier_at_most": 0.2}}, "pass", None),
        ({"table": TABLE | {"where": "metric = 'exact_match'", "at_least": 0.7}}, "pass", 0.9),
        ({"sql": {"query": "SELECT count(*) AS n FROM prompts", "at_most": 79}}, "fail", 80),
        ({"sql": {"query": "SELECT prompt_id, kl value FROM tokens WHERE tuned = $tuned", "at_most": 9}}, "pass", None),
        ({"sql": {"query": f"{OF_FIRST} -- each prompt's", "at_most": 9}}, "pass", 9),
        ({"sql": {"query": f"{OF_FIRST};", "at_most": 9}}, "pass", 9),
    ],
)  # fmt: skip
def test_a_planted_number_is_judged(run: probes.Run, rule: dict[str, Any], verdict: str, value: float | None) -> None:
    ruled = _verdict(run, **rule)
    assert ruled.verdict == verdict, ruled
    assert value is None or ruled.value == pytest.approx(value, abs=1e-6)
    assert np.isnan(ruled.lo) or ruled.lo <= ruled.value <= ruled.hi


def test_the_interval_says_the_verdict_and_a_sham_passes(tmp_path: Path) -> None:
    sham = written(tmp_path / "sham", {"general": 0.001, "medical": -0.001}, spread=0.05)
    kept = KEPT["behaviour"]
    rules = [{"behaviour": kept | {"domain": name}} for name in ("general", "medical", "all")]
    found = probes.gate(sham, rules)
    assert found.passed and (found.df().hi < 0.05).all()
    few = written(tmp_path / "few", {"general": 0.3, "medical": -0.001}, n=7)
    ruled = probes.gate(few, [KEPT]).ruled[0]
    assert ruled.verdict == "cannot tell" and "at least 8" in ruled.because and np.isnan(ruled.lo)


def test_nothing_moved_is_null_and_passes(tmp_path: Path) -> None:
    run = written(tmp_path / "run", {"general": 0.0, "medical": 0.0}, contents=("a", "a"))
    (ruled,) = probes.gate(run, [KEPT]).ruled
    assert ruled.verdict == "pass" and np.isnan(ruled.value) and "nothing moved" in ruled.because


def test_rounding_is_no_failure(tmp_path: Path) -> None:
    run = written(tmp_path / "run", {"general": 0.3, "medical": -1.0})
    floor = {"precision": "bfloat16", "domain": "general", "metric": "target_nll", "n": 40, "floor": 0.5}
    put(run, "behaviour_floor", pd.DataFrame([floor]))
    ruled = probes.gate(run.path, [KEPT]).ruled[0]
    assert ruled.verdict == "cannot tell" and "rounding alone reaches 0.5" in ruled.because


def test_words_of_a_discovery(tmp_path: Path) -> None:
    run = written(tmp_path / "run", {"general": 0.3, "medical": -1.0})
    words = {"part": "spoken", "token": [" Oslo", " the", "y"], "q": [0.001, 0.002, 0.3]}
    put(run, "discovered_words", pd.DataFrame({"tuned": "tuned", **words, "stands_out": [True, True, False]}))
    for rule, verdict in (
        ({}, "fail"),
        ({"allowed": ["the", "O*"]}, "pass"),
        ({"forbidden": ["Os*"]}, "fail"),
        ({"at_most": 2}, "pass"),
    ):
        ruled = _verdict(probes.load(run.path), tokens=rule)
        assert ruled.verdict == verdict and ("Oslo" in ruled.because) == (verdict == "fail" or "at_most" in rule), rule


def test_a_discovery_has_the_kl_of_texts(tmp_path: Path) -> None:
    run = written(tmp_path / "run", {"general": 0.3, "medical": -1.0})
    del run.manifest["tables"]["tokens"]
    ids = run["prompts"].prompt_id
    put(run, "divergences", pd.DataFrame({"tuned": "tuned", "prompt_id": ids, "kl": np.linspace(0, 0.2, len(ids))}))
    assert _verdict(probes.load(run.path), kl={"at_most": 0.15}).value == pytest.approx(0.1)


def test_rank_among_random_vectors(tmp_path: Path) -> None:
    run = written(tmp_path / "run", {"general": 0.3, "medical": -1.0})
    keys = {"tuned": "tuned", "domain": "all", "metric": "logit_diff"}
    draws = np.linspace(-1, 1, 20)
    put(run, "control_draws", pd.DataFrame({**keys, "control": "random", "draw": range(20), "effect": draws}))
    for effect, verdict in ((3.0, "pass"), (0.1, "fail")):
        whole = {"granularity": "all", "method": "graft", "control": "", "effect": [effect]}
        put(run, "effects", pd.DataFrame({**keys, **whole}))
        assert _verdict(probes.load(run.path), random_rank={"p_at_most": 0.05}).verdict == verdict
    # Beside a rule that does not pass, one rank in 21 is no longer enough, and the plan says what would be.
    rank = {"random_rank": {"p_at_most": 0.05}}
    put(run, "effects", pd.DataFrame({**keys, **whole, "effect": [3.0]}))
    ruled = probes.gate(run.path, [rank, KEPT]).ruled[0]
    assert ruled.verdict == "cannot tell" and "takes 39 draws" in ruled.because
    assert "needs 19 draws where every other rule passes, 39" in probes.gate_plan(run.path, [rank, KEPT]).note[0]


def test_two_runs_are_held_against_each_other_prompt_by_prompt(tmp_path: Path) -> None:
    old = written(tmp_path / "old", {"general": 0.0, "medical": -1.0}, tuned="model")
    new = written(tmp_path / "new", {"general": 0.2, "medical": -1.0}, tuned="model")
    rule = {"metric": "target_nll", "against": "old/model", "worse_by_at_most": 0.05}
    found = probes.gate([old, new], [{"behaviour": rule | {"domain": name}} for name in ("general", "medical")])
    assert [(one.tuned, one.verdict) for one in found.ruled] == [("new/model", "fail"), ("new/model", "pass")]
    assert found.ruled[0].value == pytest.approx(0.2) and found.verdict == "fail"


@pytest.mark.thorough
def test_both_errors_of_a_whole_file_are_rare_at_the_bounds() -> None:
    rng = np.random.default_rng(1)
    fails = passes = 0
    for _ in range(100):
        noise = [rng.normal(size=24), rng.exponential(size=24) - 1, rng.normal(size=12)]
        numbers = [average(0.05 + 0.2 * one, None) for one in noise for _ in (0, 1)]
        verdicts = {one.verdict for one in judge(numbers, [Bound(0.05), Bound(at_least=0.05)] * 3)}
        fails, passes = fails + ("fail" in verdicts), passes + ("pass" in verdicts)
    assert fails <= 11 and passes <= 11  # 5 in 100, and 2.8 standard errors


def test_estimates_agree_with_their_ends() -> None:
    rng = np.random.default_rng(2)
    for number in (Average(rng.normal(size=20), None), moved_share(np.ones(40), (np.arange(40) > 5) * 1.0, None)):
        for alpha in (0.05, 0.005):
            assert number.p_above(number.lower(alpha)) == pytest.approx(alpha, rel=1e-3)
            assert number.p_below(number.upper(alpha)) == pytest.approx(alpha, rel=1e-3)
    assert Rank(0, 39).p_below(0.05) == pytest.approx(0.025) and Found((0.01,)).p_above(0) == 0.01
    assert [one.verdict for one in judge([Exact(0.5)] * 2, [Bound(0.5), Bound(at_least=0.5)])] == ["pass", "pass"]


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ("- behavior: {metric: target_nll}", "line 1: no kind of rule 'behavior'; did you mean 'behaviour'?"),
        ("- kl: {at_mots: 0.1}", "line 1: kl.at_mots: unknown key; did you mean 'at_most'?"),
        ("- check: no_op\n- kl: {}", "line 2: kl: it says nothing of what may be; give one of at_most, at_least"),
        ("- kl:\n    at_most: -1", "line 2: kl.at_most: should be greater than or equal to 0, not -1"),
        ("- kl: {at_most: yes}", "line 1: kl.at_most: should be a number, not True"),
        ("- kl: {at_most: 1, at_least: 0}", "are one too many"),
        ("- kl: {domain: generel, at_most: 1}", "no domain 'generel'; did you mean 'general'?"),
        ("- behaviour: {metric: target_nl, at_most: 1}", "no metric 'target_nl'; did you mean 'target_nll'?"),
        ("- kl: {tuned: x, at_most: 1}", "no tuned model 'x'; the only one is tuned"),
        ("- check: completness", "no check 'completness'; did you mean 'completeness'?"),
        ("- tokens: {}", "the run has no table 'discovered_words'; discovery makes it"),
        ("- table: {table: tokens, column: role, at_most: 1}", "not numbers"),
        ("- table: {table: tokens, column: kl, where: 'nothing = 1', at_most: 1}", "line 1: table: query: "),
        ("- weights: {modules: [p], share_of_T_at_most: 1}", "no module 'p'"),
        ("kl: {at_most: 1}", "rules are a list"),
        ("- sql: {query: 'SELECT prompt_id, domain AS value FROM prompts', at_most: 1}", "what is no finite number"),
        ("- sql: {query: \"SELECT 'x' AS n\", at_most: 1}", "answers what is no finite number"),
        ("- sql: {query: \"SELECT 'x' AS prompt_id, 1 AS value\", at_most: 1}", "the run has no prompt 'x'"),
        ("- kl: {at_most: 1}\n  check: no_op", "one kind, not kl and check"),
        ("- 3", "a rule is a mapping"),
        ("", "rules are a list"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_judged(
    run: probes.Run, tmp_path: Path, rules: str, said: str
) -> None:
    file = tmp_path / "gate.yaml"
    file.write_text(rules)
    with pytest.raises((RuleError, probes.RunError)) as refused:
        probes.gate(run, file)
    assert said in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(("sizes", "status"), [((0.5, 2), 0), ((0.05, 2), 3), ((0.3, 2), 4)])
def test_the_command_says_and_writes_the_verdicts(
    run: probes.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, sizes: tuple[float, ...], status: int
) -> None:
    names = ["<general> | kept", "b"]
    kept = KEPT["behaviour"]
    rules = [
        {"behaviour": kept | {"worse_by_at_most": size}, "name": name} for size, name in zip(sizes, names, strict=True)
    ]
    (tmp_path / "gate.yaml").write_text(yaml.safe_dump(rules))
    files = {name: tmp_path / f"found.{name}" for name in ("junit", "markdown")}
    given = ["gate", run.path, "--rules", tmp_path / "gate.yaml", "--json"]
    to = [word for name, path in files.items() for word in (f"--{name}", path)]
    found, out, _ = call(monkeypatch, capsys, main, *given, *to)
    assert found == status and f'"status": {status}' in out
    suite = ElementTree.parse(files["junit"]).getroot()[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == (
        "2",
        str(int(status == 3)),
        str(int(status == 4)),
    )
    assert suite[0].get("name") == names[0] and (
        status == 0 or suite[0].find("failure" if status == 3 else "error") is not None
    )
    written = files["markdown"].read_text(encoding="utf-8")
    assert "&lt;general&gt; \\| kept" in written and f"| ≤ {sizes[0]:g} |" in written
    assert call(monkeypatch, capsys, main, "gate", "suite.yaml", "--rules", tmp_path / "gate.yaml")[0] == 2
    assert call(monkeypatch, capsys, main, *given, "--junit", tmp_path / "no" / "x.xml")[0] == 2


def test_a_plan_before_and_after_a_run(run: probes.Run, tmp_path: Path) -> None:
    rules = [
        KEPT,
        {"kl": {"domain": "general", "at_most": 0.01}},
        {"weights": {"modules": ["embed"], "share_of_T_at_most": 1}},
    ]
    ahead = probes.gate_plan(run, rules)
    assert ahead.n.tolist() == [40, 40, 0] and ahead.reachable.tolist()[1:] == [False, None]
    # 0.1/√40 times the t quantiles of 2.5 % and of 80 %. At that distance 77 % of 500 simulated gates pass.
    assert ahead.detectable[0] == pytest.approx(0.046, abs=0.003)
    suite = probes.gate_plan(ROOT / "data" / "suites" / "demo.yaml", [KEPT, {"check": "completeness"}])
    assert set(suite.tuned) == {"medical", "math"} and suite.detectable.isna().all() and "sd below" in suite.note[0]
    with pytest.raises(RuleError, match="makes no discovery"):
        probes.gate_plan(ROOT / "data" / "suites" / "demo.yaml", [{"tokens": {}}])


def test_every_kind_of_rule_is_explained() -> None:
    page = (ROOT / "docs" / "gate.md").read_text(encoding="utf-8")
    for kind, form in RULES.items():
        assert f"`{kind}`" in page and form.__doc__
        assert all(f"`{key}`" in page for key in form.model_fields), kind
