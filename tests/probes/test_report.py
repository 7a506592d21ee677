"""The report: whole, self-contained, escaped, and its sentences say what the tables say."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest

import probes
from probes.attribute import focus
from probes.report import verdict
from probes.schemas import SCHEMAS
from tests.pairs import PROMPTS, build_model, build_pair, build_tokenizer, perturb, write_prompts, write_suite

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> probes.Run:
    folder = tmp_path_factory.mktemp("report")
    base, tuned = build_pair(folder)
    other = build_model()
    perturb(other, 0.1, seed=77)
    other.save_pretrained(folder / "other")
    build_tokenizer().save_pretrained(folder / "other")
    models = {"moved": str(tuned), "other": str(folder / "other")}
    suite = write_suite(folder, base, tuned, tuned=models, bootstrap=50)
    hostile = {"id": "</script>", "text": HOSTILE, "domain": "<b>bold</b>", "target": " <i>", "foil": " &amp;"}
    write_prompts(folder / "prompts.jsonl", [*PROMPTS, hostile])
    return probes.run(suite, out=folder / "run")


@pytest.fixture(scope="module")
def page(run: probes.Run) -> str:
    return (run.path / "report.html").read_text(encoding="utf-8")


def _without_plotly(page: str) -> str:
    """The page but for the plotting library that is inlined in it."""
    parts = re.split(r"(<script>|</script>)", page)
    return "".join(part for part in parts if len(part) < 1_000_000)


def test_it_is_one_file_that_loads_nothing(page: str) -> None:
    assert len(page.encode()) < 8_000_000
    own = _without_plotly(page)
    assert not re.search(r"""(src|href|action)\s*=|@import|url\(|fetch\(|import\(|XMLHttpRequest""", own)
    assert "Plotly.react" in own and "plotly.js v" in page


def test_what_comes_from_prompts_is_text(page: str, run: probes.Run) -> None:
    assert HOSTILE not in page and "<b>bold</b>" not in page and "<i>" not in page
    assert "&lt;b&gt;bold&lt;/b&gt;" in page
    data = json.loads(page.split('<script type="application/json" id="data">')[1].split("</script>")[0])
    assert set(data) == {"figures", "links"}


def test_every_section_and_figure_is_there_for_every_tuned_model(page: str) -> None:
    data = json.loads(page.split('<script type="application/json" id="data">')[1].split("</script>")[0])
    for key in ("m0", "m1"):
        for name in (
            "norm",
            "lift-left",
            "lift-right",
            "ssa",
            "ssa_null",
            "kappa",
            "flips",
            "flipmap",
            "change_relative",
        ):
            assert f"{key}-{name}" in data["figures"], name
        for name in ("terms", "new", "graft", "revert", "graft-map", "revert-map", "scatter"):
            assert f"{key}-{name}" in data["figures"], name
        assert len(data["links"][key]["rows"]) == 3 * 9
    assert set(re.findall(r'class="plot" id="([^"]+)"', page)) == set(data["figures"])
    for heading in ("moved: verdict", "other: verdict", "Behaviour", "The pair", "How to read this", "Prompts"):
        assert heading in page


def test_heat_maps_show_the_tables_numbers(page: str, run: probes.Run) -> None:
    data = json.loads(page.split('<script type="application/json" id="data">')[1].split("</script>")[0])
    figure = data["figures"]["m0-norm"]["data"][0]
    link = run.df("link", where=[("tuned", "==", "moved"), ("kind", "==", "module")])
    cells = link.set_index(["layer", "module"]).relative_norm
    for y, row in zip(figure["y"], figure["z"], strict=True):
        for x, value in zip(figure["x"], row, strict=True):
            assert value == pytest.approx(float(cells[int(y), x]))
    effects = run.df("effects", where=[("tuned", "==", "moved")])
    effects = effects[(effects.domain == focus(effects)) & (effects.method == "graft")]
    ranked = data["figures"]["m0-graft"]["data"][0]
    assert max(ranked["x"], key=abs) == pytest.approx(float(effects.effect.loc[effects.effect.abs().idxmax()]))


def test_a_model_without_a_glu_says_so(tmp_path: Path) -> None:
    suite = write_suite(tmp_path, *build_pair(tmp_path, "gpt2"), bootstrap=20)
    page = (probes.run(suite, out=tmp_path / "run").path / "report.html").read_text(encoding="utf-8")
    assert page.count("no GLU") >= 3  # the head, the verdict, the figure


def test_missing_tables_leave_their_sections_empty(tmp_path: Path) -> None:
    suite = write_suite(tmp_path, *build_pair(tmp_path), measure=["changes"], attribute=None, bootstrap=20)
    page = (probes.run(suite, out=tmp_path / "run").path / "report.html").read_text(encoding="utf-8")
    assert page.count("Not measured in this run.") >= 3


def test_it_is_written_where_asked_and_refused_in_one_line(run: probes.Run, tmp_path: Path) -> None:
    assert probes.report(run, to=tmp_path / "r.html") == tmp_path / "r.html"
    assert not list(tmp_path.glob("*.tmp"))
    with pytest.raises(probes.RunError, match="cannot be written"):
        probes.report(run, to=tmp_path / "no" / "r.html")


def _alignment(ssa: dict[str, float], null: float, lift: dict[str, float]) -> pd.DataFrame:
    rows = []
    for module, value in ssa.items():
        rows.append(dict(module=module, side="left", epsilon=0.05, ssa=value, ssa_null=null, at_ceiling=False))
        for side in ("left", "right"):
            fixed = (0.1 * lift[module]) ** 0.5
            rows.append(
                dict(module=module, side=side, epsilon=float("nan"), ssa=fixed, ssa_null=0.1**0.5, at_ceiling=False)
            )
    return pd.DataFrame(rows).reindex(columns=SCHEMAS["alignment"].names)


def test_ssa_at_its_null_is_called_shape_and_beyond_it_is_not() -> None:
    at_null = verdict.alignment_sentence(_alignment({"q": 0.92, "up": 0.93}, 0.925, {"q": 1.0, "up": 1.5}))
    assert "matrix shape alone gives: read nothing" in at_null
    assert "1.5 times its null energy" in at_null and "side of up (the most)" in at_null
    beyond = verdict.alignment_sentence(_alignment({"q": 0.9, "up": 0.8}, 0.5, {"q": 3.0, "up": 1.5}))
    assert "not matrix shape alone" in beyond and "0.35 from its null" in beyond


def test_behaviour_and_causes_state_the_numbers() -> None:
    summary = pd.DataFrame(
        [("medical", "exact_match", 0.1, 0.9, 0.8, 0.7, 0.9, 48), ("medical", "kl", float("nan"), 2, 2, 1, 3, 48)],
        columns=["domain", "metric", "base", "tuned", "change", "lo", "hi", "n"],
    )
    sentence = verdict.behaviour_sentence(summary)
    assert "medical 0.1 → 0.9, a change of 0.8 [0.7, 0.9] over 48 prompts" in sentence
    effects = pd.DataFrame(
        [("graft", 2, "mlp", 3.0, 2.0, 4.0, 0.001), ("graft", 1, "attn", -0.5, -1.0, 0.1, 0.4)],
        columns=["method", "layer", "component", "effect", "lo", "hi", "q"],
    ).assign(metric="logit_diff", domain="medical")
    causes = verdict.causes_sentence(effects)
    assert "on medical prompts" in causes
    assert "graft: mlp 2 moves it most, by 3 [2, 4]; 1 of 2 components have q < 0.05" in causes


def test_no_tuning_is_said_and_noise_is_warned_of() -> None:
    columns = SCHEMAS["link"].names
    still = pd.DataFrame([dict(kind="module", layer=0, module="q", relative_norm=0.0)]).reindex(columns=columns)
    assert "did not move at all" in verdict.weights_sentence(still)
    noisy = still.assign(relative_norm=0.003, noise_share=0.3)
    assert "Caution: rounding" in verdict.weights_sentence(noisy) and "30 %" in verdict.weights_sentence(noisy)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (-0.12345, "−0.123"), (12345.6, "1.23e+04"), (1e-5, "1.00e−05"), (float("nan"), "–"), (None, "–")],
)
def test_numbers(value: float, text: str) -> None:
    assert verdict.number(value) == text
