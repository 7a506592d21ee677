"""The link joins every measure to its unit, and finds the rank correlations that were planted."""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from probes.linking import COMPONENT, link, link_tables
from probes.store.run import load
from probes.store.schemas import SCHEMAS
from probes.store.writer import RunWriter

LAYERS, PROMPTS, MODELS = range(9), [f"p{i}" for i in range(8)], ("a", "b")
MODULES = {name: i for i, name in enumerate(COMPONENT)}


def _weights() -> pd.DataFrame:
    """relative_norm rises with layer and module; a head's row and the unembedding must not get in."""
    rows = [
        dict(tuned=t, layer=layer, module=m, head=head, expert=-1, delta_norm=1.0 + i, relative_norm=_size(layer, i))
        for t in MODELS
        for layer in LAYERS
        for m, i in {**MODULES, "unembed": 99}.items()
        for head in ((-1, 0) if m == "q" else (-1,))
    ]
    table = pd.DataFrame(rows).assign(cosine=0.9, cos_weight_delta=0.01, noise_share=0.2)
    return table.assign(component=table.module.map(COMPONENT))


def _size(layer: int, i: int) -> float:
    return 1.0 + 10 * layer + i


def _alignment() -> pd.DataFrame:
    weights = _weights().query("module != 'unembed'")
    rows = [
        dict(tuned=w.tuned, layer=w.layer, module=w.module, head=w.head, expert=-1, side=side, epsilon=epsilon)
        | dict(ssa=1 / w.relative_norm if side == "left" else 0.5, ssa_null=0.4, kappa=epsilon)
        for w in weights.itertuples()
        for side in ("left", "right", "two_sided")
        for epsilon in (0.01, 0.05, 0.1, np.nan)
    ]
    table = pd.DataFrame(rows)
    return table.assign(kappa=table.kappa.fillna(0.33))


def _ledger(noise: float = 0.0) -> pd.DataFrame:
    """direct_norm rises with relative_norm; two positions a prompt, unequal, so that the prompt mean matters."""
    rng = np.random.default_rng(0)
    rows = [
        dict(tuned=t, prompt_id=p, layer=layer, module=m, pos=pos)
        | dict(direct_norm=_size(layer, i) * (1 + pos) + noise * rng.normal(), inherited_norm=100 - _size(layer, i))
        for t in MODELS
        for p in PROMPTS
        for layer in LAYERS
        for m, i in MODULES.items()
        for pos in (0, 1)
    ]
    table = pd.DataFrame(rows)
    table["direct_share"] = table.direct_norm / 100
    return table.assign(interaction_norm=0.0, delta_norm=1.0, new_share=0.6, new_share_null=0.5, new_share_10=0.7)


def _changes() -> pd.DataFrame:
    rows = [
        dict(tuned=t, prompt_id=p, layer=layer, component=c, head=head, dla_base=1.0, dla_tuned=1.5 + (c == "mlp"))
        | dict(delta_norm=float(layer + 1) if head < 0 else 999.0)
        for t in MODELS
        for p in PROMPTS
        for layer in LAYERS
        for c, head in (("attn", -1), ("attn", 0), ("mlp", -1))
    ]
    return pd.DataFrame(rows).assign(relative_change=0.1, cosine=0.8)


def _gates() -> pd.DataFrame:
    rows = [dict(tuned=t, prompt_id=p, layer=n, flip_rate=0.01 * n) for t in MODELS for p in PROMPTS for n in LAYERS]
    return pd.DataFrame(rows).assign(chance_flip_rate=0.5)


def _prompt_effects() -> pd.DataFrame:
    """Size falls with depth, and its sign alternates; the second half of the prompts has no answer to it."""
    rows = [
        dict(tuned=t, layer=layer, component=c, method=method, metric=metric, prompt_id=p)
        | dict(effect=(-1) ** layer * (20.0 - 2 * layer - (c == "mlp")) * (metric == "logit_diff"))
        for t in MODELS
        for layer in (-1, *LAYERS)
        for c in (("embed",) if layer < 0 else ("attn", "mlp"))
        for method in ("graft", "revert")
        for metric in ("target_nll", "logit_diff")
        for p in PROMPTS[:4]
    ]
    return pd.DataFrame(rows).assign(granularity="component", module="", expert=-1)


def _effects() -> pd.DataFrame:
    mean = _prompt_effects().groupby(["tuned", "layer", "component", "method", "metric"]).effect.mean().reset_index()
    ends = dict(lo=mean.effect - 1, hi=mean.effect + 1)
    return mean.assign(granularity="component", module="", expert=-1, domain="all", **ends)


def _link(**changes: pd.DataFrame | None) -> tuple[pd.DataFrame, pd.DataFrame]:
    given = dict(
        weights=_weights(),
        alignment=_alignment(),
        gates=_gates(),
        changes=_changes(),
        ledger=_ledger(),
        effects=_effects(),
        prompt_effects=_prompt_effects(),
    )
    return link_tables(**(given | changes), draws=60, seed=0)


@pytest.fixture(scope="module")
def tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    return _link()


def _row(link: pd.DataFrame, **keys: object) -> pd.Series:
    found = link[np.logical_and.reduce([link[name] == value for name, value in keys.items()])]
    found = found[found.over == "all"] if "over" in found else found
    assert len(found) == 1
    return found.iloc[0]


def test_rows_are_modules_and_components(tables: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    found, _ = tables
    assert list(found.columns) == SCHEMAS["link"].names
    assert found.groupby(["tuned", "kind"]).size().to_dict() == {
        (t, kind): n * len(LAYERS) for t in MODELS for kind, n in (("component", 2), ("module", 7))
    }
    assert not found.duplicated(["tuned", "kind", "layer", "component", "module"]).any()


def test_a_modules_row(tables: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    row = _row(tables[0], tuned="b", kind="module", layer=2, module="up")
    size = _size(2, MODULES["up"])
    assert row.component == "mlp" and row.relative_norm == size and row.ssa_left == 1 / size
    assert (row.kappa_left, row.kappa10_left, row.ssa10_right, row.ssa_null_left) == (0.05, 0.33, 0.5, 0.4)
    assert row.direct_norm == pytest.approx(size * 1.5) and np.isnan(row.direct_norm_lo)  # no two prompts differ
    assert row.direct_share == pytest.approx(size * 1.5 / 100) and row.new_share_null == 0.5
    assert (row.change_delta_norm, row.dla_change, row.change_cosine) == (3.0, 1.5, pytest.approx(0.8))
    assert row.flip_rate == pytest.approx(0.02) and row.chance_flip_rate == 0.5
    assert np.isnan(row.graft)  # of components alone; a module has its own where it was measured


def test_a_components_row(tables: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    row = _row(tables[0], tuned="a", kind="component", layer=1, component="attn")
    energy = [(1.0 + i) ** 2 for i in range(4)]
    assert row.relative_norm == pytest.approx(np.average([_size(1, i) for i in range(4)], weights=energy))
    assert row.direct_norm == pytest.approx(_size(1, MODULES["o"]) * 1.5)  # the writer's ledger
    assert row.graft == -18.0 and np.isnan(row.flip_rate) and row.module == ""


def test_planted_rank_correlations_are_found(tables: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    _, found = tables
    assert list(found.columns) == SCHEMAS["correlations"].names
    for tuned in MODELS:
        up = _row(found, tuned=tuned, kind="module", weight_measure="relative_norm", activation_measure="direct_norm")
        assert (up.rho, up.hi, up.n) == (pytest.approx(1), pytest.approx(1), 63) and 0.99 < up.lo < 1
        down = _row(found, tuned=tuned, kind="module", weight_measure="ssa_left", activation_measure="direct_norm")
        assert down.rho == down.lo == pytest.approx(-1) and -1 < down.hi < -0.99
        flat = _row(found, tuned=tuned, kind="module", weight_measure="kappa_left", activation_measure="direct_norm")
        assert np.isnan(flat.rho) and flat.n == 63
        keys = dict(tuned=tuned, kind="component", weight_measure="relative_norm")
        causal = _row(found, **keys, activation_measure="graft")
        assert causal.rho == pytest.approx(-1) and causal.n == 18  # by size, whatever the sign
        assert _row(found, **keys, activation_measure="flip_rate").n == 9  # MLPs only
        assert np.isnan(causal.lo) and causal.p_family < 0.05  # four prompts have it: too few for an interval
    assert not found[found.kind == "module"].activation_measure.isin(["graft", "revert"]).any()


def test_modules_are_compared_by_type_and_by_layer_too(tables: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    _, found = tables
    own = found.query("tuned == 'a' and weight_measure == 'relative_norm' and activation_measure == 'direct_norm'")
    at = own[own.kind == "module"].set_index("over")
    assert set(at.index) == {"all", *MODULES, *(f"layer {layer}" for layer in LAYERS)}
    assert (at.n["q"], at.n["layer 2"]) == (len(LAYERS), len(MODULES))
    assert at.rho.to_numpy() == pytest.approx(1)
    assert at.null_lo["all"] < 0 < at.null_hi["all"] and at.p["all"] == at.p_family["all"] == pytest.approx(1 / 61)
    assert at.null_hi["all"] == pytest.approx(at.null_hi["q"])  # seven modules that move alike prove no more than one
    one_layer = at.loc[[f"layer {layer}" for layer in LAYERS], ["lo", "hi", "null_lo", "null_hi", "p", "p_family"]]
    assert one_layer.isna().all().all()  # each type is there once: nothing to shuffle it with


def test_what_a_type_has_in_common_is_no_correlation() -> None:
    """Types differ in size on both sides, and layers do not: rho of all modules together would be near 1."""
    rng = np.random.default_rng(1)
    weights, ledger = _weights(), _ledger()
    order = weights.module.map(MODULES).fillna(0)
    weights["relative_norm"] = 10 * order + rng.random(len(weights))
    own = {key: value for key, value in zip(weights.index, rng.random(len(weights)), strict=True)}
    places = ledger.groupby(["tuned", "layer", "module"]).ngroup().map(own)
    found = _link(weights=weights, ledger=ledger.assign(direct_norm=10 * ledger.module.map(MODULES) + places))[1]
    row = _row(found, tuned="a", kind="module", weight_measure="relative_norm", activation_measure="direct_norm")
    assert abs(row.rho) < 0.4 and row.p > 0.05


def test_modules_that_did_not_move_are_no_units() -> None:
    """A LoRA of q and v: all else holds T = 0, and rounding of down is no step either."""
    weights = _weights()
    still = ~weights.module.isin(["q", "v", "down"])
    weights.loc[still, ["delta_norm", "relative_norm", "noise_share"]] = 0.0
    weights.loc[weights.module == "down", "noise_share"] = 0.98
    found, correlations = _link(weights=weights)
    assert len(found) == len(_link()[0])
    at = correlations.query(
        "tuned == 'a' and weight_measure == 'relative_norm' and activation_measure == 'direct_norm'"
    )
    counts = at.set_index(["kind", "over"]).n
    assert counts["module", "all"] == 2 * len(LAYERS) and counts["component", "all"] == len(LAYERS)  # attention alone
    assert (
        set(at.over) == {"all", "q", "v", *(f"layer {layer}" for layer in LAYERS)} and counts["module", "layer 3"] == 2
    )


def test_a_pair_that_did_not_move_has_no_correlations() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, nothing = _link(weights=_weights().assign(delta_norm=0.0, relative_norm=0.0))
        _, rounded = _link(weights=_weights().assign(noise_share=1.0))
        one = _weights().query("module == 'q' and layer == 3").assign(tuned="a")
        _, alone = _link(weights=one.drop_duplicates("head"))
    assert nothing.empty and rounded.empty and list(nothing.columns) == SCHEMAS["correlations"].names
    assert alone.rho.isna().all() and alone.p.isna().all()


def test_values_that_differ_by_rounding_alone_have_no_order() -> None:
    """Norm gains doubled and their readers halved: T is −W/2 everywhere, and shares are 1/6 everywhere."""
    rng = np.random.default_rng(2)
    weights, ledger = _weights(), _ledger()
    weights["relative_norm"] = 0.5 + 1e-7 * rng.normal(size=len(weights))
    ledger["direct_share"] = (1 + 1e-7 * rng.normal(size=len(ledger))) / 6
    found = _link(weights=weights, ledger=ledger)[1]
    assert found[found.weight_measure == "relative_norm"].rho.isna().all()
    assert found[found.activation_measure == "direct_share"].rho.isna().all()


def test_effects_within_the_floor_have_no_order() -> None:
    floor = pd.DataFrame(
        [("all", "logit_diff", 8.5), ("all", "target_nll", 99.0), ("medical", "logit_diff", 99.0)],
        columns=["domain", "metric", "floor"],
    )
    at = dict(tuned="a", kind="component", weight_measure="relative_norm", activation_measure="graft")
    some = _row(_link(behaviour_floor=floor)[1], **at)
    assert -1 < some.rho < -0.9  # the last three layers are alike now
    assert np.isnan(_row(_link(behaviour_floor=floor.assign(floor=50.0))[1], **at).rho)
    tiny = _prompt_effects().assign(effect=lambda table: table.effect * 1e-7)
    assert np.isnan(_row(_link(prompt_effects=tiny)[1], **at).rho)  # no floor was measured: 1e-5
    other = floor[floor.metric == "target_nll"]  # none for the metric of the effects, as for first_divergence
    assert np.isnan(_row(_link(prompt_effects=tiny, behaviour_floor=other)[1], **at).rho)


def test_prompts_of_one_cluster_count_as_one() -> None:
    prompts = pd.DataFrame({"prompt_id": PROMPTS, "cluster": ["one", "one", *[""] * 6]})
    alone, together = _link(ledger=_ledger(noise=8.0))[0], _link(ledger=_ledger(noise=8.0), prompts=prompts)[0]
    assert alone.direct_norm_lo.notna().all() and together.direct_norm_lo.isna().all()  # seven are too few
    assert alone.direct_norm.tolist() == together.direct_norm.tolist()


def test_a_modules_own_effect_is_linked_where_it_was_measured() -> None:
    rows = [
        dict(tuned="a", granularity="module", layer=layer, component=COMPONENT[m], module=m, prompt_id=p)
        | dict(effect=float(_size(layer, i)), method="path", metric="logit_diff", expert=-1)
        for layer in LAYERS
        for m, i in MODULES.items()
        for p in PROMPTS
    ]
    own = pd.DataFrame(rows)
    mean = own.groupby([c for c in own if c not in ("prompt_id", "effect")]).effect.mean().reset_index()
    found, correlations = _link(prompt_effects=own, effects=mean.assign(domain="all", lo=0.0, hi=99.0))
    assert _row(found, tuned="a", kind="module", layer=2, module="up").path == _size(2, MODULES["up"])
    keys = dict(tuned="a", kind="module", weight_measure="relative_norm", activation_measure="path")
    assert _row(correlations, **keys).rho == pytest.approx(1)


def test_intervals_show_the_noise_between_prompts() -> None:
    found, correlations = _link(ledger=_ledger(noise=60.0))
    assert (found.direct_norm_hi - found.direct_norm_lo).min() > 1
    row = _row(
        correlations[correlations.tuned == "a"],
        kind="module",
        weight_measure="relative_norm",
        activation_measure="direct_norm",
    )
    assert 0.4 < row.lo < row.rho < row.hi < 1 and row.hi - row.lo > 0.1


def test_tables_that_are_not_there_leave_their_columns_empty() -> None:
    names = ("gates", "changes", "ledger", "effects", "prompt_effects")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for missing in ("changes", "effects"):
            found, _ = _link(**{missing: None})
            empty = set(found.columns[found.isna().all()])
            assert ("dla_change" in empty) == (missing == "changes") and "graft" not in empty
        found, correlations = _link(**{name: pd.DataFrame() for name in names})
        assert found.graft.isna().all() and correlations.empty
        assert _link(changes=_changes().query("head >= 0"))[0].change_relative.isna().all()
        found, correlations = _link(**dict.fromkeys(names))
        assert found.relative_norm.notna().all() and found.direct_norm.isna().all() and correlations.empty
        found, correlations = _link(weights=None)
        assert found.empty and correlations.empty
        assert "ssa_left" in _link(alignment=None)[0]
        no_half = _alignment().query("epsilon != 0.05")
        found, _ = _link(alignment=no_half)
        assert found.ssa_left.isna().all() and found.ssa10_left.notna().all()


def test_a_component_that_did_not_move_keeps_its_plain_mean() -> None:
    found, _ = _link(weights=_weights().assign(delta_norm=0.0, relative_norm=0.0))
    assert (found.relative_norm == 0).all() and found.cosine.notna().all()


def test_a_run_is_linked_in_place(tmp_path: Path) -> None:
    tables = {
        "weights": _weights(),
        "alignment": _alignment(),
        "gates": _gates(),
        "changes": _changes(),
        "ledger": _ledger(),
        "prompt_effects": _prompt_effects(),
        "effects": _effects(),
    }
    with RunWriter(tmp_path / "run") as writer:
        for name, frame in tables.items():
            full = frame.assign(**{c: _filler(name, c) for c in SCHEMAS[name].names if c not in frame})
            if name in ("gates", "changes", "ledger"):
                for (tuned, layer), part in full.groupby(["tuned", "layer"]):
                    body = part.drop(columns=["tuned", "layer"])
                    writer.write(name, body, shard="0", tuned=str(tuned), layer=int(layer))
            else:
                writer.write(name, full[SCHEMAS[name].names], shard="0")
        writer.finish({"suite": {"name": "x", "tuned": dict.fromkeys(MODELS, "m"), "bootstrap": 60, "seed": 0}})
    run = load(tmp_path / "run")
    found = link(run)
    wanted, correlations = _link()
    pd.testing.assert_frame_equal(found, wanted, check_dtype=False, rtol=1e-5)
    pd.testing.assert_frame_equal(load(run.path)["correlations"], correlations, check_dtype=False, rtol=1e-5)
    pd.testing.assert_frame_equal(link(run), found)


def _filler(table: str, column: str) -> object:
    if column == "expert":
        return -1
    kind = str(SCHEMAS[table].field(column).type)
    return b"x" if "binary" in kind else "" if "string" in kind else False if kind == "bool" else 0
