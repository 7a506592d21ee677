"""The ledger's terms, against their definitions written out in float64."""

import pytest
import torch

from probes.ledger import gain_terms, linear_terms, lookup_terms, new_share, split_direct

torch.manual_seed(0)


def test_linear_terms_are_their_definitions_and_sum_to_the_change() -> None:
    x, moved = torch.randn(6, 10, dtype=torch.float64), 0.1 * torch.randn(6, 10, dtype=torch.float64)
    w, t = torch.randn(7, 10, dtype=torch.float64), 0.05 * torch.randn(7, 10, dtype=torch.float64)
    b, db = torch.randn(7, dtype=torch.float64), 0.1 * torch.randn(7, dtype=torch.float64)
    change = ((w + t) @ (x + moved).T).T + b + db - ((w @ x.T).T + b)
    terms = linear_terms(x.float(), (x + moved).float(), w.float(), (w + t).float(), db.float())
    assert torch.allclose(terms.direct.double(), x @ t.T + db, atol=1e-5)
    assert torch.allclose(terms.inherited.double(), moved @ w.T, atol=1e-5)
    assert torch.allclose(terms.interaction.double(), moved @ t.T, atol=1e-5)
    assert float(terms.closure(change.float()).max()) < 1e-4


def test_closure_sees_a_term_that_is_missing() -> None:
    x, w, t = torch.randn(4, 5), torch.randn(3, 5), torch.randn(3, 5)
    terms = linear_terms(x, x, w, w + t)
    wrong = terms.direct + 0.01 * torch.randn_like(terms.direct)
    assert float(terms.closure(wrong).min()) > 1e-3


def test_gain_terms() -> None:
    x, x_tuned, g, g_tuned, db = torch.randn(4, 5), torch.randn(4, 5), torch.randn(5), torch.randn(5), torch.randn(5)
    terms = gain_terms(x, x_tuned, g, g_tuned, db)
    assert torch.allclose(terms.direct, x * (g_tuned - g) + db)
    assert float(terms.closure(x_tuned * g_tuned + db - x * g).max()) < 1e-5


def test_a_model_that_did_not_change_has_zeros_and_no_nan() -> None:
    x, w = torch.randn(4, 5), torch.randn(3, 5)
    terms = linear_terms(x, x, w, w)
    for term in (terms.direct, terms.inherited, terms.interaction, terms.closure(torch.zeros(4, 3))):
        assert torch.equal(term, torch.zeros_like(term))
    assert torch.equal(new_share(terms.direct, terms.direct), torch.zeros(4))


def test_lookup_is_all_direct() -> None:
    change = torch.randn(4, 5)
    terms = lookup_terms(change)
    assert torch.equal(terms.direct, change) and not terms.inherited.any() and not terms.interaction.any()


@pytest.mark.parametrize("k", [1, 4, 8])
def test_split_against_the_complement_basis(k: int) -> None:
    full = torch.linalg.qr(torch.randn(8, 8))[0]
    direct = torch.randn(5, 8)
    amplified, new = split_direct(direct, full[:, :k])
    outside = full[:, k:]
    assert torch.allclose(new, (direct @ outside) @ outside.T, atol=1e-5)
    assert torch.allclose(amplified + new, direct, atol=1e-6)


def test_new_share_of_random_writes_is_its_null() -> None:
    k, m = 12, 40
    basis = torch.linalg.qr(torch.randn(m, m))[0][:, :k]
    direct = torch.randn(20_000, m)
    _, new = split_direct(direct, basis)
    assert float(new_share(new, direct).mean()) == pytest.approx(1 - k / m, abs=5e-3)
