"""Fine-tunes on other domains' texts, added up, and foretold."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pandas as pd

import tv
from studies.real_models import adding
from studies.real_models.predicting import MEASURES, interference, predictions
from studies.real_models.study import Study
from studies.real_models.texts import domain
from studies.real_models.training import losses
from tv.checkpoints.live import load_model, load_tokenizer

DOMAINS = ("medical", "math", "code", "instructions", "general")


def test_losses_of_fine_tunes_alone_and_added(study: Study) -> None:
    for stage in adding.stages(study):
        stage.work()
        assert stage.out.exists() and stage.cpu > 0
    transfer, sums, pairs = (
        pd.read_csv(study.results(f"{name}-0") / f"{file}.csv")
        for file, name in (("transfer", "transfer-demo-full"), ("sums", "sums-demo"), ("pairs", "pairs-demo"))
    )
    assert len(transfer) == 2 * 2 * 4  # fine-tunes, domains of texts, texts
    own = transfer[(transfer.domain == "medical") & (transfer.text == "medical")].set_index("id")
    added = sums[(sums.domain == "medical") & (sums.other == "math")].set_index("id")
    np.testing.assert_allclose(added.alone, (own.base + own.change)[added.index], rtol=2e-3)
    few = [one for one in domain("medical", study.texts).held_out if one.id in set(added.index)]
    vectors = [tv.extract(study.base("demo"), study.work / f"tuned/demo-{name}-full-0") for name in ("medical", "math")]
    with tv.variant(load_model(study.base("demo")), dict.fromkeys(vectors, 1.0)) as both:
        expected = losses(both, load_tokenizer(study.base("demo")), few).set_index("id").nll
    np.testing.assert_allclose((added.alone + added.interference)[expected.index], expected, rtol=2e-3)
    found = interference(sums, pairs, transfer)
    assert found[["domain", "other"]].values.tolist() == [["math", "medical"], ["medical", "math"]]
    assert found.control.notna().tolist() == [True, False]
    assert found[[*MEASURES]].notna().all(axis=None) and found.transfer.notna().all()
    assert found.norm_share.sum() == 1


def test_a_measure_that_foretells_and_measures_that_do_not() -> None:
    found = predictions(_pairs("cosine"))
    assert {*found.across} == {"model", "seed of one", "seed of two"} and len(found) == 6 * 12
    assert found[found.chosen].measure.eq("cosine").all()
    assert (found[found.chosen].p == found.least_p[0]).all()  # of 120 orders
    others = found[~found.measure.isin(["cosine", "interference"])]
    assert others.p.mean() > 0.3
    assert (found[found.measure == "interference"].rho > 0.8).all()


def test_measures_that_say_nothing_are_rarely_chosen_for_more() -> None:
    p = pd.concat([predictions(_pairs(None, seed)).query("chosen and across == 'model'") for seed in range(6)]).p
    assert len(p) == 12 and (p < 0.05).sum() <= 2


def test_what_both_places_share_is_not_taken_for_a_finding() -> None:
    """Two seeds of one model have the same texts: measures and losses of both places are nearly the same numbers."""
    p = []
    for seed in range(12):
        found = _pairs(None, seed)
        same = found[found.seed == 0].assign(seed=1)
        p += [*predictions(pd.concat([found[found.seed == 0], same])).query("chosen and across != 'model'").p]
    assert np.mean(np.array(p) < 0.05) <= 0.2


def _pairs(true: str | None, seed: int = 0) -> pd.DataFrame:
    """Two models and seeds with measures at random; one of them is what adds to the loss, the same everywhere."""
    rng = np.random.default_rng(seed)
    pairs = list(permutations(DOMAINS, 2))
    real = rng.normal(size=len(pairs))
    rows = []
    for model in ("one", "two"):
        for of_seed in (0, 1):
            noise = rng.normal(size=(len(pairs), len(MEASURES) + 1))
            for i, (one, other) in enumerate(pairs):
                row = {"model": model, "seed": of_seed, "domain": one, "other": other, "transfer": noise[i, -1]}
                row |= dict(zip(MEASURES, noise[i], strict=False))
                row["interference"] = real[i] if true else rng.normal()
                rows.append(row | ({true: -real[i] + 0.05 * noise[i, 0]} if true else {}))
    return pd.DataFrame(rows)
