"""Numbers by which kinds of tuning are distinguished: what each says of tunings whose kind is known."""

from pathlib import Path

import pandas as pd
import pytest
import torch

import probes
from probes.discovery.tuning_kind import READS, tuning_kind
from tests.pairs import build_model, build_tokenizer, write_prompts


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> probes.Run:
    """The tables of weights of four tunings: an adapter of rank 2, all parameters at random, tiny steps, and none."""
    folder = tmp_path_factory.mktemp("kinds")
    generator = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    for name in ("base", "adapter", "full", "tiny", "same"):
        model = build_model("llama")
        with torch.no_grad():
            for path, parameter in model.named_parameters():
                if name == "adapter" and path.endswith(("q_proj.weight", "down_proj.weight")):
                    parameter += 0.05 * noise(len(parameter), 2) @ noise(2, parameter.shape[1])
                elif name in ("full", "tiny"):
                    parameter += (0.05 if name == "full" else 1e-5) * noise(*parameter.shape)
        model.save_pretrained(folder / name)
        build_tokenizer().save_pretrained(folder / name)
    suite = {
        "name": "kinds",
        "base": str(folder / "base"),
        "tuned": {name: str(folder / name) for name in ("adapter", "full", "tiny", "same")},
        "prompts": [{"file": str(write_prompts(folder / "prompts.jsonl"))}],
    }
    return probes.run(suite, out=folder / "run", stages=["weights"])


def _kind(run: probes.Run, name: str) -> pd.DataFrame:
    own = [("tuned", "==", name)]
    return tuning_kind({table: run.df(table, where=own) for table in READS if table in run.tables}).set_index(
        "evidence"
    )


def test_an_adapter_is_of_low_rank_and_leaves_the_rest(weights: probes.Run) -> None:
    kind = _kind(weights, "adapter")
    assert kind.value["rank"] == 2 and "low rank" in kind.speaks_for["rank"]
    assert kind.value["frozen_embeddings"] == 1 and kind.value["frozen_gains_and_biases"] == 1
    assert 0 < kind.value["frozen_matrices"] < 1
    assert kind.value["stable_rank"] <= 2 < kind.reference["stable_rank"]


def test_random_steps_of_all_parameters_are_full_and_as_by_chance(weights: probes.Run) -> None:
    kind = _kind(weights, "full")
    assert kind.value["rank"] >= 0.8 * kind.reference["rank"] and "no adapter" in kind.speaks_for["rank"]
    assert kind.value["frozen_matrices"] == 0 and kind.value["changed_bf16"] > 0.9
    assert kind.value["stable_rank"] == pytest.approx(kind.reference["stable_rank"], rel=0.15)
    for side in ("leading_left", "leading_right", "leading_two_sided", "large_weights"):
        assert kind.value[side] == pytest.approx(kind.reference[side], abs=0.03)
        assert kind.cannot_tell[side]


def test_steps_that_bfloat16_hides_are_told(weights: probes.Run) -> None:
    kind = _kind(weights, "tiny")
    assert kind.value["changed"] > 0.9 and kind.value["changed_bf16"] < 0.1
    assert "micro-updates" in kind.speaks_for["hidden_by_bf16"]


def test_every_row_speaks_or_says_why_it_cannot(weights: probes.Run) -> None:
    for name in ("adapter", "full", "tiny"):
        kind = _kind(weights, name)
        assert ((kind.speaks_for != "") != (kind.cannot_tell != "")).all()
    assert _kind(weights, "same").empty


def test_a_constant_beyond_shams_is_narrow(tmp_path: Path) -> None:
    norms = pd.DataFrame({"place": ["far"] * 3, "depth": [0, 1, 2], "constant": [0.9, 0.6, 0.8], "constant_sham": 0.3})
    kind = tuning_kind({"difference_norms": norms})
    assert kind.value.tolist() == pytest.approx([0.7]) and "narrow" in kind.speaks_for[0]
    assert "mixed" in tuning_kind({"difference_norms": norms.assign(constant_sham=0.9)}).cannot_tell[0]
