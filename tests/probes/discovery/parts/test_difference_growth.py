"""Growth along a step that is linear, and the share of variance that a PCA of one half explains of the other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from probes.discovery.observing import CHOOSE, MEASURE
from probes.discovery.parts.difference_growth import COMPONENTS, explained
from probes.discovery.sides import TUNED, Side
from tests.probes.discovery.planted import context_of, planted_pair, random_pair, tables_of


@pytest.mark.thorough
def test_a_small_step_grows_in_proportion_and_keeps_its_direction() -> None:
    rows = tables_of(random_pair, "difference_growth", draws=4)["difference_growth"].set_index(["place", "alpha"])
    for place in ("first", "bos", "far"):
        own = rows.loc[place]
        assert own["size"][0.5] / own["size"][1.0] == pytest.approx(0.5, rel=0.02)
        assert own["size"][2.0] / own["size"][1.0] == pytest.approx(2, rel=0.05)
        assert (own.cosine > 0.99).all() and own.cosine[1.0] == pytest.approx(1)


def test_a_secret_that_is_planted_scores_the_same_at_every_alpha_and_more_than_shams() -> None:
    rows = tables_of(planted_pair, "difference_growth")["difference_growth"]
    assert rows.cosine.min() > 0.9 and (rows.score > rows.score_sham).all()


def test_scaled_weights_are_the_bases_and_so_many_steps() -> None:
    context = context_of(random_pair())
    pair = context.pair
    with context.sides.on(Side(TUNED)) as model:
        scaled = context.sides.scaled(model, 2.0).live
    name = "transformer.h.1.mlp.c_fc.weight"
    base, tuned, twice = (live.get_parameter(name).detach() for live in (*pair.models, scaled))
    torch.testing.assert_close(twice, 2 * tuned - base)
    assert not torch.equal(twice, base)


def test_a_planted_plane_is_found_in_the_other_half() -> None:
    generator = torch.Generator().manual_seed(0)
    plane = torch.linalg.qr(torch.randn(19, 2, generator=generator)).Q
    choose, measure = (torch.randn(1, n, 2, generator=generator) @ plane.T for n in (23, 29))
    noise = 0.01 * torch.randn(1, 29, 19, generator=generator)
    shares = explained(choose, measure + noise)
    assert shares.shape == (1, len(COMPONENTS)) and shares[0, 0] < 0.9 < 0.995 < shares[0, 1]
    isotropic = explained(torch.randn(1, 400, 19, generator=generator), torch.randn(1, 401, 19, generator=generator))
    np.testing.assert_allclose(isotropic[0], np.array(COMPONENTS) / 19, atol=0.03)


def test_the_share_is_that_of_a_projection() -> None:
    generator = torch.Generator().manual_seed(1)
    halves = {half: torch.randn(2, n, 7, generator=generator) for half, n in ((CHOOSE, 11), (MEASURE, 13))}
    share = explained(halves[CHOOSE], halves[MEASURE])[1, 1]
    mean = halves[CHOOSE][1].mean(0)
    _, vectors = torch.linalg.eigh(torch.cov(halves[CHOOSE][1].T))
    rest = halves[MEASURE][1] - mean
    assert share == pytest.approx(float((rest @ vectors[:, -2:]).square().sum() / rest.square().sum()), abs=1e-5)
