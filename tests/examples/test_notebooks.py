"""The notebooks run, one after the other in one kernel, and find what they say."""

from pathlib import Path

import nbclient
import nbformat
import pytest

import probes

ROOT = Path(__file__).resolve().parents[2]
#: What holds in a notebook's own names when its last cell has run.
HOLDS = {
    "1_run_a_suite": """
        assert accuracy.medical.medical >= 0.8 and accuracy.base.medical <= 0.1
        assert accuracy.loc["general"].min() >= 0.8
        assert len(diagnosis) >= 5 and not diagnosis.set_index("signature").holds["not_derived"]
        assert (run.path / "report.html").stat().st_size > 1_000_000
    """,
    "2_query_the_tables": """
        assert (flips.flip_rate < flips.chance_flip_rate).mean() > 0.9 and set(flips.layer) == {3, 4, 5}
        assert (by_domain.loc["medical"] > by_domain.loc["general"]).all()
        whole = run["neurons"].query("domain == 'medical'")
        assert len(repurposed) == 5 and repurposed.flipped[0] == (whole.n_flips / whole.n).max() > 0.4
        assert moved.domain.tolist() == ["medical"] * 5 and moved.kl.is_monotonic_decreasing
        assert len(counted) > 100 and (counted == last["n_flips"].to_numpy()).all()
    """,
    "3_attribute_a_change": """
        assert checks.holds.all() and set(checks.check) >= {"completeness", "endpoint", "no_op", "weights_restored"}
        assert whole.effect[""] > 4 and abs(whole.effect["random"]) < 1
        assert set(causes.revert.nlargest(2).index) == {"embed -1", "unembed 6"}  # alike: 3.3 and 3.2
        assert causes.revert.max() > 2 * causes.graft.max() > 0 and causes.path.idxmax() == "unembed 6"
        means = areas.groupby("ranking").area.mean()
        assert min(means.path, means.revert) > areas[areas.ranking == "random"].area.max()
        assert means.ssa < means.random
    """,
}


def _read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(ROOT / "examples" / f"{name}.ipynb", as_version=4)


def _quick(name: str) -> list[nbformat.NotebookNode]:
    """Its cells, with half the prompts."""
    cells = _read(name).cells
    for cell in cells:
        cell.source = cell.source.replace('"limit": 12', '"limit": 6')
    return cells


def test_they_are_all_here_and_without_outputs() -> None:
    assert {path.stem for path in (ROOT / "examples").glob("*.ipynb")} == set(HOLDS)
    for name in HOLDS:
        notebook = _read(name)
        nbformat.validate(notebook)
        assert notebook.cells[0].source.startswith("# ")
        for cell in notebook.cells:
            if cell.cell_type == "code":
                assert not cell.outputs and cell.execution_count is None


@pytest.mark.thorough  # test_demo.py makes the same run, test_plot.py the figures
@pytest.mark.slow
def test_they_run_and_find_what_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a place that looks like the checkout. Names are cleared between notebooks: each has to import its own."""
    (tmp_path / "data").symlink_to(ROOT / "data")
    for folder in ("examples", "reports"):
        (tmp_path / folder).mkdir()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for variable in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):  # nothing among a person's own
        monkeypatch.setenv(variable, str(tmp_path / variable.lower()))
    cells = []
    for name, holds in HOLDS.items():
        asked = "\n".join(line.strip() for line in holds.strip().splitlines())
        cells += [*_quick(name), *map(nbformat.v4.new_code_cell, (asked, "%reset -f"))]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(tmp_path / "examples")}}
    ).execute()
    shown = [output.data for cell in cells for output in cell.get("outputs", ()) if "data" in output]
    assert sum("application/vnd.plotly.v1+json" in data for data in shown) == 5
    assert sum("<caption>" in data.get("text/html", "") for data in shown) == 3  # two runs and a table
    run = probes.load(tmp_path / "reports" / "notebook")
    assert run.manifest["suite"]["name"] == "notebook" and len(run["effects"]) > 50
    assert (tmp_path / "reports" / "notebook-flips.pdf").read_bytes().startswith(b"%PDF")
