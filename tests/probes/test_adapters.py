"""A run on an adapter: from its directory, or in a live model over a base of its own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig

import probes
from tests.adapters import CASES, IDS, build_base, load_base, wrapped
from tests.pairs import PROMPTS, write_prompts

pytestmark = pytest.mark.filterwarnings("ignore")


def _run(tmp_path: Path, name: str, **pair: Any) -> probes.Run:
    prompts = write_prompts(tmp_path / "prompts.jsonl", PROMPTS[:2])
    suite = {
        "name": "adapter",
        "prompts": [{"file": str(prompts)}],
        "measure": ["behaviour"],
        "tuned": {},
        "bootstrap": 9,
    }
    return probes.run(suite, out=tmp_path / name, stages=("weights", "capture"), **pair)


def test_a_live_model_with_an_adapter_is_its_directory_s_run(tmp_path: Path) -> None:
    path = build_base(tmp_path)
    running = wrapped(CASES["dora"], load_base(path))
    running.save_pretrained(tmp_path / "adapter")
    before = running(IDS).logits
    native = load_base(path)
    native.add_adapter(LoraConfig(**CASES["dora"].settings))
    native.load_state_dict(running.get_base_model().state_dict())
    pairs: dict[str, dict[str, Any]] = {
        "over its path": {"base": path, "tuned": {"a": running}},
        "over itself": {"base": running.get_base_model(), "tuned": {"a": running}},
        "over nothing": {"tuned": {"a": running}},
        "injected": {"base": native, "tuned": {"a": native}},
    }
    expected = _run(tmp_path, "directory", base=path, tuned={"a": tmp_path / "adapter"})
    assert expected["weights"].delta_norm.max() > 1
    for name, pair in pairs.items():
        run = _run(tmp_path, name, **pair)
        for table, column in {"weights": "delta_norm", "behaviour": "value"}.items():
            np.testing.assert_allclose(run[table][column], expected[table][column], rtol=1e-4, atol=1e-5)
    assert torch.equal(running(IDS).logits, before)
    with pytest.raises(probes.RunError, match=r"\(a\) no longer holds the weights that the run read"):
        probes.attribute(run, method="graft", metric="target_nll")  # the live model's name is its base's


def test_a_head_of_its_own_over_a_tied_base(tmp_path: Path) -> None:
    """What the adapter moves is the unembedding: the embedding has no T."""
    path = build_base(tmp_path, "qwen2")
    wrapped(CASES["tied, whole head"], load_base(path)).save_pretrained(tmp_path / "adapter")
    run = _run(tmp_path, "run", base=path, tuned={"a": tmp_path / "adapter"})
    norms = run["weights"].set_index("module").delta_norm
    assert norms["unembed"] > 1 and norms["embed"] == 0
    assert any("lm_head.weight alone: T is over the untied base" in note for note in run.manifest["notes"]["a"])
