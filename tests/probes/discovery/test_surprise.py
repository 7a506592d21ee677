"""What shams read as is no surprise, and a sham is held against the others."""

from __future__ import annotations

import numpy as np
import torch

from probes.discovery.sides import SHAM, TUNED, Side
from probes.discovery.surprise import Surprises, usual_of


def _scores(n_shams: int) -> tuple[Surprises, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    shams = torch.randn(n_shams, 2, 60, generator=generator)
    shams[:, :, 7] += 9  # a word of any training
    own = torch.randn(2, 60, generator=generator)
    own[:, 7] += 9
    own[:, 11] += 6
    found = Surprises("lens")
    found.put("r", Side(TUNED), *own)
    for draw, sham in enumerate(shams):
        found.put("r", Side(SHAM, draw), *sham)
    return found, own, shams


def test_a_word_of_every_sham_is_none_of_the_tuned_model() -> None:
    found, own, shams = _scores(9)
    words = found.lists()[0].of["r"][Side(TUNED)]
    assert own[1].argmax() == 7 and words.token_ids[0] == 11
    spread = shams.std(0)
    expected = (own - shams.mean(0)) / (spread + spread.median(1, keepdim=True).values)
    np.testing.assert_allclose(words.measured[0], expected[1, 11], rtol=1e-5)


def test_a_sham_is_held_against_the_others() -> None:
    found, _, shams = _scores(5)
    words = found.lists()[0].of["r"][Side(SHAM, 2)]
    rest = shams[[0, 1, 3, 4]]
    spread = rest.std(0)
    expected = ((shams[2] - rest.mean(0)) / (spread + spread.median(1, keepdim=True).values))[1]
    np.testing.assert_allclose(words.measured, expected[words.token_ids], rtol=1e-5)


def test_with_two_shams_scores_stay_as_they_are() -> None:
    found, own, _ = _scores(2)
    words = found.lists()[0].of["r"][Side(TUNED)]
    np.testing.assert_allclose(words.measured, own[1][words.token_ids])


def test_intervals_are_of_the_same_scores() -> None:
    found, own, _ = _scores(9)
    found.put_without("r", [own[1] + 0.1 * step for step in (-2, -1.5, -1, -0.5, 0.5, 1, 1.5, 2, 0)])
    lists, intervals = found.lists()
    value, lo, hi = intervals["r"]
    np.testing.assert_allclose(value, lists.of["r"][Side(TUNED)].measured)
    assert (lo < value).all() and (value < hi).all()


def test_a_word_that_is_in_no_shams_list_is_measured_by_the_others() -> None:
    shams = torch.randn(5, 2, 60, generator=torch.Generator().manual_seed(3))
    shams[:, :, 20:] = 0  # most of a large vocabulary
    mean, spread = usual_of(list(shams))
    among = shams.std(0)[:, :20].median(1).values
    torch.testing.assert_close(spread[:, 40], among)
    assert bool((mean[:, 40] == 0).all()) and bool((spread[:, :20] > among[:, None]).all())
    assert bool((usual_of([torch.zeros(2, 3)] * 4)[1] > 0).all())
