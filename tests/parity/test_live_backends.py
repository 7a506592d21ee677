"""Backends that live with other things: models left as they were, forwards that fail, bridges that people have."""

import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

import probes
from probes.capture.hooks.backends import open_backend
from probes.capture.hooks.plan import MODULE, SITES, Read, Seen, plan
from probes.capture.loading import Pairs
from probes.errors import ActivationError
from probes.suite import load_suite
from tests.pairs import build_model, build_pair, build_tokenizer, perturb, write_suite
from tv.architecture.resolve import resolve

pytest.importorskip("transformer_lens")
pytest.importorskip("nnsight")

IDS = torch.randint(3, 307, (2, 9), generator=torch.Generator().manual_seed(1))
INPUTS = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
AT = torch.ones_like(IDS, dtype=torch.bool)


@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight"])
def test_a_failure_takes_its_hooks_along_and_models_stay_as_they_were(backend: str) -> None:
    base, tuned = build_model(), build_model(seed=2)
    before = [_anatomy(model) for model in (base, tuned)]
    expected = [model(**INPUTS, use_cache=False).logits.detach() for model in (base, tuned)]
    reads = plan(resolve(base), (*SITES, MODULE))
    lockstep = open_backend(backend, base, tuned, build_tokenizer())

    def fail(read: Read, _: Seen, __: Seen) -> None:
        if "layers.1" in read.path:
            raise ValueError("stop here")

    with pytest.raises(ValueError, match="stop here"):
        lockstep(reads, INPUTS, fail, AT)
    with pytest.raises(IndexError):
        lockstep(reads, {**INPUTS, "input_ids": IDS + 999_999}, lambda *_: None, AT)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    seen: list[str] = []
    logits = lockstep(reads, INPUTS, lambda read, *_: seen.append(read.path), AT)
    assert sorted(seen) == sorted(read.path for read in reads)  # no hook of those that failed tells it twice
    assert all(torch.equal(a, b) for a, b in zip(logits, expected, strict=True))
    assert [_anatomy(model) for model in (base, tuned)] == before


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "phi3", "qwen2_moe"])
def test_a_bridge_gives_its_model_back(architecture: str) -> None:
    from probes.capture.hooks.transformer_lens_backend import bridge_of, model_of

    model = build_model(architecture)
    bridge = bridge_of(model, build_tokenizer())
    found = model_of(bridge)
    own = dict(model.named_parameters())
    assert type(found) is type(model) and own.keys() == dict(found.named_parameters()).keys()
    assert all(parameter.data_ptr() == own[name].data_ptr() for name, parameter in found.named_parameters())
    with torch.no_grad():
        assert torch.equal(found(**INPUTS).logits, model(**INPUTS).logits)
        bridge(IDS)  # which still runs


def test_a_bridge_in_compatibility_mode_is_refused() -> None:
    from probes.capture.hooks.transformer_lens_backend import bridge_of, model_of

    bridge = bridge_of(build_model(), build_tokenizer())
    bridge.enable_compatibility_mode()
    with pytest.raises(ActivationError, match="compatibility mode has folded its norms into its matrices"):
        model_of(bridge)


def test_a_job_on_live_bridges_has_the_rows_of_one_on_their_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from probes.capture.hooks.transformer_lens_backend import bridge_of

    monkeypatch.setattr("probes.job.job.report", lambda run: None)
    base, tuned = build_model(), build_model()
    perturb(tuned, 0.02, seed=1)
    tokenizer = build_tokenizer()
    for name, model in (("base", base), ("tuned", tuned)):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    bridges = [
        bridge_of(
            AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager"), AutoTokenizer.from_pretrained(path)
        )
        for path in (tmp_path / "base", tmp_path / "tuned")
    ]
    changes = {"attribute": None, "measure": ["gates"], "noise_floor": False, "bootstrap": 10}
    suite = write_suite(tmp_path, tmp_path / "base", tmp_path / "tuned", **changes)
    run = probes.run(
        suite,
        base=bridges[0],
        tuned={"moved": bridges[1]},
        out=tmp_path / "run",
        settings={"backend": "transformer_lens"},
    )
    plain = probes.run(suite, out=tmp_path / "plain", stages=["capture"])
    assert run.manifest["suite"]["backend"] == "transformer_lens" and "transformer_lens" in run.manifest["versions"]
    assert run["gates"].equals(plain["gates"])


def test_a_tuned_model_goes_before_the_next_one_is_loaded(tmp_path: Path) -> None:
    base, tuned = build_pair(tmp_path)
    suite = load_suite(write_suite(tmp_path, base, tuned, measure=["gates"], backend="transformer_lens"))
    pairs = Pairs(suite.model_copy(update={"tuned": {"first": str(tuned), "second": str(tuned)}}))
    first = weakref.ref(pairs.session("first").pair.tuned.lm_head.weight)
    read, loading = [], pairs.load

    def load(self: Pairs, *sources: object, **options: object) -> object:
        read.append(first())
        return loading(*sources, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pairs, "load", load)
        pairs.session("second")
    assert read == [None]


def _anatomy(model: nn.Module) -> list[tuple[str, type, int, bool]]:
    return [
        (name, type(m), len(m._forward_hooks) + len(m._forward_pre_hooks), "forward" in vars(m))
        for name, m in model.named_modules()
    ]
