"""A model whose weights are read as they are used computes what the model in memory computes, to the bit."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import tv
from tests.pairs import CONFIGS, WIDE, build_pair
from tv.checkpoints.casting import cast
from tv.checkpoints.live import load_model
from tv.checkpoints.streamed import in_memory, is_streamed, stored_values, streamed
from tv.errors import CheckpointError

IDS = torch.arange(22).reshape(2, 11) + 5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ["qwen2", "gemma2", "gpt2", "qwen2_moe", "mamba"])
def test_logits_are_those_of_the_model_in_memory(tmp_path: Path, architecture: str, dtype: str) -> None:
    base, _ = build_pair(tmp_path, architecture)
    whole, model = load_model(base, dtype=dtype), streamed(tv.open_checkpoint(base), getattr(torch, dtype))
    with torch.inference_mode():
        assert torch.equal(model(IDS, use_cache=False).logits, whole(IDS, use_cache=False).logits)
    assert is_streamed(model) and not is_streamed(whole) and type(model).__name__ == type(whole).__name__
    assert model.device == whole.device and model.dtype == whole.dtype


def test_one_block_is_in_memory_at_a_time(tmp_path: Path) -> None:
    base, _ = build_pair(tmp_path)
    model = streamed(tv.open_checkpoint(base), torch.float32)
    blocks = model.get_submodule("model.layers")
    there: list[list[bool]] = []
    for block in blocks:
        block.register_forward_hook(lambda *_: there.append([not b.mlp.up_proj.weight.is_meta for b in blocks]))
    with torch.inference_mode():
        model(IDS, use_cache=False)
    assert there == [[i == j for j in range(CONFIGS["llama"][1]["num_hidden_layers"])] for i in range(3)]
    assert model.get_submodule("model.embed_tokens").weight.is_meta and not model.lm_head.weight.is_meta


def test_an_embedding_is_read_once_where_blocks_are_small_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CONFIGS, "wide", WIDE)
    paths = build_pair(tmp_path, "wide")
    model, other = models = [streamed(tv.open_checkpoint(path), torch.float32) for path in paths]
    wanted = [load_model(path)(IDS, use_cache=False).logits for path in paths]
    head, block = model.lm_head, model.get_submodule("model.layers.0")
    there: list[bool] = []
    block.register_forward_hook(lambda *_: there.append(not head.weight.is_meta))
    with torch.inference_mode():
        for _ in range(3):
            assert torch.equal(model(IDS, use_cache=False).logits, wanted[0])
            with model.weights.standing_in(stored_values(other)):
                assert torch.equal(model(IDS, use_cache=False).logits, wanted[1])
        in_memory(head)
    assert there == 3 * [True, False]  # what stands in for it does not stay
    assert all(value.is_meta for value in block.parameters())  # though nothing had to be read in its place
    of_blocks = sum(value.nbytes for value in model.model.layers.parameters())
    outside = head.weight.nbytes + model.model.norm.weight.nbytes
    assert [each.weights.reads for each in models] == [3 * of_blocks + outside, 3 * of_blocks + outside]
    model.weights.rest()
    assert head.weight.is_meta and torch.equal(model(IDS, use_cache=False).logits, wanted[0])


def test_a_module_that_is_not_called_is_read_on_request(tmp_path: Path) -> None:
    base, _ = build_pair(tmp_path, "qwen2")
    model, whole = streamed(tv.open_checkpoint(base), torch.float32), load_model(base)
    down = "model.layers.1.mlp.down_proj"
    assert model.get_submodule(down).weight.is_meta
    read = in_memory(model.get_submodule(down)).get_parameter("weight")
    assert torch.equal(read, whole.get_submodule(down).weight)
    in_memory(model.lm_head)  # tied: the embedding is there with it, and the block is gone
    assert model.lm_head.weight is model.get_submodule("model.embed_tokens").weight
    assert not model.lm_head.weight.is_meta and model.get_submodule(down).weight.is_meta
    assert in_memory(whole.lm_head) is whole.lm_head


def test_an_adapter_is_read_over_its_base(tmp_path: Path) -> None:
    base, tuned = build_pair(tmp_path, "mistral")
    tv.extract(base, tuned).save(tmp_path / "t.safetensors")
    opened = tv.open_checkpoint(tmp_path / "t.safetensors", base=base)
    model, whole = streamed(opened, torch.float32), load_model(tmp_path / "t.safetensors", base=base)
    with torch.inference_mode():
        assert torch.equal(model(IDS, use_cache=False).logits, whole(IDS, use_cache=False).logits)


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    base, _ = build_pair(tmp_path)
    whole = load_model(base)
    with torch.no_grad():
        whole.get_submodule("model.layers.2.mlp.up_proj").weight[3, 4] = float("nan")
    whole.save_pretrained(base)
    model = streamed(tv.open_checkpoint(base), torch.float32)
    with pytest.raises(CheckpointError, match=r"layers\.2\.mlp\.up_proj\.weight' holds NaN or Inf, first at \[3, 4\]"):
        model(IDS, use_cache=False)


def test_another_dtype_is_rounded_as_a_copy_in_memory_is(tmp_path: Path) -> None:
    base, _ = build_pair(tmp_path)
    model, whole = streamed(tv.open_checkpoint(base), torch.float32), load_model(base)
    twin, copy = model.weights.rounded(torch.bfloat16, torch.float32), cast(cast(whole, torch.bfloat16), torch.float32)
    with torch.inference_mode():
        assert torch.equal(twin(IDS, use_cache=False).logits, copy(IDS, use_cache=False).logits)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2"])
def test_other_values_stand_in_wherever_their_part_is_read(tmp_path: Path, architecture: str) -> None:
    base, tuned = build_pair(tmp_path, architecture)
    model, other = (streamed(tv.open_checkpoint(path), torch.float32) for path in (base, tuned))
    whole, moved = load_model(base), load_model(tuned)
    with torch.inference_mode():
        plain = whole(IDS, use_cache=False).logits
        wanted = moved(IDS, use_cache=False).logits
        assert torch.equal(model(IDS, use_cache=False).logits, plain)
        with model.weights.standing_in(stored_values(other)):
            for _ in range(2):  # what is in memory now, and what is read while they stand in
                assert torch.equal(model(IDS, use_cache=False).logits, wanted)
        assert torch.equal(model(IDS, use_cache=False).logits, plain)


def test_a_value_that_is_made_of_the_stored_one_leaves_it_in_memory(tmp_path: Path) -> None:
    base, _ = build_pair(tmp_path)
    model, whole = streamed(tv.open_checkpoint(base), torch.float32), load_model(base)
    stored, name = stored_values(model), "model.layers.1.mlp.up_proj.weight"
    path = name.removesuffix(".weight")

    class Twice(dict[str, Tensor]):
        def __getitem__(self, key: str) -> Tensor:
            return 2 * stored[key]

    for _ in range(2):
        with model.weights.standing_in(Twice({name: torch.empty(0)})):
            in_memory(model.get_submodule(path))
            assert torch.equal(model.get_parameter(name), 2 * whole.get_parameter(name))
        assert torch.equal(model.get_parameter(name), whole.get_parameter(name))
    before = model.weights.reads
    assert torch.equal(stored[name], whole.get_parameter(name)) and model.weights.reads == before
    assert set(stored) == set(dict(model.named_parameters())) and name in stored and model.weights.reads == before
    model.weights.leave()
    assert model.get_parameter(name).is_meta


def test_values_that_cannot_be_made_leave_the_model_as_it_was(tmp_path: Path) -> None:
    base, _ = build_pair(tmp_path)
    model, whole = streamed(tv.open_checkpoint(base), torch.float32), load_model(base)
    broken = {"model.layers.0.mlp.up_proj.weight": torch.zeros(3, 4)}
    with torch.inference_mode():
        with pytest.raises(RuntimeError), model.weights.standing_in(broken):
            model(IDS, use_cache=False)
        assert torch.equal(model(IDS, use_cache=False).logits, whole(IDS, use_cache=False).logits)
