"""A method and a metric that are registered elsewhere go through suite, run and tables by themselves."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field
from torch import Tensor

import probes
from probes.attribution.effects import FORWARD, Effects
from probes.attribution.methods.exact import graft
from probes.attribution.units import Unit
from probes.attribution.work import Work
from probes.methods import METHODS, attribution_method
from tests.pairs import build_pair, write_suite
from tv.prompts.encoding import Encoded
from tv.prompts.metric import METRICS, metric


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method that is graft times its sharpness, and a metric that every prompt has."""
    for registry in (METHODS, METRICS):
        assert len(registry) > 0  # its files are imported
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))

    @attribution_method("toy", words="toy effect", explains="Toy: graft, sharper.", granularities=("component",))
    def toy(work: Work, units: Sequence[Unit], *, sharpness: Annotated[float, Field(gt=0)] = 1.0) -> Iterator[Effects]:
        (grafted,) = graft(work, units)
        yield Effects("toy", FORWARD, grafted.units, grafted.prompts, sharpness * grafted.values)

    @metric("top_logit", words="largest logit", unit="logits", better=None, needs="text")
    def top_logit(logits: Tensor, item: Encoded) -> Tensor:
        return logits[item.answer_pos].max()


def test_a_new_method_and_a_new_metric_are_in_the_tables(toys: None, tmp_path: Path) -> None:
    section = {"methods": ["graft", "toy"], "metric": "top_logit", "sharpness": 2.0, "controls": [], "curves": False}
    run = probes.run(
        write_suite(tmp_path, *build_pair(tmp_path, "llama"), attribute=section, bootstrap=20), out=tmp_path / "run"
    )
    assert "top_logit" in set(run["behaviour"].metric)
    effects = run["effects"].query("granularity == 'component'")
    twice = effects[effects.method == "toy"].effect.to_numpy() / effects[effects.method == "graft"].effect.to_numpy()
    assert twice == pytest.approx(2, rel=1e-4, nan_ok=True)
    with pytest.raises(probes.SuiteError, match=r"attribute\.sharpness: should be greater than 0"):
        probes.attribute(run, method="toy", sharpness=-1.0)
    with pytest.raises(probes.SuiteError, match=r"attribute\.blunt: unknown key.* are methods.*sharpness"):
        probes.attribute(run, method="toy", blunt=1)
