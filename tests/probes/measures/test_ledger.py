"""The ledger's terms, against their definitions written out in float64."""

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from probes.measures import ledger, tall
from probes.measures.ledger import Ledger, gain_ledger, linear_ledger, lookup_ledger, output_basis, split_by

torch.manual_seed(0)
#: (rows, cols) of a wide, a tall and a square matrix.
SHAPES = [(20, 33), (33, 20), (24, 24)]


def made(rows: int, cols: int, n: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(rows * cols)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, w, b = random(n, cols), random(rows, cols) * torch.logspace(0, -2, cols), random(rows)
    moved, t, db = 0.1 * random(n, cols), 0.05 * random(rows, cols), 0.1 * random(rows)
    return dict(x=x, moved=moved, w=w, t=t, b=b, db=db, y=x @ w.T + b, y_tuned=(x + moved) @ (w + t).T + b + db)


def ledger_of(m: dict[str, Tensor], **options: object) -> Ledger:
    x, y, y_tuned, w, b, db = (m[name].float() for name in ("x", "y", "y_tuned", "w", "b", "db"))
    tuned = (m["w"] + m["t"]).float()
    split = split_by(output_basis(w), w, tuned, db)
    return linear_ledger(
        x,
        (m["x"] + m["moved"]).float(),
        y,
        y_tuned,
        w,
        tuned,
        delta_norm=float(m["t"].norm()),
        bias=b,
        bias_change=db,
        split=split,
        **options,
    )


@pytest.mark.parametrize("piece", [2**21, 64])
@pytest.mark.parametrize("shape", SHAPES)
def test_terms_are_their_definitions(shape: tuple[int, int], piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tall, "_PIECE", piece)
    m = made(*shape)
    found = ledger_of(m)
    direct, change = m["x"] @ m["t"].T + m["db"], m["y_tuned"] - m["y"]
    terms = {"direct": direct, "inherited": m["moved"] @ m["w"].T, "interaction": m["moved"] @ m["t"].T}
    for name, vector in {"delta": change, **terms}.items():
        torch.testing.assert_close(getattr(found, f"{name}_norm").double(), vector.norm(dim=1), rtol=1e-4, atol=1e-5)
    for name, vector in terms.items():
        share = (vector * change).sum(1) / change.square().sum(1)
        torch.testing.assert_close(getattr(found, f"{name}_share").double(), share, rtol=1e-3, atol=1e-4)
    assert float(found.closure.max()) < 1e-4
    u, s, _ = torch.linalg.svd(m["w"], full_matrices=False)
    tail = s.square().flip(0).cumsum(0).flip(0)
    k = int((tail > ledger.EPSILON**2 * s.square().sum()).sum())
    for name, kept in (("new_share", k), ("new_share_10", round(shape[0] / 10))):
        for of, written in (("", direct), ("_of_w", m["x"] @ m["w"].T)):
            new = written - written @ u[:, :kept] @ u[:, :kept].T
            share = new.square().sum(1) / written.square().sum(1)
            torch.testing.assert_close(getattr(found, f"{name}{of}").double(), share, rtol=1e-3, atol=1e-4)
        assert float(getattr(found, f"{name}_null")[0]) == pytest.approx(1 - kept / shape[0])
    new = direct - direct @ u[:, :k] @ u[:, :k].T
    torch.testing.assert_close(found.new_norm.double(), new.norm(dim=1), rtol=1e-3, atol=2e-3)
    torch.testing.assert_close(found.amplified_norm.square() + found.new_norm.square(), found.direct_norm.square())


@pytest.mark.parametrize("shape", SHAPES)
def test_unchecked_places_have_the_same_terms_and_no_closure(shape: tuple[int, int]) -> None:
    m = made(*shape)
    everywhere, some = ledger_of(m), ledger_of(m, checked=torch.tensor([1, 5]))
    shares = ("direct_share", "inherited_share", "interaction_share", "new_share", "new_share_10_of_w")
    for name in ("delta_norm", "direct_norm", "inherited_norm", "interaction_norm", *shares):
        torch.testing.assert_close(getattr(some, name), getattr(everywhere, name), rtol=1e-4, atol=1e-5)
    assert some.closure.isnan().tolist() == [True, False, True, True, True, False]
    assert torch.allclose(some.closure[[1, 5]], everywhere.closure[[1, 5]], atol=1e-6)


@pytest.mark.parametrize("checked", [None, torch.tensor([0, 2])])
def test_closure_sees_what_the_terms_do_not_explain(checked: Tensor | None) -> None:
    m = made(20, 33)
    m["y_tuned"] = m["y_tuned"] + 0.01 * torch.randn_like(m["y_tuned"])
    closure = ledger_of(m, checked=checked).closure
    assert float(closure[~closure.isnan()].min()) > 1e-3


def test_the_direct_null_is_that_of_random_tuning_vectors() -> None:
    m = made(20, 33)
    squares = []
    for seed in range(300):
        generator = torch.Generator().manual_seed(seed)
        t, db = torch.randn(20, 33, generator=generator).double(), torch.randn(20, generator=generator).double()
        t, db = t * m["t"].norm() / t.norm(), db * m["db"].norm() / db.norm()
        squares.append((m["x"] @ t.T + db).square().sum(1))
    expected = torch.stack(squares).mean(0).sqrt()
    torch.testing.assert_close(ledger_of(m).direct_null.double(), expected, rtol=0.05, atol=0)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 30), st.integers(1, 30), st.floats(1e-4, 1e4), st.floats(1e-3, 1e3), st.integers(0, 10**6))
def test_it_is_complete_whatever_moved(rows: int, cols: int, weights: float, inputs: float, seed: int) -> None:
    """direct + inherited + interaction is the whole change, and its direct part is amplified + new."""
    m = made(rows, cols)
    m["t"] = weights * torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    m["moved"] = inputs * m["moved"]
    m["y_tuned"] = (m["x"] + m["moved"]) @ (m["w"] + m["t"]).T + (m["y"] - m["x"] @ m["w"].T) + m["db"]
    found = ledger_of(m)
    largest = torch.stack([found.direct_norm, found.inherited_norm, found.interaction_norm]).amax(0)
    cancelled = found.delta_norm < 0.1 * largest  # float32 leaves no digits of what nearly cancels
    assert bool((found.closure * found.delta_norm <= 1e-5 * largest)[cancelled].all())
    assert float(found.closure[~cancelled].max()) < 1e-4
    parts = torch.hypot(found.amplified_norm, found.new_norm)
    torch.testing.assert_close(parts, found.direct_norm, rtol=1e-3, atol=1e-4 * float(found.direct_norm.max()))
    assert bool(((found.new_share >= 0) & (found.new_share <= 1)).all())
    shares = torch.stack([found.direct_share, found.inherited_share, found.interaction_share])
    assert shares.isnan().any(0).equal(shares.isnan().all(0))
    assert float((shares.sum(0) - 1).nan_to_num().abs().max()) < 1e-3


def test_gain_ledger() -> None:
    x, x_tuned, g, g_tuned, db = torch.randn(4, 5), torch.randn(4, 5), torch.randn(5), torch.randn(5), torch.randn(5)
    found = gain_ledger(x, x_tuned, x * g, x_tuned * g_tuned + db, g, g_tuned, db)
    assert torch.allclose(found.direct_norm, (x * (g_tuned - g) + db).norm(dim=1))
    assert torch.allclose(found.inherited_norm, ((x_tuned - x) * g).norm(dim=1))
    assert float(found.closure.max()) < 1e-5 and bool(found.new_share.isnan().all())
    change = x_tuned * g_tuned + db - x * g
    share = ((x * (g_tuned - g) + db) * change).sum(1) / change.square().sum(1)
    assert torch.allclose(found.direct_share.nan_to_num(), torch.where(found.direct_share.isnan(), 0, share), atol=1e-4)
    by_head = gain_ledger(
        *(v.unflatten(0, (2, 2)) for v in (x, x_tuned, x * g, x_tuned * g_tuned + db)), g, g_tuned, db
    )
    assert torch.allclose(by_head.direct_norm, found.direct_norm.square().view(2, 2).sum(1).sqrt())


def moved_to(m: dict[str, Tensor], t: Tensor, moved: Tensor, db: Tensor) -> dict[str, Tensor]:
    """The same module with another step of its weights, its input and its bias."""
    change = (m["x"] + moved) @ (m["w"] + t).T + db - m["x"] @ m["w"].T
    return m | {"t": t, "moved": moved, "db": db, "y_tuned": m["y"] + change}


def shares_of(found: Ledger) -> Tensor:
    return torch.stack([found.direct_share, found.inherited_share, found.interaction_share])


def test_a_model_that_did_not_change_has_norms_of_zero_and_no_shares() -> None:
    m = made(20, 33)
    m |= {"t": 0 * m["t"], "db": 0 * m["db"], "moved": 0 * m["moved"], "y_tuned": m["y"]}
    for name, values in vars(ledger_of(m)).items():
        if "share" in name and not name.endswith(("_null", "_of_w")):
            assert bool(values.isnan().all()), name
        elif not name.endswith(("_null", "_of_w")):
            assert torch.equal(values, torch.zeros(6)), name


@pytest.mark.parametrize("shape", SHAPES)
def test_weights_that_did_not_move_write_no_new_directions_and_have_no_share(shape: tuple[int, int]) -> None:
    m = made(*shape)
    found = ledger_of(moved_to(m, 0 * m["t"], m["moved"], 0 * m["db"]))
    assert bool(found.new_share.isnan().all() and found.new_share_10.isnan().all())
    assert not found.new_norm.any() and bool(found.new_share_10_of_w.isfinite().all())
    assert torch.allclose(shares_of(found), torch.tensor([0.0, 1, 0])[:, None], atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_more_of_w_is_as_new_as_w_itself(shape: tuple[int, int]) -> None:
    m = made(*shape)
    found = ledger_of(moved_to(m, 0.1 * m["w"], m["moved"], 0 * m["db"]))
    for name in ("new_share", "new_share_10"):
        torch.testing.assert_close(getattr(found, name), getattr(found, f"{name}_of_w"), rtol=1e-3, atol=1e-4)
    assert float(found.new_share_10.mean()) > 0.1  # which is far from none
    random = ledger_of(m)
    assert float((random.new_share_10 - random.new_share_10_of_w).mean()) > 0.05


@pytest.mark.parametrize("by", [2.0, 0.5, 4.0])
def test_a_reader_that_undoes_what_came_in_has_no_shares(by: float) -> None:
    """A norm's gain times 2 and its readers halved: nothing of the output changed, so nothing has a part in it."""
    m = made(20, 33)
    undone = moved_to(m, m["w"] * (1 / by - 1), m["x"] * (by - 1), 0 * m["db"])
    found = ledger_of(undone | {"y_tuned": undone["y"]})
    assert float(found.direct_norm.min()) > 0.1 and bool(shares_of(found).isnan().all())
    barely = ledger_of(undone | {"y_tuned": undone["y"] + 1e-3 * m["y"]})
    assert bool(shares_of(barely).isnan().all())


def test_a_module_that_pushes_against_its_input_has_a_negative_share() -> None:
    m = made(20, 33)
    found = shares_of(ledger_of(moved_to(m, -0.2 * m["w"], 0.5 * m["x"], 0 * m["db"])))
    # y becomes 1.5 · 0.8 y: of the change 0.2 y the module took 0.2, 0.5 came in, and 0.1 is both.
    assert torch.allclose(found, torch.tensor([-1.0, 2.5, -0.5])[:, None], atol=1e-4)


@pytest.mark.parametrize(("dtype", "step", "told"), [("float32", 1e-6, 0), ("float32", 1e-4, 6), ("bfloat16", 2e-3, 0)])
def test_a_change_within_rounding_has_no_shares(dtype: str, step: float, told: int) -> None:
    m = made(20, 33)
    m = moved_to(m, step * m["w"], 0 * m["moved"], step * m["b"])
    y, y_tuned = (m[name].to(getattr(torch, dtype)) for name in ("y", "y_tuned"))
    found = linear_ledger(
        *(m["x"].float(), m["x"].float(), y, y_tuned, m["w"].float(), (m["w"] + m["t"]).float()),
        delta_norm=1.0,
        bias_change=m["db"].float(),
    )
    assert int(found.direct_share.isfinite().sum()) == told


def test_lookup_is_all_direct() -> None:
    change = torch.randn(4, 5)
    found = lookup_ledger(torch.zeros(4, 5), change, 6.0, 9)
    assert torch.allclose(found.direct_norm, change.norm(dim=1)) and not found.inherited_norm.any()
    assert torch.allclose(found.direct_null, torch.full((4,), 2.0))
    assert torch.equal(shares_of(found), torch.tensor([1.0, 0, 0])[:, None].expand(3, 4))


@pytest.mark.parametrize("shape", SHAPES)
def test_new_share_of_random_writes_is_its_null(shape: tuple[int, int]) -> None:
    m = made(*shape)
    shares, null = [], 0.0
    for seed in range(200):
        m["t"] = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        m["db"] = 0 * m["db"]
        found = ledger_of(m)
        shares.append(float(found.new_share_10.mean()))
        null = float(found.new_share_10_null[0])
    assert sum(shares) / 200 == pytest.approx(null, abs=0.02)


@pytest.mark.parametrize("shape", [(90, 20), (60, 7), (33, 20)])
@pytest.mark.parametrize("t", ["any", "low rank", "of w", "none"])
def test_a_tall_module_has_the_same_terms_in_few_coordinates(shape: tuple[int, int], t: str) -> None:
    m = made(*shape)
    steps = {"any": m["t"], "low rank": m["t"][:, :2] @ m["t"][:2], "of w": 0.1 * m["w"], "none": 0 * m["t"]}
    m = moved_to(m, steps[t], m["moved"], m["db"])
    checked = torch.tensor([1, 5])
    few = tall.tall_of(m["w"].float(), (m["w"] + m["t"]).float(), m["db"].float())
    expected, found = ledger_of(m, checked=checked), ledger_of(m, checked=checked, tall=few)
    for name, values in vars(found).items():
        if name != "closure":
            torch.testing.assert_close(values, getattr(expected, name), rtol=2e-4, atol=2e-5, equal_nan=True)
    assert found.closure.isnan().tolist() == [True, False, True, True, True, False]
    assert float(found.closure[checked].max()) < 1e-4
    torch.testing.assert_close(shares_of(found).sum(0), torch.ones(6), atol=1e-5, rtol=0)


def test_coordinates_of_a_module_that_did_not_move_are_exactly_zero() -> None:
    w = made(33, 5)["w"].float()
    direct, inherited, interaction = tall.tall_of(w, w).terms(torch.ones(2, 5), torch.ones(2, 5))
    assert not direct.any() and not interaction.any() and inherited.any()


@pytest.mark.parametrize(("k", "k10", "beyond"), [(2, 1, False), (7, 1, True), (3, 6, False), (8, 2, True)])
def test_what_lies_outside_is_read_from_the_shorter_end(k: int, k10: int, beyond: bool) -> None:
    basis = torch.linalg.qr(torch.randn(9, 9, dtype=torch.float64))[0]
    cut, x = ledger.Cut(k, k10, 9), torch.randn(4, 9, dtype=torch.float64)
    assert (cut.beyond, cut.of(basis).shape[1]) == (beyond, k10 + 9 - k if beyond else max(k, k10))
    outside = cut.outside(x @ cut.of(basis), x.square().sum(1))
    for found, n in zip(outside, (k, k10), strict=True):
        torch.testing.assert_close(found, (x - x @ basis[:, :n] @ basis[:, :n].T).square().sum(1))
