"""The path between two models and the plane of three: ends, intervals, the barrier, and bad input."""

import copy
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import PreTrainedModel

import tv
from tests.command import call
from tests.pairs import PROMPTS, build_model, build_pair, perturb, write_prompts
from tv.checkpoints.live import load_model, load_tokenizer
from tv.cli import main
from tv.evaluation.interpolation import barrier_of, rise_of
from tv.prompts.behaviour import batched, behaviour, gather
from tv.prompts.files import Prompt

MODELS, DATA = Path("data/models"), Path("data/prompts")
FEW = (-0.5, 0.0, 0.3, 0.5, 1.0, 1.5)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return build_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prompts(tmp_path_factory.mktemp("prompts") / "mixed.jsonl")


@pytest.fixture(scope="module")
def frame(pair: tuple[Path, Path], prompts: Path) -> pd.DataFrame:
    return tv.path(*pair, prompts, alphas=FEW, draws=200)


def at(frame: pd.DataFrame, metric: str, domain: str = "all", **point: float) -> pd.Series:
    """The one row of a table."""
    rows = frame[(frame.metric == metric) & (frame.domain == domain)]
    for name, value in point.items():
        rows = rows[rows[name] == value]
    assert len(rows) == 1
    return rows.iloc[0]


def loss_by_hand(model: PreTrainedModel, prompt: dict[str, str]) -> float:
    """Mean −log p of a token of the target, else of the text: one prompt alone, without batches."""
    tokenizer = load_tokenizer(model.config._name_or_path)
    ids = tokenizer(prompt["text"] + prompt.get("target", ""))["input_ids"]
    first = len(tokenizer(prompt["text"])["input_ids"]) if "target" in prompt else 1
    with torch.inference_mode():
        logp = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return float(np.mean([-logp[i - 1, ids[i]] for i in range(first, len(ids))]))


def test_the_ends_are_the_two_models(frame: pd.DataFrame, pair: tuple[Path, Path], prompts: Path) -> None:
    for alpha, directory in zip((0.0, 1.0), pair, strict=True):
        model = load_model(directory)
        by_hand = [loss_by_hand(model, row) for row in PROMPTS]
        assert at(frame, "loss", alpha=alpha).value == pytest.approx(np.mean(by_hand), abs=1e-5)
        own = behaviour(model, batched(gather(prompts), model, load_tokenizer(directory), 2))
        for metric in ("target_nll", "logit_diff", "exact_match"):
            assert at(frame, metric, alpha=alpha).value == pytest.approx(np.nanmean(own[metric]), abs=1e-5)
            assert at(frame, metric, alpha=alpha).prompts == 5
    assert at(frame, "loss", alpha=0.0).value != pytest.approx(at(frame, "loss", alpha=1.0).value, abs=1e-3)


def test_at_one_stands_the_tuned_model_bit_for_bit_where_both_are_bfloat16(tmp_path: Path, prompts: Path) -> None:
    base, tuned = build_pair(tmp_path, "qwen2", dtype=torch.bfloat16)
    there = tv.path(base, tuned, prompts, alphas=(0, 1), draws=2)
    back = tv.path(tuned, base, prompts, alphas=(0, 1), draws=2)
    for metric in ("loss", "logit_diff"):
        for alpha in (0.0, 1.0):
            assert at(there, metric, alpha=alpha).value == at(back, metric, alpha=1 - alpha).value


def test_points_close_to_each_other_are_told_apart(tmp_path: Path, prompts: Path) -> None:
    """A bfloat16 pair 0.2 % apart: moved in bfloat16, nearly every entry would stand on one of the two ends."""
    base, tuned = build_pair(tmp_path, dtype=torch.bfloat16, step=2e-3)
    alphas = [round(0.5 + i * 1e-3, 3) for i in range(5)]
    close = tv.path(base, tuned, prompts, alphas=alphas, draws=2)
    losses = [at(close, "loss", alpha=alpha).value for alpha in alphas]
    assert len(set(losses)) == 5
    steps = np.diff(losses)
    assert (np.sign(steps) == np.sign(steps[0])).all() and np.ptp(steps) < np.abs(steps).mean()
    narrow, vector = load_model(base, dtype="bfloat16"), tv.extract(base, tuned)
    start = {name: value.detach().clone() for name, value in narrow.named_parameters()}
    with tv.variant(narrow, {vector: 0.4}):
        here = {name: value.detach().clone() for name, value in narrow.named_parameters()}
    ends = {name: value.detach().clone() for name, value in load_model(tuned, dtype="bfloat16").named_parameters()}
    changed = sum(int((start[name] != ends[name]).sum()) for name in start)
    collapsed = sum(int(((start[n] != ends[n]) & ((here[n] == start[n]) | (here[n] == ends[n]))).sum()) for n in start)
    assert collapsed > 0.5 * changed


def test_the_table(frame: pd.DataFrame) -> None:
    assert list(frame.columns) == ["alpha", "domain", "metric", "value", "lo", "hi", "prompts", "clusters", "over"]
    assert list(dict.fromkeys(frame.domain)) == ["all", "medical", "math", "general", "mixed"]
    assert frame.lo.isna().all() and frame.hi.isna().all(), "six prompts are too few for an interval"
    whole = frame[frame.domain == "all"]
    assert sorted(whole[whole.metric == "loss"].alpha) == list(FEW)
    assert sorted(whole[whole.metric == "excess"].alpha) == [0.0, 0.3, 0.5, 1.0]
    over = frame[frame.metric == "loss"].groupby("domain", sort=False).over.first()
    assert over.to_dict() == {
        "all": "mixed",
        "medical": "target",
        "math": "target",
        "general": "target",
        "mixed": "text",
    }
    sizes = frame[frame.metric == "loss"].groupby("domain", sort=False).prompts.first()
    assert sizes.to_dict() == {"all": 6, "medical": 2, "math": 2, "general": 1, "mixed": 1}
    means = [at(frame, "loss", name, alpha=0.3).value * sizes[name] for name in sizes.index[1:]]
    assert at(frame, "loss", alpha=0.3).value == pytest.approx(sum(means) / 6)
    assert not (frame[frame.domain == "mixed"].metric == "target_nll").any()  # no prompt with a target
    assert set(frame.attrs["fingerprints"]) == {"base", "tuned"} and all(frame.attrs["fingerprints"].values())


def test_excess_barrier_and_rise_follow_from_the_losses(frame: pd.DataFrame) -> None:
    start, end = (at(frame, "loss", alpha=alpha).value for alpha in (0.0, 1.0))
    excess = {a: at(frame, "loss", alpha=a).value - (1 - a) * start - a * end for a in (0.0, 0.3, 0.5, 1.0)}
    for alpha, value in excess.items():
        assert at(frame, "excess", alpha=alpha).value == pytest.approx(value, abs=1e-12)
    assert at(frame, "barrier").value == pytest.approx(max(excess.values()), abs=1e-12)
    highest = max(at(frame, "loss", alpha=alpha).value for alpha in excess)
    assert at(frame, "rise").value == pytest.approx(highest - max(start, end), abs=1e-12)


def test_the_barrier_of_curves_known_by_hand() -> None:
    alphas = np.array([-0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5])
    ones = np.linspace(0.9, 1.1, 8)[:, None]  # one on average: without any spread there is no interval
    concave = barrier_of(alphas, ones * (3 - 2 * alphas + 4 * alphas * (1 - alphas)))
    assert (concave.alpha, concave.value) == pytest.approx((0.5, 1)) and 0.9 < concave.lo < 1 < concave.hi < 1.1
    alike = barrier_of(alphas, np.ones((8, 1)) * (3 - 2 * alphas + 4 * alphas * (1 - alphas)))
    assert alike.value == 1 and math.isnan(alike.lo)
    for flat in (3 - 2 * alphas - 4 * alphas * (1 - alphas), 5 + 7 * alphas, 0 * alphas):
        found = barrier_of(alphas, ones * flat)
        assert found.alpha == 0 and (found.value, found.lo, found.hi) == pytest.approx((0, 0, 0), abs=1e-12)
    bent = ones * (3 - 2 * alphas + 2 * alphas * (1 - alphas))  # falls all the way from 3 to 1
    assert barrier_of(alphas, bent).value == pytest.approx(0.5) and rise_of(alphas, bent).hi == 0
    hill = rise_of(alphas, ones * (3 - 2 * alphas + 8 * alphas * (1 - alphas)))
    assert (hill.alpha, hill.value) == pytest.approx((0.25, 1)) and 0.9 < hill.lo < 1 < hill.hi < 1.1
    outside = barrier_of(alphas, ones * np.where((alphas < 0) | (alphas > 1), 100.0, 1.0))
    assert outside.hi == 0  # what lies beyond the ends is no barrier between them


def test_the_interval_of_the_barrier_takes_the_maximum_anew_in_every_draw() -> None:
    """Two kinds of prompts with their bumps at different α: the maximum over α of a mean is no mean of maxima.

    Resampled alone, the lower end would be one half: one of the two is always at least that.
    """
    alphas = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
    left, right = np.array([0, 1.0, 0, 0, 0]), np.array([0, 0, 0, 1.0, 0])
    found = barrier_of(alphas, np.array([left] * 10 + [right] * 10), draws=2000)
    assert found.value == 0.5
    assert 0.2 < found.lo < 0.3 and 0.65 < found.hi < 0.8  # as a mean of ten ones and ten zeros


def test_the_interval_holds_the_truth() -> None:
    alphas, bump = np.linspace(0, 1, 5), np.array([0, 0.6, 1.0, 0.4, 0])
    generator, hits = np.random.default_rng(0), 0
    for seed in range(100):
        heights, ends = generator.normal(1, 0.8, (40, 1)), generator.normal(5, 2, (40, 2))
        found = barrier_of(alphas, ends @ np.array([1 - alphas, alphas]) + heights * bump, draws=300, seed=seed)
        hits += found.lo <= 1 <= found.hi
    assert hits >= 88


def test_the_interval_holds_the_truth_of_skewed_bumps_of_few_prompts() -> None:
    alphas, bump = np.linspace(0, 1, 5), np.array([0, 0.6, 1.0, 0.4, 0])
    generator, hits = np.random.default_rng(1), 0
    for _ in range(200):
        heights, ends = generator.exponential(size=(10, 1)), generator.normal(5, 2, (10, 2))
        found = barrier_of(alphas, ends @ np.array([1 - alphas, alphas]) + heights * bump, draws=200)
        hits += found.lo <= 1 <= found.hi
    assert hits >= 0.91 * 200


def test_clusters_are_drawn_whole_and_few_of_them_give_no_interval(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Every cluster holds copies of one prompt: the interval is that of the single prompts."""
    alphas, single = np.linspace(0, 1, 5), np.random.default_rng(1).normal(3, 1, (9, 5))
    names = [str(i) for i in np.repeat(np.arange(9), 4)]
    alone, together = barrier_of(alphas, single), barrier_of(alphas, single.repeat(4, 0), names)
    assert vars(together) == pytest.approx(vars(alone))
    ignored = barrier_of(alphas, single.repeat(4, 0))
    assert ignored.hi - ignored.lo < 0.7 * (together.hi - together.lo)
    for few in (barrier_of(alphas, single[:7]), rise_of(alphas, single.repeat(4, 0)[:28], names[:28])):
        assert math.isnan(few.lo) and math.isnan(few.hi) and few.value >= 0
    rows = [
        {"id": f"p{i}", "text": f"{word} the heart pumps", "target": " blood", "cluster": f"{i % 9}"}
        for i, word in enumerate("atheoniwsmyu")
    ]
    for n, shown in ((12, True), (7, False)):
        found = tv.path(*pair, write_prompts(tmp_path / f"{n}.jsonl", rows[:n]), alphas=(0, 0.5, 1), draws=50)
        assert set(found.clusters) == {min(n, 9)} and set(found.prompts) == {n}
        assert (at(found, "loss", alpha=0.5).lo < at(found, "loss", alpha=0.5).value) == shown
        assert math.isfinite(at(found, "rise").hi) == shown
        assert (at(found, "exact_match", alpha=0.0).hi > 0.25) == shown, "Wilson's: none of twelve is not never"


@pytest.mark.thorough
def test_neurons_in_another_order_are_a_barrier() -> None:
    """The same function at both ends, and nothing that works between: what the barrier is for."""
    base = load_model(MODELS / "base")
    other = copy.deepcopy(base)
    for i, layer in enumerate(other.model.layers):
        order = torch.randperm(layer.mlp.gate_proj.out_features, generator=torch.Generator().manual_seed(i))
        with torch.no_grad():
            for matrix in (layer.mlp.gate_proj, layer.mlp.up_proj):
                matrix.weight.copy_(matrix.weight[order])
            layer.mlp.down_proj.weight.copy_(layer.mlp.down_proj.weight[:, order])
    few = gather(DATA / "general.jsonl")
    found = tv.path(base, other, few, alphas=(0, 0.25, 0.5, 0.75, 1), draws=200)
    start, end = (at(found, "loss", alpha=alpha).value for alpha in (0.0, 1.0))
    assert start == pytest.approx(end, abs=1e-4) and start < 0.05
    barrier, rise = at(found, "barrier"), at(found, "rise")
    assert barrier.lo > 0.5 and barrier.alpha == 0.5
    assert rise.value == pytest.approx(barrier.value, abs=1e-3)


def test_the_demo_pair_has_no_barrier() -> None:
    medical = tv.path(MODELS / "base", MODELS / "medical", DATA / "medical.jsonl", alphas=(0, 0.25, 0.5, 0.75, 1))
    assert at(medical, "rise").value == 0 and at(medical, "barrier").lo == 0
    matched = [at(medical, "exact_match", alpha=alpha).value for alpha in (0.0, 0.5, 1.0)]
    assert matched[0] < 0.05 < matched[1] < 0.9 < matched[2]


def test_a_live_base_is_left_as_it_was(pair: tuple[Path, Path], prompts: Path, frame: pd.DataFrame) -> None:
    live = load_model(pair[0]).train()
    before = {name: value.clone() for name, value in live.state_dict().items()}
    found = tv.path(live, pair[1], prompts, alphas=FEW, draws=200)
    pd.testing.assert_frame_equal(found, frame, check_exact=False, atol=1e-6)
    assert live.training and all(torch.equal(value, before[name]) for name, value in live.state_dict().items())
    narrow = load_model(pair[0], dtype="bfloat16")
    tv.path(narrow, pair[1], prompts, alphas=(0, 1), draws=2)
    assert narrow.dtype == torch.bfloat16


def test_a_tuning_vector_is_a_tuned_side(pair: tuple[Path, Path], prompts: Path, frame: pd.DataFrame) -> None:
    vector = tv.extract(*pair)
    pd.testing.assert_frame_equal(tv.path(pair[0], vector, prompts, alphas=FEW, draws=200), frame)
    negated = tv.path(pair[0], -vector, prompts, alphas=(-1, 0, 0.5, 1), draws=2)
    for metric in ("loss", "logit_diff"):
        assert at(negated, metric, alpha=0.5).value == pytest.approx(at(frame, metric, alpha=-0.5).value, abs=1e-6)
        assert at(negated, metric, alpha=-1.0).value == pytest.approx(at(frame, metric, alpha=1.0).value, abs=1e-6)


def test_batches_do_not_matter(pair: tuple[Path, Path], prompts: Path, frame: pd.DataFrame) -> None:
    single = tv.path(*pair, prompts, alphas=FEW, draws=200, batch_size=1)
    pd.testing.assert_frame_equal(single, frame, check_exact=False, atol=1e-5)


def test_prompts_given_as_such_and_the_grid_completed(pair: tuple[Path, Path]) -> None:
    rows = [Prompt("x", "own", "own", "The heart pumps", " blood"), Prompt("y", "own", "own", "A lamp gives", " light")]
    seen: list[tuple[str, int, int, str]] = []
    found = tv.path(*pair, rows, alphas=(0.2, 0.7), draws=2, compute=tv.Compute(progress=lambda *now: seen.append(now)))
    assert list(found[found.metric == "loss"].alpha) == [0.0, 0.2, 0.7, 1.0]
    assert [now[1:3] for now in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert set(found.domain) == {"all"} and not (found.metric == "logit_diff").any()


@pytest.mark.thorough
def test_the_plane(pair: tuple[Path, Path], prompts: Path, frame: pd.DataFrame) -> None:
    third = load_model(pair[0])
    perturb(third, 0.02, seed=5)
    grid = tv.plane(*pair, third, prompts, alphas=(0.3, 1), betas=(0, 1))
    assert list(grid.columns) == [
        "alpha",
        "beta",
        "domain",
        "metric",
        "value",
        "lo",
        "hi",
        "prompts",
        "clusters",
        "over",
    ]
    per_token = {"target_nll_per_token", "token_accuracy"}
    assert set(grid.metric) == {"loss", "target_nll", "logit_diff", "exact_match", *per_token}
    losses = grid[(grid.metric == "loss") & (grid.domain == "all")]
    assert sorted(zip(losses.alpha, losses.beta, strict=True)) == [(a, b) for a in (0, 0.3, 1) for b in (0, 1)]
    for alpha in (0.0, 0.3, 1.0):
        assert at(grid, "loss", alpha=alpha, beta=0.0).value == pytest.approx(
            at(frame, "loss", alpha=alpha).value, abs=1e-6
        )
    assert at(grid, "loss", alpha=0.0, beta=1.0).value == pytest.approx(
        np.mean([loss_by_hand(third, row) for row in PROMPTS]), abs=1e-5
    )
    model = load_model(pair[0])
    with tv.variant(model, {tv.extract(*pair): 1.0, tv.extract(pair[0], third): 1.0}):
        both = np.mean([loss_by_hand(model, row) for row in PROMPTS])
    assert at(grid, "loss", alpha=1.0, beta=1.0).value == pytest.approx(both, abs=1e-5)


def test_bad_input(pair: tuple[Path, Path], prompts: Path, tmp_path: Path) -> None:
    with pytest.raises(tv.InputError, match="no prompts"):
        tv.path(*pair, [])
    with pytest.raises(tv.InputError, match="at least two"):
        tv.path(*pair, prompts, alphas=(0.5,))
    with pytest.raises(tv.InputError, match="finite"):
        tv.path(*pair, prompts, alphas=(0.0, math.nan))
    with pytest.raises(tv.InputError, match="batch size 0"):
        tv.path(*pair, prompts, batch_size=0)
    with pytest.raises(tv.InputError, match="device 'nowhere'"):
        tv.path(*pair, prompts, compute=tv.Compute(device="nowhere"))
    with pytest.raises(tv.InputError, match="compare checkpoints"):
        tv.path(pair[0], build_pair(tmp_path, "gpt2")[1], prompts)
    other = build_model("qwen2")
    with pytest.raises(tv.InputError, match="does not have"):
        tv.path(pair[0], tv.extract(other, other), prompts)
    rows = [Prompt("x", "own", "own", "The heart pumps"), Prompt("x", "own", "own", "A lamp gives")]
    with pytest.raises(tv.InputError, match="'x'"):
        tv.path(*pair, rows)


def test_the_command(pair: tuple[Path, Path], prompts: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    given = ["--prompts", prompts, "--points", "3", "--to", "1.0", "-o", tmp_path / "path.csv"]
    code, out, err = call(monkeypatch, capsys, main, "path", *pair, *given)
    assert code == 0, err
    assert "medical: fewer than 8 prompts or clusters are too few" in out and "nan" not in out
    table = pd.read_csv(tmp_path / "path.csv")
    assert sorted(set(table.alpha)) == [-0.5, 0, 0.25, 1] and "fingerprint_base" in table
    code, out, err = call(
        monkeypatch, capsys, main, "path", *pair, "--second", pair[1], "--prompts", prompts, "--points", 2
    )
    assert code == 0, err
    assert "math: base " in out and "lowest" in out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "--prompts"),
        (["--prompts", "nowhere.jsonl"], "no such prompt file"),
        (["--prompts", "{prompts}", "--points", "1"], "--points 1"),
        (["--prompts", "{prompts}", "--from", "1", "--to", "1"], "--from 1 --to 1"),
        (["--prompts", "{prompts}", "--second", "./nowhere"], "no such directory"),
        (["--prompts", "{prompts}", "-o", "path.xlsx"], ".xlsx"),
        (["--prompts", "{prompts}", "--batch-size", "0"], "batch size 0"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    arguments: list[str], expected: str, pair: tuple[Path, Path], prompts: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, stderr = call(monkeypatch, capsys, main, "path", *pair, *(a.format(prompts=prompts) for a in arguments))
    assert code == 2 and expected in stderr and len(stderr.strip().splitlines()) == 1, stderr
    assert not list(tmp_path.iterdir())
