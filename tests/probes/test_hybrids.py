"""Models with mixers other than attention: the whole job, and what every page and command says of their components."""

import re
from pathlib import Path

import numpy as np
import pytest

import probes
from probes.cli import main
from tests.command import call
from tests.pairs import HYBRIDS, build_pair, write_suite
from tv.architecture.anatomy import in_order

METHODS = ["graft", "revert", "gradient", "patch", "path"]
COMPONENTS = {
    "qwen3_next": ["attn", "linear_attn", "mlp"],
    "falcon_h1": ["attn", "ssm", "mlp"],
    "mamba": ["ssm"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, probes.Run]:
    directory, found = tmp_path_factory.mktemp("hybrids"), {}
    for name in HYBRIDS:
        place = directory / name
        place.mkdir()
        attribute = {"methods": METHODS, "metric": "logit_diff", "controls": [], "curves": False}
        suite = write_suite(place, *build_pair(place, name), attribute=attribute, bootstrap=10, noise_floor=False)
        found[name] = probes.run(suite, out=place / "run")
    return found


@pytest.mark.parametrize("architecture", HYBRIDS)
def test_every_component_is_in_every_table(architecture: str, runs: dict[str, probes.Run]) -> None:
    run, wanted = runs[architecture], COMPONENTS[architecture]
    changes, effects, link = run["changes"], run["effects"], run["link"]
    assert set(changes.component) == {"embed", *wanted}
    whole = effects[(effects.granularity == "component") & (effects.layer.between(0, 2))]
    for method in METHODS:
        assert set(in_order(whole[whole.method == method].component)) >= set(wanted), method
    assert set(link.component) == set(wanted)
    parts = link[(link.kind == "component") & (link.component != "mlp")]
    assert parts[["direct_norm", "change_relative", "relative_norm", "graft", "path"]].notna().all().all()
    heads = set(changes[changes["head"] >= 0].component)
    assert heads == {"qwen3_next": {"attn", "linear_attn"}, "falcon_h1": {"attn", "ssm"}, "mamba": set()}[architecture]
    checks = run["checks"].query("domain == 'all'").set_index(["check", "method"]).holds
    assert checks.drop(("completeness", "path")).all()
    assert checks["completeness", "path"] or architecture == "qwen3_next"  # whose router's choice jumps on the way


@pytest.mark.parametrize("architecture", HYBRIDS)
def test_contributions_sum_to_the_logit_difference(architecture: str, runs: dict[str, probes.Run]) -> None:
    run = runs[architecture]
    whole = run["changes"].query("head == -1 and expert == -1")
    due = whole.merge(run["prompts"][["prompt_id", "answer_pos"]], on="prompt_id")
    dla = due[due.pos == due.answer_pos].groupby("prompt_id").dla_base.sum(min_count=1).dropna()
    told = run["behaviour"].query("metric == 'logit_diff' and model == 'base'").set_index("prompt_id").value
    assert len(dla) == 5 and np.allclose(dla, told[dla.index], atol=1e-4)


@pytest.mark.parametrize("architecture", HYBRIDS)
def test_blocks_without_gates_have_no_rows_and_no_words_of_them(architecture: str, runs: dict[str, probes.Run]) -> None:
    run = runs[architecture]
    page = (run.path / "report.html").read_text(encoding="utf-8")
    text = re.sub(r"<script.*?</script>|<[^>]+>", "", page, flags=re.DOTALL)
    assert ("gates" in run.tables) == ("neurons" in run.tables) == (architecture != "mamba")
    assert "No GLU" not in text and "no GLU" not in text
    words = {"qwen3_next": "2 × linear_attn + mlp, 1 × attn + mlp", "falcon_h1": "ssm + attn + mlp", "mamba": "3 × ssm"}
    assert words[architecture] in text and ("0 heads" not in text)
    told = {"qwen3_next": "linear_attn is linear attention", "falcon_h1": "ssm is a state space"}
    assert told.get(architecture, "ssm is a state space") in text


def test_what_is_left_out_is_told(runs: dict[str, probes.Run]) -> None:
    """The gated norm of a delta net reads two inputs; Mamba adds its bias of dt elsewhere."""
    lines = {name: run.manifest["left_out"] for name, run in runs.items()}
    assert lines["falcon_h1"] == []
    for name, module in (("qwen3_next", "norm (2 modules)"), ("mamba", "dt_proj (3 modules)")):
        (line,) = lines[name]
        assert line.startswith("not in the ledger, ") and line.endswith(module)
        page = (runs[name].path / "report.html").read_text(encoding="utf-8")
        assert page.count(line) == 2  # of the pair, and beside the checks


def test_commands_read_them(
    runs: dict[str, probes.Run], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    paths = [runs[name].path for name in ("falcon_h1", "mamba")]
    for command in ("link", "diagnose"):
        assert call(monkeypatch, capsys, main, command, paths[1])[0] == 0
    assert probes.plot.heatmap(runs["falcon_h1"], "changes.cosine").data[0].x == ("attn", "ssm", "mlp", "(un)embed")
    out = tmp_path / "compared.html"
    assert call(monkeypatch, capsys, main, "compare", *paths, "--out", out)[0] == 0
    page = out.read_text(encoding="utf-8")
    assert list(dict.fromkeys(re.findall(r"(\w+): relative change", page))) == ["attn", "ssm", "mlp"]
