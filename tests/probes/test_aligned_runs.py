"""Runs with `align`: weights and live models are read as the base is written, and the run says what that explains."""

import copy
from pathlib import Path

import pytest
import torch

import probes
from probes.errors import RunError
from tests.pairs import build_model, build_pair, build_tokenizer, write_suite
from tests.tv.matching.same_function import change_value_bases, move_gains, permute_neurons, trade_sizes, turn_keys


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base, and the same function written differently."""
    directory = tmp_path_factory.mktemp("pair")
    base, _ = build_pair(directory)
    other = build_model()
    torch.manual_seed(3)
    permute_neurons(other)
    move_gains(other, 2.0)
    trade_sizes(other, 2.0)
    change_value_bases(other)
    turn_keys(other)
    other.save_pretrained(directory / "other")
    build_tokenizer().save_pretrained(directory / "other")
    return base, directory / "other"


def test_the_same_function_is_said_and_undone_everywhere(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    suite = write_suite(tmp_path, *pair, align=True)
    run = probes.run(suite, out=tmp_path / "run")
    found = run.manifest["sameness"]["moved"]
    assert found["rounding"] and found["sentence"].startswith(
        "these two compute the same function, written differently"
    )
    assert run["weights"].relative_norm.max() < 1e-6
    assert run["gates"].flip_rate.max() == 0
    assert run["changes"].relative_change.max() < 1e-4
    report = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "These two compute the same function, written differently: norm gains moved" in report

    again = probes.prepare(suite, out=tmp_path / "run")
    assert again.is_done  # aligned anew, it is the same run
    effects = probes.attribute(run, method="graft", controls=[])
    assert effects.effect.abs().max() < 1e-4


def test_without_it_the_two_seem_apart(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    suite = write_suite(tmp_path, *pair, measure=["gates"], attribute=None, noise_floor=False)
    run = probes.run(suite, out=tmp_path / "run", stages=["weights", "capture"])
    assert run["weights"].relative_norm.max() > 0.5 and run["gates"].flip_rate.mean() > 0.3
    assert run.manifest["sameness"] == {}
    other = probes.prepare(suite, out=tmp_path / "other", settings={"align": True}, stages=["weights", "capture"])
    assert other.identity != probes.prepare(suite, out=tmp_path / "other", stages=["weights", "capture"]).identity


def test_a_live_model_is_not_written_into(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    suite = write_suite(tmp_path, *pair, align=True, measure=["gates"], attribute=None, noise_floor=False)
    live = build_model()
    torch.manual_seed(1)
    permute_neurons(live)
    before = copy.deepcopy(live.state_dict())
    run = probes.run(suite, tuned={"moved": live}, out=tmp_path / "run", stages=["weights", "capture"])
    assert run["gates"].flip_rate.max() == 0 and run["weights"].delta_norm.max() == 0
    assert all(torch.equal(value, before[name]) for name, value in live.state_dict().items())


def test_a_fine_tune_is_left_as_it_is(tmp_path: Path) -> None:
    suite = write_suite(tmp_path, *build_pair(tmp_path), measure=["gates"], attribute=None, noise_floor=False)
    stages = ["weights", "capture"]
    plain, aligned = (
        probes.run(suite, out=tmp_path / str(align), stages=stages, settings={"align": align})
        for align in (False, True)
    )
    for table in ("weights", "gates"):
        assert plain[table].equals(aligned[table])
    assert aligned.manifest["sameness"]["moved"]["changes"] == {}


def test_no_server_runs_it(tmp_path: Path) -> None:
    suite = write_suite(tmp_path, Path("org/base"), Path("org/tuned"), align=True, backend="nnsight")
    pytest.importorskip("nnsight")
    with pytest.raises(RunError, match="align: the server runs the models as they are stored"):
        probes.prepare(suite, remote=True)
