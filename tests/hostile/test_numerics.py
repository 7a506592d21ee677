"""What a change of nothing and of one entry show, in every precision that models are stored and computed in."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import probes
from tests.pairs import build_pair, write_suite
from tests.runs import NO_REPORT

pytestmark = pytest.mark.sampled(2)

#: The entry in which `entry` differs from its base.
LAYER, ROW, COLUMN, STEP = 1, 7, 11, 2.0
UP = f"model.layers.{LAYER}.mlp.up_proj.weight"
#: The measures of a change, by table: numbers everywhere, and 0 where there is none.
CHANGE = {
    "weights": "delta_norm relative_norm changed_fraction changed_fraction_bf16",
    "spectra": "sigma_delta",
    "tokens": "kl",
    "lens": "kl",
    "gates": "n_flips flip_rate",
    "neurons": "n_flips",
    "changes": "delta_norm relative_change",
    "ledger": "delta_norm direct_norm inherited_norm interaction_norm",
    "effects": "effect",
    "prompt_effects": "effect",
    "link": "relative_norm direct_norm ledger_delta_norm change_delta_norm dla_change flip_rate graft",
}
#: The measures of a change's direction, by table: there is none where nothing changed.
DIRECTION = {
    "weights": "cos_weight_delta noise_share large_overlap small_overlap stable_rank effective_rank "
    "participation_ratio diagonal_energy spectral_shift kept_left kept_right largest_angle_left largest_angle_right "
    "intruders_left intruders_right intruders_null_left intruders_null_right",
    "alignment": "ssa kappa ssa_z",
    "spectra": "share_left share_right",
    "cosines": "cosine cosine_null_sd cosine_z sign_conflict sign_conflict_null",
    "ledger": "direct_share inherited_share interaction_share new_share new_share_10",
    "link": "cos_weight_delta noise_share ssa_left ssa_right ssa_two_sided kappa_left kappa_right kappa_two_sided "
    "ssa10_left ssa10_right kappa10_left kappa10_right direct_share direct_share_lo direct_share_hi new_share "
    "new_share_lo new_share_hi new_share_10 new_share_10_lo new_share_10_hi",
}
#: Where numbers are missing for reasons of their own: what does not vary has no rank correlation.
VARYING = {"correlations", "agreement"}


@pytest.fixture(scope="module", params=["float32", "bfloat16", "float16"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> probes.Run:
    """`same` is its base, `entry` has one entry moved; stored and computed in one precision."""
    directory, dtype = tmp_path_factory.mktemp(request.param), request.param
    base, _ = build_pair(directory, dtype=getattr(torch, dtype))
    for name in ("same", "entry"):
        shutil.copytree(base, directory / name)
    _move(directory / "entry" / "model.safetensors")
    suite = write_suite(
        *(directory, base, base),
        tuned={name: str(directory / name) for name in ("same", "entry")},
        measure=["gates", "contributions", "changes", "ledger", "lens", "behaviour"],
        attribute={"methods": ["graft", "revert"], "granularity": ["component"], "curves": False, "controls": []},
        bootstrap=20,
        noise_floor=False,
    )
    return probes.run(suite, out=directory / "run", compute=probes.Compute(dtype=dtype), stages=NO_REPORT)


def _move(file: Path) -> None:
    tensors = load_file(file)
    tensors[UP][ROW, COLUMN] += STEP
    save_file(tensors, file, metadata={"format": "pt"})


def _of(run: probes.Run, table: str, name: str) -> pd.DataFrame:
    frame = run[table]
    return frame[frame.tuned == name]


def test_a_tuned_model_equal_to_its_base_gives_zeros(run: probes.Run) -> None:
    for table, columns in CHANGE.items():
        same = _of(run, table, "same")[columns.split()]
        wanted = same.notna() if table == "link" else True  # whose rows are modules, components, or both
        assert len(same) and ((same == 0) == wanted).all(axis=None) and (same == 0).any().all(), table
    for table, columns in DIRECTION.items():
        assert _of(run, table, "same")[columns.split()].isna().all(axis=None), table
    for table in run.tables:
        frame = _of(run, table, "same") if "tuned" in run[table] else pd.DataFrame()
        for left in frame.filter(regex="_base$"):
            if (right := left.replace("_base", "_tuned")) in frame:
                pd.testing.assert_series_equal(frame[left], frame[right], check_names=False, check_exact=True)


def test_numbers_are_missing_in_the_same_places_whether_anything_changed_or_not(run: probes.Run) -> None:
    for table in set(run.tables) - VARYING:
        if "tuned" not in run[table]:
            continue
        same, entry = (_of(run, table, name).select_dtypes("number") for name in ("same", "entry"))
        assert not np.isinf(same).any(axis=None) and not np.isinf(entry).any(axis=None), table
        if len(same) == len(entry):
            of_direction = same.columns.intersection(DIRECTION.get(table, "").split())
            missing = [side.drop(columns=of_direction).isna().sum() for side in (same, entry)]
            pd.testing.assert_series_equal(*missing, obj=table)
            if table in ("weights", "alignment", "spectra"):  # of the one matrix that moved
                assert entry[of_direction].notna().any().all(), table


def test_a_single_entry_is_found_in_weights_and_in_activations(run: probes.Run) -> None:
    weights = _of(run, "weights", "entry")
    (moved,) = weights[(weights.delta_norm > 0) & (weights["head"] == -1)].itertuples()
    assert (moved.layer, moved.module) == (LAYER, "up")
    assert moved.changed_fraction == pytest.approx(1 / (80 * 48)) and moved.delta_norm == pytest.approx(STEP, rel=0.01)
    direct = _of(run, "ledger", "entry").groupby(["layer", "module"]).direct_norm.max()
    assert list(direct[direct > 0].index) == [(LAYER, "up")]
    changes = _of(run, "changes", "entry").groupby(["layer", "component"]).delta_norm.max()
    assert set(changes[changes > 0].index) == {(LAYER, "mlp"), (LAYER + 1, "attn"), (LAYER + 1, "mlp")}
    grafts = _of(run, "effects", "entry").query("method == 'graft' and granularity == 'component' and domain == 'all'")
    (cause,) = grafts[grafts.effect != 0].itertuples()
    assert (cause.layer, cause.component) == (LAYER, "mlp")
