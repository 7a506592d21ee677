"""Several runs on one page: what it says is what their tables say, and what cannot be compared is said."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

import probes
from probes.cli import main
from probes.errors import RunError
from probes.reporting.compare import charts
from probes.reporting.compare.entries import Entry, cautions, entries_of, one_training
from probes.reporting.compare.measures import OWN_DOMAIN, differences, effect_correlations, measure_rows
from probes.reporting.compare.verdict import comparison_verdict, course, told_apart
from probes.store.schemas import ALL_DOMAINS
from tests import pairs
from tests.command import call
from tests.pages import data_of, drawn
from tests.pairs import PROMPTS, build_model, build_pair, build_tokenizer, perturb, write_prompts, write_suite
from tests.runs import NO_REPORT, edited

HOSTILE = '<img src=x onerror="window.harmed = 1">'
#: Two of each: enough prompts for an interval.
ASKED = [*PROMPTS, *({**row, "id": f"{row['id']}-again", "text": f"Again: {row['text']}"} for row in PROMPTS)]
MEASURE = ["gates", "contributions", "changes", "ledger", "lens", "behaviour"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> probes.Run:
    """One base, and three points of one training: its tuned models moved less and more."""
    folder = tmp_path_factory.mktemp("compare")
    base, _ = build_pair(folder)
    steps = {}
    for i, (name, step) in enumerate({"some": 0.02, "more": 0.05, "most": 0.1}.items()):
        model, place = build_model(), folder / f"checkpoint-{10 * i}"
        perturb(model, step, seed=1)
        model.save_pretrained(place)
        build_tokenizer().save_pretrained(place)
        steps[name] = str(place)
    quick = {"bootstrap": 40, "noise_floor": False, "epsilons": [0.05]}
    suite = write_suite(folder, base, base, tuned=steps, measure=MEASURE, **quick)
    write_prompts(folder / "prompts.jsonl", ASKED)
    return probes.run(suite, out=folder / "run", stages=NO_REPORT)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> probes.Run:
    """Another base with a layer less, other prompts, positions and metric, and neither gates nor a ledger."""
    folder = tmp_path_factory.mktemp("compare-other")
    with pytest.MonkeyPatch.context() as patch:
        name, sizes = pairs.CONFIGS["llama"]
        patch.setitem(pairs.CONFIGS, "llama", (name, {**sizes, "num_hidden_layers": 2}))
        suite = write_suite(
            folder,
            *build_pair(folder, seed=5),
            positions="target",
            bootstrap=40,
            measure=["contributions", "changes", "behaviour"],
            attribute={"methods": ["revert"], "metric": "target_nll", "curves": False, "controls": []},
        )
    hostile = {"id": "h", "text": HOSTILE, "target": " two", "foil": " four", "domain": HOSTILE}
    write_prompts(folder / "prompts.jsonl", [*PROMPTS[:4], hostile])
    return probes.run(suite, out=folder / "run", stages=NO_REPORT)


@pytest.fixture(scope="module")
def entries(run: probes.Run) -> list[Entry]:
    return entries_of([run])


@pytest.fixture(scope="module")
def mixed(run: probes.Run, other: probes.Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("compared") / "mixed.html"
    return probes.compare([run, other], to=to, labels=["training", HOSTILE])


def test_values_are_the_tables_own_means(run: probes.Run) -> None:
    found = probes.comparison([run.path]).set_index(["entry", "measure", "domain"])
    gates = run.df("gates", where=[("tuned", "==", "more")])
    prompts = gates.groupby("prompt_id").flip_rate.mean()
    assert found.value["more", "flip_rate", ALL_DOMAINS] == pytest.approx(prompts.mean(), rel=1e-6)
    assert found.n["more", "flip_rate", ALL_DOMAINS] == len(ASKED)
    medical = run["prompts"].set_index("prompt_id").query("domain == 'medical'").index
    behaviour = run.df("behaviour", where=[("model", "==", "most"), ("metric", "==", "target_nll")])
    own = behaviour[behaviour.prompt_id.isin(medical)].value
    assert found.value["most", "target_nll", "medical"] == pytest.approx(own.mean(), rel=1e-6)
    weights = run.df("weights", where=[("tuned", "==", "most"), ("head", "==", -1)])
    blocks = weights[weights.module.isin(["q", "k", "v", "o", "gate", "up", "down"])]
    assert found.value["most", "relative_norm", ""] == pytest.approx(blocks.relative_norm.median(), rel=1e-6)


def test_differences_are_paired_and_from_the_first(run: probes.Run) -> None:
    found = probes.comparison([run]).set_index(["entry", "measure", "domain"])
    first, last = (found.loc[(name, "logit_diff", ALL_DOMAINS)] for name in ("some", "most"))
    assert np.isnan(first.difference)
    assert last.difference == pytest.approx(last.value - first.value, rel=1e-4)
    assert last.difference_lo <= last.difference <= last.difference_hi and last.n_shared == last.n
    # Pairing takes out what prompts have in common, so it must not be the interval of two independent means.
    assert last.difference_hi - last.difference_lo < (first.hi - first.lo) + (last.hi - last.lo)


def test_prompts_of_one_cluster_are_drawn_together(entries: list[Entry]) -> None:
    """Of few clusters there is no interval, however many prompts they hold; by themselves the prompts have one."""
    whole = measure_rows(entries[:2]).query("domain == @ALL_DOMAINS and measure == 'relative_change'")
    assert whole[["lo", "hi"]].notna().all(axis=None) and whole.p.notna().sum() == 1
    six = [
        replace(entry, prompts=entry.prompts.assign(cluster=[f"c{i % 6}" for i in range(12)])) for entry in entries[:2]
    ]
    rows = measure_rows(six)
    assert rows.n.max() == 12 and rows[["lo", "hi", "difference_lo", "difference_hi", "p"]].isna().all(axis=None)


def test_prompts_that_turn_are_told_by_their_test(entries: list[Entry]) -> None:
    """Exact match of 12 prompts, of which the second entry loses 4 or 7: McNemar's p, Newcombe's interval."""
    asked = pd.DataFrame({"domain": "d", "cluster": ""}, index=[f"p{i}" for i in range(12)])
    for lost, p in ((4, 0.125), (7, 2 / 2**7)):
        left, right = asked.assign(exact_match=1.0), asked.assign(exact_match=[0.0] * lost + [1.0] * (12 - lost))
        found = {row["domain"]: row for row in differences(left, right)}[ALL_DOMAINS]
        assert found["p"] == pytest.approx(p) and found["difference"] == pytest.approx(-lost / 12)
        assert found["difference_lo"] < -lost / 12 < found["difference_hi"]


def test_few_prompts_that_turn_have_no_test_without_an_interval(entries: list[Entry]) -> None:
    """Seven of seven lost have McNemar's p = .016, but a report says of seven that they are too few: so does this."""
    asked = pd.DataFrame({"domain": "d", "cluster": ""}, index=[f"p{i}" for i in range(7)])
    for metric in ("exact_match", "final_answer"):
        found = differences(asked.assign(**{metric: 1.0}), asked.assign(**{metric: 0.0}))
        assert found[0]["difference"] == -1 and np.isnan([found[0][end] for end in ("difference_lo", "p")]).all()


def test_what_rounding_does_is_no_difference(entries: list[Entry]) -> None:
    """Two models of one function differ by float32's rounding, and often all one way."""
    asked = pd.DataFrame({"domain": "d", "cluster": ""}, index=[f"p{i}" for i in range(16)])
    base = np.linspace(1, 2, 16)
    for step, told in ((1e-7, 0), (1e-2, 1)):
        moved = asked.assign(target_nll=base + step * (1 + np.sin(np.arange(16)) / 2))
        rows = pd.DataFrame(differences(asked.assign(target_nll=base), moved)).query("domain == 'd'")
        assert len(told_apart(rows)) == told
    assert rows.p.iloc[0] < 0.001
    assert told_apart(rows, {("target_nll", "d"): 0.02}).empty  # what the base does in another precision


def test_a_run_beside_itself_differs_in_nothing(run: probes.Run) -> None:
    twice = entries_of([run, run], ["a", "a"])
    assert [entry.label for entry in twice[:3]] == ["a: some", "a: more", "a: most"]
    assert len({entry.label for entry in twice}) == 6
    rows = measure_rows([twice[0], twice[3]])
    apart = rows[rows.entry == twice[3].label]
    assert len(apart) and (apart.difference == 0).all()
    correlations = effect_correlations([twice[0], twice[3]])
    assert set(correlations.method) == {"graft", "revert"} and np.allclose(correlations.rho, 1)
    assert any("same two checkpoints" in caution for caution in cautions(twice))


def test_correlations_are_spearman_s_over_components(run: probes.Run, entries: list[Entry]) -> None:
    found = effect_correlations(entries).set_index(["a", "b", "method", "domain"])
    where = [("method", "==", "revert"), ("granularity", "==", "component"), ("domain", "==", "all")]
    wide = run.df("effects", where=where).pivot(index=["layer", "component"], columns="tuned", values="effect")
    row = found.loc[("some", "most", "revert", ALL_DOMAINS)]
    assert row.rho == pytest.approx(spearmanr(wide.some, wide.most).statistic, abs=1e-6)
    assert row.n == len(wide) and row.lo <= row.rho <= row.hi and row.null_lo < 0 < row.null_hi
    few = effect_correlations([replace(entry, prompts=entry.prompts.assign(cluster="one")) for entry in entries[:2]])
    assert row.n_shared == 10 and few.lo.isna().all()  # one cluster is too few for an interval


def test_labels_tell_entries_apart(run: probes.Run, other: probes.Run) -> None:
    assert [entry.label for entry in entries_of([run, other])] == ["some", "more", "most", "moved"]
    assert [entry.label for entry in entries_of([other, other])] == ["run", "run (2)"]
    assert [entry.label for entry in entries_of([run, other], ["A", "B"])] == ["A: some", "A: more", "A: most", "B"]


@pytest.mark.parametrize(
    ("labels", "message"), [(None, "one tuned model; pass a second run"), (["a", "b"], "2 labels for 1 runs")]
)
def test_too_few_or_wrong_labels_are_refused(
    other: probes.Run, labels: list[str] | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match=message):
        probes.compare([other], to=tmp_path / "c.html", labels=labels)
    with pytest.raises(RunError, match="no run was given"):
        probes.compare([], to=tmp_path / "c.html")
    assert not list(tmp_path.iterdir())


def test_what_forbids_comparing_is_said(run: probes.Run, other: probes.Run, entries: list[Entry]) -> None:
    assert cautions(entries) == []
    said = cautions(entries_of([run, other], ["A", "B"]))
    begun = [caution.split(":")[0] for caution in said]
    assert begun == [
        *("Not one base", "Other architecture", "Other positions", "Other metric of the effects"),
        "Not the same prompts",
    ]
    assert "logit difference in A: some, A: more and A: most; target NLL in B" in said[3]
    assert "12 in A: some" in said[4] and "of which 4 are in all" in said[4]
    suite = {**run.manifest["suite"], "ledger_positions": "all"}
    newer = replace(run, manifest={**run.manifest, "computed": {"dtype": "bfloat16"}, "suite": suite})
    begun = [caution.split(":")[0] for caution in cautions(entries_of([run, newer], ["A", "B"]))]
    assert begun[:2] == ["Other positions", "Other precision"]


def test_activations_at_other_positions_have_no_difference(run: probes.Run, other: probes.Run) -> None:
    rows = measure_rows(entries_of([run, other]))
    own = rows[rows.entry == "moved"].set_index(["measure", "domain"])
    assert np.isnan(own.difference["relative_change", ALL_DOMAINS]) and own.value["relative_change", ALL_DOMAINS] > 0
    assert own.n_shared["logit_diff", ALL_DOMAINS] == 4
    assert "flip_rate" not in own.index.get_level_values("measure")


def test_domains_may_be_called_otherwise(run: probes.Run) -> None:
    """The same prompts under other names: they are paired, and the first entry has no value under the second's."""
    prompts = run["prompts"]
    named = edited(run, "prompts", prompts.assign(domain="renamed"))
    entries = entries_of([run, named], ["A", "B"])
    both = [next(entry for entry in entries if entry.label == label) for label in ("A: some", "B: most")]
    said = {own.place: own.text for own in comparison_verdict(both, measure_rows(both), effect_correlations(both), [])}
    text = said["behaviour-by-domain"]
    assert "renamed prompts" in text and " against " not in text


def test_one_prompt_has_no_interval(run: probes.Run, entries: list[Entry]) -> None:
    alone = [replace(entry, prompts=entry.prompts.iloc[:1]) for entry in entries[:2]]
    rows = measure_rows(alone)
    kept = rows[(rows.n == 1) | (rows.n_shared == 1)]
    assert len(kept) and kept[["lo", "hi", "difference_lo", "difference_hi"]].isna().all(axis=None)


def test_less_of_a_metric_may_be_better(run: probes.Run, other: probes.Run, entries: list[Entry]) -> None:
    """The same effects under a metric whose sign is turned are still the same order."""
    effects = run["prompt_effects"]
    kept = effects[(effects.tuned == "some") & (effects.control == "") & (effects.granularity == "component")]
    turned = replace(
        entries[0],
        label="turned",
        run=edited(run, "prompt_effects", kept.assign(effect=-kept.effect, metric="target_nll")),
        evidence=replace(entries[0].evidence, effects=entries[0].evidence.effects.assign(metric="target_nll")),
    )
    found = effect_correlations([entries[0], turned])
    assert np.allclose(found.rho[found.domain == ALL_DOMAINS], 1)


def test_what_did_not_move_is_no_part_of_how_far_a_model_moved(entries: list[Entry]) -> None:
    """Of a LoRA that moves few matrices the median over all is 0; and nothing moved is 0."""
    whole = entries[1].evidence
    for still, expected in ((whole.weights.module != "q", "q"), (whole.weights.module != "", "")):
        weights = whole.weights.assign(relative_norm=whole.weights.relative_norm.mask(still, 0.0))
        lora = replace(entries[1], evidence=replace(whole, weights=weights))
        rows = measure_rows([entries[0], lora]).query("measure == 'relative_norm'").set_index("entry")
        own = weights.relative_norm[weights.module == expected]
        assert rows.value[lora.label] == pytest.approx(own.median() if len(own) else 0.0)
        said = {
            sentence.place: sentence.text
            for sentence in comparison_verdict([entries[0], lora], rows.reset_index(), effect_correlations([])[:0], [])
        }
        assert ("of 3 matrices" in said["weights-by-module"]) == bool(len(own))


def test_only_prompts_that_ask_the_same_are_paired(run: probes.Run) -> None:
    prompts = run["prompts"]
    asked = prompts.assign(text=prompts.text.mask(prompts.prompt_id == "a1", "The heart stops"))
    rows = measure_rows(entries_of([run, edited(run, "prompts", asked)], ["A", "B"]))
    other = rows[(rows.entry == "B: some") & (rows.measure == "flip_rate")].set_index("domain")
    assert other.n_shared[ALL_DOMAINS] == 11 and other.n[ALL_DOMAINS] == 12
    assert other.n_shared["medical"] == 3 and other.n["medical"] == 4


def test_the_verdict_says_what_the_tables_say(entries: list[Entry]) -> None:
    measures, correlations = measure_rows(entries), effect_correlations(entries)
    said = {sentence.place: sentence.text for sentence in comparison_verdict(entries, measures, correlations, [])}
    assert said["entries"] == (
        "3 tuned models of 1 base, 12 prompts asked of all; differences are from some, the first."
    )
    moved = measures[measures.measure == "relative_norm"].set_index("entry").value
    assert f"{moved['some']:.4f} in some, furthest from it {moved['most']:.3f} in most" in said["weights-by-module"]
    assert "no trend can be told" in said["order"]  # of three entries every third order is steady
    turned = [entries[0], entries[2], entries[1]]  # no order of one training
    assert one_training(entries) and not one_training(turned)
    assert "order" not in {claim.place for claim in comparison_verdict(turned, measures, correlations, [])}
    lowest = correlations[(correlations.domain == OWN_DOMAIN) & (correlations.method == "graft")].rho.min()
    assert f"{lowest:.2f}".replace("-", "−") in said["agreement-table"]
    two = comparison_verdict(entries[:2], measures[measures.entry != "most"], correlations[:0], ["x"])
    assert "order" not in {sentence.place for sentence in two} and "Read the caution below first." in two[0].text


def test_a_component_is_named_only_as_in_its_own_report(entries: list[Entry]) -> None:
    """The larger effect has a small q by itself, but not among all that were measured."""
    rows = pd.DataFrame({"layer": [0, 1], "component": "mlp", "method": "revert", "metric": "logit_diff", "n": 20})
    rows = rows.assign(effect=[4.0, 3.0], lo=[1.0, 2.5], hi=[9.0, 3.5], p=0.001, q=0.002, within_noise=False)
    rows = rows.assign(lo_all=[-1.0, 1.5], hi_all=[12.0, 5.0], held_out=[3.0, 2.5], domain=entries[0].own_domain)
    none = effect_correlations(entries[:2])[:0]
    named = [replace(entry, evidence=replace(entry.evidence, effects=rows)) for entry in entries[:1]]
    said = {own.place: own.text for own in comparison_verdict(named, measure_rows(named), none, [])}
    assert "by revert: mlp 1 in some (+3.00 [+1.50, +5.00] logit difference on" in said["effects"]
    clear = rows.assign(method="graft")
    both = [replace(one.evidence, effects=table) for one, table in zip(entries, (rows, clear), strict=False)]
    unlike = [replace(one, evidence=evidence) for one, evidence in zip(entries, both, strict=False)]
    said = {own.place: own.text for own in comparison_verdict(unlike, measure_rows(unlike), none, [])}
    assert said["effects"] == (
        "Effects are not compared: no method was used in all entries (revert in some; graft in more)."
    )
    both[1] = replace(both[1], effects=pd.concat([clear, rows.assign(lo_all=-9.0)]))
    unlike = [replace(one, evidence=evidence) for one, evidence in zip(entries, both, strict=False)]
    said = {own.place: own.text for own in comparison_verdict(unlike, measure_rows(unlike), none, [])}
    assert "by revert: mlp 1 in some (" in said["effects"] and "none in more (on" in said["effects"]
    few = [replace(named[0], evidence=replace(named[0].evidence, effects=rows.assign(lo_all=np.nan, hi_all=np.nan)))]
    said = {own.place: own.text for own in comparison_verdict(few, measure_rows(few), none, [])}
    assert "by revert: none in some" in said["effects"]


def test_what_rounding_alone_can_do_tells_no_entries_apart(entries: list[Entry]) -> None:
    left = pd.DataFrame({"domain": "d", "cluster": "", "relative_change": 0.0}, index=[f"p{i}" for i in range(12)])
    right = left.assign(relative_change=np.linspace(4e-7, 8e-7, 12))
    found = pd.DataFrame(differences(left, right))
    assert (found.difference > 0).all() and (found.p < 0.001).all() and told_apart(found).empty
    measures, none = measure_rows(entries[:2]), effect_correlations(entries[:2])[:0]
    own = measures.domain.eq("medical") & measures.measure.isin(["logit_diff", "target_nll_per_token"])
    measures.loc[own & measures.difference.notna(), ["difference", "p"]] = [0.02, 1e-6]
    for floor, told in ((0.01, "differ from"), (0.03, "can be told from")):
        rounded = [_with_floor(entry, floor) for entry in entries[:2]]
        quiet = measures.assign(p=measures.p.mask(~own & measures.p.notna(), 1.0))
        said = {one.place: one.text for one in comparison_verdict(rounded, quiet, none, [])}
        assert told in said["behaviour-by-domain"]


def _with_floor(entry: Entry, floor: float) -> Entry:
    return replace(entry, evidence=replace(entry.evidence, behaviour=entry.evidence.behaviour.assign(floor=floor)))


def _in_order(values: list[list[float]]) -> str:
    """What is said of the course of measures (a row each) over entries in order."""
    names, labels = ["relative_norm", "flip_rate", "relative_change"], [f"e{i}" for i in range(len(values[0]))]
    rows = [
        {"entry": label, "measure": name, "domain": "" if name == "relative_norm" else ALL_DOMAINS, "value": value}
        for name, line in zip(names, values, strict=True)
        for label, value in zip(labels, line, strict=True)
    ]
    return course(labels, pd.DataFrame(rows))


def test_a_course_is_told_only_where_other_orders_have_none() -> None:
    steady = [[1.0, 2, 3, 4, 5], [5.0, 4, 3, 2, 1], [0.1, 0.2, 0.25, 0.3, 0.4]]
    assert "flip" in (told := _in_order(steady)) and "1.7 % of all orders" in told
    four = _in_order([line[:4] for line in steady])
    assert "8.3 % of all orders" in four and "no trend can be told" in four
    mixed = _in_order([[1.0, 3, 2, 4, 5], [5.0, 4, 3, 1, 2], [0.1, 0.2, 0.25, 0.4, 0.3]])
    assert "0 of 3 measures" in mixed and "no trend can be told" in mixed


def test_claims_of_entries_that_do_not_differ_are_rare(entries: list[Entry]) -> None:
    """Values of two entries swapped at random: at most 5 % of pages name a difference."""
    generator, named = np.random.default_rng(0), 0
    values = {f"m{i}": generator.lognormal(size=(2, 16)) for i in range(200)}
    asked = pd.DataFrame({"domain": "d", "cluster": ""}, index=[f"p{i}" for i in range(16)])
    metrics = ["target_nll", "logit_diff", "kl"]
    for start in range(0, 198, 3):
        columns = [values[f"m{start + i}"] for i in range(3)]
        left, right = (asked.assign(**{m: c[side] for m, c in zip(metrics, columns, strict=True)}) for side in (0, 1))
        rows = [{"entry": "b", **row} for row in differences(left, right) if row["domain"] != ALL_DOMAINS]
        named += len(told_apart(pd.DataFrame(rows))) > 0
    assert named <= 7  # of 66; 5 % of them are 3.3


def test_unlike_depths_are_laid_over_each_other() -> None:
    rows = pd.DataFrame({"entry": ["a"] * 3 + ["b"] * 2, "layer": [0, 1, 2, 0, 1], "v": [1.0, 2, 3, 4, 5]})
    plot = charts.by_depth(rows, "v", {"a": 3, "b": 2}, title="v")
    assert [trace["x"] for trace in plot["data"]] == [[0, 0.5, 1], [0, 1]]
    assert "relative depth" in plot["layout"]["xaxis"]["title"]["text"]
    same = charts.by_depth(rows[:3], "v", {"a": 3, "gone": 3}, title="v")
    assert [trace["x"] for trace in same["data"]] == [[0, 1, 2]]
    beside = charts.by_depth(rows.assign(chance=rows.v), "v", {"a": 3, "b": 2}, title="v", level="chance")["data"][2:]
    assert [(trace["x"], trace["showlegend"]) for trace in beside] == [([0, 0.5, 1], True), ([0, 1], False)]
    (mean,) = charts.by_depth(rows.assign(chance=rows.v), "v", {"a": 3, "b": 3}, title="v", level="chance")["data"][2:]
    assert mean["x"] == [0, 1, 2]


def test_an_entry_keeps_its_colour_where_another_lacks_the_measure() -> None:
    rows = pd.DataFrame({"entry": ["b"], "name": ["x"], "v": [1.0]})
    both = pd.DataFrame({"entry": ["a", "b"], "name": ["x", "x"], "v": [2.0, 1.0]})
    alone = charts.by_name(rows, "v", "name", ["a", "b"], title="v")["data"]
    beside = charts.by_name(both, "v", "name", ["a", "b"], title="v")["data"]
    assert len(alone) == 1 and alone[0]["marker"] == beside[1]["marker"] != beside[0]["marker"]


def test_what_an_entry_lacks_leaves_a_note(mixed: Path) -> None:
    page = mixed.read_text(encoding="utf-8")
    own = page[page.index("<body>") :]
    assert own.count("Not measured of &lt;img src=x") >= 3  # gates, ledger, lens
    assert "not correlated" in own and "relative depth" in own
    assert HOSTILE not in page and "<img" not in own.replace("&lt;img", "")
    figures = data_of(page)["figures"]
    assert set(re.findall(r'class="plot" id="([^"]+)"', page)) == set(figures)
    assert "not measured" in json.dumps(figures["effects-map-3"])


def test_a_page_without_most_tables(run: probes.Run, tmp_path: Path) -> None:
    tables = {name: counts for name, counts in run.manifest["tables"].items() if name in ("prompts", "behaviour")}
    bare = replace(run, manifest={**run.manifest, "tables": tables})
    page = probes.compare([bare], to=tmp_path / "bare.html").read_text(encoding="utf-8")
    assert page.count("Not measured in any of these runs.") == 3 and 'id="behaviour-by-domain"' in page


def test_the_command(
    run: probes.Run,
    other: probes.Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    to = tmp_path / "c.html"
    arguments = ["compare", run.path, other.path, "--out", to, "--label", "first", "--label", "second"]
    assert call(monkeypatch, capsys, main, *arguments)[0] == 0
    assert "first: some, first: more, first: most, second: compared</title>" in to.read_text(encoding="utf-8")
    to.unlink()
    status, _, said = call(monkeypatch, capsys, main, "compare", other.path, "--out", to)
    assert status == 2 and said.count("\n") == 1 and "nothing to compare" in said and not to.exists()
    status, _, said = call(monkeypatch, capsys, main, "compare", run.path, tmp_path, "--out", to)
    assert status == 2 and "not a run directory" in said and not to.exists()


@pytest.fixture
def page(browser: Any, mixed: Path) -> Iterator[Any]:
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    said: list[str] = []
    opened.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.goto(mixed.as_uri())
    yield opened
    assert said == []
    opened.close()


def test_a_browser_draws_it(page: Any, tmp_path: Path, fits: Callable[[Any, int], bool]) -> None:
    places = page.locator(".plot").evaluate_all("all => all.map((one) => one.id)")
    assert len(places) >= 20 and page.locator(".plot:has(.main-svg)").count() < len(places)  # those in view
    assert all(drawn(page, name).locator(".main-svg").count() for name in places)
    assert page.evaluate("window.harmed") is None and HOSTILE in page.locator("body").inner_text()
    panel = page.locator(".panel", has_text="Effects by component").first
    panel.locator("select").select_option(label="revert, all prompts")
    assert panel.locator(".plot .scatterlayer .trace").count() == 4
    for link in page.locator("#verdict a").evaluate_all("all => all.map((one) => one.getAttribute('href'))"):
        assert page.locator(link).count() == 1, link
    with page.expect_download() as told:
        page.locator("[data-save=csv][data-of=order-relative_norm]").click()
    told.value.save_as(tmp_path / "norm.csv")
    assert '"training: most"' in (tmp_path / "norm.csv").read_text(encoding="utf-8")
    assert fits(page, 390)
