"""Repair: scales that keep a planted gain and undo a planted damage, tested on prompts that no choice has seen."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tv
from tests.command import call
from tv.choosing import candidates
from tv.choosing.candidates import FITTED, SCALING
from tv.cli import main
from tv.errors import CheckpointError, InputError

BASE, MEDICAL = "data/models/base", "data/models/medical"
NOISY = "model.layers.5.mlp.down_proj.weight"


def sets(limit: int = 8) -> list[tv.PromptSet]:
    return [tv.PromptSet(file=Path(f"data/prompts/{name}.jsonl"), limit=limit) for name in ("medical", "general")]


def with_noise() -> tv.TuningVector:
    """Medical's T, and in one matrix noise that costs general prompts dearly and gains nothing."""
    medical = tv.extract(BASE, MEDICAL)
    noise = torch.randn(medical.shapes[NOISY], generator=torch.Generator().manual_seed(0)) * 0.25

    def read(name: str) -> Tensor:
        return medical[name] + noise if name == NOISY else medical[name]

    return tv.TuningVector(medical.shapes, read, {"planted": 1})


@pytest.fixture(scope="module", autouse=True)
def few_points() -> Iterator[None]:
    """Fewer points of every method: what is tested is there in few."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidates, "TRADEOFFS", (4.0,))
        patch.setattr(candidates, "SCALES", (1.0, 0.8, 0.6, 0.4))
        patch.setattr(candidates, "DENSITIES", (0.5,))
        patch.setattr(candidates, "PREFIXES", 4)
        yield


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[tv.Repaired, Path]:
    out = tmp_path_factory.mktemp("a place") / "repaired"
    return tv.repair(BASE, with_noise(), *sets(), out=out, draws=4, keep_at_least=0.8, batch_size=32), out


def test_the_part_with_the_planted_damage_is_taken_back(planted: tuple[tv.Repaired, Path]) -> None:
    result = planted[0].result
    scales = result["scales"].set_index(["part", "layer"])["scale"]
    assert scales["mlp", 5] == scales.min() < 0.3
    assert scales["unembed", 6] > 0.7
    chosen = result["chosen"].set_index("method")
    assert chosen.undone[FITTED] > 0.8
    curve = result["curve"]
    assert 1.0 in curve.kept[curve.method == FITTED].tolist()  # all of T: one point keeps whatever is asked
    both = chosen.kept + chosen.undone
    assert both[FITTED] > both[SCALING] + 0.1
    assert both[FITTED] > both["random choices"] + 0.3


def test_what_is_written_is_what_was_chosen(planted: tuple[tv.Repaired, Path]) -> None:
    repaired, out = planted
    vector, written = with_noise(), tv.extract(BASE, out)
    scale = repaired.result["scales"].set_index(["part", "layer"])["scale"]["mlp", 5]
    torch.testing.assert_close(written[NOISY], scale * vector[NOISY], atol=2e-6, rtol=1e-4)
    kept, undone = repaired.as_written or (0, 0)
    assert kept >= 0.8
    assert undone > 0.8
    assert "| mlp | 5 |" in (out / "README.md").read_text()
    files = {path.name for path in out.with_name("repaired-repair").iterdir()}
    assert {"curve.parquet", "curve.csv", "chosen.csv", "scales.csv", "repair.html"} <= files


def test_the_same_call_reads_what_is_finished(
    planted: tuple[tv.Repaired, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    repaired, out = planted
    monkeypatch.setattr("tv.choosing.candidates.fit", None)
    monkeypatch.setattr("tv.choosing.landscape.Landscape.at", None)
    again = tv.repair(BASE, with_noise(), *sets(), report=out.with_name("repaired-repair"), draws=4, keep_at_least=0.8)
    assert again.result["chosen"].equals(repaired.result["chosen"])


def test_an_undamaged_set_is_refused_before_any_fit() -> None:
    keep = sets()[0]
    with pytest.raises(InputError, match=r"--restore: no damage: .* there is nothing to restore"):
        tv.repair(BASE, MEDICAL, keep, keep)


def test_bad_settings_are_one_line_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = ["--keep", "data/prompts/medical.jsonl", "--restore", "data/prompts/general.jsonl"]
    for wrong, said in (
        (["--as", "lora"], "give --rank"),
        (["--rank", "4"], "add --as lora"),
        (["--metric", "nothing"], "metric 'nothing'"),
        (["--keep-at-least", "2"], "keep at least 2"),
        (["--granularity", "neuron"], "granularity"),
        (["--seed", "-1"], "seed -1"),
        (["--report", tmp_path / "out" / "report"], "give a directory beside it"),
    ):
        where = ["-o", tmp_path / "out"]
        status, _, told = call(monkeypatch, capsys, main, "repair", BASE, MEDICAL, *prompts, *where, *wrong)
        assert status == 2
        assert said in " ".join(told.split())
    with pytest.raises(CheckpointError, match="its directory does not exist"):
        tv.repair(BASE, MEDICAL, *sets(), out=tmp_path / "no" / "out")
    assert not list(tmp_path.iterdir())
