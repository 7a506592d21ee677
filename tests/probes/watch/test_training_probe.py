"""Training watched: nothing of it changes, and what is said of it is what the finished checkpoint shows."""

import random
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

import probes
import tv
from probes.cli import main
from probes.errors import RunError
from probes.watch.page import page_of
from probes.watch.undisturbed import core_of, undisturbed
from tests.command import call
from tests.trained import BASE, model_of, train

PROMPTS = [tv.PromptSet(file=Path(f"data/prompts/{name}.jsonl"), limit=9) for name in ("medical", "general")]
STEPS = 4


class Recorder(TrainerCallback):
    """Stands for what writes logs: it comes before the probe in the Trainer's list, as TensorBoard's does."""

    def __init__(self) -> None:
        self.logs: list[tuple[int, dict[str, Any]]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.logs.append((state.global_step, dict(logs)))


def _watched(folder: Path, adapter: bool) -> dict[str, Any]:
    probe = probes.TrainingProbe(
        folder / "watch", prompts=PROMPTS, every=2, vectors={"medical": "data/models/medical"}, draws=1
    )
    recorder = Recorder()
    model = model_of(adapter, dropout=0.1)
    trainer = train(model, folder / "run", recorder, probe, steps=STEPS)
    return {"model": model, "trainer": trainer, "logs": recorder.logs, "watch": probes.load_watch(folder / "watch")}


@pytest.fixture(scope="module", params=[False, True], ids=["whole", "lora"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return _watched(tmp_path_factory.mktemp("a run"), request.param) | {"adapter": request.param}


def test_training_is_the_same_to_the_bit(run: dict[str, Any], tmp_path: Path) -> None:
    """With dropout on: a probe draws nothing, and leaves modes, gradients and weights as they were."""
    alone = model_of(run["adapter"], dropout=0.1)
    train(alone, tmp_path, steps=STEPS)
    watched = run["model"].state_dict()
    assert all(torch.equal(value, watched[name]) for name, value in alone.state_dict().items())


def test_the_last_step_is_what_the_finished_model_shows(run: dict[str, Any], tmp_path: Path) -> None:
    steps, weights = run["watch"]["steps"], run["watch"]["weights"]
    assert steps.step.tolist() == [0, 2, 4]
    assert steps.training_seconds.is_monotonic_increasing and steps.training_seconds[0] == 0
    run["model"].save_pretrained(tmp_path / "tuned")
    vector = tv.extract(BASE, tmp_path / "tuned")
    assert steps["norm"].iloc[-1] == pytest.approx(vector.norm(), rel=1e-4) and steps["norm"].iloc[0] == 0
    last = weights[(weights.step == STEPS) & (weights.layer == 2)].set_index("module")
    for name, path in (("q", "self_attn.q_proj"), ("down", "mlp.down_proj"), ("gate", "mlp.gate_proj")):
        energy = torch.linalg.svdvals(vector[f"model.layers.2.{path}.weight"].double()) ** 2
        assert last.norm[name] ** 2 == pytest.approx(float(energy.sum()), rel=1e-4)
        assert last.stable_rank[name] == pytest.approx(float(energy.sum() / energy[0]), rel=0.02)
        assert last.participation_ratio[name] == pytest.approx(float(energy.sum() ** 2 / (energy**2).sum()), rel=1e-3)
    cosines = run["watch"]["cosines"]
    whole = cosines[(cosines.step == STEPS) & (cosines.module == "all")].iloc[0]
    assert whole.cosine == pytest.approx(vector.cosine(tv.extract(BASE, "data/models/medical")), abs=1e-5)
    assert whole.cosine > 10 * whole.cosine_null


def test_behaviour_flips_and_nulls(run: dict[str, Any]) -> None:
    watched = run["watch"]
    behaviour, flips, nulls = watched["behaviour"], watched["flips"], watched["nulls"]
    start = behaviour[behaviour.step == 0]
    assert (start.change == 0).all() and set(start.said) == {"within noise"}
    medical = behaviour[(behaviour.domain == "medical") & (behaviour.step == STEPS)].set_index("metric")
    curve = tv.path(BASE, run["model"], PROMPTS, alphas=(0, 1), draws=2)
    at = curve[(curve.domain == "medical") & (curve.metric == "loss")].set_index("alpha")["value"]
    assert medical.loc["loss", "base"] == pytest.approx(at[0.0], rel=1e-4)
    assert medical.loc["loss", "value"] == pytest.approx(at[1.0], rel=1e-3)
    assert medical.loc["kl", "value"] > 10 * medical.loc["kl", "floor"] and medical.loc["loss", "change"] < 0
    shares = behaviour[behaviour.metric == "exact_match"]
    assert shares.lo.min() >= 0 and shares.hi.max() <= 1
    whole = flips[flips.layer == -2].set_index("step")
    assert whole.flip_rate[0] == 0 and whole.floor[STEPS] < whole.flip_rate[STEPS] < whole.chance_flip_rate[STEPS]
    drawn = nulls[(nulls.metric == "kl") & (nulls.domain == "medical")]["value"]
    assert len(drawn) == 1 and 0 < drawn.iloc[0] < medical.loc["kl", "value"]  # size alone does less


def test_what_is_logged(run: dict[str, Any]) -> None:
    """Scalars reach callbacks that stand before the probe, at the step they are of, and the log's history."""
    logged = {step: logs for step, logs in run["logs"] if "probe/kl" in logs}
    steps = run["watch"]["steps"].set_index("step")
    assert {2, 4} <= set(logged)
    assert logged[4]["probe/T_norm"] == steps["norm"][4] and logged[4]["probe/cosine/medical"] > 0
    assert "loss" in logged[4] and not any("probe/kl" in logs for step, logs in run["logs"] if step not in (0, 2, 4))
    history = {row["step"]: row for row in run["trainer"].state.log_history if "probe/kl" in row}
    assert history[4]["probe/kl"] == logged[4]["probe/kl"]


def test_the_page(
    run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = str(run["watch"].path)
    page = tmp_path / "page.html"
    compare = partial(call, monkeypatch, capsys, main, "compare")
    assert compare(place, "--watch", "--out", page)[0] == 0  # ended: one look
    text = page.read_text()
    assert "Training has ended" in text and "http-equiv" not in text and "<script" not in text
    for said in ("KL(base ‖ tuned)", "Gates that are not as in the base", "Cosine of T", "random T with the norms"):
        assert said in text
    assert 'http-equiv="refresh"' in page_of(run["watch"], 5.0)
    for odd, said in (([place, place], "one directory"), ([tmp_path], "no watched training")):
        status, _, told = compare(*odd, "--watch")
        assert status == 2 and said in told
    assert compare(tmp_path)[0] == 2


def test_resumed_without_doubled_steps(tmp_path: Path) -> None:
    """From a checkpoint: steps after it are measured again, those before stay, and the base is the first one."""
    watched = tmp_path / "watch"
    saving = {"save_strategy": "steps", "save_steps": 2}
    train(model_of(False), tmp_path, probes.TrainingProbe(watched, every=1), steps=3, **saving)
    before = probes.load_watch(watched)["steps"]
    (watched / "watch.json").write_text((watched / "watch.json").read_text().replace("true", "false"))
    probe = probes.TrainingProbe(watched, every=1)
    train(model_of(False), tmp_path, probe, steps=4, resume=str(tmp_path / "checkpoint-2"), **saving)
    after = probes.load_watch(watched)
    assert before.step.tolist() == [0, 1, 2, 3] and after["steps"].step.tolist() == [0, 1, 2, 3, 4]
    assert after["steps"]["norm"][:3].tolist() == before["norm"][:3].tolist() and after.ended
    assert after["steps"]["norm"].iloc[-1] > 0 and "behaviour" not in after.tables
    lost = probes.TrainingProbe(tmp_path / "elsewhere", every=1)
    with pytest.raises(tv.InputError, match="its base is not here"):
        lost.step(model_of(False), 2)


def test_a_loop_of_ones_own_and_mixed_precision(tmp_path: Path) -> None:
    """`step` measures in the model's own precision, whatever autocast the loop, or accelerate, is under."""
    model = model_of(True)
    probe = probes.TrainingProbe(tmp_path / "w", prompts=PROMPTS, every=2, draws=0, metrics=["behaviour"])
    plain = probe.step(model, 0)
    core = core_of(model)
    ids = torch.arange(5, 15)[None]
    with torch.autocast("cpu", torch.bfloat16), undisturbed(core):
        inside = core(input_ids=ids).logits
    model.train()
    state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    with torch.autocast("cpu", torch.bfloat16):
        assert plain and not probe.step(model, 1, loss=2.0) and probe.step(model, 2, loss=1.0, final=True)
    assert inside.dtype == torch.float32 and model.training and core.training
    assert state[0] == random.getstate() and torch.equal(state[2], torch.get_rng_state())
    found = probes.load_watch(tmp_path / "w")
    assert found["steps"].loss.tolist()[1] == 1.0 and found["steps"].kl.tolist() == [0.0, 0.0]


def test_auto_keeps_to_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock of its own: a second a step, two a measurement."""
    from probes.watch import pacing

    now = 0.0
    monkeypatch.setattr(pacing.time, "perf_counter", lambda: now)
    pace = pacing.Pace("auto", share=0.03)
    pace.start(0.0)
    measured = []
    for step in range(1001):
        if pace.due(step, 1000) or step == 0:
            now += 2.0
            pace.paid(step, 2.0, 0.0, usual=2.0)
            measured.append(step)
        now += 1.0
    assert measured[0] == 0 and measured[-1] == 1000 and len(measured) >= 12
    assert pace.spent <= 0.03 * pace.trained
    assert not pace.affords(100.0)


def test_what_cannot_be_watched(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("")
    for settings, said in (
        ({"out": tmp_path / "other"}, "something else"),
        ({"out": tmp_path / "a", "every": 0}, "number of steps"),
        ({"out": tmp_path / "a", "share": 2.0}, "share"),
        ({"out": tmp_path / "a", "metrics": ["speed"]}, "no metric 'speed'"),
        ({"out": tmp_path / "a", "prompts": tmp_path / "none.jsonl"}, "none.jsonl"),
    ):
        with pytest.raises(tv.InputError, match=said):
            probes.TrainingProbe(**settings)
    assert not (tmp_path / "a").exists()
    wider = LlamaForCausalLM(LlamaConfig.from_pretrained(BASE, hidden_size=16))
    with pytest.raises(tv.CheckpointError, match="not the base of this model: its"):
        probes.TrainingProbe(tmp_path / "a", base=BASE).step(wider, 0)


@pytest.mark.parametrize("adapter", [False, True], ids=["whole", "lora"])
def test_a_directory_is_of_one_base(adapter: bool, tmp_path: Path) -> None:
    """Else T and KL would be those from the base of the training before."""
    model = model_of(adapter)
    probes.TrainingProbe(tmp_path / "w", every=1).step(model, 0)
    with torch.no_grad():
        core_of(model).get_output_embeddings().weight.add_(1.0)
    with pytest.raises(RunError, match="began from other weights"):
        probes.TrainingProbe(tmp_path / "w", every=1).step(model, 0)
    assert probes.load_watch(tmp_path / "w")["steps"].step.tolist() == [0]


@pytest.mark.thorough
def test_a_vocabulary_that_grew(tmp_path: Path) -> None:
    """The base has fewer rows: what it answers is read with those of its own."""
    model = model_of(False)
    model.resize_token_embeddings(model.config.vocab_size + 8)
    probe = probes.TrainingProbe(tmp_path / "w", base=BASE, prompts=PROMPTS[:1], per_domain=2, draws=1, every=1)
    assert probe.step(model, 0)
    assert probes.load_watch(tmp_path / "w")["steps"].norm.tolist() == [0.0]


def test_files_survive_a_kill_in_between(tmp_path: Path) -> None:
    """What is folded is read once, and a measurement without its row of `steps` is not there."""
    from probes.watch import store

    store.write_manifest(tmp_path, {"ended": False})
    for step in range(70):
        store.append(tmp_path, step, {"weights": [{"norm": float(step)}], "steps": [{"seconds": 1.0}]})
    pd.DataFrame({"step": [70], "norm": [1.0]}).to_parquet(tmp_path / "tables/weights/step-000000070.parquet")
    pd.DataFrame({"step": [3], "norm": [9.0]}).to_parquet(tmp_path / "tables/weights/step-000000003.parquet")
    watched = store.load_watch(tmp_path)
    assert watched["steps"].step.tolist() == list(range(70)) and watched["weights"].norm.tolist() == list(range(70))
    assert len(list((tmp_path / "tables/weights").iterdir())) < 10
    store.forget(tmp_path, 5)
    assert watched["weights"].step.tolist() == [0, 1, 2, 3, 4, 5]
