"""Searches: what they find, what they count, and that plain addition stands beside them."""

from pathlib import Path

import numpy as np
import pytest
import torch

import tv
from tests.command import call
from tv.choosing.evolving import evolve
from tv.choosing.search import FOUND, PLAIN, SCALED
from tv.cli import main
from tv.errors import InputError
from tv.stats.means import Floats

BASE, MEDICAL, MATH = (f"data/models/{name}" for name in ("base", "medical", "math-beside-medical"))


def domains(limit: int = 6) -> list[tv.PromptSet]:
    return [tv.PromptSet(file=Path(f"data/prompts/{name}.jsonl"), limit=limit) for name in ("medical", "math")]


def test_evolution_finds_a_planted_optimum_and_keeps_to_its_budget_and_seed() -> None:
    calls: list[Floats] = []

    def worth(point: Floats) -> float:
        calls.append(point)
        return -float(((point - [0.4, 1.3]) ** 2).sum())

    found = evolve(worth, [0, 0], [2, 2], 90, seed=0)
    assert len(calls) == 90
    assert np.abs(found - [0.4, 1.3]).max() < 0.1
    assert np.array_equal(found, evolve(worth, [0, 0], [2, 2], 90, seed=0))
    assert all((point >= 0).all() and (point <= 2).all() for point in calls)


def test_a_vector_that_is_too_long_is_scaled_back(tmp_path: Path) -> None:
    medical = tv.extract(BASE, MEDICAL)
    vectors = {"medical": 3.0 * medical, "math": MATH}
    out = tmp_path / "a both"
    searched = tv.search(BASE, vectors, domains(), budget=12, out=out, batch_size=16)
    table = searched.table.set_index("way")
    assert table.value[FOUND] > table.value[PLAIN] + 0.02
    scales = searched.scales.set_index("vector").scale
    assert scales["medical"] < 1
    written = tv.extract(BASE, out)["lm_head.weight"]
    expected = scales["medical"] * 3.0 * medical["lm_head.weight"]
    expected += scales["math"] * tv.extract(BASE, MATH)["lm_head.weight"]
    torch.testing.assert_close(written, expected, atol=1e-5, rtol=1e-4)
    assert "keeps" in (out / "README.md").read_text()
    assert set(table.index) == {PLAIN, SCALED, FOUND}


def test_a_domain_where_nothing_gains_is_refused() -> None:
    general = tv.PromptSet(file=Path("data/prompts/general.jsonl"), limit=6)
    with pytest.raises(InputError, match="general: no vector gains there"):
        tv.search(BASE, {"medical": MEDICAL, "math": MATH}, [*domains(), general], budget=8)


@pytest.mark.thorough
def test_components_and_options_are_searched_too() -> None:
    vectors = {"medical": MEDICAL, "math": MATH}
    by_part = tv.search(BASE, vectors, domains(4), over="components", budget=8)
    assert len(by_part.scales) == 2 * 14
    trimmed = tv.search(BASE, vectors, domains(4), method="ties", budget=8)
    density = trimmed.scales.set_index("part").scale["density"]
    assert 0.05 <= density <= 1


def test_the_command_refuses_what_a_search_does_not_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--add", MEDICAL, "--add", MATH, "-o", tmp_path / "out"]
    files = ["--search", "data/prompts/medical.jsonl", "--search", "data/prompts/math.jsonl"]
    for wrong, said in (
        ([*files, "--only", "mlp"], "does not work with"),
        ([*files, "--budget", "2"], "at least 8 evaluations"),
        (files[:2], "at least two domains"),
        (["--budget", "20"], "need --search"),
        ([*files, "--over", "components", "--method", "ties"], "search over vectors"),
    ):
        status, _, told = call(monkeypatch, capsys, main, "apply", BASE, *given, *wrong)
        assert status == 2
        assert said in " ".join(told.split())
    assert not list(tmp_path.iterdir())
