"""Our hooks against TransformerLens and nnsight on the same weights: equal gate bits, equal values."""

from pathlib import Path

import pytest
import torch

from probes.gates import gate_bits
from probes.hooks import capture, plan
from tests.pairs import build_model, build_pair
from tv.architecture import resolve

IDS = torch.randint(3, 307, (2, 9), generator=torch.Generator().manual_seed(1))
INPUTS = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
SITES = ("gate", "head_out", "attn_out", "resid_mid", "mlp_out", "resid_post")


def _ours(architecture: str) -> tuple:
    model = build_model(architecture)
    arch = resolve(model)
    reads = plan(arch, SITES)
    seen, _ = capture(model, reads, INPUTS)
    return arch, {site: seen[read.path].at(site) for read in reads for site in read.sites}


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "mistral", "gemma2"])
def test_transformer_lens(architecture: str, tmp_path: Path) -> None:
    bridge_module = pytest.importorskip("transformer_lens.model_bridge")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    names = {
        "gate": "mlp.gate.hook_out",
        "head_out": "attn.hook_z",
        "attn_out": "hook_attn_out",
        "resid_mid": "hook_resid_mid",
        "mlp_out": "hook_mlp_out",
        "resid_post": "hook_resid_post",
    }
    _, ours = _ours(architecture)
    path, _ = build_pair(tmp_path, architecture)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    bridge = bridge_module.TransformerBridge.boot_transformers(
        str(path), hf_model=model, tokenizer=AutoTokenizer.from_pretrained(path), device="cpu"
    )
    with torch.no_grad():
        _, cache = bridge.run_with_cache(IDS)
    for site, value in ours.items():
        theirs = cache[f"blocks.{site.layer}.{names[site.name]}"].reshape(value.shape)
        if site.name == "gate":
            assert torch.equal(gate_bits(theirs), gate_bits(value)), site
        assert torch.allclose(theirs, value, atol=1e-5), site


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_nnsight(architecture: str) -> None:
    nnsight = pytest.importorskip("nnsight")
    arch, ours = _ours(architecture)
    theirs = _trace(nnsight.NNsight(build_model(architecture)), [block.gate for block in arch.blocks])
    for site, value in ours.items():
        if site.name == "gate":
            found = theirs[arch.blocks[site.layer].gate]
            assert torch.equal(gate_bits(found), gate_bits(value))
            assert torch.allclose(found, value, atol=1e-5)


def _trace(model, paths: list[str]) -> dict[str, torch.Tensor]:
    with torch.no_grad(), model.trace(input_ids=IDS, attention_mask=INPUTS["attention_mask"], use_cache=False):
        found = {}.save()
        for path in paths:
            module = model
            for part in path.split("."):
                module = module[int(part)] if part.isdigit() else getattr(module, part)
            found[path] = module.input
    return found
