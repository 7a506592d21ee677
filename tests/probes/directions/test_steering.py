"""Steering: edits against a plain loop, halves that do not see each other, and what is found of a planted direction."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import probes
from data.planted.direction import LAYER, plant, prompts
from probes.attribution.metric import metric_of
from probes.attribution.units import Unit
from probes.attribution.work import Rows, Work
from probes.capture.editing import edited
from probes.directions.choosing import Wanted
from probes.directions.nulls import null_pair
from probes.directions.one_vector import direction
from probes.directions.shares import shares
from probes.directions.states import each_batch, read_states
from probes.directions.steering import Steer, steered
from probes.errors import RunError
from probes.job.further import encoded_of, reopened
from tests.probes.attribution.conftest import Case
from tv.prompts.encoding import batches
from tv.runtime.compute import Compute

ROOT = Path(__file__).resolve().parents[3]
ARCHITECTURES = ["llama", "gpt2", "gemma3", "falcon", "phi3", "mixtral", "falcon_h1", "mamba"]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[probes.Run, torch.Tensor]:
    """A run on a pair whose tuned side adds one vector behind block LAYER, steered."""
    folder = tmp_path_factory.mktemp("planted")
    rows = (ROOT / "data" / "prompts" / "general.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(row)["text"] for row in rows][:20]
    vector = plant(ROOT / "data" / "models" / "base", folder / "tuned", texts)
    prompts(texts, folder / "prompts.jsonl")
    suite = {
        "name": "planted",
        "base": str(ROOT / "data" / "models" / "base"),
        "tuned": {"planted": str(folder / "tuned")},
        "prompts": [{"file": str(folder / "prompts.jsonl")}],
        "measure": ["behaviour"],
    }
    run = probes.run(suite, out=folder / "run", stages=("capture", "noise_floor"))
    probes.steer(run, samples=1, tokens=4)
    return run, vector


def test_the_planted_direction_is_the_behaviour_from_its_layer_on(planted: tuple[probes.Run, torch.Tensor]) -> None:
    run, _ = planted
    answers = run["one_vector"]
    assert answers.answer.tolist() == ["most", "most"]
    assert answers.share.between(0.85, 1.15).all() and (answers.random_p < 0.05).all()
    rows = run["direction_effects"]
    by_layer = rows[(rows.layer >= 0) & (rows.direction == "base→tuned")].set_index("layer").share
    assert by_layer[:LAYER].abs().max() < 0.1 < 0.8 < by_layer[LAYER:].min()
    assert len(rows[rows.control == "random"]) == 2 * 20


def test_it_is_in_effects_beside_its_placebos_and_nothing_else_is_lost(
    planted: tuple[probes.Run, torch.Tensor],
) -> None:
    run, _ = planted
    effects = run["effects"]
    assert set(effects.method) == {"direction"} and set(effects.granularity) == {"direction"}
    chosen = effects[effects.layer == -1]
    assert set(chosen.control) == {"", "random", "shuffled"}
    real, placebo = (chosen[chosen.control == control].effect.abs().min() for control in ("", "random"))
    assert real > 3 * placebo
    samples = run["direction_samples"]
    assert samples[["model", "steered"]].value_counts().tolist() == [1] * 4


def test_mean_delta_at_its_layer_is_the_planted_vector(planted: tuple[probes.Run, torch.Tensor]) -> None:
    run, vector = planted
    models = reopened(run, Compute())
    states = read_states(models.pair("planted"), encoded_of(run, models, "planted"), [("resid_post", LAYER)])
    mean = states.delta(("resid_post", LAYER)).mean(0)
    assert torch.cosine_similarity(mean, vector, dim=0) > 0.99


@pytest.mark.thorough
def test_a_random_step_of_its_norms_is_no_direction(planted: tuple[probes.Run, torch.Tensor]) -> None:
    """The base beside the base + noise: whatever one vector moves there, placebos move too, or nothing moved."""
    run, _ = planted
    models = reopened(run, Compute())
    pair, encoded = models.pair("planted"), encoded_of(run, models, "planted")
    several = batches(encoded, 16, pair.pad_id)
    with null_pair(pair, "random") as null:
        work = Work(null, metric_of("logit_diff", null.tuned, several), several, 16)
        made = [each for each in direction(work, Wanted(samples=0, doses=(2.0,))) if isinstance(each, Rows)]
    (answers,) = (each.rows for each in made if each.table == "one_vector")
    assert set(answers.answer) <= {"cannot tell", "no better than placebos"}


@pytest.mark.sampled(6)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("site", ["resid_post", "attn_out"])
def test_a_whole_delta_added_is_the_other_models_state(architecture: str, site: str) -> None:
    """Adding each prompt's own Δh at a site gives the tuned model's value there; ablating leaves nothing along it."""
    case = Case(architecture)
    if (architecture, site) == ("falcon_h1", "attn_out"):
        with pytest.raises(RunError, match="side by side"):
            list(each_batch(case.pair, case.encoded[:1], [(site, 1)]))
        return
    (states, *_) = each_batch(case.pair, case.encoded[:1], [(site, 1)], positions="all")
    delta = states.delta((site, 1))
    with edited(case.pair.base, case.pair.architecture, site, 1, lambda h: h + delta.to(h)):
        (moved, *_) = each_batch(case.pair, case.encoded[:1], [(site, 1)], positions="all")
    assert torch.allclose(moved.base[site, 1], states.tuned[site, 1], atol=1e-4)
    unit = delta[0] / delta[0].norm()
    with edited(case.pair.base, case.pair.architecture, site, 1, Steer((site, 1), unit, "ablate")):
        (ablated, *_) = each_batch(case.pair, case.encoded[:1], [(site, 1)], positions="all")
    assert (ablated.base[site, 1] @ unit).abs().max() < 1e-4 * states.base[site, 1].norm(dim=1).max()


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "falcon_h1"])
def test_values_under_many_vectors_are_those_of_a_plain_loop(architecture: str) -> None:
    """Two halves with vectors at two layers, in one pass, against each prompt by itself."""
    case = Case(architecture)
    work, d_model = case.work(), case.pair.architecture.d_model
    vectors = [torch.randn(d_model, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    both = Steer(("resid_post", 0), vectors[0], dose=2.0), Steer(("resid_pre", 2), vectors[1], dose=-1.0)
    given = np.arange(len(work.prompts)) % 2
    found = steered(work, "base", [both], given, "all")
    for i, item in enumerate(work.encoded):
        steer = both[given[i]]
        alone = case.metric()
        with torch.inference_mode(), edited(case.pair.base, case.pair.architecture, *steer.place, steer):
            value = float(alone.of(case.pair.base, work.batch([item.prompt.id]))[0])
        assert found.values[0, i] == pytest.approx(value, abs=1e-3) and found.kl[0, i] > 0


def test_shares_know_the_change_and_say_nothing_where_there_is_none() -> None:
    rng = np.random.default_rng(0)
    change, clusters = rng.normal(2, 0.5, 400), [str(i // 2) for i in range(400)]
    share, lo, hi = shares(np.stack([change / 2 + rng.normal(0, 0.2, 400), change], 1), change, clusters)
    assert lo[0] < 0.5 < hi[0] < lo[0] + 0.1 and share[1] == lo[1] == hi[1] == 1
    assert np.isnan(shares(change[:, None], rng.normal(0, 1, 400), clusters)[0]).all()
    drawn = [rng.normal(2, 1.5, 24) for _ in range(300)]
    covered = 0
    for x in drawn:
        _, low, high = shares((0.3 * x + rng.normal(0, 0.5, 24))[:, None], x, list(map(str, range(24))))
        covered += bool(np.isnan(low[0]) or low[0] <= 0.3 <= high[0])
    assert covered / len(drawn) > 0.92


def test_units_of_directions_have_names() -> None:
    assert str(Unit("direction", 3, "resid_post")) == "resid_post 3"
    assert str(Unit("direction", -1, "resid_post")) == "resid_post"
    assert str(Unit("feature", 3, "resid_post", neuron=17)) == "resid_post 3 feature 17"


def test_mistakes_are_one_line_before_models_are_loaded(
    planted: tuple[probes.Run, torch.Tensor], tmp_path: Path
) -> None:
    run, _ = planted
    np.save(tmp_path / "short.npy", np.ones(7, np.float32))
    (tmp_path / "broken.safetensors").write_bytes(b"\x00" * 4)
    for given, said in (
        ({"direction": "medium"}, "is no source of directions"),
        ({"direction": "singular"}, "names no module"),
        ({"direction": "mean:"}, "names no domain"),
        ({"direction": str(tmp_path / "none.npy")}, "no such file"),
        ({"direction": "mean:law"}, "no prompt of domain 'law'"),
        ({"direction": str(tmp_path / "short.npy")}, "name it: --layer"),
        ({"direction": str(tmp_path / "short.npy"), "layers": [2]}, "160 finite numbers"),
        ({"direction": str(tmp_path / "broken.safetensors")}, "cannot be read"),
        ({"layers": [9]}, "layers 0 to 5 have it"),
        ({"site": "nowhere"}, "direction_site"),
        ({"tuned": ["law"]}, "no tuned model 'law'"),
        ({"metric": "rouge"}, "no metric 'rouge'"),
    ):
        with pytest.raises(probes.InputError, match=said) as caught:
            probes.steer(run, samples=0, placebos=1, **given)
        assert "\n" not in str(caught.value)
