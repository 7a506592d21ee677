"""A measure that is registered elsewhere goes from a suite into tables by itself."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from torch import Tensor

import probes
from probes.measures.declared import MEASURES, activation_measure
from probes.store.schemas import PARTITIONS, SCHEMAS
from tests.pairs import build_pair, write_suite
from tv.columns import Column

COLUMNS = (Column("gap", "‖Δ‖ of what the site holds", null=0.0), Column("largest", "its largest entry"))


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MEASURES, "_entries", dict(MEASURES._entries) if len(MEASURES) >= 0 else {})

    @activation_measure("gaps", "place of a prompt, layer and site", ("attn_out", "mlp_out"), COLUMNS)
    def gaps(base: Tensor, tuned: Tensor) -> Mapping[str, Tensor]:
        difference = tuned.float() - base.float()
        return {"gap": difference.norm(dim=1), "largest": difference.abs().amax(dim=1)}


@pytest.mark.usefixtures("toy")
def test_its_table_says_what_the_built_in_ones_say(tmp_path: Path) -> None:
    suite = write_suite(tmp_path, *build_pair(tmp_path, "llama"), measure=["changes", "gaps"], bootstrap=20)
    run = probes.run(suite, out=tmp_path / "run", stages=["weights", "capture"])
    names = ["tuned", "prompt_id", "pos", "layer", "site", "gap", "largest"]
    assert SCHEMAS["gaps"].names == names == list(run["gaps"]) and PARTITIONS["gaps"] == ("tuned", "layer")
    gaps = run["gaps"].assign(component=lambda rows: rows.site.str.removesuffix("_out"))
    changes = run.df("changes", where=[("head", "==", -1), ("component", "in", ["attn", "mlp"])])
    both = gaps.merge(changes, on=["tuned", "prompt_id", "pos", "layer", "component"], how="outer")
    assert len(both) == len(gaps) == len(changes) > 0
    assert both.gap.to_numpy() == pytest.approx(both.delta_norm.to_numpy(), rel=1e-4)
    assert run.sql("SELECT max(gap) AS g FROM gaps").g[0] == pytest.approx(gaps.gap.max())
    assert probes.prepare(suite, out=tmp_path / "other").sizes["gaps"] > 0


def test_an_unknown_measurement_is_one_line(tmp_path: Path) -> None:
    suite = write_suite(tmp_path, *build_pair(tmp_path, "llama"), measure=["changes", "gaps"])
    with pytest.raises(
        probes.SuiteError,
        match=r"measure: no measurement 'gaps'; did you mean 'gates'\? There are gates, contributions",
    ):
        probes.load_suite(suite)
