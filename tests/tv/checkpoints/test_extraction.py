"""From a pair to its tuning vector: the arithmetic, the rows, the provenance."""

from pathlib import Path

import pytest
import torch

import tv
from tests.adapters import build_adapter
from tests.pairs import build_model, build_pair


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return build_pair(tmp_path, "llama")


def test_it_is_the_difference_of_every_parameter(pair: tuple[Path, Path]) -> None:
    vector = tv.extract(*pair)
    base, tuned = (tv.open_checkpoint(path) for path in pair)
    assert set(vector.names) == set(base.names)
    for name in vector.names:
        assert torch.equal(vector[name], tuned.tensor(name) - base.tensor(name))
    with pytest.raises(KeyError):
        vector["no.such.parameter"]


def test_provenance_names_both_sides_and_what_was_stored_otherwise(tmp_path: Path) -> None:
    base, _ = build_pair(tmp_path / "a", "llama")
    tuned = build_model("llama", seed=1).bfloat16()
    tuned.model.norm.float()
    told = tv.extract(base, tuned).provenance
    assert told["base"]["source"] == str(base) and told["base"]["dtype"] == "F32"
    assert told["tuned"]["dtype"] == "BF16" and told["tuned"]["other_dtypes"] == {"model.norm.weight": "F32"}
    assert told["noise"]["most"] == (1.66e-3, 0.0) and set(told["noise"]["others"]) == {"model.norm.weight"}


def test_an_adapter_extracted_is_its_t(tmp_path: Path) -> None:
    base, adapter, _ = build_adapter(tmp_path, target_modules=["q_proj"], dtype=torch.bfloat16)
    vector, pair = tv.extract(base, adapter), tv.open_pair(base, adapter)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(vector[name], pair.tuned.delta(name, pair.base))
    assert vector.noise(name) == pair.noise(name) and not vector.noise("model.norm.weight").of_weight
    assert float(vector["model.norm.weight"].norm()) == 0
