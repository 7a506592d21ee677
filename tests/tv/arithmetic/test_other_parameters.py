"""Arithmetic moves every parameter: sinks and biases of experts, and a tower beside the language model."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

import tv
from tests.architectures.tiny import tiny_pair
from tests.pairs import build_tokenizer


def _only(base: PreTrainedModel, tuned: PreTrainedModel, part: str) -> None:
    """Take back every change but that of parameters with this in their names."""
    same = dict(base.named_parameters())
    with torch.no_grad():
        for name, value in tuned.named_parameters():
            if part not in name:
                value.copy_(same[name])


@pytest.mark.parametrize(("kind", "part"), [("gpt_oss", "sinks"), ("gpt_oss", "_bias"), ("gemma3", "vision_tower")])
def test_extracted_and_applied(kind: str, part: str, tmp_path: Path) -> None:
    base, tuned = tiny_pair(kind)
    _only(base, tuned, part)
    base.save_pretrained(tmp_path / "base")
    build_tokenizer(290).save_pretrained(tmp_path / "base")
    vector = tv.extract(tv.open_checkpoint(tmp_path / "base"), tuned)
    moved = {name for name in vector.names if bool(vector[name].any())}
    assert moved == {name for name, _ in base.named_parameters() if part in name}
    tv.apply(tmp_path / "base", {vector: 1.0}, out=tmp_path / "out")
    written = tv.open_checkpoint(tmp_path / "out")
    for name, value in tuned.named_parameters():
        assert torch.allclose(written.tensor(name), value.detach(), atol=1e-6), name


def test_two_towers_are_compared_by_name() -> None:
    """A part of several tensors is one row of `tv.cosine`, and its numbers are those of its concatenation."""
    base, first = tiny_pair("gemma3")
    _, second = tiny_pair("gemma3")
    for name, value in second.named_parameters():
        value.data.add_(0.1 if "vision_tower" in name else 0.0)
    rows = tv.cosine(base, {"one": first, "two": second}).query("scope == 'module'").set_index("module")
    same = dict(base.named_parameters())
    a, b = (
        torch.cat(
            [(v - same[n]).detach().flatten().double() for n, v in side.named_parameters() if "vision_tower" in n]
        )
        for side in (first, second)
    )
    row = rows.loc["vision_tower"]
    assert row.entries == len(a) and row.cosine == pytest.approx(float(a @ b / a.norm() / b.norm()), abs=1e-5)
