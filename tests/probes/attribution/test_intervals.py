"""What is printed of the largest of many: its interval covers, none is named of nothing, and few prompts say so."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from probes.attribution.attributor import Attributor, _drawn
from probes.attribution.curves import areas_of
from probes.attribution.effects import Effects, least_p, summarise
from probes.attribution.units import Unit
from probes.suite import Attribution
from tests.probes.attribution.conftest import Case
from tv.prompts.encoding import Encoded

UNITS = tuple(Unit("component", layer, "mlp") for layer in range(64))
DRAWS = 80


def _summary(values: np.ndarray, clusters: int = 0) -> pd.DataFrame:
    prompts = tuple(f"p{i:02d}" for i in range(values.shape[1]))
    names = {prompt: str(i % clusters) if clusters else prompt for i, prompt in enumerate(prompts)}
    effects = [Effects("graft", "f", UNITS, prompts, values)]
    return summarise(effects, "m", dict.fromkeys(prompts, "one"), seed=0, clusters=names)


def _noise(kind: str, generator: np.random.Generator, n: int) -> np.ndarray:
    drawn = generator.normal(size=(64, n))
    return drawn if kind == "normal" else (np.exp(drawn) - np.exp(0.5)) / 2.16


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kind", ["normal", "lognormal"])
@pytest.mark.parametrize("n", [12, 16, 48])
def test_the_interval_of_the_largest_of_64_covers_it(kind: str, n: int) -> None:
    generator, covered, alone = np.random.default_rng(n), [], []
    for _ in range(DRAWS):
        real = np.where(np.arange(64) < 20, 1.0, 0.0)
        effects = _summary(real[:, None] + 2 * _noise(kind, generator, n))
        top = effects.loc[effects.effect.abs().idxmax()]
        covered.append(top.lo_all <= real[top.layer] <= top.hi_all)
        alone.append(top.lo <= real[top.layer] <= top.hi)
    assert np.mean(covered) >= 0.93
    assert kind != "normal" or np.mean(alone) < 0.93  # its own interval does not know that it was chosen


def test_of_nothing_hardly_ever_is_one_named() -> None:
    generator, named = np.random.default_rng(2), 0
    for _ in range(3 * DRAWS):
        effects = _summary(generator.normal(size=(64, 16)))
        named += bool(((effects.lo_all > 0) | (effects.hi_all < 0)).any())
    assert named / (3 * DRAWS) <= 0.06


def test_few_prompts_or_clusters_have_no_interval_of_all() -> None:
    sure = 5 + np.random.default_rng(0).normal(size=(64, 48))
    assert _summary(sure[:, :8]).lo.notna().all() and _summary(sure[:, :8]).lo_all.isna().all()
    assert least_p(11) > 0.05 / 64 >= least_p(12)
    assert _summary(sure, clusters=11).lo_all.isna().all() and _summary(sure, clusters=12).lo_all.notna().all()
    few = _summary(sure, clusters=7)
    assert few.lo.isna().all() and few.p.isna().all() and few.q.isna().all() and (few.n == 7).all()


def test_the_interval_of_all_is_of_every_method_of_its_granularity() -> None:
    prompts = tuple(f"p{i:02d}" for i in range(24))
    values = 1 + np.random.default_rng(0).normal(size=(64, 24))
    heads = tuple(Unit("head", 0, "attn", head=head) for head in range(5))
    one = [Effects("graft", "f", UNITS, prompts, values)]
    more = [
        *one,
        Effects("head", "f", heads, prompts, values[:5]),
        Effects("graft", "f", UNITS, prompts, values, "random"),
        Effects("mean", "both", UNITS, prompts, values),
    ]
    domains = dict.fromkeys(prompts, "one")

    def width(effects: list[Effects]) -> float:
        rows = summarise(effects, "m", domains, seed=0).query("method == 'graft' and control == ''")
        return float((rows.hi_all - rows.lo_all).mean())

    assert width(more) == width(one)  # neither heads, nor controls, nor sums of two methods stand beside them
    assert width([*one, Effects("revert", "b", UNITS, prompts, values)]) > width(one)


def _points(values: np.ndarray) -> pd.DataFrame:
    prompts = [f"p{i:02d}" for i in range(len(values))]
    table = pd.DataFrame(values, columns=range(values.shape[1])).assign(prompt_id=prompts)
    long = table.melt("prompt_id", var_name="n", value_name="value")
    return long.assign(ranking="a", draw=0, direction="base→tuned")


def test_areas_have_an_interval_where_the_change_is_sure() -> None:
    profile, generator, covered = np.linspace(0, 1, 7) ** 0.5, np.random.default_rng(0), []
    truth = np.trapezoid(profile, np.linspace(0, 1, 7))
    for _ in range(DRAWS):
        change = np.exp(generator.normal(size=(24, 1)))
        noise = generator.normal(size=(24, 7)) * profile * (1 - profile)
        area = areas_of(_points(change * profile + noise)).iloc[0]
        assert area.lo < area.area < area.hi
        covered.append(area.lo <= truth <= area.hi)
    assert np.mean(covered) >= 0.93
    unsure = np.where(np.arange(24) % 2, 1.05, -0.95)[:, None] * profile
    assert np.isnan(areas_of(_points(unsure)).lo.item()) and not np.isnan(areas_of(_points(unsure)).area.item())
    pairs = {f"p{i:02d}": str(i // 4) for i in range(24)}
    assert np.isnan(areas_of(_points(5 + profile + 0 * change), pairs).lo.item())  # six clusters
    assert np.isnan(areas_of(_points(change * profile), floor=50.0).area.item())


def test_curve_prompts_are_drawn_by_their_ids(case: Case) -> None:
    wanted = Attribution.model_validate({"methods": ["graft"], "controls": [], "curve_prompts": 3, "curve_draws": 1})

    def drawn(encoded: list[Encoded]) -> set[str]:
        work = Attributor(case.pair, encoded, wanted, batch_size=3, seed=0).work
        return {item.prompt.id for item in _drawn(work, 3)}

    chosen = drawn(case.encoded)
    assert drawn(case.encoded[::-1]) == chosen and len(chosen) == 3
    for gone in case.encoded:
        left = drawn([item for item in case.encoded if item is not gone])
        assert len(chosen - left) == (gone.prompt.id in chosen)  # only its own place is taken by another


def test_means_of_zeros_and_ones_have_the_interval_of_a_share(case: Case) -> None:
    prompts = [f"p{i}" for i in range(10)]
    work = replace(case.work(), metric=case.metric("exact_match"))
    object.__setattr__(work, "domains", dict.fromkeys(prompts, "one"))
    object.__setattr__(work, "clusters", {prompt: prompt for prompt in prompts})
    rows = pd.DataFrame({"prompt_id": prompts, "n": 0, "value": 1.0})
    assert work.means(rows, ["n"])[["value", "lo", "hi"]].iloc[0].tolist() == pytest.approx([1, 0.722, 1], abs=1e-3)
    assert work.means(rows.assign(value=0.5), ["n"]).lo.isna().all()  # no share, and no spread
