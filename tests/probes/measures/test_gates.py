"""Gate patterns and their distances."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from probes.measures import gates
from probes.measures.edit_distance import edit_distances
from probes.measures.gates import count_neurons, gate_bits, pack, unpack, words


def compare_gates(base: torch.Tensor, tuned: torch.Tensor) -> gates.GatePatterns:
    return gates.compare_gates(words(gate_bits(base)), words(gate_bits(tuned)), base.shape[-1])


@pytest.mark.parametrize("d_ff", [8, 13, 80])
def test_packing_is_numpys_and_comes_back(d_ff: int) -> None:
    bits = torch.rand(5, d_ff, generator=torch.Generator().manual_seed(d_ff)) > 0.5
    packed = pack(words(bits)).numpy()
    assert np.array_equal(packed, np.packbits(bits.numpy(), axis=-1))
    assert np.array_equal(unpack(packed, d_ff), bits.numpy())


def test_distances_by_hand() -> None:
    base = torch.tensor([[1.0, -1.0, 2.0, -3.0], [-1.0, -1.0, -1.0, -1.0]])
    tuned = torch.tensor([[1.0, 1.0, -2.0, -3.0], [-1.0, -2.0, -3.0, 0.0]])
    found = compare_gates(base, tuned)
    assert found.n_flips.tolist() == [2, 0]
    assert found.flip_rate.tolist() == [0.5, 0]
    assert found.jaccard.tolist() == pytest.approx([1 / 3, 1])  # one open in both, three in either; none at all is 1
    assert found.chance_flip_rate.tolist() == [0.5, 0]


@pytest.mark.parametrize(("n", "d_ff"), [(3, 13), (600, 2100)])
def test_counts_by_word_are_counts_by_bit(n: int, d_ff: int) -> None:
    """Bytes count to 255 only: more places, and more words, are summed in parts."""
    base, tuned = (torch.rand(2, n, d_ff, generator=torch.Generator().manual_seed(n)) < 0.9).unbind()
    found = gates.compare_gates(words(base), words(tuned), d_ff)
    both, either = (base & tuned).sum(1), (base | tuned).sum(1)
    assert torch.equal(found.n_flips.long(), (base ^ tuned).sum(1))
    assert torch.allclose(found.active_base, base.float().mean(1))
    assert torch.allclose(found.jaccard, both / either)
    assert np.array_equal(found.gate_xor.numpy(), np.packbits((base ^ tuned).numpy(), axis=-1))
    counts = count_neurons(words(base), words(tuned), d_ff)
    assert counts.n == n
    for count, bits in ((counts.base, base), (counts.tuned, tuned), (counts.flips, base ^ tuned)):
        assert torch.equal(count.long(), bits.sum(0))
    twice = counts + counts
    assert twice.n == 2 * n and torch.equal(twice.flips, 2 * counts.flips)


def test_agreement_beyond_chance() -> None:
    """1 where patterns are the same, 0 where they are independent, NaN where there is nothing to tell them apart."""
    generator = torch.Generator().manual_seed(0)
    base, other = torch.randn(2, 1, 200_000, generator=generator).unbind()
    same, independent = compare_gates(base, base), compare_gates(base + 0.4, other - 0.2)
    assert float(same.flip_kappa) == float(same.jaccard_kappa) == 1
    assert abs(float(independent.flip_kappa)) < 1e-2 and abs(float(independent.jaccard_kappa)) < 1e-2
    assert float(compare_gates(base.abs() + 1, base.abs() + 1).flip_kappa.isnan())


def test_chance_flip_rate_is_what_independent_patterns_show() -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(1, 200_000, generator=generator) - 0.5
    tuned = torch.randn(1, 200_000, generator=generator) + 0.3
    found = compare_gates(base, tuned)
    assert float(found.flip_rate) == pytest.approx(float(found.chance_flip_rate), abs=5e-3)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.integers(1, 40).flatmap(
        lambda n: st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=3, max_size=3)
    )
)
def test_distances_are_metrics(patterns: list[list[bool]]) -> None:
    """Flips, edits and 1 − Jaccard: 0 for the same pattern alone, symmetric, and no way round is shorter."""
    bits = torch.tensor(patterns)
    n = bits.shape[1]
    found = {}
    for i in range(3):
        for j in range(3):
            pair = bits[i : i + 1], bits[j : j + 1]
            compared = gates.compare_gates(words(pair[0]), words(pair[1]), n)
            edits = edit_distances(pair[0].numpy(), pair[1].numpy(), seed=0)[0]
            found[i, j] = np.array([float(compared.flip_rate), float(edits[0]), 1 - float(compared.jaccard)])
    for i in range(3):
        assert np.allclose(found[i, i], 0)
        for j in range(3):
            assert np.array_equal(found[i, j], found[j, i])
            assert (found[i, j] > 0).all() != torch.equal(bits[i], bits[j])
            assert all((found[i, j] <= found[i, k] + found[k, j] + 1e-6).all() for k in range(3))
