"""Probes and representations of a finished run: tables, refusals, the report, on a pair with one planted direction."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import probes
from data.planted.direction import LAYER, plant, prompts
from probes.cli import main
from probes.directions.probing import probe_weight
from probes.errors import RunError
from tests.command import call

ROOT = Path(__file__).resolve().parents[3]
BASE = ROOT / "data" / "models" / "base"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> probes.Run:
    """A pair whose tuned side adds one vector behind a block; the suite keeps the states at the last position."""
    folder = tmp_path_factory.mktemp("planted")
    rows = (ROOT / "data" / "prompts" / "general.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(row)["text"] for row in rows][:24]
    plant(BASE, folder / "tuned", texts)
    prompts(texts, folder / "prompts.jsonl")
    suite = {
        "name": "planted",
        "base": str(BASE),
        "tuned": {"planted": str(folder / "tuned")},
        "prompts": [{"file": str(folder / "prompts.jsonl")}],
        "positions": "last",
        "keep": ["resid_post"],
        "measure": ["behaviour"],
    }
    made = probes.run(suite, out=folder / "run", stages=("capture",))
    ids = [f"planted-{i:03d}" for i in range(24)]
    values = {"id": ids, "<b>half": ["first", "second"] * 12, "one": ["x"] * 24, "few": ["x"] * 23 + ["y"]}
    pd.DataFrame(values).to_csv(folder / "labels.csv", index=False)
    return made


def test_the_planted_direction_is_the_mean_of_delta_h_from_its_layer_on(run: probes.Run) -> None:
    distances = probes.representations(run, layers=[LAYER - 1, LAYER], draws=1, neighbours=5)
    spectrum = run["delta_spectrum"]
    mean = spectrum[spectrum.component == 0].set_index("layer")
    assert mean.index.min() == LAYER  # before it nothing moved: no row
    assert mean.share[LAYER] > 0.9 and mean.beyond[LAYER] and mean.share[LAYER] > 2 * mean.random[LAYER]
    still = distances[distances.layer < LAYER]
    assert not still.beyond.any() and (still[still.measure == "cka"].value > 0.999).all()
    angles = run["delta_angles"].set_index(["layer", "against", "rank"])
    written = angles.loc[(LAYER, "T of down", 1)]
    assert written.overlap > 0.9 and written.beyond and written.largest < 20
    curve = run["delta_curve"]
    here = curve[(curve.layer == LAYER) & (curve.domain == "all")].set_index(["basis", "rank"])
    assert here.share["delta", 1] > 0.8 > 0.2 > abs(here.share["complement", 1])
    assert abs(here.share["random", 1]) < 0.2 and here.share["delta", 160] == pytest.approx(1, abs=0.1)
    assert not curve[curve.layer < LAYER].effect.any()


@pytest.mark.thorough
def test_a_label_of_a_file_is_probed_and_the_report_shows_it(
    run: probes.Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    label = f"{Path(run.path).parent / 'labels.csv'}:<b>half"
    options = ["--label", label, "--layer", "4", "--folds", "3", "--draws", "1"]
    status, out, _ = call(monkeypatch, capsys, main, "probe", run.path, *options)
    assert status == 0 and "probes of" in out
    found = probes.load(run.path)
    accuracy, directions = found["probe_accuracy"], found["probe_directions"]
    assert len(accuracy) == 4 and set(directions.layer) == {4} and set(directions.label) == {"<b>half"}
    assert (directions.verdict == "cannot tell").all() and not directions.changed.any()  # the label is drawn by number
    (weight,) = probe_weight(found, "<b>half", 4, "base").values()
    stored, vectors = found.vectors("resid_post", 4, model="base")
    row = found["probe_weights"].query("layer == 4 and model == 'base'").iloc[0]
    assert weight.shape == (160,) and row["class"] == "second" and len(stored) == len(vectors) == 24
    said = vectors.astype(np.float32) @ weight + row.intercept > 0
    assert (said == (np.arange(24) % 2 == 1)).mean() > 0.7  # on the prompts that it was fitted on
    page = (Path(run.path) / "report.html").read_text(encoding="utf-8")
    assert "What can be read, and did tuning turn its direction?" in page and "&lt;b&gt;half" in page
    assert "<b>half" not in page.replace("\\u003cb", "")
    with pytest.raises(RunError, match="`probes probe"):
        probe_weight(found, "domain", 4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["probe", "--label", "domain"], "every prompt has the value 'planted'"),
        (["probe", "--label", "labels.csv:few"], "'y' is in one cluster alone (planted-023)"),
        (["probe", "--label", "labels.csv:two"], "no column 'two'; there are id, <b>half, one, few"),
        (["probe", "--label", "nowhere.csv:x"], "no such file nowhere.csv"),
        (["probe", "--label", "colour"], "no label 'colour'; use domain, correct, or FILE:COLUMN"),
        (["probe", "--label", "labels.csv:<b>half", "--folds", "40"], "fewer than 40 folds"),
        (["probe", "--site", "logits"], "--site"),
        (["representations", "--layer", "6"], "the model has layers 0 to 5"),
        (["representations", "--metric", "joy"], "metric 'joy'"),
        (["representations", "--positions", "first"], "--positions"),
        (["representations", "--tuned", "other"], "no tuned model 'other'"),
    ],
)
def test_bad_input_is_one_line_before_any_model_is_loaded(
    run: probes.Run,
    options: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def loads(*_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("probes.capture.loading.Pairs.pair", loads)
    monkeypatch.chdir(Path(run.path).parent)
    status, _, err = call(monkeypatch, capsys, main, options[0], run.path, *options[1:])
    assert status == 2 and said in err and len(err.strip().splitlines()) == 1
