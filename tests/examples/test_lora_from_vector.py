"""The pieces of the example, for two steps."""

from itertools import islice
from pathlib import Path

import pytest
import torch

pytest.importorskip("peft")

import tv
from data import world
from data.accuracy import held_out
from data.train_demo import batches
from examples.lora_from_vector import MODELS, STARTS, Curve, begin, train
from tv.checkpoints.live import load_model, load_tokenizer


@pytest.mark.sampled(1)
@pytest.mark.parametrize("start", STARTS)
def test_every_start_trains(start: str, tmp_path: Path) -> None:
    base = MODELS / "base"
    vector, tokenizer = tv.extract(base, MODELS / "medical"), load_tokenizer(base)
    model = begin(start, base, vector, 4, 0, tmp_path)
    ids = torch.arange(3, 20)[None]
    with torch.inference_mode():
        step = (model(input_ids=ids).logits - load_model(base)(input_ids=ids).logits).abs().max()
    assert (step > 1e-3) == (start == "warm")  # the others start at the base
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    curve = train(
        start,
        model,
        tokenizer,
        islice(batches(tokenizer, "medical", 0), 2),
        held_out(world.medical())[:8],
        target=2.0,
        every=1,
        learning_rate=1e-2,
    )
    assert [step for step, _ in curve.points] == [0, 1, 2] and curve.start == start
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    frozen = start in ("plain, A frozen", "subspace", "orthogonal")
    assert moved and all("lora_B" in name or ("lora_A" in name and not frozen) for name in moved)
    assert any("lora_A" in name for name in moved) != frozen


def test_steps_to_a_target() -> None:
    curve = Curve("plain", 10, [(0, 0.1), (25, 0.95), (50, 0.9)])
    assert (curve.steps_to(0.9), curve.steps_to(0.0), curve.steps_to(0.96)) == (25, 0, None)
