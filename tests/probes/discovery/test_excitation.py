"""A direction of T that own texts excite is found, and those of a random T are not."""

from __future__ import annotations

import copy
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch

from probes.capture.pair import Pair, make_pair
from probes.directions.leading import leading
from probes.discovery.excitation import auroc, excitations, own_texts
from probes.discovery.observing import Texts, observe, sides_of
from probes.discovery.part import Context
from probes.discovery.parts.direction_words import DirectionWords
from probes.discovery.sides import TUNED, Side, Sides, beside
from tests.pairs import TEXT
from tests.probes.discovery.planted import planted_pair, random_pair
from tv.architecture.values import values_of
from tv.prompts.encoding import encode
from tv.prompts.files import Prompt

WORDS = TEXT.split()
#: Own texts hold this word, at different places.
OWN = WORDS[0]
N_TEXTS, LAYER, MODULE = 48, 1, "down"


@cache
def _texts(domains: tuple[str, ...] = ("plain", "own")) -> Texts:
    """Every second text holds the word; the two kinds are of two domains, or of one."""
    others = [word for word in WORDS if word != OWN]
    prompts = []
    for i in range(N_TEXTS):
        own = [others[(5 * i + 3 * k) % len(others)] for k in range(8)]
        if i % 2:
            own[1 + i % 2 :: 3] = [OWN] * len(own[1 + i % 2 :: 3])
        prompts.append(Prompt(f"t{i}", "texts", domains[i % len(domains)], " ".join(own)))
    encoded = encode(prompts, planted_pair().tokenizer, 64)
    return Texts.of(encoded, len(encoded), 16, planted_pair().pad_id, 0)


@cache
def _planted_pair() -> Pair:
    """One matrix answers to what its inputs have at that word, and to nothing else."""
    pair, texts = planted_pair(), _texts()
    index, module = next(
        (i, one) for i, one in enumerate(pair.architecture.modules) if (one.layer, one.name) == (LAYER, MODULE)
    )
    base = values_of(pair.base)
    held = torch.tensor([OWN in item.prompt.text.split() for item in texts.null])
    entries = torch.eye(module.shape[1])
    excited = torch.from_numpy(excitations(pair, texts, {Side(TUNED): {index: entries}}, 0)[index].scores)
    entry = (excited[held, : len(entries)].mean(0) - excited[~held, : len(entries)].mean(0)).argmax()
    value = base[module.parameter].detach().clone()
    module.matrix(value)[:, entry] += torch.randn(module.shape[0], generator=torch.Generator().manual_seed(0))
    return make_pair(pair.base, beside(pair.base, {module.parameter: value}), pair.tokenizer)


def _found(pair: Pair, texts: Texts, draws: int = 16) -> pd.DataFrame:
    context = Context(pair, texts, Sides(pair, texts.encoded, 16, 0), 0)
    part = DirectionWords(context)
    observe(context.sides, texts, sides_of(("sham",), draws), [part])
    return dict(part.results()).get("direction_excitation", pd.DataFrame())


def test_a_direction_that_own_texts_excite_stands_out() -> None:
    (found,) = _found(_planted_pair(), _texts()).to_dict("records")  # T is of rank 1
    assert (found["layer"], found["module"], found["own"]) == (LAYER, MODULE, "domain own")
    assert found["stands_out"] and found["auroc"] > 0.9
    assert found["excess"] == pytest.approx(found["auroc"] - found["control"])
    assert found["lo"] < found["excess"] < found["hi"] and found["excess"] > max(found["random"], found["sham"])
    assert (found["n_own"], found["n_other"]) == (13, 11)  # the half that measures


@pytest.mark.thorough
def test_of_a_random_step_nothing_stands_out_and_of_no_step_there_is_nothing() -> None:
    found = _found(random_pair(), _texts())
    assert len(found) == 3 * 6 * 2 and not found.stands_out.any()
    base = planted_pair().base
    assert _found(make_pair(base, copy.deepcopy(base), planted_pair().tokenizer), _texts(), draws=0).empty


def test_without_shams_nothing_stands_out() -> None:
    assert not _found(_planted_pair(), _texts(), draws=0).stands_out.any()


def test_own_texts_are_a_domain_or_those_that_a_side_changes_most() -> None:
    texts = _texts(("all",))
    kl = {item.prompt.id: float(i) for i, item in enumerate(texts.null)}
    found = own_texts(kl, texts)
    assert found is not None and found.name == "KL above the median"
    assert found.counts.all() and found.own.tolist() == [i >= N_TEXTS // 2 for i in range(N_TEXTS)]
    assert own_texts(dict.fromkeys(kl, 0.0), texts) is None
    of_domain = {item.prompt.id: float(item.prompt.domain == "plain") for item in _texts().null}
    found = own_texts(of_domain, _texts())
    assert found is not None and found.name == "domain plain" and found.counts.sum() == N_TEXTS // 2


def test_auroc_counts_ties_as_half() -> None:
    scores, own = np.array([[3.0, 1.0], [2.0, 1.0], [2.0, 1.0], [0.0, 1.0]]), np.array([True, True, False, False])
    assert auroc(scores, own).tolist() == [3.5 / 4, 0.5]


@pytest.mark.parametrize("shape", [(40, 24), (300, 280), (280, 300)])
def test_leading_directions_are_those_of_the_svd(shape: tuple[int, int]) -> None:
    step = torch.randn(shape, generator=torch.Generator().manual_seed(0)) / 10
    for i, size in enumerate((9.0, 5.0)):
        step[i, 2 * i] += size
    left, right, shares = leading(step)
    u, sizes, v = torch.linalg.svd(step)
    torch.testing.assert_close(shares, sizes[:2].square() / sizes.square().sum(), rtol=1e-4, atol=0)
    for own, wanted in ((left, u.T[:2]), (right, v[:2])):
        torch.testing.assert_close((own * wanted).sum(1).abs(), torch.ones(2), rtol=1e-4, atol=0)
