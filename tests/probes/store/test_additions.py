"""A finished run to which methods or prompts are added: what it has is kept, what is missing is computed, no more."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import probes
from probes.attribution import packing, work
from probes.attribution.forwards import Variant
from probes.attribution.integrand import Integrand
from probes.attribution.kept import Kept
from probes.attribution.methods import path
from probes.attribution.units import WHOLE, Unit
from probes.capture import runner
from probes.errors import RunError
from probes.store.additions import Added, added
from tests.pairs import PROMPTS, build_pair, write_prompts, write_suite
from tests.runs import NO_REPORT

QUICK = {"metric": "logit_diff", "curves": False, "controls": []}
NEW = {"id": "d1", "text": "Four and one make", "target": " five", "foil": " two", "domain": "math"}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return build_pair(tmp_path_factory.mktemp("pair"))


def _write(
    directory: Path, pair: tuple[Path, Path], prompts: list[dict[str, str]], attribute: Any, **changes: Any
) -> Path:
    """A suite whose batches have one prompt each."""
    options = {"bootstrap": 20, "attribute": attribute, "batch_size": 1, **changes}
    suite = write_suite(directory, *pair, **options)
    write_prompts(directory / "prompts.jsonl", prompts)
    return suite


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, Any]]]:
    """(what, prompt) of every pair of captured forwards, and of every value of the metric that is computed."""
    found: list[tuple[str, Any]] = []
    run_batch, keep = runner._run_batch, Kept.keep

    def captured(session: Any, tuned: str, batch: Any) -> Any:
        found.extend(("capture", item.prompt.id) for item in batch.encoded)
        return run_batch(session, tuned, batch)

    def kept(self: Kept, prompts: Any, values: Any) -> None:
        found.extend((variant.model, prompt) for variant in values for prompt in prompts)
        keep(self, prompts, values)

    monkeypatch.setattr(runner, "_run_batch", captured)
    monkeypatch.setattr(Kept, "keep", kept)
    yield found


def _run(suite: Path, out: Path, **options: Any) -> probes.Run:
    return probes.run(suite, out=out, stages=NO_REPORT, **options)


def test_a_method_is_added(
    pair: tuple[Path, Path], tmp_path: Path, reads: list[tuple[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    """The tables are those of a run that had both methods from the start, and the grafts are not read again."""
    out = tmp_path / "run"
    _run(_write(tmp_path, pair, PROMPTS, {**QUICK, "methods": ["graft"]}), out)
    assert {what for what, _ in reads} == {"capture", "base", "tuned"}
    reads.clear()
    both = _write(tmp_path, pair, PROMPTS, {**QUICK, "methods": ["graft", "revert"]})
    caplog.clear()
    run = _run(both, out)
    assert {what for what, _ in reads} == {"tuned"}
    (line,) = (record.getMessage() for record in caplog.records if record.name == "probes.job.job")
    assert line.startswith(
        "resuming; added: revert; done already: weights moved, capture moved (6 of 6 prompts), noise_floor, "
    )
    assert line.endswith("still to do: attribute moved, link")
    whole = _run(both, tmp_path / "whole")
    assert run.manifest["tables"] == whole.manifest["tables"]
    for table in run.tables:
        pd.testing.assert_frame_equal(run[table], whole[table], check_exact=True)
    reads.clear()
    assert _run(both, out).path == out and not reads


def test_prompts_are_added(
    pair: tuple[Path, Path], tmp_path: Path, reads: list[tuple[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    """Rows of prompts that were there are kept to the bit; sums, means and everything made of them hold all prompts."""
    out, wanted = tmp_path / "run", {**QUICK, "methods": ["graft", "revert"]}
    before = _run(_write(tmp_path, pair, PROMPTS, wanted), out)
    old = {name: before[name] for name in ("tokens", "gates", "changes", "ledger", "behaviour", "prompt_effects")}
    reads.clear()
    more = _write(tmp_path, pair, [NEW, *PROMPTS], wanted)
    caplog.clear()
    run = _run(more, out)
    assert {prompt for _, prompt in reads} == {"d1"} and sum(what == "capture" for what, _ in reads) == 1
    assert "capture moved (6 of 7 prompts)" in caplog.text and "added: 1 prompt" in caplog.text
    for name, rows in old.items():
        kept = run[name][run[name].prompt_id != "d1"].reset_index(drop=True)
        assert len(kept) == len(rows) < len(run[name])
        keys = [column for column in rows.columns if rows[column].dtype.kind not in "f"]
        order = [frame.sort_values(keys, ignore_index=True) for frame in (kept, rows)]
        pd.testing.assert_frame_equal(*order, check_exact=True)
    whole = _run(more, tmp_path / "whole")
    assert run.tables == whole.tables
    for name in run.tables:
        assert run.manifest["tables"][name]["rows"] == whole.manifest["tables"][name]["rows"], name
    pd.testing.assert_frame_equal(run["neurons"], whole["neurons"], check_exact=True)
    both = [each["effects"].sort_values(["method", "layer", "component", "domain"]) for each in (run, whole)]
    np.testing.assert_allclose(*(each.effect for each in both), atol=1e-5)
    held = run.manifest["shards"]
    assert sorted(prompt for prompts in held.values() for prompt in prompts) == sorted(
        [*(p["id"] for p in PROMPTS), "d1"]
    )
    found = run.df("changes", where=[("prompt_id", "==", "d1")])
    assert len(found) and set(found.prompt_id) == {"d1"}
    third = _write(tmp_path, pair, [NEW, *PROMPTS, {**NEW, "id": "e1"}], wanted)
    reads.clear()
    assert _run(third, out).manifest["n_prompts"] == 8 and {prompt for _, prompt in reads} == {"e1"}


def test_a_killed_addition_goes_on_and_the_run_stays(
    pair: tuple[Path, Path], tmp_path: Path, reads: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, wanted = tmp_path / "run", {**QUICK, "methods": ["graft"]}
    options: dict[str, Any] = {"measure": ["behaviour", "changes"], "noise_floor": False}
    _run(_write(tmp_path, pair, PROMPTS, wanted, **options), out)
    more = _write(tmp_path, pair, [*PROMPTS, NEW], wanted, **options)
    reads.clear()
    under = work.Work.under

    def dying(self: Any, variants: Any) -> Any:
        if len(variants) > 2:
            raise KeyboardInterrupt
        return under(self, variants)

    with monkeypatch.context() as patch:
        patch.setattr(work.Work, "under", dying)
        with pytest.raises(KeyboardInterrupt):
            _run(more, out)
    assert probes.load(out).manifest["n_prompts"] == 6
    assert ("capture", "d1") in reads
    reads.clear()
    run = _run(more, out)
    assert (
        run.manifest["n_prompts"] == 7 and ("capture", "d1") not in reads and {prompt for _, prompt in reads} == {"d1"}
    )


def test_attribution_that_is_killed_ends_with_the_same_tables_and_repeats_one_reading(
    pair: tuple[Path, Path], tmp_path: Path, reads: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It dies before or after values are on disk, in several methods, and its report of the kept ones is right."""
    monkeypatch.setattr(packing, "MOST", 24)
    options = {"measure": ["behaviour", "changes"], "noise_floor": False, "bootstrap": 5}
    wanted = {**QUICK, "methods": ["path", "graft", "revert", "depth"], "controls": ["random"], "control_draws": 3}
    suite = _write(tmp_path, pair, PROMPTS, wanted, **options)
    stages = ["weights", "capture", "attribute"]
    whole = probes.run(suite, out=tmp_path / "whole" / "run", stages=stages)
    computed, keep, out = sum(what != "capture" for what, _ in reads), Kept.keep, tmp_path / "run"
    reads.clear()
    for calls, before in ((3, False), (1, True), (2, True), (2, False)):
        left = [calls]

        def dying(self: Kept, prompts: Any, values: Any, left: list[int] = left, before: bool = before) -> None:
            left[0] -= 1
            if before and not left[0]:
                reads.extend(("lost", prompt) for _ in values for prompt in prompts)
                raise KeyboardInterrupt
            keep(self, prompts, values)
            if not left[0]:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Kept, "keep", dying)
            with pytest.raises(KeyboardInterrupt):
                probes.run(suite, out=out, stages=stages)
    run = probes.run(suite, out=out, stages=stages)
    kept = sum(what not in ("capture", "lost") for what, _ in reads)
    assert kept <= computed and sum(what == "capture" for what, _ in reads) == len(PROMPTS)
    assert run.manifest["tables"] == whole.manifest["tables"]
    for table in run.tables:
        pd.testing.assert_frame_equal(run[table], whole[table], check_exact=True)
    values = Path("kept", "moved", "values.jsonl")
    assert (out / values).read_bytes() == (whole.path / values).read_bytes()


def test_path_goes_on_after_the_prompts_that_are_kept(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"measure": ["behaviour", "changes"], "noise_floor": False, "bootstrap": 5}
    suite = _write(tmp_path, pair, PROMPTS, {**QUICK, "methods": ["path"]}, **options)
    stages = ["weights", "capture", "attribute"]
    monkeypatch.setattr(path, "WINDOW", 2)
    monkeypatch.setattr(path, "SHARES", 0)
    whole, out = probes.run(suite, out=tmp_path / "whole", stages=stages), tmp_path / "run"
    read, shares, keep = list[str](), Integrand.shares, Kept.keep_arrays

    def reading(self: Integrand, batch: Any) -> Any:
        read.extend(item.prompt.id for item in batch.encoded)
        return shares(self, batch)

    def dying(self: Kept, label: str, found: Any) -> None:
        keep(self, label, found)
        raise KeyboardInterrupt

    monkeypatch.setattr(Integrand, "shares", reading)
    seen = list[set[str]]()
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(Kept, "keep_arrays", dying)
            with pytest.raises(KeyboardInterrupt):
                probes.run(suite, out=out, stages=stages)
        seen.append({*read})
        read.clear()
    run = probes.run(suite, out=out, stages=stages)
    seen.append({*read})
    assert all(len(each) <= 2 for each in seen) and sum(map(len, seen)) == len(set.union(*seen)) == 5
    for table in run.tables:
        pd.testing.assert_frame_equal(run[table], whole[table], check_exact=True)


def test_what_is_no_addition_is_refused_by_name(pair: tuple[Path, Path], tmp_path: Path) -> None:
    out, graft = tmp_path / "run", {**QUICK, "methods": ["graft"]}
    options: dict[str, Any] = {"measure": ["behaviour"], "noise_floor": False}
    run = probes.run(_write(tmp_path, pair, PROMPTS, graft, **options), out=out, stages=["capture"])

    def refused(match: str, prompts: list[dict[str, str]] = PROMPTS, attribute: Any = graft, **changes: Any) -> None:
        suite = _write(tmp_path, pair, prompts, attribute, **options | changes)
        with pytest.raises(RunError, match=r"holds another run \(suite tiny\).*--force: " + match) as caught:
            probes.run(suite, out=out, stages=["capture"])
        assert "\n" not in str(caught.value)

    refused("suite.seed was 0 and is 1", seed=1)
    refused("prompts changed", prompts=PROMPTS[1:])
    refused("prompts changed", prompts=[{**PROMPTS[0], "target": " light", "foil": " blood"}, *PROMPTS[1:], NEW])
    refused("suite.attribute.methods changed|suite.attribute.methods was", attribute={**graft, "methods": ["revert"]})
    refused('suite.attribute.metric was "logit_diff" and is "target_nll"', attribute={**graft, "metric": "target_nll"})
    refused("suite.attribute", attribute=None)
    assert probes.load(out).manifest == run.manifest


def _identity(prompts: str = "ab", **suite: Any) -> dict[str, Any]:
    whole = {"generate": None, "answer_pattern": None, "tokenizer": "base", "prompts": prompts, "attribute": None}
    return {"prompts": [[name, name] for name in prompts], "suite": whole | suite}


def test_what_counts_as_an_addition() -> None:
    section = {"methods": ["graft"], "granularity": ["component"], "controls": [], "curves": False, "metric": "kl"}
    old = _identity(attribute=section)
    grown = {**section, "methods": ["path", "graft"], "nodes": 8, "curves": True, "controls": ["random"]}
    assert added(old, _identity(attribute=grown)) == Added((), ("path", "random", "curves"))
    assert added(_identity(), _identity("axb", attribute=section)) == Added(("x",), ("graft", "component"))
    assert Added(("x",)).stages == ("answers", "noise_floor", "effects") and Added().stages == ("effects",)
    assert added(old, _identity(attribute={**section, "metric": "x"})) == 'suite.attribute.metric was "kl" and is "x"'
    for alone in ({"generate": {"tokens": 3}}, {"answer_pattern": "x"}, {"tokenizer": "own"}):
        assert added(_identity(**alone), _identity("abc", **alone)) == "prompts changed"


def test_values_and_arrays_come_back_and_a_line_cut_short_does_not(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "of")
    one = Variant("base", (Unit("head", 2, "attn", head=3), Unit("neuron", 1, "mlp", neuron=7)))
    drawn = Variant("base", (WHOLE,), "random", 4)
    kept.keep(("p", "q"), {one: np.array([1 / 3, np.nan]), drawn: np.array([-0.0, 2.0])})
    kept.keep(("r",), {one: np.array([7.0])})
    kept.keep_arrays("path 8", {"p/1": {"values": np.arange(5, dtype=np.float32)}, "q": {"nodes": np.array(3)}})
    file = tmp_path / "of" / "values.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    again = Kept(tmp_path / "of")
    assert again.has(one, ("p", "q")) and not again.has(one, ("r",)) and not again.has(drawn, ("r",))
    np.testing.assert_array_equal(again.of(one, ("q", "p")), [np.nan, 1 / 3])
    assert np.signbit(again.of(drawn, ("p",))[0])
    assert again.words == "4 values of 2 variants and 2 prompts of path"
    (prompt, arrays), (other, numbers) = again.arrays("path 8")
    assert other == "q" and int(numbers["nodes"]) == 3 and not list(again.arrays("path 9"))
    assert prompt == "p/1" and arrays["values"].dtype == np.float32 and arrays["values"].tolist() == [0, 1, 2, 3, 4]
    lines = file.read_text().splitlines()
    assert len(lines) == 1 and json.loads(lines[0])["prompts"] == ["p", "q"]
    assert Kept(tmp_path / "none").words == ""
