"""Kinds of models, each once: what the proof finds in them, and the reason for which it refuses them."""

import re

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from probes.capture.proof import prove
from probes.capture.refusals import without_trunk
from probes.capture.sums import Sums
from tests.architectures.tiny import tiny_config, tiny_model
from tv.architecture.anatomy import Module
from tv.architecture.resolve import resolve
from tv.errors import ArchitectureError

REFUSED = {
    "gemma3n_text": "layer 0 keeps 3 residual streams side by side",
    "deepseek_v4": "layer 0 keeps 4 residual streams side by side",
    "qwen4_exp_text": "layer 0 keeps 2 residual streams side by side",
    "minimax": r"layer 0 normalises its residual stream: .*post_attention_layernorm",
    "rwkv": r"layer 0 normalises its residual stream: .*pre_ln",
    "inkling2_text": "layer 0 does not pass its residual stream on",
    "zaya": "layer 0 adds a vector of its own",
    "gpt_neox_japanese": "layer 1 adds a vector of its own",
    "hrm_text": r"runs 6 times in a forward pass \(recurrent depth\)",
    "cpmant": "layer 0 computes 39 positions for a prompt of 7",
    "megatron-bert": "decoder reads something else than what bert.encoder.ln gives",
    "blip-2": "its forward needs pixel_values: it has no text-only pass",
    "idefics": "its forward raises ValueError: Exactly 1 of pixel_values",
}
WITHOUT_TRUNK = {
    "bart": r"normalises its residual stream in every block \(model.decoder.layers.0.final_layer_norm gives it\)",
    "openai-gpt": r"normalises its residual stream in every block \(transformer.h.0.ln_2 gives it\)",
    "xlnet": "normalises its residual stream in every block",
    "t5gemma2": "an encoder reads the prompt",
    "blip": "its forward needs pixel_values",
    "blt": "no final norm found in model.local_encoder",
}


@pytest.mark.parametrize("model_type", REFUSED)
def test_what_is_no_sum_is_refused_for_what_it_does(model_type: str) -> None:
    model = tiny_model(model_type)
    with pytest.raises(ArchitectureError, match=REFUSED[model_type]) as refusal:
        prove(model, resolve(model))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("model_type", WITHOUT_TRUNK)
def test_what_has_no_trunk_is_refused_for_what_its_forward_shows(model_type: str) -> None:
    model = tiny_model(model_type)
    architecture = resolve(model)
    assert not architecture.blocks
    told = without_trunk(model, architecture.note)
    assert "\n" not in told and told.startswith(type(model).__name__)
    assert re.search(WITHOUT_TRUNK[model_type], told)


def test_gates_of_the_stream_itself_are_factors_and_no_components() -> None:
    model = tiny_model("muse_spark")
    found, flow = prove(model, resolve(model))
    assert found.components == ("attn", "mlp")
    block = model.get_submodule(found.blocks[-1].path)
    torch.testing.assert_close(
        flow.factor(found.n_layers - 1, "mlp"),
        torch.sigmoid(block.post_feedforward_residual_gate.gate / block.post_feedforward_residual_gate.temperature),
        rtol=1e-3,
        atol=1e-4,
    )
    assert found.blocks[0].writer("attn").head_in is not None  # through a norm without a gain


def test_a_component_whose_output_is_the_stream_gives_no_factors() -> None:
    """Its output, the stream before it and the other component are no three terms: any numbers would do."""
    pre, other, mlp = torch.randn(3, 2, 7, 5)
    scale = torch.rand(5) + 0.5
    stream = scale * pre + other / scale
    post = scale * stream + mlp * scale
    assert Sums(pre, post, 1e-4).vectors([other, mlp]).explains
    assert not Sums(pre, post, 1e-4).vectors([other, stream, mlp]).explains


MOVES = ["codegen", "falcon", "gpt_bigcode", "bloom", "mpt", "persimmon", "phi3", "qwen3_5_text", "deepseek_v3"]
MOVES += ["bailing_hybrid", "mimo_v2_flash", "moshi"]


#: Layouts of one type that its configuration chooses from.
LAYOUTS: list[tuple[str, dict[str, object]]] = [
    ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    ("falcon", {"multi_query": False, "num_kv_heads": 4}),
    ("gpt_bigcode", {"multi_query": False}),
    ("mpt", {"no_bias": False}),
]


@pytest.mark.sampled(5)
@pytest.mark.parametrize("model_type", MOVES)
def test_heads_are_what_one_heads_rows_move(model_type: str) -> None:
    _require_heads(tiny_model(model_type))


@pytest.mark.parametrize(("model_type", "chosen"), LAYOUTS)
def test_heads_in_every_layout_of_a_type(model_type: str, chosen: dict[str, object]) -> None:
    config = tiny_config(model_type)
    for name, value in chosen.items():
        setattr(config, name, value)
    _require_heads(AutoModelForCausalLM.from_config(config).eval())


def _require_heads(model: PreTrainedModel) -> None:
    found, _ = prove(model, resolve(model))
    cut = 0
    for block in found.blocks:
        writer = block.writer("attn")
        if writer is None:
            continue
        n = writer.head_module.n_heads
        plain = _input_of(model, writer.head_in)
        for module in found.modules:
            if module.layer == block.layer and module.n_heads and not module.from_heads and module.component == "attn":
                group = n // module.n_heads
                for head in range(module.n_heads):
                    with _Scaled(model, module, head):
                        moved = (_input_of(model, writer.head_in) - plain).abs().flatten(0, 1).amax(0).view(n, -1)
                    wanted = set(range(head * group, (head + 1) * group))
                    touched = set((moved.amax(1) > 0).nonzero()[:, 0].tolist())
                    assert touched and touched <= wanted, (block.layer, module.name, head)
                    cut += 1
    assert cut


@pytest.mark.parametrize("model_type", ["phi3", "glm", "moshi", "dbrx", "solar_open", "granitemoeshared", "zamba2"])
def test_of_gate_and_up_the_output_is_linear_in_up_alone(model_type: str) -> None:
    model = tiny_model(model_type)
    found, _ = prove(model, resolve(model))
    gated = [block for block in found.blocks if block.gate is not None]
    assert bool(gated) == (model_type not in ("dbrx", "zamba2"))
    for block in gated:
        name = "shared_down" if block.gate.name == "shared_gate" else "down"
        down = found.module(block.layer, name).path
        plain = _input_of(model, down)
        for module in (block.gate, block.up):
            with _Scaled(model, module, None, 2.0):
                twice = torch.allclose(_input_of(model, down), 2 * plain, rtol=1e-4, atol=1e-6)
            assert twice == (module is block.up)


def _input_of(model: torch.nn.Module, path: str) -> Tensor:
    """What the module at `path` reads of a prompt."""
    read: list[Tensor] = []
    handle = model.get_submodule(path).register_forward_pre_hook(lambda _module, args: read.append(args[0].clone()))
    ids = torch.randint(0, 200, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    handle.remove()
    return read[0]


class _Scaled:
    """The rows of one head of a matrix, or all of it, scaled, with its bias; put back on exit."""

    def __init__(self, model: torch.nn.Module, module: Module, head: int | None, factor: float = 0.3) -> None:
        self.weight, owner = model.get_parameter(module.parameter), model.get_submodule(module.path)
        self.bias = getattr(owner, "bias", None)
        rows = torch.arange(module.shape[0]) if module.rows is None else module.rows
        self.rows = rows if head is None else rows.chunk(module.n_heads)[head]
        self.factor, self.transposed = factor, module.transposed

    def __enter__(self) -> None:
        tensors = [tensor for tensor in (self.weight, self.bias) if tensor is not None]
        self.saved = [(tensor, tensor.detach().clone()) for tensor in tensors]
        with torch.no_grad():
            (self.weight.T if self.transposed else self.weight)[self.rows] *= self.factor
            if self.bias is not None:
                self.bias[self.rows] *= self.factor

    def __exit__(self, *_: object) -> None:
        with torch.no_grad():
            for tensor, value in self.saved:
                tensor.copy_(value)
