"""Of which directions Δh is made: against scipy, on planted ones, and where there is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from torch import Tensor

from probes.attribution.metric import metric_of
from probes.capture.editing import edited
from probes.capture.pair import make_pair
from probes.directions.projecting import COMPLEMENT, DELTA, curve
from probes.directions.representations import Layer, angle_rows, distance_rows, spectrum_rows
from probes.directions.states import each_batch
from probes.directions.subspaces import angles, leading, overlap, spectrum
from tests.pairs import PROMPTS, build_model, build_tokenizer, perturb
from tv.prompts.encoding import batches, encode
from tv.prompts.files import Prompt

N, D = 60, 24
CLUSTERS = [f"c{i // 2}" for i in range(N)]


def _draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_angles_are_scipys() -> None:
    one, other = (torch.linalg.qr(_draw(D, 4, seed=seed)).Q for seed in (0, 1))
    theirs = subspace_angles(one.numpy(), other.numpy())
    assert angles(one, other) == pytest.approx((np.rad2deg(theirs.min()), np.rad2deg(theirs.max())))
    assert overlap(one, other) == pytest.approx(float((np.cos(theirs) ** 2).mean()))


def test_a_planted_direction_is_found_and_is_none_of_noise() -> None:
    base = _draw(N, D, seed=2)
    along = torch.eye(D, dtype=torch.float64)[5]
    planted = base + 3 * along + 0.05 * _draw(N, D, seed=5)
    varying = base + 3 * _draw(N, 1, seed=3) * along + 0.05 * _draw(N, D, seed=4)
    rounded = [(base, base.to(torch.bfloat16).double())]
    random = [(base, base + 0.3 * _draw(N, D, seed=seed)) for seed in (6, 7)]
    (mean, *_) = spectrum_rows(Layer(base, planted, rounded, random), CLUSTERS, 0)
    assert mean["share"] > 0.99 and mean["beyond"] and mean["random"] < 0.3  # type: ignore[operator]
    rows = spectrum_rows(Layer(base, varying, rounded, random), CLUSTERS, 0)
    assert rows[1]["component"] == 1 and rows[1]["share"] > 0.9 and rows[1]["beyond"]  # type: ignore[operator]
    assert not any(row["beyond"] for row in rows[2:])
    matrices = {"W": torch.eye(D, dtype=torch.float64)[:, 6:22]}
    matrices["along"] = along[:, None]
    held = angle_rows(Layer(base, varying, rounded, random), matrices, CLUSTERS, 0)
    one = {(row["against"], row["rank"]): row for row in held}
    assert one["along", 1]["overlap"] > 0.99 and one["along", 1]["beyond"]  # type: ignore[operator]
    assert one["other half", 1]["overlap"] > 0.99 and one["other half", 1]["beyond"]  # type: ignore[operator]
    assert not one["W", 2]["beyond"]


def test_the_share_of_noise_is_not_the_larger_for_having_chosen_its_directions() -> None:
    found = spectrum(_draw(N, D, seed=8), CLUSTERS, 0)
    first = found[1]
    assert first.fitted > 1.5 / D and first.lo < 1.3 / D and first.share < first.fitted


def test_rounding_alone_shows_nothing() -> None:
    base = _draw(N, D, seed=9)
    twin = base.to(torch.bfloat16).double()
    layer = Layer(base, twin, [(base, twin)], [(base, base + 0.3 * _draw(N, D, seed=10))])
    rows = spectrum_rows(layer, CLUSTERS, 0) + angle_rows(layer, {}, CLUSTERS, 0) + distance_rows(layer, CLUSTERS, 5, 0)
    assert len(rows) > 20 and not any(row["beyond"] for row in rows)
    assert spectrum_rows(Layer(base, base), CLUSTERS, 0) == []  # nothing moved: null, not 0


@pytest.mark.parametrize("site", ["resid_post", "mlp_out"])
def test_all_directions_together_are_the_whole_change_at_a_layer(site: str) -> None:
    base, tuned = build_model("llama"), build_model("llama")
    perturb(tuned, 0.05, seed=3)
    pair = make_pair(base, tuned, build_tokenizer())
    rows = [row for row in PROMPTS if "foil" in row] * 3
    given = [Prompt(str(i), "s", "d", row["text"], row["target"], row["foil"]) for i, row in enumerate(rows)]
    encoded = encode(given, pair.tokenizer, 64)
    metric, place = metric_of("logit_diff", pair.tuned, []), (site, 1)
    found = curve(pair, encoded, metric, [place], draws=1, batch_size=3)
    parts = {(each.basis, each.rank): each.effects for each in found.patched}
    d = pair.architecture.d_model
    by_hand = []
    with torch.inference_mode():
        for batch in batches(found.prompts, 1, pair.pad_id):
            (states,) = each_batch(pair, batch.encoded, [place], positions="all")
            start = metric.of(pair.base, batch)
            with edited(pair.base, pair.architecture, site, 1, lambda value, s=states: s.tuned[place].to(value)):
                by_hand.append(float(metric.of(pair.base, batch) - start))
    order = {item.prompt.id: i for i, item in enumerate(found.prompts)}
    measured = [parts[DELTA, d][order[batch.encoded[0].prompt.id]] for batch in batches(found.prompts, 1, pair.pad_id)]
    assert measured == pytest.approx(by_hand, abs=1e-4) and max(map(abs, by_hand)) > 0.01
    assert found.prompts and (COMPLEMENT, 1) in parts and (COMPLEMENT, d) not in parts
    assert leading(torch.eye(3), 2).shape == (3, 2)
