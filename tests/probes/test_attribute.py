"""Grafts and reverts are exact, complete, and leave the models bit for bit as they were."""

import hashlib

import numpy as np
import pytest
import torch
from torch import nn

from probes.attribute import components, evaluate, focus, moved, prompt_effects, summarise
from probes.pair import make_pair
from tests.pairs import PROMPTS, SUPPORTED, build_model, build_tokenizer, perturb
from tv.prompts import Prompt, batches, encode

GIVEN = [
    Prompt(row["id"], "tiny", row.get("domain", "tiny"), row["text"], row.get("target"), row.get("foil"))
    for row in PROMPTS
    if "foil" in row
]
DOMAINS = {prompt.id: prompt.domain for prompt in GIVEN}


def _pair(architecture: str = "llama", step: float = 0.05):
    base, tuned = build_model(architecture), build_model(architecture)
    perturb(tuned, step, seed=9)
    pair = make_pair(base, tuned, build_tokenizer())
    return pair, batches(encode(GIVEN, pair.tokenizer, 64), 3, pair.pad_id)


def _checksum(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(name.encode() + parameter.detach().numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("architecture", SUPPORTED)
@pytest.mark.parametrize("metric", ["logit_diff", "target_nll"])
def test_grafting_everything_is_the_tuned_model_and_reverting_everything_the_base(
    architecture: str, metric: str
) -> None:
    pair, work = _pair(architecture)
    everything = components(pair.architecture)
    base, tuned = evaluate(pair.base, work, metric), evaluate(pair.tuned, work, metric)
    assert not np.allclose(base, tuned)
    with moved(pair.base, pair.tuned, pair.architecture, everything):
        assert np.array_equal(evaluate(pair.base, work, metric), tuned)
    with moved(pair.tuned, pair.base, pair.architecture, everything):
        assert np.array_equal(evaluate(pair.tuned, work, metric), base)


def test_models_come_back_bit_for_bit_also_after_an_exception() -> None:
    pair, work = _pair()
    before = _checksum(pair.base), _checksum(pair.tuned)
    prompt_effects(pair, work, ["graft", "revert"], "logit_diff")
    with pytest.raises(KeyboardInterrupt), moved(pair.base, pair.tuned, pair.architecture, [(1, "mlp")]):
        raise KeyboardInterrupt
    assert (_checksum(pair.base), _checksum(pair.tuned)) == before


@pytest.mark.parametrize("cause", [(1, "mlp"), (2, "attn"), (-1, "embed"), (3, "unembed")])
def test_a_planted_cause_is_found_alone(cause: tuple[int, str]) -> None:
    """Only one component of the tuned model differs: it has the whole effect, every other exactly none."""
    pair, work = _pair()
    with torch.no_grad():
        base = dict(pair.base.named_parameters())
        for name, parameter in pair.tuned.named_parameters():
            if pair.architecture.component_of(name) != cause:
                parameter.copy_(base[name])
    whole = evaluate(pair.tuned, work, "logit_diff") - evaluate(pair.base, work, "logit_diff")
    effects = prompt_effects(pair, work, ["graft", "revert"], "logit_diff")
    own = (effects.layer == cause[0]) & (effects.component == cause[1])
    for method in ("graft", "revert"):
        assert np.array_equal(effects[own & (effects.method == method)].effect.to_numpy(), whole)
    assert (effects[~own].effect == 0).all()


def test_equal_models_have_no_effect() -> None:
    pair, work = _pair(step=0.0)
    effects = summarise(prompt_effects(pair, work, ["graft", "revert"], "logit_diff"), DOMAINS, draws=50, seed=0)
    assert (effects[["effect", "lo", "hi"]] == 0).all().all()
    assert (effects.q == 1).all()


def test_summary_is_the_mean_over_prompts_within_its_interval() -> None:
    pair, work = _pair()
    per_prompt = prompt_effects(pair, work, ["graft"], "logit_diff")
    effects = summarise(per_prompt, DOMAINS, draws=200, seed=0)
    assert set(effects.domain) == {"all", "medical", "math", "general"}
    for domain, rows in effects.groupby("domain"):
        own = per_prompt[per_prompt.prompt_id.map(DOMAINS).eq(domain) | (domain == "all")]
        means = own.groupby(["layer", "component"]).effect.mean()
        for row in rows.itertuples():
            assert row.effect == pytest.approx(means[row.layer, row.component])
            assert row.lo - 1e-9 <= row.effect <= row.hi + 1e-9
        assert set(zip(rows.layer, rows.component, strict=True)) == set(components(pair.architecture))
    assert (effects.q >= effects.p).all()
    largest = effects.loc[effects.effect.abs().idxmax()]
    assert focus(effects) == largest.domain
