"""The report: whole, self-contained, escaped, and its sentences say what the tables say."""

import html
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

import probes
from probes.capture import final_answers
from probes.reporting import figures, words
from probes.reporting.causes import shown_domain
from probes.reporting.chapter import chapters_of
from probes.reporting.evidence import gather
from probes.reporting.examples import examples_of
from probes.reporting.in_short import verdict_of, verdicts_of
from probes.reporting.panels import weights as weights_panels
from probes.reporting.prompts import shown_prompts
from probes.reporting.report import report_page
from probes.reporting.summary import SENTENCES
from probes.reporting.verdict import gates_sentences, verdict
from probes.store.schemas import ALL_DOMAINS
from tests.pages import data_of, unpacked
from tests.pairs import PROMPTS, build_model, build_pair, build_tokenizer, perturb, write_prompts, write_suite
from tests.runs import edited

HOSTILE = "<script>alert(1)</script>"
SECTIONS = ("verdict", "behaviour", "prompts", "causes", "activations", "weights", "link", "experiments", "pair")
#: What a chapter needs to draw each figure, beside `link`.
NEEDED = {
    "weights": ["norm", "diagonal", "head-norm", "head-lift"],
    "alignment": ["lift-left", "lift-right", "ssa", "ssa_null", "kappa"],
    "spectra": ["spectra", "gathered"],
    "cosines": ["cosines"],
    "gates": ["flips", "flipmap", "prompt-flip_rate"],
    "changes": ["relative", "turned", "prompt-relative_change", "prompt-dla"],
    "ledger": ["terms", "new", "new10", "newk"],
    "lens": ["lens-rank", "lens-prob", "lens-kl"],
    "effects": [
        *(f"{method}-{kind}" for method in ("path", "graft", "revert") for kind in ("map", "ranked")),
        *(f"{method}-{cut}" for method in ("path", "graft", "revert") for cut in ("module", "head")),
        *("path-kv_head", "waterfall", "graft-controls", "control-draws"),
    ],
    "curves": ["curve-graft", "curve-revert", "areas"],
    "depth": ["depth"],
    "link": ["scatter"],
}
EVERY = {
    "measure": ["gates", "contributions", "changes", "ledger", "lens", "behaviour"],
    "attribute": {
        "methods": ["path", "graft", "revert", "depth"],
        "granularity": ["component", "module", "head"],
        **{"controls": ["random"], "control_draws": 3, "component_controls": True},
        **{"curves": True, "curve_points": 3, "curve_draws": 3},
    },
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> probes.Run:
    folder = tmp_path_factory.mktemp("report")
    base, tuned = build_pair(folder)
    other = build_model()
    perturb(other, 0.1, seed=77)
    other.save_pretrained(folder / "other")
    build_tokenizer().save_pretrained(folder / "other")
    suite = write_suite(
        folder, base, tuned, tuned={"moved": str(tuned), "other": str(folder / "other")}, bootstrap=20, **EVERY
    )
    hostile = {"id": "</script>", "text": HOSTILE, "domain": "<b>bold</b>", "target": " <i>", "foil": " &amp;"}
    write_prompts(folder / "prompts.jsonl", [*PROMPTS, hostile])
    return probes.run(suite, out=folder / "run")


@pytest.fixture(scope="module")
def small(run: probes.Run, tmp_path_factory: pytest.TempPathFactory) -> probes.Run:
    """A run of the same models with few tables: its page is drawn in a fourth of the time."""
    suite = {**run.manifest["suite"], "measure": ["changes", "behaviour"], "attribute": None, "noise_floor": False}
    return probes.run(suite, out=tmp_path_factory.mktemp("small") / "run", stages=("capture", "report"))


@pytest.fixture(scope="module")
def page(run: probes.Run) -> str:
    return (run.path / "report.html").read_text(encoding="utf-8")


def _own(page: str) -> str:
    """The page without the plotting library that is inlined in it."""
    return "".join(part for part in re.split(r"(<script[^>]*>|</script>)", page) if len(part) < 1_000_000)


def _lacking(run: probes.Run, *tables: str) -> probes.Run:
    """The run without these tables, and with one tuned model."""
    kept = {name: counts for name, counts in run.manifest["tables"].items() if name not in tables}
    suite = {**run.manifest["suite"], "tuned": {"moved": run.manifest["suite"]["tuned"]["moved"]}}
    return replace(run, manifest={**run.manifest, "tables": kept, "suite": suite})


def test_it_is_one_file_that_loads_nothing(page: str) -> None:
    assert len(page.encode()) < 3_000_000
    own = _own(page)
    assert "default-src 'none'" in own
    assert not re.search(r"""\s(src|action)\s*=|href\s*=\s*["']?[^"'#]|@import|url\(|fetch\(|import\(|XMLHttp""", own)
    assert unpacked(page, "plotly").count("plotly.js v") == 1 and "Plotly.react" in own
    assert page.count("</script>") == 3


def test_every_section_is_there_for_every_tuned_model(page: str) -> None:
    for key, name in (("m0", "moved"), ("m1", "other")):
        assert tuple(re.findall(rf'<section id="{key}-([^"]+)"', page)) == SECTIONS  # in this order
        assert f'role="tab" id="tab-{key}"' in page and f"base → {name}" in page
    assert 'id="how-to-read"' in page and "Not measured in this run." not in page
    figures_of = data_of(page)["figures"]
    assert set(figures_of) == {f"{key}-{name}" for key in ("m0", "m1") for names in NEEDED.values() for name in names}
    assert set(re.findall(r'class="plot" id="([^"]+)"', page)) == set(figures_of)


def test_what_comes_from_prompts_and_names_is_text(page: str) -> None:
    data = unpacked(page, "data")
    assert HOSTILE not in page and HOSTILE not in data and "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<b>bold</b>" not in page and "<i>" not in page and "&amp;amp;" in page
    assert "&lt;b&gt;bold&lt;/b&gt;" in json.dumps(data_of(page)["figures"]["m0-flips"])


def test_only_correlations_that_stand_out_of_their_family_are_bold(page: str, run: probes.Run) -> None:
    found = run.df("correlations", where=[("over", "==", "all")]).dropna(subset=["rho"])
    rows = re.findall(r'<tr data-x="[^"]+" data-y="[^"]+" class="([^"]*)">', page)
    assert len(rows) == len(found)
    assert rows.count("clear") == int((found.p_family < 0.05).sum()) and set(rows) <= {"clear", ""}


def test_tokens_are_escaped_one_by_one(small: probes.Run) -> None:
    chapter = chapters_of(small)[0]
    tokens = chapter.prompts[0].tokens
    tokens[0] = replace(tokens[0], text=HOSTILE, role='"><img src=y>', title='"><img src=x>')
    page = report_page(small, [chapter])
    assert HOSTILE not in page and "<img" not in _own(page)


def test_what_models_say_is_read_where_the_answer_is_due(run: probes.Run) -> None:
    """The models' choice there is the first token that they are scored on: before the target, not after it."""
    shown = {prompt.id: prompt for prompt in shown_prompts(run, "moved")}
    prompts = run["prompts"].set_index("prompt_id")
    tokens = run.df("tokens", where=[("tuned", "==", "moved")]).set_index(["prompt_id", "pos"])
    due = prompts.answer_pos[prompts.target.notna()].items()
    assert len(prompts.target.dropna()) >= 2
    for prompt_id, pos in due:
        said = tokens.loc[(prompt_id, pos)]
        assert shown[prompt_id].says == (said.greedy_token_base, said.greedy_token_tuned)
        assert pos < tokens.loc[prompt_id].index.max()  # the target follows


def test_answers_and_likeliest_tokens_are_the_tables(run: probes.Run, page: str) -> None:
    """Both models' answers, parted at the first difference; and at every token five likely ones of both models."""
    answers = run.df("answers", where=[("tuned", "==", "moved")]).set_index(["prompt_id", "model"])
    predictions = run.df("predictions").set_index(["prompt_id", "pos", "model", "rank"])
    shown, packed = shown_prompts(run, "moved"), data_of(page)["likely"]["m0"]
    assert set(answers.index.get_level_values(0)) == {prompt.id for prompt in shown}
    for i, prompt in enumerate(shown):
        assert prompt.answers is not None and len(prompt.likely) == len(prompt.tokens) == len(packed["at"][i])
        for said, model in zip(prompt.answers, ("base", "moved"), strict=True):
            assert said.before + said.differs + said.after == answers.answer[prompt.id, model].strip()
            assert said.end in ("end of text", "end of the line", f"cut after {final_answers.SHORT} tokens")
        for pos, both in enumerate(packed["at"][i]):
            for flat, model in zip(both, ("base", "moved"), strict=True):
                told = [(packed["words"][word], share) for word, share in zip(flat[::2], flat[1::2], strict=True)]
                rows = [predictions.loc[prompt.id, pos, model, rank] for rank in range(1, 6)]
                assert [word for word, _ in told] == [row.token for row in rows]
                assert [share for _, share in told] == pytest.approx([row.probability for row in rows], rel=1e-2)


def test_a_cell_leads_to_the_prompts_that_have_most_of_it(run: probes.Run, page: str) -> None:
    figures_of, ids = data_of(page)["figures"], [prompt.id for prompt in shown_prompts(run, "moved")]
    where = [("tuned", "==", "moved"), ("granularity", "==", "component"), ("method", "==", "graft")]
    effects = run.df("prompt_effects", where=[*where, ("control", "==", ""), ("layer", "==", 1)])
    trace = next(plot["data"][0] for plot in figures_of["m0-graft-map"] if "behind" in plot["data"][0].get("meta", {}))
    flat = trace["meta"]["behind"][trace["y"].index("1")][trace["x"].index("attn")]
    own = effects[effects.component == "attn"].set_index("prompt_id").effect
    sizes = [abs(value) for value in flat[1::2]]
    assert flat and sizes == sorted(sizes, reverse=True)
    assert flat[1::2] == pytest.approx([own[ids[i]] for i in flat[::2]], rel=1e-4)
    maps = ("relative", "turned", "flipmap", "new10", "newk", "graft-map", "revert-map", "path-map")
    assert all(figures_of[f"m0-{name}"][0]["data"][0]["meta"]["behind"] for name in maps)


def test_tokens_say_whose_words_they_are(run: probes.Run, page: str) -> None:
    """In an older run, which does not know it, they say nothing."""
    for prompt in shown_prompts(run, "moved"):
        assert prompt.tokens[0].role == "template" and prompt.tokens[1].role == "user"  # after the BOS token
        assert ("answer" in {token.role for token in prompt.tokens}) == bool(prompt.target)
        assert all(token.title.startswith(f"{token.role}: after it ") for token in prompt.tokens)
    assert re.search(r'<span role="option" tabindex="0" class="template( down)?" style=', page)
    older = probes.load(Path(__file__).parents[1] / "store" / "data" / "run_v3")
    tokens = [token for prompt in shown_prompts(older, str(older["tokens"].tuned.iloc[0])) for token in prompt.tokens]
    assert tokens and all(token.role == "" and token.title.startswith("after it ") for token in tokens)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "tables",
    [
        ("weights", "effects", "tokens", "ledger"),
        ("alignment", "gates", "behaviour"),
        ("changes", "prompt_effects", "link", "correlations", "spectra", "cosines"),
    ],
)
def test_a_table_that_is_not_there_leaves_its_section_saying_so(
    tables: tuple[str, ...], run: probes.Run, tmp_path: Path
) -> None:
    page = probes.report(_lacking(run, *tables), to=tmp_path / "r.html").read_text(encoding="utf-8")
    gone = {f"m0-{name}" for table in tables for name in NEEDED.get(table, [])}
    gone |= {"m0-waterfall"} if "behaviour" in tables else set()  # which goes from one model's value to the other's
    maps = {f"m0-prompt-{name}" for name in ("flip_rate", "relative_change", "dla")}  # chosen by a row of the prompts
    gone |= maps if "tokens" in tables else set()
    assert set(data_of(page)["figures"]) == {f"m0-{name}" for names in NEEDED.values() for name in names} - gone
    sections = {"effects", "tokens", "behaviour", "link"} & set(tables)  # whole sections; others lose a panel
    assert page.lower().count("not measured in this run") >= len(sections)
    assert all(f'<section id="m0-{section}"' in page for section in SECTIONS)


def test_experiments_that_lie_in_the_run_are_shown(small: probes.Run, tmp_path: Path) -> None:
    folder = small.path / "experiments" / "<negated>"
    folder.mkdir(parents=True)
    points = {"scale": [0.0, 0.5, 1.0], "value": [0.9, 0.4, 0.1], "lo": [0.8, 0.3, 0.0], "hi": [1.0, 0.5, 0.2]}
    negated = pd.DataFrame(
        {"tuned": "moved", "part": "whole", "vector": "T", "task": HOSTILE, "metric": "exact"} | points
    )
    pd.concat([negated, negated.assign(vector="random", value=0.9)]).to_parquet(folder / "negation.parquet")
    added = {"subset": ["moved + other", "other"], "method": "sum", "scales": "1, 1", "task": "cloze", "base": 0.1}
    pd.DataFrame(added | {"value": 0.7, "lo": 0.6, "hi": 0.8}).to_parquet(folder / "addition.parquet")
    page = probes.report(small, to=tmp_path / "r.html").read_text(encoding="utf-8")
    figures_of = {name: plots for name, plots in data_of(page)["figures"].items() if "tion-" in name}
    assert set(figures_of) == {"m0-negation-0", "m0-addition-1", "m1-addition-0"}  # the other was not negated
    lines = [trace for trace in figures_of["m0-negation-0"][0]["data"] if trace["mode"] == "lines+markers"]
    assert [(line["name"], line["y"]) for line in lines] == [
        ("T", [0.9, 0.4, 0.1]),
        ("random control", [0.9, 0.9, 0.9]),
    ]
    assert figures_of["m0-addition-1"][0]["data"][0]["y"] == ["moved + other"] and HOSTILE not in page
    (folder / "negation.parquet").write_bytes(b"PAR1 not a table PAR1")
    with pytest.raises(probes.RunError, match=r"negation\.parquet: not the table of an experiment"):
        probes.report(_lacking(small), to=tmp_path / "r.html")
    shutil.rmtree(small.path / "experiments")


def test_a_run_with_almost_nothing(run: probes.Run, tmp_path: Path) -> None:
    bare = _lacking(run, *(set(run.tables) - {"prompts"}))
    page = probes.report(bare, to=tmp_path / "r.html").read_text(encoding="utf-8")
    assert page.lower().count("not measured in this run") >= 6
    assert data_of(page)["figures"] == {}


def test_prompts_without_targets_have_no_behaviour_and_no_causes(tmp_path: Path) -> None:
    suite = write_suite(tmp_path, *build_pair(tmp_path, "gpt2"), attribute=None, bootstrap=20)
    write_prompts(tmp_path / "prompts.jsonl", [{"id": "a", "text": "The heart pumps"}])
    page = (probes.run(suite, out=tmp_path / "run").path / "report.html").read_text(encoding="utf-8")
    assert "no prompt of this run has a target" in page and "Nothing here is causal" in page
    assert page.count("No GLU: what is shown is the sign of the MLP") >= 3  # the pair, the panel, the glossary
    assert "signs of the pre-activation (no GLU) flipped" in page
    assert 'id="tab-m0"' not in page


def test_it_is_written_whole_or_not_at_all(run: probes.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.html"
    bare = _lacking(run, *(set(run.tables) - {"prompts"}))
    assert probes.report(bare, to=path) == path
    before = path.read_bytes()

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", refuse)
        with pytest.raises(probes.RunError, match=r"r\.html"):
            probes.report(bare, to=path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["r.html"]
    with pytest.raises(probes.RunError):
        probes.report(bare, to=tmp_path / "no" / "r.html")


def test_every_figure_is_one_that_plotly_knows(page: str) -> None:
    for plots in data_of(page)["figures"].values():
        go.Figure(plots[0])  # raises for a property that there is not


def test_figures_show_the_tables_numbers(page: str, run: probes.Run) -> None:
    data = data_of(page)
    figure = data["figures"]["m0-norm"][0]["data"][0]
    weights = run.df("weights", where=[("tuned", "==", "moved"), ("head", "==", -1)])
    cells = weights.set_index(["layer", "module"]).relative_norm
    n_layers = run.manifest["architecture"]["n_layers"]
    assert figure["y"] == ["embed", *map(str, range(n_layers)), "unembed"]
    for y, row in zip(figure["y"], figure["z"], strict=True):
        for x, value in zip(figure["x"], row, strict=True):
            if value is not None and x != figures.ENDS:
                assert value == pytest.approx(float(cells[int(y), x]), rel=1e-4)
    wanted = [("tuned", "==", "moved"), ("method", "==", "graft"), ("granularity", "==", "component")]
    effects = run.df("effects", where=[*wanted, ("control", "==", "")])
    effects = effects[effects.domain == shown_domain(effects, gather(run, "moved").behaviour)]
    ranked = data["figures"]["m0-graft-ranked"][0]["data"][0]
    assert max(ranked["x"], key=abs) == pytest.approx(
        float(effects.effect.loc[effects.effect.abs().idxmax()]), rel=1e-4
    )
    points = data["links"]["m0"]["kinds"]
    assert len(points["module"]["name"]) == 7 * n_layers and len(points["component"]["name"]) == 2 * n_layers


def test_a_heat_map_marks_its_ceiling_and_shows_gaps() -> None:
    frame = pd.DataFrame(
        {
            "layer": [0, 0, 1, 2],
            "module": ["q", "up", "q", "unembed"],
            "v": [0.5, np.nan, -0.25, 1.0],
            "c": [1, 0, 0, 0],
        }
    )
    plot = figures.heatmap(frame, "v", "module", ("q", "up"), 2, centre=0.0, marked="c")["data"][0]
    assert list(plot["x"]) == ["q", "up", figures.ENDS] and list(plot["y"]) == ["0", "1", "unembed"]
    assert plot["z"][0][0] == 0.5 and plot["z"][0][1] is None and plot["zmin"] == -1 and plot["zmax"] == 1
    assert plot["text"][0][0] == "0.50∗" and plot["text"][0][1] == "–" and plot["text"][1][0] == "−0.25"
    grey = figures.heatmap(frame, "v", "module", ("q", "up"), 2, centre=0.0)["layout"]["shapes"]
    assert [(box["x0"], box["x1"], box["y0"], box["y1"]) for box in grey] == [(0.5, 1.5, -0.5, 0.5)]  # up of layer 0
    ratio = figures.heatmap(frame.assign(v=2.0), "v", "module", ("q",), 2, ratio=True, reach=4)["data"][0]
    assert ratio["z"][0][0] == 1.0 and ratio["text"][0][0] == "2.0" and (ratio["zmin"], ratio["zmax"]) == (-2.0, 2.0)


def test_gates_are_told_by_layer_domain_and_chance() -> None:
    rows = [("a", 0, 0.1, 0.5), ("a", 1, 0.3, 0.5), ("b", 0, 0.1, 0.4), ("b", 1, 0.1, 0.4)]
    flips = pd.DataFrame(rows, columns=["domain", "layer", "flip_rate", "chance_flip_rate"])
    text = gates_sentences(flips, gated=True)[0]
    assert "15 % of gates flipped on average: most in layer 1 (20 %), least in layer 0 (10 %)" in text
    assert "would differ in 45 %. By domain: a 20 % and b 10 %." in text
    assert "no GLU" in gates_sentences(flips, gated=False)[0]


def test_the_verdict_of_a_run_warns_of_few_prompts(run: probes.Run) -> None:
    evidence = gather(run, "moved")
    by_label = {statement.label: " ".join(statement.sentences) for statement in verdict(evidence)}
    assert {"Behaviour", "Causes", "Weights", "Alignment", "Gates", "What this run cannot show"} <= set(by_label)
    few = "Too few prompts or clusters for an interval, which needs 8: "
    assert few in by_label["What this run cannot show"] and "got worse: " in by_label["Got worse"]
    assert "this raw pattern only reflects matrix shape" in by_label["Alignment"]  # a random step has no direction
    assert "On neither side is it distinguishable from a T with no preferred direction" in by_label["Alignment"]


def test_what_changed_unseen_begins_the_verdict(run: probes.Run) -> None:
    nothing = {"n_unrowed": 0, "names": [], "n_changed": 0, "note": ""}
    assert nothing.items() <= run.manifest["coverage"]["moved"].items()
    assert "In no table" not in {statement.label for statement in verdict(gather(run, "moved"))}
    note = "7 parameters (0.1 %) are in no row: a.b; of these 2 differ between the two"
    told = dict(run.manifest["coverage"]["moved"]) | {"n_unrowed": 7, "n_changed": 2, "note": note}
    manifest = {**run.manifest, "coverage": {"moved": told}}
    first = verdict(gather(replace(run, manifest=manifest), "moved"))[0]
    assert (first.label, first.tone) == ("In no table", "worse") and first.sentences[0].startswith(note)


def test_other_parameters_are_listed_and_leave_maps_alone(run: probes.Run) -> None:
    evidence = gather(run, "moved")
    sinks = evidence.weights[evidence.weights.module == "q"].assign(module="sinks", kind="vector")
    tower = sinks.head(1).assign(module="vision_tower", kind="group", layer=-1, numbers=12_345)
    more = replace(evidence, weights=pd.concat([evidence.weights, sinks, tower], ignore_index=True))
    chapter = next(chapter for chapter in chapters_of(run) if chapter.evidence.tuned == "moved")
    (panel,) = weights_panels.others(replace(chapter, evidence=more))
    assert [(row[0], row[1]) for row in panel.tables[0].rows] == [("sinks", "3"), ("vision_tower", "1")]
    assert panel.tables[0].rows[1][2] == "12,345"
    maps = [next(weights_panels.moved(replace(chapter, evidence=one))).figures for one in (evidence, more)]
    assert maps[0] == maps[1] and not list(weights_panels.others(chapter))


def test_every_claim_of_the_verdict_has_one_link_and_it_leads_to_its_figure(page: str, run: probes.Run) -> None:
    ids = set(re.findall(r'id="([^"]+)"', page))
    assert len(ids) == page.count(' id="')  # each id once
    for chapter in chapters_of(run):
        claims = [claim for of in SENTENCES.values() for claim in of(chapter.summary)]
        assert "behaviour" in {claim.place for claim in claims} and len(chapter.summary.where) == 2
        part = page.split(f'<section id="{chapter.key}-verdict"')[1].split("</section>")[0]
        shown = re.findall(r'<p class="headline">(.*?)</p>', part, re.DOTALL)
        places = re.findall(r'<a href="#([^"]+)">', " ".join(shown))
        assert places == [f"{chapter.key}-{claim.place}" for claim in claims] and set(places) <= ids
        text = html.unescape(re.sub("<[^>]+>", "", " ".join(shown)))
        verdict_of_run = probes.load(run.path).verdict[chapter.evidence.tuned]
        assert text.split() == " ".join(f"{k} {v}" for k, v in verdict_of_run.sentences.items()).split()
        folded = re.findall(r'<dt><a href="#([^"]+)">([^<]+)</a></dt>', part)
        assert {place for place, _ in folded} <= ids and len(folded) >= 8
        weights = next(" ".join(one.sentences) for one in verdict(chapter.evidence) if one.label == "Weights")
        largest = re.findall(r"‖T‖/‖W‖ = ([\d.]+)\)", weights)[0]
        cells = [value for row in data_of(page)["figures"][f"{chapter.key}-norm"][0]["data"][0]["z"] for value in row]
        assert largest == words.number(max(value for value in cells if value is not None))


def test_examples_are_answers_that_turned_as_the_models_put_them(run: probes.Run) -> None:
    """Told to have turned, by cluster and by how far the NLL moved; what is said are the models' first choices."""
    values = run["behaviour"]
    for prompt, model, right in (("a1", "moved", 1), ("b1", "moved", 1), ("b2", "base", 1)):
        at = (values.prompt_id == prompt) & (values.model == model) & (values.metric == "exact_match")
        assert at.sum() == 1
        values.loc[at, "value"] = right
    told = examples_of(edited(run, "behaviour", values), "moved")
    assert {(one.prompt_id, one.outcome) for one in told} == {("a1", "gained"), ("b1", "gained"), ("b2", "lost")}
    assert [one.outcome for one in told] == ["gained", "gained", "lost"]
    tokens = run.df("tokens", where=[("tuned", "==", "moved")])
    due = tokens.merge(run["prompts"], on="prompt_id").query("pos == answer_pos").set_index("prompt_id")
    for one in told:
        assert one.target and due.text[one.prompt_id] == one.text
        assert one.base.startswith(due.greedy_token_base[one.prompt_id].strip())
        assert one.tuned.startswith(due.greedy_token_tuned[one.prompt_id].strip())


def test_without_targets_first_choices_are_counted_and_shown(run: probes.Run) -> None:
    prompts = run["prompts"]
    tokens = run.df("tokens", where=[("tuned", "==", "moved")]).merge(prompts[["prompt_id", "answer_pos"]])
    at = tokens.prompt_id.isin(["a1", "c1"]) & (tokens.pos == tokens.answer_pos)
    tokens["greedy_tuned"] = tokens.greedy_base.where(~at, tokens.greedy_base + 1)
    bare = edited(_lacking(run, "behaviour", "effects"), "tokens", tokens.drop(columns="answer_pos"))
    (chapter,) = chapters_of(bare)
    counts = chapter.choices.set_index("domain").differ.to_dict()
    assert counts == {"medical": 1, "math": 0, "general": 1, "prompts": 0, "<b>bold</b>": 0}
    assert {(one.prompt_id, one.outcome) for one in chapter.examples} == {("a1", "differs"), ("c1", "differs")}
    told = verdict_of(chapter)
    assert "first choices of the next token differ after 1 of 1 general prompts (100 %; too few prompts" in told.learnt
    assert "no answer of this run is graded" in told.lost
    page = report_page(bare, [chapter])
    assert "Prompts after which the first choices differ" in page and "&lt;b&gt;bold&lt;/b&gt;" in page
    assert page.split('<table class="examples">')[1].split("</table>")[0].count(">differs<") == 2


def test_an_adapter_begins_with_what_was_trained(small: probes.Run) -> None:
    note = "a/b: an adapter (LoRA, r 8, alpha 16, on q_proj (<i>) and v_proj), which changes 6 of 30 tensors: it fits"
    alone = _lacking(small)
    (chapter,) = chapters_of(replace(alone, manifest={**alone.manifest, "notes": {"moved": [note]}}))
    trained = "An adapter (LoRA, r 8, alpha 16, on q_proj (<i>) and v_proj), which changes 6 of 30 tensors."
    assert verdict_of(chapter).trained == trained and str(verdict_of(chapter)).startswith(f"Trained: {trained}")
    page = report_page(chapter.run, [chapter])
    assert '<a href="#m0-pair">An adapter</a> (LoRA, r 8' in page and "(<i>)" not in page


def test_the_verdict_of_a_run_is_read_from_it_and_goes_with_its_tables(small: probes.Run, tmp_path: Path) -> None:
    shutil.copytree(small.path, tmp_path / "run")
    copied = probes.load(tmp_path / "run")
    assert copied.verdict == verdicts_of(chapters_of(copied)) and list(copied.verdict) == ["moved", "other"]
    assert all(check.passes is not False for check in probes.verify(copied).checks)
    file = tmp_path / "run" / "verdict.json"
    file.write_text(file.read_text(encoding="utf-8").replace('"tuned": "moved"', '"tuned": "better"'), encoding="utf-8")
    said = " ".join(check.said for check in probes.verify(copied).checks if check.passes is False)
    assert "verdict.json: its content does not match the manifest" in said
    assert "verdict.json: it is not what the tables give" in said
    page = tmp_path / "run" / "report.html"  # as an older version wrote it, whose sentences may be others
    page.write_text(page.read_text(encoding="utf-8").replace("<style>", "<style>/* older */", 1), encoding="utf-8")
    older = [check.passes for check in probes.verify(copied).checks if check.said.startswith("verdict.json: it is not")]
    assert older == [None]
    file.write_text("[1]", encoding="utf-8")
    with pytest.raises(probes.RunError, match="not a verdict; write it again with `probes report`"):
        _ = copied.verdict
    copied.add("behaviour", copied["behaviour"])  # the verdict was of the tables before
    with pytest.raises(probes.RunError, match="`probes report` writes one"):
        _ = probes.load(copied.path).verdict
    assert not any("verdict" in check.said for check in probes.verify(copied).checks if check.passes is False)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-0.12345, "−0.123"),
        (98.76, "98.8"),
        (12345.6, "1.23e+04"),
        (1e-5, "1.00e−05"),
        (float("nan"), "–"),
        (None, "–"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert words.number(value) == text


def test_shares_points_layers_and_q() -> None:
    assert [words.percent(v) for v in (0.0, 1e-6, 0.0034, 0.034, 0.34)] == [
        "0 %",
        "< 0.01 %",
        "0.34 %",
        "3.4 %",
        "34 %",
    ]
    assert [words.points(v) for v in (-0.083, 0.4, 0.0, float("nan"))] == ["−8.3 pp", "+40 pp", "0 pp", "–"]
    assert [words.layer_name(v, 6) for v in (-1, 0, 6)] == ["embed", "0", "unembed"]
    assert [words.q_value(v) for v in (1e-9, 0.25, float("nan"))] == ["q < 0.001", "q = 0.25", "q –"]


def test_the_waterfall_ends_where_the_tuned_model_is(page: str, run: probes.Run) -> None:
    """Base, what every component added, what the quadrature missed, tuned: the steps are the path effects."""
    bars = data_of(page)["figures"]["m0-waterfall"][0]["data"][0]
    start, *steps, end = bars["y"]
    assert sum(steps) == pytest.approx(end - start, abs=1e-3)
    effects = run.df("effects", where=[("tuned", "==", "moved"), ("method", "==", "path"), ("domain", "==", "all")])
    effects = effects[effects.granularity == "component"]
    shown = data_of(page)["figures"]["m0-waterfall"]
    assert [bars["x"][0], bars["x"][-2], bars["x"][-1]] == ["base", "not covered", "tuned"]
    sums = [sum(plot["data"][0]["y"][1:-2]) for plot in shown]
    assert min(abs(total - float(effects.effect.sum())) for total in sums) < 1e-3
    assert abs(steps[-1]) <= 0.02 * abs(end - start)
    blocks = [f"{part} {layer}" for layer in range(3) for part in ("attn", "mlp")]
    assert list(bars["x"][1:-2]) == ["embed", *blocks, "unembed"]  # as the network computes


def test_curves_begin_at_one_model_and_random_orders_are_a_band(page: str, run: probes.Run) -> None:
    plot = data_of(page)["figures"]["m0-curve-graft"][0]
    band, *lines = plot["data"]
    assert band["name"] == "3 random orders" and band["fill"] == "toself"
    assert len({line["y"][0] for line in lines}) == 1 and len({line["y"][-1] for line in lines}) == 1
    low, high = sorted((lines[0]["y"][0], lines[0]["y"][-1]))
    assert low < high
    assert run.df("areas", where=[("tuned", "==", "moved")]).area.isna().all()  # its mean change is within rounding
    areas = run.df("areas", where=[("tuned", "==", "other")])
    shown = [value for trace in data_of(page)["figures"]["m1-areas"][0]["data"] for value in trace["x"]]
    assert max(shown) == pytest.approx(float(areas.area.max()), rel=1e-3)


def test_tables_say_what_was_checked_and_how_methods_agree(page: str, run: probes.Run) -> None:
    checks = run.df("checks", where=[("tuned", "==", "moved")])
    body = page.split('<table id="m0-checks">')[1].split("</table>")[0]
    assert body.count("<tr>") == 1 + len(checks)
    assert body.count(">holds<") == int(checks.holds.sum()) and body.count("DOES NOT HOLD") == int(
        (~checks.holds).sum()
    )
    agreement = run.df("agreement", where=[("tuned", "==", "moved"), ("domain", "==", ALL_DOMAINS)])
    body = page.split('<table id="m0-agreement">')[1].split("</table>")[0]
    assert body.count("<tr>") == 1 + len(agreement) > 1


def test_neurons_that_flip_most_come_first(page: str, run: probes.Run) -> None:
    neurons = run.df("neurons", where=[("tuned", "==", "moved")])
    top = neurons.loc[(neurons.n_flips / neurons.n).idxmax()]
    first = page.split('<table id="m0-neurons">')[1].split("<tbody>")[1].split("</tr>")[0]
    assert words.percent(top.n_flips / top.n) in first
    assert f"<td>layer {top.layer} neuron {top.neuron}</td>" in first


def test_cells_of_a_wide_map_show_a_star_and_no_numbers() -> None:
    rows = pd.DataFrame(
        {"layer": 0, "head": [str(i) for i in range(32)], "v": 0.125, "star": [i == 3 for i in range(32)]}
    )
    text = figures.heatmap(rows, "v", "head", rows["head"].tolist(), 4, marked="star")["data"][0]["text"][0]
    assert text == ["", "", "", "∗", *[""] * 28]


def test_both_axes_of_a_map_of_heads_are_named(page: str) -> None:
    plot = data_of(page)["figures"]["m0-head-norm"][0]
    assert [plot["layout"][axis]["title"]["text"] for axis in ("xaxis", "yaxis")] == ["head", "layer"]
    assert all(name.isdigit() for name in plot["data"][0]["x"])
    assert plot["data"][0]["hovertemplate"].startswith("layer %{y}, head %{x}: ")


def test_the_lens_ends_at_what_the_models_say(page: str, run: probes.Run) -> None:
    """The last layer's rank of the target is the model's own: 1 where it is what greedy decoding gives."""
    ranks = data_of(page)["figures"]["m0-lens-rank"]
    lens = run.df("lens", where=[("tuned", "==", "moved")])
    last = lens[lens.layer == lens.layer.max()].merge(run["prompts"], on="prompt_id").groupby("domain").rank_tuned
    assert {plot["data"][1]["y"][-1] for plot in ranks} == {float(value) + 1 for value in last.median()}


def test_a_method_that_nobody_knows_has_its_map(run: probes.Run) -> None:
    wanted = [("tuned", "==", "moved"), ("method", "==", "graft"), ("granularity", "==", "component")]
    effects = run.df("effects", where=[*wanted, ("control", "==", "")])
    with_own = edited(run, "effects", effects.assign(method="<mine>", direction="base→tuned"))
    page = report_page(run, [replace(chapters_of(run)[0], run=with_own)])
    plots = data_of(page)["figures"]["m0-method-0"]
    drawn = [value for plot in plots for row in plot["data"][0]["z"] for value in row if value is not None]
    assert sorted(drawn) == pytest.approx(sorted(effects.effect), rel=1e-3, abs=1e-6)
    assert "&lt;mine&gt;, base→tuned" in page and "<mine>" not in page
