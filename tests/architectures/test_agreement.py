"""The independent hooks notice a run whose numbers are wrong."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
import torch
from transformers import PreTrainedModel

import probes
from probes.capture.pair import make_pair
from tests.architectures.agreement import TOLERANCE, agreement
from tests.architectures.files import word_tokenizer, written
from tests.architectures.independent import Bench, frozen
from tests.architectures.tiny import tiny_pair
from tests.runs import edited
from tv.architecture.anatomy import Architecture
from tv.architecture.resolve import resolve


class Finished(NamedTuple):
    """A run, its pair and their files."""

    run: probes.Run
    base: PreTrainedModel
    tuned: PreTrainedModel
    architecture: Architecture
    directory: Path

    def errors(self, table: str, rows: pd.DataFrame) -> set[str]:
        """The kinds of numbers that disagree once `rows` stand in place of a table."""
        found = agreement(edited(self.run, table, rows), self.base, self.tuned, self.architecture, self.directory)
        return {name for name, error in found.items() if not error <= TOLERANCE}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A mixture of experts: it has heads, experts and gates."""
    directory = tmp_path_factory.mktemp("qwen3_moe")
    base, tuned = tiny_pair("qwen3_moe")
    suite = written(base, tuned, directory)
    grafts = {"methods": ["graft"], "granularity": ["component", "module"], "controls": [], "curves": False}
    settings = {"attribute": grafts, "bootstrap": 2}
    run = probes.run(suite, out=directory / "run", stages=("weights", "capture", "attribute"), settings=settings)
    architecture = make_pair(base, tuned, word_tokenizer()).architecture
    return Finished(run, base, tuned, architecture, directory)


def test_agrees_with_the_run_as_it_is(finished: Finished) -> None:
    found = agreement(finished.run, *finished[1:])
    assert found.keys() == {
        *("sum", "contributions", "dla", "heads", "experts", "gates", "graft", "weights", "files"),
    }
    assert max(found.values()) <= TOLERANCE, found


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("kind", "column", "where"),
    [
        ("contributions", "norm_base", ("component", "embed")),
        ("contributions", "cosine", ("component", "mlp")),
        ("heads", "delta_norm", ("head", 0)),
        ("experts", "norm_tuned", ("expert", 1)),
        ("dla", "dla_tuned", ("component", "attn")),
    ],
)
def test_a_wrong_factor_is_seen(finished: Finished, kind: str, column: str, where: tuple[str, object]) -> None:
    rows = finished.run["changes"].copy()
    whole = (rows.expert == -1) & (rows["head"] == -1) if kind == "contributions" else True
    rows.loc[(rows[where[0]] == where[1]) & whole, column] *= 1.01
    assert finished.errors("changes", rows) == {kind}


def test_a_missing_component_and_a_flipped_gate_are_seen(finished: Finished) -> None:
    rows = finished.run["changes"]
    assert finished.errors("changes", rows[rows.component != "attn"]) == {"contributions"}
    gates = finished.run["gates"].copy()
    gates["gate_base"] = [bytes([row[0] ^ 128]) + row[1:] for row in gates.gate_base]
    assert finished.errors("gates", gates) == {"gates"}


def test_a_wrong_effect_and_a_missing_row_of_weights_are_seen(finished: Finished) -> None:
    effects = finished.run["prompt_effects"].copy()
    effects.loc[effects.granularity == "component", "effect"] += 0.01
    assert finished.errors("prompt_effects", effects) == {"graft"}
    weights = finished.run["weights"]
    assert finished.errors("weights", weights[weights.module != "q_norm"]) == {"weights"}


def test_a_parameter_of_the_files_that_moved_is_seen(finished: Finished) -> None:
    with torch.no_grad():
        next(finished.base.parameters())[0, 0] += 1e-6
    try:
        found = agreement(finished.run, *finished[1:])
    finally:
        with torch.no_grad():
            next(finished.base.parameters())[0, 0] -= 1e-6
    assert found["files"] == 1


def test_a_norm_frozen_at_a_point_maps_its_own_point_to_what_it_gives() -> None:
    generator = torch.Generator().manual_seed(0)
    x, step = (torch.randn(1, 3, 12, generator=generator) for _ in range(2))
    for norm in (torch.nn.LayerNorm(12), torch.nn.RMSNorm(12)):
        with torch.no_grad():
            norm.weight.add_(torch.rand(12, generator=generator))
            through = frozen(norm, x)
            assert torch.allclose(through(x), norm(x), atol=1e-5)
            assert torch.allclose(through(x + step), through(x) + through(step), atol=1e-5)


def test_what_a_component_adds_is_found_through_a_factor_it_is_not_told_of() -> None:
    base, _ = tiny_pair("granite")
    bench = Bench(base, resolve(base), torch.tensor([[5, 7, 11, 13]]))
    added, error = bench.added(set())
    factor = base.config.residual_multiplier
    assert factor not in (0.0, 1.0)
    path = bench.architecture.blocks[0].writers[0].path
    assert error < 1e-5
    assert torch.allclose(added[0, "attn", -1, -1], factor * bench.written(path)[0], atol=1e-5)
