"""What is held against the base is what it says it is, and leaves the base as it was."""

import pytest
import torch

from probes.discovery.observing import CHOOSE, MEASURE
from probes.discovery.sides import ROUNDED, SHAM, TUNED, Side, kl_at_each
from tests.probes.discovery.conftest import context_of, demo_pair
from tv.architecture.values import values_of


@pytest.mark.parametrize("name", ["random", "shuffled", SHAM])
def test_a_control_has_ts_norm_in_every_parameter_but_for_a_shams_one_factor(name: str) -> None:
    pair, context = demo_pair(), context_of(demo_pair())
    before, after = values_of(pair.base), values_of(pair.tuned)
    held = {parameter: value.clone() for parameter, value in before.items()}
    with context.sides.on(Side(name, 1)) as model:
        moved = values_of(model.live)
        ratios = [
            float((moved[p] - held[p]).detach().norm() / (after[p] - held[p]).detach().norm())
            for p in held
            if not torch.equal(after[p], held[p])
        ]
    assert max(ratios) / min(ratios) == pytest.approx(1, abs=1e-3)
    assert name == SHAM or ratios[0] == pytest.approx(1, abs=1e-3)
    assert all(torch.equal(value, held[parameter]) for parameter, value in values_of(pair.base).items())
    assert not any(value.requires_grad and value.grad is not None for value in values_of(pair.base).values())


def test_a_sham_moves_predictions_as_far_as_the_tuning_and_its_draws_differ() -> None:
    context = context_of(demo_pair())
    far = {}
    for side in (Side(TUNED), Side(SHAM, 0), Side(SHAM, 1), Side(ROUNDED)):
        kl = []
        with context.sides.on(side) as model:
            for batch, _ in context.texts.batches:
                kl.append(kl_at_each(context.sides.base(batch).logits, model.read(batch).logits))
        far[side] = float(torch.cat(kl).mean())
    assert 0.4 < far[Side(SHAM, 0)] / far[Side(TUNED)] < 2.5
    assert 0.4 < far[Side(SHAM, 1)] / far[Side(TUNED)] < 2.5
    assert far[Side(SHAM, 0)] != far[Side(SHAM, 1)]
    assert far[Side(ROUNDED)] < far[Side(TUNED)] / 100


def test_halves_hold_whole_clusters_and_are_alike_in_size() -> None:
    texts = context_of(demo_pair()).texts
    clusters: dict[str | None, set[int]] = {}
    for item in texts.encoded:
        clusters.setdefault(item.prompt.cluster, set()).add(texts.halves[item.prompt.id])
    assert all(len(halves) == 1 for halves in clusters.values())
    n = [sum(CHOOSE in halves for halves in clusters.values()), sum(MEASURE in halves for halves in clusters.values())]
    assert abs(n[0] - n[1]) <= 1
