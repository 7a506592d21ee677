"""A run that was killed, wherever that was, ends as one that never was."""

import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import probes
from probes.capture import runner
from probes.errors import RunError
from probes.store.journal import Journal
from probes.store.schemas import SCHEMA_VERSION
from probes.suite import load_suite
from tests.pairs import PROMPTS, build_pair, write_prompts, write_suite
from tests.runs import NO_REPORT
from tv.runtime.compute import Compute

KEPT = ("weights", "capture", "noise_floor")  # what a run that attributes nothing keeps, but for links
#: What every stage needs, and no more: a run here is started again and again.
QUICK = {
    "measure": ["gates", "changes", "behaviour"],
    "noise_floor": False,
    **{"batch_size": 2, "bootstrap": 20},
}
SHARDS = 3  # six prompts, two a batch, a batch a shard


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "ROWS_PER_SHARD", 1)


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pair")
    return write_suite(directory, *build_pair(directory, "llama"), **QUICK)


@pytest.fixture(scope="module")
def whole(suite: Path, tmp_path_factory: pytest.TempPathFactory) -> probes.Run:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "ROWS_PER_SHARD", 1)
        return probes.run(suite, out=tmp_path_factory.mktemp("whole") / "run", stages=NO_REPORT)


@pytest.fixture(scope="module")
def paged(suite: Path, whole: probes.Run, tmp_path_factory: pytest.TempPathFactory) -> probes.Run:
    """The same run with its page: what `report` adds to it."""
    path = shutil.copytree(whole.path, tmp_path_factory.mktemp("paged") / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "ROWS_PER_SHARD", 1)
        return probes.run(suite, out=path)


def _require_equal(run: probes.Run, other: probes.Run) -> None:
    assert run.tables == other.tables and run.manifest["tables"] == other.manifest["tables"]
    for table in run.tables:
        pd.testing.assert_frame_equal(run[table], other[table], check_exact=True)
    files = [sorted(p.relative_to(r.path) for p in r.path.rglob("*")) for r in (run, other)]
    assert files[0] == files[1]


def _killed(run: Callable[..., object], *args: Any) -> None:
    """Call it in a process that it kills."""
    process = multiprocessing.get_context("fork").Process(target=run, args=args)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _run_until(
    suite: Path, out: Path, point: tuple[str, int], force: bool = False, stages: Sequence[str] | None = NO_REPORT
) -> None:
    """Killed once a stage has told this count; the first count of each stage is written to `told` beside the run."""
    first: dict[str, int] = {}

    def stage(name: str, done: int, total: int, label: str) -> None:
        first.setdefault(name, done)
        if (name, done) == point:
            (out.parent.parent / "told").write_text(json.dumps(first))
            _die()

    probes.run(suite, out=out, compute=Compute(progress=stage), force=force, stages=stages)


def _run_until_replace(suite: Path, out: Path, number: int, force: bool = False) -> None:
    """Killed just before the n-th file gets its name; before (0) or after (−1) the run's directory gets its own."""
    replace, names = os.replace, []

    def counting(source: Any, target: Any) -> None:
        names.append(Path(target))
        if len(names) == number or (number == 0 and Path(target) == out):
            _die()
        replace(source, target)
        if number == -1 and Path(target) == out:
            _die()

    os.replace = counting  # type: ignore[assignment]
    probes.run(suite, out=out, force=force, stages=NO_REPORT)


def _resumed(suite: Path, out: Path, **options: Any) -> tuple[probes.Run, dict[str, int]]:
    """(run, the first count that each stage told, the proof of the models aside)."""
    told: dict[str, int] = {}
    compute = Compute(progress=lambda name, done, *_: told.setdefault(name, done) and None)
    run = probes.run(suite, out=out, compute=compute, **{"stages": NO_REPORT} | options)
    told.pop("load models and check their structure", None)
    return run, told


def test_killed_in_every_stage(suite: Path, paged: probes.Run, tmp_path: Path) -> None:
    """One run, killed again and again: each call goes on where the one before was killed."""
    out = tmp_path / "place" / "run"
    out.parent.mkdir()
    points = {  # where it is killed, and the first counts that the next call tells
        ("weights moved", 9): {"weights moved": 9, "capture moved": 0},
        ("capture moved", 2): {"capture moved": 0},
        ("capture moved", 4): {"capture moved": 2},
        ("attribute moved", 8): {"capture moved": 6, "attribute moved": 8},
        ("link", 1): {"capture moved": 6, "link": 0},
        ("report", 1): {"capture moved": 6, "link": 0},
    }
    told: list[dict[str, int]] = []
    for point in points:
        _killed(_run_until, suite, out, point, False, None)
        assert os.listdir(out.parent) == ["run.partial"]
        told.append(json.loads((tmp_path / "told").read_text()))
    run, last = _resumed(suite, out, stages=None)
    for ((stage, _), first), again in zip(points.items(), [*told[1:], last], strict=True):
        assert first.items() <= again.items()
        assert ("weights moved" in again) == (stage == "weights moved")
        assert "attribute moved" not in again or stage in ("weights moved", "capture moved", "attribute moved")
    assert os.listdir(out.parent) == ["run"]
    _require_equal(run, paged)


@pytest.mark.thorough
@pytest.mark.parametrize("number", [20, 0])
def test_killed_while_files_get_their_names(number: int, suite: Path, whole: probes.Run, tmp_path: Path) -> None:
    """A shard's own files, some written and some not; and the run's directory itself (0)."""
    _killed(_run_until_replace, suite, tmp_path / "run", number)
    if number:
        assert list((tmp_path / "run.partial").rglob("*.tmp"))  # the file that was about to be
    _require_equal(_resumed(suite, tmp_path / "run")[0], whole)
    assert os.listdir(tmp_path) == ["run"]


def test_killed_when_all_was_done(suite: Path, whole: probes.Run, tmp_path: Path) -> None:
    """The same command finds the run, does nothing again, and takes away what its writer could not."""
    out = tmp_path / "run"
    _killed(_run_until_replace, suite, out, -1)
    assert (out / "journal.jsonl").exists()
    run, told = _resumed(suite, out)
    assert not told
    _require_equal(run, whole)
    assert os.listdir(tmp_path) == ["run"]
    probes.attribute(run, method="graft")  # now it is not what the suite asks for
    with pytest.raises(RunError, match=r"run holds another run \(suite tiny\)"):
        probes.run(suite, out=out, stages=NO_REPORT)


def test_another_tokenizer_is_another_run(suite: Path, whole: probes.Run, tmp_path: Path) -> None:
    """Its tokens are other ones, though weights and prompts are the same."""
    out = shutil.copytree(whole.path, tmp_path / "run")
    assert probes.run(suite, out=out, stages=NO_REPORT).path == out
    base = Path(load_suite(suite).base)
    kept = (base / "tokenizer.json").read_bytes()
    other = kept.replace(b'"add_prefix_space": false', b'"add_prefix_space": true', 1)
    assert other != kept
    (base / "tokenizer.json").write_bytes(other)
    try:
        with pytest.raises(RunError, match="holds another run"):
            probes.run(suite, out=out, stages=NO_REPORT)
    finally:
        (base / "tokenizer.json").write_bytes(kept)


def test_killed_while_it_takes_the_place_of_an_older_run(suite: Path, whole: probes.Run, tmp_path: Path) -> None:
    """Between the two renames there is no run in the place; the older one must not be lost with it."""
    out = tmp_path / "run"
    older = probes.load(shutil.copytree(whole.path, out))
    older.manifest["suite"]["name"] = "older"
    (out / "manifest.json").write_text(json.dumps(older.manifest))
    _killed(_run_until_replace, suite, out, 0, True)
    assert not out.exists()
    with pytest.raises(RunError, match="holds another run"):
        probes.run(suite, out=out)
    assert probes.load(out).manifest["suite"]["name"] == "older"
    run, told = _resumed(suite, out, force=True)
    assert set(told) == {"capture moved", "link"}
    _require_equal(run, whole)
    assert os.listdir(tmp_path) == ["run"]


def test_an_interruption_keeps_what_is_done_and_bad_input_does_not(
    suite: Path, whole: probes.Run, tmp_path: Path
) -> None:
    out = tmp_path / "run"

    def failing(error: BaseException, at: int) -> Any:
        def stage(name: str, done: int, total: int, label: str) -> None:
            if (name, done) == ("capture moved", at):
                raise error

        return stage

    bad, lack = probes.ActivationError("mlp_out is NaN"), MemoryError()
    with pytest.raises(probes.ActivationError):
        probes.run(suite, out=out, compute=Compute(progress=failing(bad, 6)), stages=NO_REPORT)
    assert os.listdir(tmp_path) == []
    for error, at in ((KeyboardInterrupt(), 4), (lack, 6), (bad, 6)):
        with pytest.raises(type(error)):
            probes.run(suite, out=out, compute=Compute(progress=failing(error, at)), stages=NO_REPORT)
        assert os.listdir(tmp_path) == ["run.partial"]
    run, told = _resumed(suite, out)
    assert told["capture moved"] == 4
    _require_equal(run, whole)


def test_a_full_disk_keeps_what_is_done(suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = os.replace

    def full(source: Any, target: Any) -> None:
        if "moved-00002" in str(target):
            raise OSError(28, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(RunError, match="No space left"):
            probes.run(suite, out=tmp_path / "run", stages=["capture"])
    assert _resumed(suite, tmp_path / "run", stages=["capture"])[1]["capture moved"] == 4


def test_what_changed_is_named_and_force_starts_anew(tmp_path: Path) -> None:
    base, tuned = build_pair(tmp_path, "llama")
    out = tmp_path / "run"
    suite = write_suite(tmp_path, base, tuned, **QUICK)
    _killed(_run_until, suite, out, ("capture moved", 6), False, ["capture"])
    partial = sorted((tmp_path / "run.partial").rglob("*"))

    def refused(match: str, **changes: Any) -> None:
        with pytest.raises(RunError, match=match) as caught:
            probes.run(suite, out=out, stages=["capture"], **changes)
        assert "\n" not in str(caught.value) and "--force" in str(caught.value)
        assert sorted((tmp_path / "run.partial").rglob("*")) == partial

    write_suite(tmp_path, base, tuned, **QUICK | {"bootstrap": 30})
    refused(r"run.partial holds an unfinished run, and suite\.bootstrap was 20 and is 30; change it back")
    write_suite(tmp_path, base, tuned, **QUICK)
    refused(r"computed\.dtype was \"float32\" and is \"bfloat16\"", compute=Compute(dtype="bfloat16"))
    write_prompts(tmp_path / "prompts.jsonl", PROMPTS[:-1])
    refused("prompts changed")
    write_prompts(tmp_path / "prompts.jsonl")
    weights = (tuned / "model.safetensors").read_bytes()
    build_pair(tmp_path, "llama", step=0.03)
    refused(r"checkpoints\.moved\.content changed")
    (tuned / "model.safetensors").write_bytes(weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("probes.job.identity.version", lambda name: "9.9")
        refused(r"versions\.tuning-probes was \".*\" and is \"9\.9\"")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("probes.job.identity.SCHEMA_VERSION", 99)
        refused(f"schema_version was {SCHEMA_VERSION} and is 99")
    write_suite(tmp_path, base, tuned, **QUICK | {"positions": "last"})
    run, told = _resumed(suite, out, force=True, stages=["capture"])
    assert told["capture moved"] == 0 and len(run["tokens"]) == len(PROMPTS)


def test_shards_whose_files_were_lost_are_run_again(suite: Path, whole: probes.Run, tmp_path: Path) -> None:
    _killed(_run_until, suite, tmp_path / "run", ("attribute moved", 1))
    parts = sorted((tmp_path / "run.partial" / "tables" / "changes").rglob("*.parquet"))
    parts[0].unlink()  # of the first shard
    parts[1].write_bytes(parts[1].read_bytes()[:-20])  # of the second
    run, told = _resumed(suite, tmp_path / "run")
    assert told["capture moved"] == 2
    _require_equal(run, whole)


def test_a_line_cut_short_counts_as_not_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.begin({"suite": {"seed": 0, "text": "é" * 99}})
    journal.append("capture", {"shard": "a", "tables": {}})
    whole = journal.path.read_bytes()
    for cut in range(1, 30):
        journal.path.write_bytes(whole + b'{"stage": "capture", "shard": "b", "tables": {}}\n'[:-cut])
        again = Journal(journal.path)
        assert set(again.rows) == {("capture", "a")} and journal.path.read_bytes() == whole
    again.append("capture", {"shard": "b", "tables": {}})
    assert set(Journal(journal.path).rows) == {("capture", "a"), ("capture", "b")}
    assert again.change({"suite": {"seed": 1, "text": "é" * 99}}) == "suite.seed was 0 and is 1"
    assert again.change({"suite": {"seed": 0, "text": ""}}) == "suite.text changed"
    journal.path.write_bytes(whole[:20])
    assert Journal(journal.path).identity is None


def test_neurons_are_summed_over_shards(whole: probes.Run) -> None:
    neurons, gates = whole["neurons"], whole["gates"]
    keys = ["tuned", "domain", "layer", "expert", "neuron"]
    assert whole.manifest["tables"]["neurons"]["files"] == 1 and not neurons.duplicated(keys).any()
    assert neurons[keys].sort_values(keys, ignore_index=True).equals(neurons[keys])
    assert neurons.n_flips.sum() == gates.n_flips.sum()
    assert neurons.groupby(["layer", "neuron"]).n.sum().eq(whole.manifest["n_tokens"]).all()
    assert len(whole["tokens"].prompt_id.unique()) == len(PROMPTS) > SHARDS


def test_kept_vectors_are_not_made_twice(suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = json.loads(suite.read_text(encoding="utf-8")) | {"keep": ["resid_post", "attn_out"]}
    text |= {"noise_floor": True, "attribute": None}
    own = suite.with_name("kept.yaml")
    own.write_text(json.dumps(text), encoding="utf-8")

    def killed_after_the_shards() -> None:
        monkeypatch.setattr("probes.job.job.write_floors", lambda *_: _die())
        probes.run(own, out=tmp_path / "run", stages=KEPT)

    _killed(killed_after_the_shards)

    def refuse(*_: object) -> None:
        raise AssertionError("a shard was made again")

    monkeypatch.setattr(runner, "run_shard", refuse)
    monkeypatch.setattr("probes.capture.shards.run_shard", refuse)
    run = probes.run(own, out=tmp_path / "run", stages=KEPT)
    places, vectors = run.vectors("attn_out", 2)
    assert len(places) == len(vectors) == run.manifest["n_tokens"]


def test_one_prompt_is_read_from_its_own_shard_alone(whole: probes.Run, tmp_path: Path) -> None:
    """All files of the other shards are broken, and nobody notices."""
    import shutil

    path = shutil.copytree(whole.path, tmp_path / "run")
    run = probes.load(path)
    prompt = PROMPTS[0]["id"]
    expected = whole["changes"].query("prompt_id == @prompt").reset_index(drop=True)
    others = [name for name, prompts in run.manifest["shards"].items() if prompt not in prompts]
    assert len(others) == SHARDS - 1
    for name in others:
        for file in path.rglob(f"changes/**/part-{name}.parquet"):
            file.write_bytes(b"PAR1 broken PAR1")
    found = run.df("changes", where=[("prompt_id", "==", prompt)])
    pd.testing.assert_frame_equal(found, expected, check_exact=True)
    assert run.df("changes", where=[("prompt_id", "==", "nobody")]).empty


def test_stages_can_be_added_to_a_finished_run(
    suite: Path, whole: probes.Run, paged: probes.Run, tmp_path: Path
) -> None:
    """A run with fewer stages is finished; the same call with more does what is missing, and nothing again."""
    out = tmp_path / "run"
    first = probes.run(suite, out=out, stages=["capture"])
    assert first.manifest["stages"] == ["capture"] and not {"weights", "effects", "link"} & set(first.tables)
    assert probes.load(out)["changes"].equals(whole["changes"]) and not (out / "report.html").exists()
    told = _resumed(suite, out, stages=["capture"])[1]
    assert not told
    run, told = _resumed(suite, out, stages=["weights"])
    assert run.manifest["stages"] == ["weights", "capture"]
    assert told == {"weights moved": 1, "capture moved": 6}
    run, told = _resumed(suite, out, stages=None)
    assert told == {"capture moved": 6, "attribute moved": 2, "link": 0, "report": 0}
    _require_equal(run, paged)
    assert os.listdir(tmp_path) == ["run"]


def test_a_run_stays_while_stages_are_added_to_it(suite: Path, whole: probes.Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    probes.run(suite, out=out, stages=["weights", "capture"])
    _killed(_run_until, suite, out, ("attribute moved", 8))
    assert probes.load(out).manifest["stages"] == ["weights", "capture"]
    run, told = _resumed(suite, out)
    assert told["attribute moved"] == 8 and "weights moved" not in told and told["capture moved"] == 6
    _require_equal(run, whole)
    assert os.listdir(tmp_path) == ["run"]


def test_stages_that_cannot_be_done_are_refused(suite: Path, tmp_path: Path) -> None:
    for stages, match in {
        ("weight",): "no stage 'weight'; did you mean 'weights'[?] There are weights, capture",
        ("weights", "link"): "stage 'link' reads the tables of stage 'capture'; name both",
        (): "no stages: name at least one",
    }.items():
        with pytest.raises(probes.SuiteError, match=match):
            probes.run(suite, out=tmp_path / "run", stages=stages)
    assert os.listdir(tmp_path) == []
