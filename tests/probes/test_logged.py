"""What was logged elsewhere, as behaviour of a run whose prompts came from the logs."""

import json
import shutil
from pathlib import Path

import pytest

import probes
from probes.cli import main
from probes.reporting.evidence import gather
from tests.command import call
from tv.errors import InputError

DATA = Path(__file__).resolve().parents[2] / "data"
LM_EVAL = {name: DATA / "logs" / "lm-eval" / name for name in ("base", "medical")}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the items of two tasks of the harness, and of a log of Inspect."""
    files = [*sorted(LM_EVAL["base"].glob("*_c*.jsonl"))[:3], DATA / "logs" / "inspect" / "base.eval"]
    run = probes.run(
        {
            "name": "items",
            "base": str(DATA / "models" / "base"),
            "tuned": {"medical": str(DATA / "models" / "medical")},
            "prompts": [{"file": str(file), "limit": 12} for file in files],
            "measure": ["behaviour"],
            "noise_floor": False,
        },
        stages=["capture"],
        out=tmp_path_factory.mktemp("runs") / "items",
    )
    return Path(run.path)


@pytest.fixture
def run(made: Path, tmp_path: Path) -> probes.Run:
    return probes.load(shutil.copytree(made, tmp_path / "a run"))


def test_logged_scores_stand_beside_the_runs_own_and_agree(run: probes.Run) -> None:
    before = run["behaviour"]
    probes.logs(run, LM_EVAL)
    after = probes.load(run.path)["behaviour"]
    logged = after.metric.str.startswith("logged:")
    assert after[~logged].reset_index(drop=True).equals(before)
    wide = after.pivot_table(index=["prompt_id", "model"], columns="metric", values="value")
    # Of what the harness wrote greedily and right, the run too finds the target the likeliest.
    written = wide["logged:exact_match"].dropna()
    assert len(written) == 24 and (written == wide.exact_match[written.index]).all()
    # A choice is right where the target is likelier than the base's best wrong choice.
    chosen = wide["logged:acc"].dropna().xs("base", level="model")
    assert (chosen == (wide.logit_diff.xs("base", level="model")[chosen.index] > 0)).mean() > 0.9


def test_epochs_are_averaged_and_a_second_call_replaces_the_first(run: probes.Run) -> None:
    logs = {name: DATA / "logs" / "inspect" / f"{name}.eval" for name in ("base", "medical")}
    first = probes.logs(run, logs)
    again = probes.logs(run, logs)
    assert first.equals(again) and not first.duplicated(["prompt_id", "model", "metric"]).any()
    assert set(first.metric) == {"logged:match", "logged:form/begins", "logged:form/letters"}
    assert len(run["behaviour"]) == len(probes.load(run.path)["behaviour"])
    assert (run["behaviour"].metric == "logged:match").sum() == (first.metric == "logged:match").sum()


def test_the_report_tests_logged_shares_as_shares(run: probes.Run) -> None:
    probes.logs(run, LM_EVAL)
    behaviour = gather(run, "medical").behaviour
    row = behaviour[(behaviour.metric == "logged:acc") & (behaviour.domain == "medical_choice")].iloc[0]
    assert (row.gained, row.lost) == (row.change * row.n, 0)


def test_what_does_not_belong_to_the_run_is_refused(
    run: probes.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = run["behaviour"]
    base, medical = LM_EVAL.values()
    with pytest.raises(InputError, match="no model 'law'; there are base, medical"):
        probes.logs(run, {"base": base, "law": medical})
    with pytest.raises(InputError, match="logs of two models are needed"):
        probes.logs(run, {"medical": medical})
    alien = tmp_path / "samples_alien_2026-01-02T03-04-05.6.jsonl"
    (file,) = base.glob("samples_medical_cloze*")
    alien.write_bytes(file.read_bytes())
    with pytest.raises(InputError, match="none of its items"):
        probes.logs(run, {"base": base, "medical": alien})
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[0]["arguments"]["gen_args_0"]["arg_0"] += " Well,"
    other = tmp_path / "other" / file.name
    other.parent.mkdir()
    other.write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, _, err = call(monkeypatch, capsys, main, "logs", run.path, f"base={base}", f"medical={other}")
    assert status == 2 and "differs in wording from the run's prompt" in err and len(err.splitlines()) == 1
    assert probes.load(run.path)["behaviour"].equals(before)
