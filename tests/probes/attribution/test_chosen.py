"""Graft and revert move the units that path leads with and a sample of the others, and say what the rest may hide."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from probes.attribution import chosen as choosing
from probes.attribution.agreement import sampled
from probes.attribution.attributor import Attributor
from probes.attribution.chosen import chosen
from probes.attribution.effects import FORWARD, Effects, summarise
from probes.attribution.units import Unit
from probes.suite import Attribution
from tests.probes.attribution.conftest import Case

N = 40
UNITS = tuple(Unit("module", layer, "mlp", "up") for layer in range(N))


def _ranked(case: Case, sizes: np.ndarray) -> Effects:
    """What path would say: the same on every prompt, but for its sign on those of math."""
    prompts = tuple(case.domains)
    signs = [-1.0 if case.domains[prompt] == "math" else 1.0 for prompt in prompts]
    return Effects("path", FORWARD, UNITS, prompts, np.outer(sizes, signs), change=np.ones(len(prompts)))


def test_leaders_are_those_of_any_domain_and_the_rest_is_drawn_by_name(case: Case) -> None:
    sizes = np.random.default_rng(0).permutation(np.arange(1.0, N + 1))
    some = chosen(case.work(measured=[_ranked(case, sizes)]), UNITS)
    led = [unit for unit in some.units if unit not in some.sampled]
    assert set(led) == {UNITS[i] for i in np.argsort(-sizes)[: choosing.LEADING]}
    assert list(some.units) == [unit for unit in UNITS if unit in some.units]  # in the order given
    assert len(some.sampled) == choosing.SAMPLED and some.left_out == N - choosing.LEADING - choosing.SAMPLED
    # Where the others change places, as many as were drawn are drawn again.
    sizes[np.argsort(sizes)[:20]] = np.random.default_rng(1).permutation(np.arange(1.0, 21))
    assert chosen(case.work(measured=[_ranked(case, sizes)]), UNITS) == some
    assert chosen(case.work(measured=[_ranked(case, sizes)], seed=1), UNITS).sampled != some.sampled


def test_all_are_moved_where_they_are_few_or_path_has_no_order(case: Case) -> None:
    path = _ranked(case, np.arange(1.0, N + 1))
    assert chosen(case.work(), UNITS) == choosing.Chosen(UNITS)
    assert chosen(case.work(measured=[path]), UNITS[:24]) == choosing.Chosen(UNITS[:24])
    unchanged = replace(path, change=np.zeros(len(path.prompts)))
    assert chosen(case.work(measured=[unchanged]), UNITS).left_out == 0


def test_what_is_left_out_counts_among_the_tests(case: Case) -> None:
    prompts = tuple(f"p{i}" for i in range(24))
    values = np.random.default_rng(0).normal(0.6, 1.0, (3, 24))
    few = Effects("graft", FORWARD, UNITS[:3], prompts, values)
    many = replace(few, sampled=frozenset(UNITS[2:3]), left_out=100)
    domains = dict.fromkeys(prompts, "a")
    of_few, of_many = (summarise([each], "m", domains, seed=0) for each in (few, many))
    assert of_few.p.equals(of_many.p) and (of_many.q > of_few.q).all()
    assert (of_many.hi_all - of_many.lo_all > of_few.hi_all - of_few.lo_all).all()
    assert list(of_few.chosen) == ["all"] * 3 and list(of_many.chosen) == ["leading", "leading", "sampled"]


def test_the_sample_is_held_against_path(case: Case) -> None:
    path = _ranked(case, np.arange(N, 0.0, -1))
    drawn = frozenset(UNITS[12:16])
    exact = replace(path, method="graft", units=UNITS[:16], values=path.values[:16].copy(), sampled=drawn, left_out=24)
    exact.values[14] *= 3
    (row,) = sampled([path, exact], "m", dict.fromkeys(path.prompts, "a"), draws=20, seed=0, clusters={}).to_dict(
        "records"
    )
    assert row["rho"] == pytest.approx(1 - 6 * (1 + 1 + 4) / (4 * 15)) and row["n"] == 4
    assert (row["n_leading"], row["left_out"]) == (12, 24)
    assert row["largest_sampled"] == pytest.approx(abs(exact.values[14].mean()))
    assert row["smallest_leading"] == pytest.approx(abs(exact.values[11].mean()))


def test_an_attribution_moves_some_units_and_imputes_nothing(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "LEADING", 3)
    monkeypatch.setattr(choosing, "SAMPLED", 2)
    given = {"methods": ["path", "graft", "revert"], "controls": [], "curve_points": 2, "curve_draws": 1}
    tables: dict[str, dict[str, pd.DataFrame]] = {}
    for exact in ("auto", "all"):
        wanted = Attribution.model_validate({**given, "exact": exact, "tolerance": 0.5})
        attributor = Attributor(case.pair, case.encoded, wanted, batch_size=3, seed=0)
        tables[exact] = attributor.tables(bootstrap=20, bases=dict, scores={})
    some, every = (tables[exact]["effects"] for exact in ("auto", "all"))
    at = ["layer", "component", "domain"]
    for method in ("graft", "revert", "mean"):
        of_some, of_all = (rows[rows.method == method].set_index(at) for rows in (some, every))
        of_some, of_all = (rows[rows.granularity == "component"] for rows in (of_some, of_all))
        assert len(of_some.groupby(level=[0, 1])) == 5 < len(of_all.groupby(level=[0, 1]))
        assert np.allclose(of_some.effect, of_all.effect[of_some.index], rtol=0, atol=2e-5)
    assert "sampled" not in tables["all"] and set(every.chosen) == {"all"}
    rows = tables["auto"]["sampled"]
    assert set(rows.method) == {"graft", "revert", "mean"} and set(rows.domain) == {"all", *case.domains.values()}
    assert (rows.n_leading == 3).all() and (rows.n == 2).all()
    of_graft = some[(some.method == "graft") & (some.domain == "all")]
    largest = of_graft[of_graft.chosen == "sampled"].effect.abs().max()
    assert rows[(rows.method == "graft") & (rows.domain == "all")].largest_sampled.item() == pytest.approx(largest)
    assert (
        some[some.method == "path"]
        .groupby("domain")
        .size()
        .equals(every[every.method == "path"].groupby("domain").size())
    )
