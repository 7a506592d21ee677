"""A planted token is what the lens reads everywhere; a random step reads as nothing; the formulas, computed again."""

from __future__ import annotations

import numpy as np
import torch

from probes.discovery.observing import observe
from probes.discovery.part import PARTS
from probes.discovery.sides import TUNED, Side
from tests.probes.discovery.planted import SECRET, context_of, planted_pair, random_pair, tables_of


def test_a_planted_token_is_the_first_word_of_every_reading() -> None:
    words = tables_of(planted_pair, "difference_lens")["discovered_words"]
    assert words.reading.nunique() == 3 * 3 * 2 + 2
    first = words[words["rank"] == 0]
    assert (first.token_id == SECRET).all()
    ours = ~words.reading.str.startswith("paper")
    assert set(words[words.stands_out].token_id) == {SECRET}
    assert words[words.stands_out & ours].reading.nunique() == words[ours].reading.nunique()


def test_nothing_stands_out_of_a_random_step() -> None:
    words = tables_of(random_pair, "difference_lens")["discovered_words"]
    assert not words.stands_out.any() and len(words) == 20 * 20


def test_words_by_depth_are_those_of_the_reader_itself() -> None:
    rows = tables_of(random_pair, "difference_lens")["lens_words"].query("place == 'bos' and variant == 'plain'")
    pair, bos = random_pair(), torch.tensor([[0]])
    states = [model(bos, output_hidden_states=True).hidden_states for model in pair.models]
    for name, model in zip(("base", "tuned"), pair.models, strict=True):
        with torch.no_grad():
            apart = states[1][2][0] - states[0][2][0]  # depth 2; the last would be behind the final norm
            norm = model.transformer.ln_f
            plain = model.lm_head(norm(apart) - norm.bias)[0]
        z = (plain - plain.mean()) / plain.std()
        own = rows[(rows.reader == name) & (rows.depth == 2)]
        assert own.token_id.tolist() == z.topk(5).indices.tolist()
        np.testing.assert_allclose(own.z, z.topk(5).values, atol=1e-4)


def test_norms_are_those_of_the_states() -> None:
    """The texts' first five tokens, each by itself."""
    context = context_of(random_pair())
    part = PARTS["difference_lens"](context)
    observe(context.sides, context.texts, [Side(TUNED)], [part])
    norms = dict(part.results())["difference_norms"].set_index(["place", "depth"])
    sums, lengths, bases, counts = {0: 0.0, 1: 0.0}, [], [], {0: 0, 1: 0}
    for item in context.texts.encoded:
        base, tuned = (
            m(torch.tensor([item.ids]), output_hidden_states=True).hidden_states[1][0] for m in context.pair.models
        )
        apart = (tuned - base).detach()[1:6]
        half = context.texts.halves[item.prompt.id]
        sums[half] = sums[half] + apart.sum(0)
        counts[half] += len(apart)
        lengths += apart.norm(dim=1).tolist()
        bases += base.detach()[1:6].norm(dim=1).tolist()
    size = float((sums[0] / counts[0]) @ (sums[1] / counts[1])) ** 0.5
    row = norms.loc["first", 1]
    np.testing.assert_allclose([row.constant, row["size"]], [size / np.mean(lengths), size / np.mean(bases)], rtol=1e-4)
    assert np.isnan(row.size_sham) and (norms.loc["bos"].constant.round(4) == 1).all()


def test_intervals_hold_the_value_and_a_bos_alone_has_none_to_speak_of() -> None:
    words = tables_of(random_pair, "difference_lens")["discovered_words"]
    first = words[words.reading == "first plain base"]
    assert ((first.lo < first.value) & (first.value < first.hi)).all()
    bos = words[words.reading == "bos plain base"]
    assert not ((bos.hi - bos.lo) > 1e-2).any()
