"""The gradient by scales, units of every architecture, halves, and shares."""

import numpy as np
import pytest
import torch

import tv
from tests.pairs import build_model
from tv.architecture.resolve import resolve
from tv.architecture.values import values_of
from tv.checkpoints.live import load_model, load_tokenizer
from tv.choosing.asked import ask, halves
from tv.choosing.landscape import Landscape
from tv.choosing.others import equally_large, intruders_of
from tv.choosing.shares import over_domains, share
from tv.choosing.units import Cut, Granularity, cut, scaled
from tv.prompts.behaviour import gather

BASE, MEDICAL = "data/models/base", "data/models/medical"


def cut_of(model: torch.nn.Module, by: Granularity) -> Cut:
    return cut(resolve(model), {name: tuple(value.shape) for name, value in values_of(model).items()}, by)


@pytest.mark.parametrize("by", ["component", "head"])
def test_the_gradient_is_what_finite_differences_give(by: Granularity) -> None:
    model, tokenizer = load_model(BASE), load_tokenizer(BASE)
    asked = ask(gather(tv.PromptSet(file="data/prompts/medical.jsonl", limit=4)), model, tokenizer, None, 4, "keep")
    division = cut_of(model, by)
    field = Landscape(model, [tv.extract(BASE, MEDICAL), tv.extract(BASE, "data/models/math")], division)
    at = np.full(field.shape, 0.6)
    weights = np.array([0.5, 0.0, 1.0, -0.3])
    field.to(at)
    _, slope = field.gradient([(asked, weights)])
    for i, unit in ((0, 0), (1, field.shape[1] // 2)):
        ends = []
        for step in (0.01, -0.01):
            moved = at.copy()
            moved[i, unit] += step
            field.to(moved)
            ends.append(float((weights * asked.values(model)).sum()))
        assert slope[i, unit] == pytest.approx((ends[0] - ends[1]) / 0.02, rel=0.03, abs=0.02)
    before = model.lm_head.weight.clone()
    field.restore()
    assert not torch.equal(before, model.lm_head.weight)
    assert torch.equal(model.lm_head.weight, load_model(BASE).lm_head.weight)


@pytest.mark.parametrize("family", ["gpt2", "mixtral", "gemma2", "phi3"])
@pytest.mark.parametrize("by", ["component", "module", "head"])
def test_every_entry_belongs_to_one_unit_and_scaling_is_what_the_live_model_does(family: str, by: Granularity) -> None:
    model = build_model(family)
    division = cut_of(model, by)
    ones = {name: torch.ones(value.shape) for name, value in values_of(model).items()}
    counts = sum(division.sums(name, value) for name, value in ones.items())
    assert int(counts.sum()) == sum(value.numel() for value in ones.values())
    assert (counts > 0).all()
    vector = tv.TuningVector({n: tuple(v.shape) for n, v in ones.items()}, ones.__getitem__, {"planted": 1})
    scales = np.linspace(0, 1, len(division.units))
    moved, field = scaled(vector, division, scales, {}), Landscape(model, [vector], division)
    before = {name: value.detach().clone() for name, value in values_of(model).items()}
    field.to(scales[None])
    for name, value in values_of(model).items():
        torch.testing.assert_close(value.detach() - before[name], moved[name], atol=1e-5, rtol=1e-5)
        if value.ndim == 3:
            assert torch.equal(moved.expert(name, 1), moved[name][1])


def test_halves_are_whole_clusters_with_about_as_much_of_the_change() -> None:
    model, tokenizer = load_model(BASE), load_tokenizer(BASE)
    asked = ask(gather("data/prompts/general.jsonl"), model, tokenizer, None, 48, "restore")
    change = np.zeros(48)
    change[:12] = 1.0
    half = halves(asked, change, 0)
    sides: dict[str, set[bool]] = {}
    for name, side in zip(asked.clusters, half, strict=True):
        sides.setdefault(name, set()).add(bool(side))
    assert all(len(side) == 1 for side in sides.values())
    assert 16 <= half.sum() <= 32
    assert 4 <= change[half].sum() <= 8
    assert not np.array_equal(half, halves(asked, change, 1))


def test_shares_and_what_random_choices_remove() -> None:
    whole = np.linspace(1, 3, 12)
    names = [str(i) for i in range(12)]
    assert share(0.4 * whole, whole, names) == pytest.approx((0.4, 0.4, 0.4))
    mean, _ = over_domains([0.4 * whole, 0.8 * whole + 0.01 * np.cos(whole)], [whole, whole], [names, names])
    assert mean.value == pytest.approx(0.6, abs=0.01)
    assert mean.lo < 0.6 < mean.hi
    energy, scales = np.array([1.0, 4.0, 2.0, 0.0]), np.array([0.5, 0.9, 1.0, 1.0])
    for seed in range(5):
        drawn = equally_large(scales, energy, seed)
        assert ((1 - drawn) ** 2 * energy).sum() == pytest.approx(((1 - scales) ** 2 * energy).sum())


def test_a_planted_intruder_is_found_and_nothing_else() -> None:
    model = load_model(BASE)
    name = "model.layers.2.mlp.up_proj.weight"
    weight = model.get_parameter(name).detach()
    spectrum = torch.linalg.svdvals(weight)
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(n, generator=generator) for n in weight.shape)
    step = 3 * spectrum[0] * torch.outer(left / left.norm(), right / right.norm())
    vector = tv.TuningVector({name: tuple(weight.shape)}, lambda _: step, {"planted": 1})
    found, count = intruders_of(model, vector)
    assert count == 1
    assert float((found[name] * step).sum() / (found[name].norm() * step.norm())) > 0.95
