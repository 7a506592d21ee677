"""What the base answers in another precision: a little, and never less than the least floor."""

import pytest
import torch

from probes.capture.behaviour_floor import behaviour_floor
from probes.capture.pair import Pair, make_pair
from tests.pairs import PROMPTS, build_model, build_tokenizer
from tv.prompts.encoding import Encoded, encode
from tv.prompts.files import Prompt
from tv.stats.change import LEAST_FLOOR
from tv.stats.means import mean_interval


def pair_of(dtype: torch.dtype = torch.float32) -> Pair:
    model = build_model().to(dtype)
    return make_pair(model, model, build_tokenizer())


def prompts(clusters: int = 0) -> list[Encoded]:
    """Three rounds of the same rows, so that there are enough for an interval."""
    rows = [
        Prompt(
            f"{row['id']}{i}",
            "s",
            row.get("domain", "d"),
            " ".join([*["the"] * i, row["text"]]),
            row.get("target"),
            row.get("foil"),
            cluster=f"c{i % clusters}" if clusters else None,
        )
        for i in range(12)
        for row in PROMPTS
    ]
    return encode(rows, build_tokenizer(), 64)


@pytest.mark.parametrize(("dtype", "other"), [(torch.float32, "bfloat16"), (torch.bfloat16, "float32")])
def test_every_domain_and_all_have_a_floor_of_each_metric(dtype: torch.dtype, other: str) -> None:
    floor = behaviour_floor(pair_of(dtype), prompts(), batch_size=16).set_index(["domain", "metric"])
    assert set(floor.precision) == {other}
    assert set(floor.index.get_level_values("domain")) == {"medical", "math", "general", "d", "all"}
    assert floor.n["medical", "logit_diff"] == 24 and floor.n["all", "kl"] == 72
    moved = floor.floor.drop(labels=["exact_match", "token_accuracy"], level="metric", errors="ignore")
    assert (moved.drop(labels="kl", level="metric") > 1e-4).all() and (moved < 0.5).all()


def test_a_base_that_rounding_does_not_touch_has_the_least_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *_: self)
    floor = behaviour_floor(pair_of(), prompts(), batch_size=8)
    assert set(floor.floor) == {LEAST_FLOOR}


def test_it_is_the_far_end_of_the_interval_over_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def spied(values, clusters):  # type: ignore[no-untyped-def]
        seen.append(mean_interval(values, clusters))
        assert len(set(clusters)) <= 9 and len(values) >= 12
        return seen[-1]

    monkeypatch.setattr("probes.capture.behaviour_floor.mean_interval", spied)
    floor = behaviour_floor(pair_of(), prompts(clusters=9), batch_size=32)
    rows = [(row, one) for row, one in zip(floor.itertuples(), seen, strict=True) if row.metric == "target_nll"]
    assert rows and all(row.floor == pytest.approx(max(-one.lo, one.hi)) for row, one in rows)
