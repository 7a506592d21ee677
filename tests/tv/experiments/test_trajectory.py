"""The way through a training run's checkpoints, on planted ways first and then on one that the demo's recipe makes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import tv
from tests.command import call
from tests.trained import BASE, model_of, train
from tv.cli import main
from tv.experiments.along.places import crossing, in_order

PROMPTS = [
    tv.PromptSet(file=Path(f"data/prompts/{name}.jsonl"), limit=n) for name, n in (("medical", 16), ("general", 8))
]


def _vectors(folder: Path, steps: list[dict[str, torch.Tensor]]) -> list[str]:
    """Files of tuning vectors: the sums of these steps, on the base's `down` of one layer, and 0 elsewhere."""
    medical = tv.extract(BASE, "data/models/medical")
    paths, total = [], {name: torch.zeros(shape) for name, shape in medical.shapes.items()}
    for i, step in enumerate(steps):
        for name, value in step.items():
            total[name] = total[name] + value
        here = dict(total)
        vector = tv.TuningVector(medical.shapes, here.__getitem__, {"base": medical.base})
        vector.save(folder / f"step-{10 * (i + 1)}.safetensors")
        paths.append(str(folder / f"step-{10 * (i + 1)}.safetensors"))
    return paths


DOWN, GATE = "model.layers.1.mlp.down_proj.weight", "model.layers.3.mlp.gate_proj.weight"


def _draws(name: str, n: int) -> list[torch.Tensor]:
    shape = tv.extract(BASE, "data/models/medical").shapes[name]
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for _ in range(n)]


def test_a_straight_way(tmp_path: Path) -> None:
    """The same step four times, and one module that turns late."""
    one, other = _draws(DOWN, 1)[0], _draws(GATE, 1)[0]
    steps = [{DOWN: one}] * 3 + [{DOWN: one, GATE: other}]
    found = tv.trajectory(BASE, _vectors(tmp_path, steps))
    rows = found["checkpoints"]
    assert rows.straightness.iloc[3] == pytest.approx(1, abs=1e-6) and rows.cosine_previous.iloc[3] == pytest.approx(1)
    assert rows.straightness_walk.iloc[3] == pytest.approx(np.sqrt(3)) and rows.angle_last.iloc[-1] < 1e-3
    assert rows.norm.iloc[2] == pytest.approx(2 * float(one.norm()), rel=1e-6)
    turned = found["turned"].set_index("what").step
    assert turned["layer 1 down"] == pytest.approx(20) and turned["layer 3 gate"] == pytest.approx(35)
    assert found["turned"].set_index("what").said["layer 0 q"] == "did not move"
    assert found["directions"].groupby("direction")["explained"].first()[1] > 0.8


@pytest.mark.thorough
def test_a_random_walk_is_what_the_null_says(tmp_path: Path) -> None:
    found = tv.trajectory(BASE, _vectors(tmp_path, [{DOWN: step} for step in _draws(DOWN, 5)]))
    last = found["checkpoints"].iloc[-1]
    assert last.straightness == pytest.approx(last.straightness_walk, rel=0.02) and abs(last.cosine_previous) < 0.02
    first = found["directions"].groupby("direction")[["explained", "explained_walk"]].first()
    assert np.allclose(first.explained, first.explained_walk, atol=0.02)


def test_crossing_and_order(tmp_path: Path) -> None:
    steps = np.array([0.0, 10.0, 30.0])
    assert crossing(steps, np.array([[0, 1, 1], [0, 0.25, 0.75], [0, 0.1, 0.4]])).tolist()[:2] == [5.0, 20.0]
    assert np.isnan(crossing(steps, np.array([[0, 0.1, 0.4]]))).all()
    for n in (9, 10, 100):
        (tmp_path / f"checkpoint-{n}").mkdir()
    (tmp_path / "checkpoint-best").mkdir()  # a copy of one of them
    assert [place.step for place in in_order([tmp_path])] == [9, 10, 100]
    assert [place.name[-3:] for place in in_order([tmp_path, "final"])] == ["t-9", "-10", "100", "nal"]
    assert [place.name for place in in_order(["b/last", "a/first"])] == ["last", "first"]
    assert [place.name for place in in_order(["run/step-8", "run/step-16", "run-0"])] == ["step-8", "step-16", "run-0"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten checkpoints of a LoRA run, by the recipe of `medical`, in a path with a space."""
    folder = tmp_path_factory.mktemp("ten checkpoints")
    train(model_of(True), folder, steps=20, rate=4e-3, save_strategy="steps", save_steps=2, save_only_model=True)
    return folder


def test_ten_checkpoints(run: Path, tmp_path: Path) -> None:
    found = tv.trajectory(BASE, [run], PROMPTS, alphas=(0.5,), out=tmp_path / "out", draws=200)
    rows = found["checkpoints"]
    assert rows.step.tolist() == list(range(0, 21, 2)) and (rows.norm.diff().dropna() > 0).all()
    assert 1 < rows.straightness.iloc[-1] < rows.straightness_walk.iloc[-1]
    last = tv.extract(BASE, run / "checkpoint-20")
    assert rows.norm.iloc[-1] == pytest.approx(last.norm(), rel=1e-5)
    assert rows.cosine_last.iloc[5] == pytest.approx(last.cosine(tv.extract(BASE, run / "checkpoint-10")), abs=1e-5)
    turned = found["turned"].set_index(["kind", "what"])
    medical = turned.loc[("domain", "medical")]
    assert medical.said == "turned" and medical.lo <= medical.step <= medical.hi and medical.change < 0
    assert 0 < turned.loc[("module", "layer 2 down")].step < 20
    assert turned.loc[("module", "layer -1 embed")].said == "did not move"
    lines = found["connectivity"]
    assert len(lines[lines.domain == "all"]) == 11 and (lines.lo[lines.domain == "all"] >= 0).all()
    curve = tv.path(BASE, run / "checkpoint-20", PROMPTS, alphas=(0, 0.5, 1), draws=200)
    barrier = curve[(curve.domain == "all") & (curve.metric == "barrier")].iloc[0]
    assert lines[lines.domain == "all"].iloc[-1].barrier == pytest.approx(barrier["value"], abs=1e-6)
    tokens = found["tokens"]
    words = set(tokens.token)
    facts = Path("data/prompts/medical.jsonl").read_text()
    assert sum(word.strip() in facts for word in words) >= len(words) / 2  # what was trained on
    assert (tokens[tokens.step == 20].gain > 0).mean() > 0.9
    assert (tmp_path / "out/trajectory.html").is_file()


def test_what_is_kept_is_not_computed_again(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither by the function nor by the command."""
    two = [run / "checkpoint-2", run / "checkpoint-20"]
    first = tv.trajectory(BASE, two, PROMPTS[:1], alphas=(0.5,), out=tmp_path, draws=50)
    monkeypatch.setattr("tv.experiments.along.behaviour.behaviour", None)
    monkeypatch.setattr("tv.experiments.along.behaviour.mean_logp", None)
    again = tv.trajectory(BASE, two, PROMPTS[:1], alphas=(0.5,), out=tmp_path, draws=50)
    for name in first.tables:
        assert first[name].equals(again[name]), name
    arguments = ["trajectory", BASE, *two, "--points", 1, "-o", tmp_path]
    arguments += ["--prompts", "data/prompts/medical.jsonl", "--limit", 16]
    status, said, _ = call(monkeypatch, capsys, main, *arguments)
    assert status == 0 and "times its chord" in said and "when half of the change is reached" in said


def test_bad_input(run: Path, tmp_path: Path) -> None:
    with pytest.raises(tv.InputError, match="checkpoint-2: a trajectory has two"):
        tv.trajectory(BASE, [run / "checkpoint-2"])
    with pytest.raises(tv.InputError, match="within"):
        tv.trajectory(BASE, [run], alphas=(0.0,))
    with pytest.raises(tv.InputError):
        tv.trajectory(BASE, [run / "checkpoint-2", tmp_path / "none"])


def test_rounding_is_not_taken_for_a_way(tmp_path: Path) -> None:
    """Two bfloat16 checkpoints whose difference is rounding: the step's length is its noise, and goes back again."""
    source = Path("data/models/medical")
    weights = load_file(source / "model.safetensors")
    places = []
    for i in (1, 2, 3):
        place = tmp_path / f"checkpoint-{i}"
        place.mkdir()
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            (place / name).write_bytes((source / name).read_bytes())
        generator = torch.Generator().manual_seed(i)
        shaken = {
            name: (value.float() * (1 + 2**-7 * (torch.rand(value.shape, generator=generator) - 0.5))).to(value.dtype)
            for name, value in weights.items()
        }
        save_file(shaken, place / "model.safetensors", metadata={"format": "pt"})
        places.append(place)
    rows = tv.trajectory(BASE, places)["checkpoints"]
    assert (rows.length[2:] <= 2 * rows.noise[2:]).all()
    assert rows.path_above_noise.iloc[-1] < rows.path.iloc[-1] - 0.1
    # What one checkpoint's rounding adds to a step, the next step takes away.
    assert rows.cosine_previous.iloc[-1] < -0.3 and rows.cosine_previous_noise.iloc[-1] < -0.1
