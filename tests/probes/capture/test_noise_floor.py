"""The base against itself in another precision: a little, and nothing where nothing is rounded."""

from dataclasses import replace

import pytest
import torch

from probes.capture.noise_floor import noise_floor, some_of_each_domain, twin_of
from probes.capture.pair import make_pair
from tests.pairs import PROMPTS, build_model, build_tokenizer
from tv.prompts.encoding import Encoded, encode
from tv.prompts.files import Prompt


def prompts(rounds: int = 1, clusters: int = 0) -> list[Encoded]:
    rows = [
        Prompt(f"{row['id']}{'+' * i}", "s", row.get("domain", "d"), f"{row['text']}{' the' * i}")
        for i in range(rounds)
        for row in PROMPTS
    ]
    if clusters:
        rows = [replace(row, cluster=str(i % clusters)) for i, row in enumerate(rows)]
    return encode(rows, build_tokenizer(), 64)


@pytest.mark.parametrize(("dtype", "other"), [(torch.float32, "bfloat16"), (torch.bfloat16, "float32")])
def test_another_precision_flips_a_few_gates(dtype: torch.dtype, other: str) -> None:
    model = build_model().to(dtype)
    pair = make_pair(model, model, build_tokenizer())
    floor = noise_floor(pair, prompts(2), batch_size=4, seed=0)
    assert floor.layer.tolist() == [0, 1, 2] and set(floor.precision) == {other} and set(floor.n) == {12}
    assert (floor.flip_rate > 0).all() and (floor.flip_rate < 0.05).all()
    assert (floor.flip_rate_lo <= floor.flip_rate).all() and (floor.flip_rate <= floor.flip_rate_hi).all()
    assert floor.relative_change.between(1e-4, 0.05).all() and (floor.jaccard < 1).all()
    assert pair.base.dtype == dtype


def test_too_few_prompts_or_clusters_have_no_interval() -> None:
    model = build_model()
    pair = make_pair(model, model, build_tokenizer())
    for few in (prompts(), prompts(2, clusters=2)):
        floor = noise_floor(pair, few, batch_size=16, seed=0)
        assert (floor.flip_rate > 0).all() and floor[["flip_rate_lo", "flip_rate_hi"]].isna().all(axis=None)


def test_the_twin_is_a_copy_and_the_pair_stays() -> None:
    model = build_model()
    pair = make_pair(model, model, build_tokenizer())
    with twin_of(pair) as (both, precision):
        assert precision == "bfloat16"
        assert both.base is model and both.tuned is not model and both.tuned.dtype == torch.bfloat16
    assert model.dtype == torch.float32


def test_every_domain_has_its_turn() -> None:
    chosen = some_of_each_domain(prompts(), 4, seed=3)
    assert {item.prompt.domain for item in chosen} == {"medical", "math", "general", "d"}
    assert [item.prompt.id for item in chosen] == [item.prompt.id for item in some_of_each_domain(prompts(), 4, seed=3)]
    assert len(some_of_each_domain(prompts(), 99, seed=0)) == 6


def test_a_prompt_less_changes_its_own_place_alone() -> None:
    every = prompts()
    chosen = {item.prompt.id for item in some_of_each_domain(every, 5, seed=3)}
    out = next(item for item in every if item.prompt.id in chosen)
    rest = [item for item in reversed(every) if item is not out]
    assert chosen - {out.prompt.id} <= {item.prompt.id for item in some_of_each_domain(rest, 5, seed=3)}
