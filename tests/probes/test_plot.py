"""Figures from Python: what they show is what the tables hold, and they are written whole in every format."""

from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

import probes
from probes.errors import RunError
from probes.reporting.charts import ranked_effects
from probes.reporting.paper import draw
from tests.pairs import build_pair, write_suite
from tests.runs import NO_REPORT, edited

MEASURE = ["gates", "contributions", "changes", "ledger", "behaviour"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> probes.Run:
    folder = tmp_path_factory.mktemp("plot")
    attribute = {"methods": ["path", "graft", "revert", "patch"], "controls": ["random"], "curves": True}
    suite = write_suite(folder, *build_pair(folder), bootstrap=20, measure=MEASURE, attribute=attribute)
    return probes.run(suite, out=folder / "run", stages=NO_REPORT)


@pytest.mark.sampled(5)
@pytest.mark.parametrize(
    "measure",
    [
        *("relative_norm", "ssa_excess", "kappa", "flip_rate", "relative_change", "changes.cosine", "direct_norm"),
        *("dla_change", "revert", "path"),
    ],
)
def test_heat_maps_of_every_table(run: probes.Run, measure: str) -> None:
    figure = probes.plot.heatmap(run, measure)
    assert isinstance(figure, go.Figure)
    cells = figure.data[0]
    assert "layer" in figure.layout.yaxis.title.text and np.isfinite(np.array(cells.z, dtype=float)).any()


def test_a_cell_is_the_table_s_own(run: probes.Run) -> None:
    cells = probes.plot.heatmap(run, "ssa_excess", side="right", epsilon=None).data[0]
    where = [("layer", "==", 1), ("module", "==", "o"), ("side", "==", "right"), ("head", "==", -1)]
    row = run.df("alignment", where=where).query("epsilon.isna()").iloc[0]
    shown = cells.z[list(cells.y).index("1")][list(cells.x).index("o")]
    assert shown == pytest.approx(row.ssa - row.ssa_null, rel=1e-4)
    cells = probes.plot.heatmap(run, "relative_change").data[0]
    rows = run.df("changes", where=[("layer", "==", 2), ("component", "==", "mlp"), ("head", "==", -1)])
    mean = rows.groupby("prompt_id").relative_change.mean().mean()
    assert cells.z[list(cells.y).index("2")][list(cells.x).index("mlp")] == pytest.approx(mean, rel=1e-4)


def test_a_method_of_two_directions_shows_one(run: probes.Run) -> None:
    names = list(probes.plot.effects(run, "patch").data[0].y)
    assert len(names) == len(set(names)) > 5
    rows = run.df("effects", where=[("method", "==", "patch"), ("domain", "==", "all"), ("control", "==", "")])
    (own,) = rows[(rows.direction == rows.direction.iloc[0]) & (rows.layer == 1) & (rows.component == "mlp")].effect
    cells = probes.plot.heatmap(run, "patch").data[0]
    assert rows.direction.nunique() == 2
    assert cells.z[list(cells.y).index("1")][list(cells.x).index("mlp")] == pytest.approx(own, rel=1e-4)


FIGURES = {
    "heatmap": lambda run, save: probes.plot.heatmap(run, "kappa", save=save),
    "flips": lambda run, save: probes.plot.flips(run, save=save),
    "ledger": lambda run, save: probes.plot.ledger(run, save=save),
    "effects": lambda run, save: probes.plot.effects(run, save=save),
    "waterfall": lambda run, save: probes.plot.waterfall(run, save=save),
    "curves": lambda run, save: probes.plot.curves(run, save=save),
    "spectrum": lambda run, save: probes.plot.spectrum(run, 1, "up", save=save),
    "scatter": lambda run, save: probes.plot.scatter(run, "relative_norm", "direct_norm", save=save),
}
_BEGINS = {"pdf": b"%PDF", "svg": b"<?xml", "png": b"\x89PNG", "html": b"<!doctype html>", "json": b"{"}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_for_papers(run: probes.Run, name: str, tmp_path: Path) -> None:
    figure = FIGURES[name](run, tmp_path / "fig.svg")
    drawn = (tmp_path / "fig.svg").read_text(encoding="utf-8")
    assert drawn.startswith("<?xml") and figure.layout.title.text in drawn  # its text is text
    for trace in figure.data:  # all that the legend names
        assert not (figure.layout.showlegend and trace.name and trace.showlegend is not False) or trace.name in drawn
    FIGURES[name](run, tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_bytes() == (tmp_path / "fig.svg").read_bytes()


def test_a_rank_stays_a_rank_on_paper(tmp_path: Path) -> None:
    """Filled and open dots are drawn apart, and their names keep their order."""
    rows = {"layer": [0, 1, 2, 3], "component": "mlp", "effect": [1.0, 2.0, 3.0, 4.0], "q": [0.9, 0.01, 0.9, 0.01]}
    rows |= {"lo_all": [-1.0, 0.5, -1.0, 0.5], "within_noise": False, "held_out": 1.0}
    plot = ranked_effects(pd.DataFrame(rows).assign(hi_all=5.0))
    draw(plot, "ranks", tmp_path / "fig.svg", "svg")
    drawn = (tmp_path / "fig.svg").read_text(encoding="utf-8")
    places = [drawn.index(f">{name}</text>") for name in ("mlp 0", "mlp 1", "mlp 2", "mlp 3")]
    assert plot["data"][0]["y"] == ["mlp 0", "mlp 1", "mlp 2", "mlp 3"] and places == sorted(places)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("ending", _BEGINS)
def test_the_name_says_the_format(run: probes.Run, ending: str, tmp_path: Path) -> None:
    probes.plot.flips(run, save=tmp_path / f"fig.{ending}")
    assert (tmp_path / f"fig.{ending}").read_bytes().startswith(_BEGINS[ending])
    assert [path.name for path in tmp_path.iterdir()] == [f"fig.{ending}"]


def _of_tuned_alone(run: probes.Run) -> probes.Run:
    """As a run is whose metric only the tuned model has."""
    return edited(run, "behaviour", run["behaviour"].query("model != 'base' and metric == 'logit_diff'"))


def _without(run: probes.Run, table: str) -> probes.Run:
    """The run with nothing in one of its tables."""
    return edited(run, table, run[table].iloc[:0])


def _of_two(run: probes.Run) -> probes.Run:
    suite = run.manifest["suite"] | {"tuned": {"moved": "a", "other": "b"}}
    return probes.Run(run.path, run.manifest | {"suite": suite})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda run: probes.plot.heatmap(run, "sparkle"), "no table of .* has a measure 'sparkle'"),
        (lambda run: probes.plot.heatmap(run, "kappa", tuned="nobody"), "no tuned model 'nobody'; the only one"),
        (lambda run: probes.plot.heatmap(run, "revert", domain="nowhere"), "no domain 'nowhere'; there are"),
        (lambda run: probes.plot.effects(run, "shapley"), "no effects by shapley"),
        (lambda run: probes.plot.spectrum(run, 99, "q"), "no spectrum of q in layer 99"),
        (lambda run: probes.plot.scatter(run, "rho", "direct_norm"), "no measure 'rho' in the link; there are"),
        (lambda run: probes.plot.waterfall(_of_tuned_alone(run)), "logit_diff of both models is not in its table"),
        (lambda run: probes.plot.heatmap(run, "kappa", epsilon=0.123), "kappa was not measured of moved"),
        (lambda run: probes.plot.curves(run, "forth"), "direction 'forth': graft or revert"),
        (lambda run: probes.plot.curves(_without(run, "curves")), "no revert curves of moved; attribute with curves"),
        (
            lambda run: probes.plot.scatter(_without(run, "link"), "kappa_left", "flip_rate"),
            "no module of moved has both",
        ),
        (
            lambda run: probes.plot.waterfall(_of_two(run)),
            "several tuned models; say tuned= one of moved, other",
        ),
        (lambda run: probes.plot.flips(run, save="fig.doc"), "fig.doc: its name ends in none of .html"),
    ],
)
def test_what_is_not_there_is_one_line(run: probes.Run, wrong, message: str) -> None:
    with pytest.raises(RunError, match=message) as caught:
        wrong(run)
    assert "\n" not in str(caught.value)
