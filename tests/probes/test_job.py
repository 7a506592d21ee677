"""The main job, whole: on random pairs of several architectures, on every table, and on bad input."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import probes
import tv
from probes.capture.answers import answers
from probes.errors import RunError, SuiteError
from probes.job.effects import prompts_of
from probes.measures.gates import unpack
from tests.pairs import MIXTURES, PROMPTS, build_model, build_pair, build_tokenizer, perturb, write_prompts, write_suite
from tests.runs import NO_REPORT
from tv.prompts.encoding import encode

TABLES = {
    *("weights", "alignment", "spectra", "prompts", "tokens", "gates", "contributions", "changes", "ledger"),
    *(
        "predictions",
        "answers",
        "behaviour",
        "effects",
        "prompt_effects",
        "agreement",
        "checks",
        "link",
        "correlations",
        "neurons",
        "noise_floor",
        "behaviour_floor",
    ),
}


#: Model names in tables that have both, and where `build_pair` puts them.
MODELS = {"base": "base", "moved": "tuned"}
#: Every other kind has the report's stage left out: its own tests draw pages of a llama and of a gpt2.
WITH_PAGE = ("mixtral",)


def _run(
    tmp_path: Path, architecture: str = "llama", stages: Sequence[str] | None = NO_REPORT, **changes: object
) -> probes.Run:
    suite = write_suite(tmp_path, *build_pair(tmp_path, architecture), **({"bootstrap": 100} | changes))
    return probes.run(suite, out=tmp_path / "run", stages=stages)


class Runs:
    """The whole job on an architecture, once."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def of(self, architecture: str) -> probes.Run:
        """One that nobody changes."""
        directory = self.directory / architecture
        if not directory.exists():
            directory.mkdir()
            _run(directory, architecture, None if architecture in WITH_PAGE else NO_REPORT)
        return probes.load(directory / "run")

    def copy(self, architecture: str, to: Path) -> probes.Run:
        """One that may be changed."""
        return probes.load(shutil.copytree(self.of(architecture).path, to))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def llama(runs: Runs) -> probes.Run:
    return runs.of("llama")


@pytest.mark.sampled(2)
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2", "phi3", "gpt2"])
def test_the_whole_job(architecture: str, runs: Runs) -> None:
    run = runs.of(architecture)
    assert set(run.tables) == TABLES
    n_tokens = run.manifest["n_tokens"]
    assert len(run.df("gates", columns=["pos"])) == 3 * n_tokens
    assert len(run.df("changes", where=[("head", "==", -1)])) == 7 * n_tokens
    ledger = run["ledger"]
    assert set(ledger.module) >= {"embed", "q", "k", "v", "o", "up", "down", "final_norm", "unembed"}
    assert (ledger.closure <= 1e-4).all()
    split = ledger[ledger.amplified_norm.notna()]
    assert set(split.module) == {"q", "k", "v", "o", "up", "down"} | ({"gate"} if architecture != "gpt2" else set())
    whole = np.hypot(split.amplified_norm, split.new_norm)
    assert np.allclose(whole, split.direct_norm, rtol=1e-4)
    assert np.allclose(split.new_share, (split.new_norm / split.direct_norm) ** 2, rtol=1e-3, atol=1e-6)
    neurons = run["neurons"]
    assert neurons.groupby(["layer", "neuron"]).n.sum().eq(n_tokens).all()
    assert neurons.n_flips.sum() == run["gates"].n_flips.sum()
    if architecture in WITH_PAGE:
        assert (run.path / "report.html").stat().st_size > 10_000
    assert run["gates"].gated.all() == (architecture != "gpt2")
    for table in ("gates", "changes", "ledger", "effects", "link"):
        frame = run[table]
        measures = frame.select_dtypes("float32").drop(
            columns=["edit_distance", "chance_edit_distance", "edit_kappa"], errors="ignore"
        )
        assert np.isfinite(measures.to_numpy()[~measures.isna().to_numpy()]).all()


@pytest.mark.sampled(1)
@pytest.mark.parametrize("architecture", [name for name in MIXTURES if name != "qwen3_moe"])  # which has every method
def test_the_whole_job_on_a_mixture_of_experts(architecture: str, runs: Runs) -> None:
    """Every expert has rows of its own where a model chose it, and experts add up to what their MLP adds."""
    run = runs.of(architecture)
    assert set(run.tables) == TABLES
    n_tokens = run.manifest["n_tokens"]
    dense = {"qwen2_moe": 1}.get(architecture, 0)  # layers without experts
    gates, changes, ledger = run["gates"], run["changes"], run["ledger"]
    by_expert = changes[changes.expert >= 0]
    assert set(by_expert.component) == {"mlp"} and set(by_expert.expert) == {0, 1, 2}
    whole = changes[(changes.component == "mlp") & (changes.expert < 0)]
    assert len(whole) == 3 * n_tokens
    mixed = whole[whole.expert_overlap.notna()]
    assert len(mixed) == (3 - dense) * n_tokens and mixed.expert_overlap.between(0, 1).all()
    place = ["layer", "prompt_id", "pos"]
    assert by_expert[by_expert.norm_base > 0].groupby(place).size().eq(2).all()  # top 2 of 3
    assert by_expert[by_expert.norm_tuned > 0].groupby(place).size().eq(2).all()
    # |A ∩ B| from the gates' rows, |A ∪ B| from the changes' rows
    common = gates[gates.expert >= 0].groupby(place).size()
    either = by_expert.groupby(place).size()
    assert np.allclose(
        (common / either).reindex(either.index, fill_value=0), mixed.set_index(place).expert_overlap[either.index]
    )
    if architecture != "qwen2_moe":  # which has an expert that all tokens share, too
        added = by_expert.groupby(place)[["dla_base", "dla_tuned"]].sum(min_count=1)
        for column in added:
            expected = mixed.set_index(place)[column][added.index]
            assert np.allclose(added[column], expected, atol=1e-4, equal_nan=True) and expected.notna().any()
    assert set(ledger[ledger.expert >= 0].module) == {"gate", "up", "down"}
    terms = ledger.direct_norm + ledger.inherited_norm + ledger.interaction_norm
    assert "router" in set(ledger.module) and (ledger.closure * ledger.delta_norm <= 1e-4 * terms).all()
    assert (ledger[ledger.expert >= 0].new_share.notna()).all()
    assert set(run["neurons"].expert) == ({-1, 0, 1, 2} if dense else {0, 1, 2})


def test_expert_patterns_are_those_of_the_experts_own_activation(runs: Runs) -> None:
    """Against a hook on the activation function inside the loop over experts, one prompt at a time."""
    run = runs.of("mixtral")
    gates = run.df("gates", where=[("layer", "==", 0)])
    source = run.manifest["checkpoints"]["base"]["source"]
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, experts_implementation="eager")
    experts, seen, chosen = model.model.layers[0].mlp.experts, [], []
    experts.act_fn.register_forward_hook(lambda m, args, output: seen.append((args[0] > 0).numpy()))
    experts.register_forward_pre_hook(lambda m, args: chosen.append(args[1]))
    for row in PROMPTS:
        seen.clear(), chosen.clear()
        with torch.no_grad():
            model(torch.tensor([tokenizer(row["text"] + row.get("target", ""))["input_ids"]]))
        used = [expert for expert in range(3) if bool((chosen[0] == expert).any())]
        for expert, patterns in zip(used, seen, strict=True):
            _, token = torch.where((chosen[0] == expert).T)  # the loop's own order
            own = gates[(gates.prompt_id == row["id"]) & (gates.expert == expert)].set_index("pos").gate_base
            for pattern, pos in zip(patterns, token.tolist(), strict=True):
                if pos in own.index:
                    assert np.array_equal(unpack(np.frombuffer(own[pos], np.uint8)[None], 80)[0], pattern)


def test_lenses_and_greedy_tokens_in_the_tables(tmp_path: Path) -> None:
    run = _run(tmp_path, stages=["capture"], measure=["lens", "behaviour"], attribute=None)
    lens, tokens, behaviour = run["lens"], run["tokens"], run["behaviour"]
    scored = tokens.set_index(["prompt_id", "pos"])
    last = lens[(lens.layer == 2) & (lens.target_id >= 0)]
    assert len(last) and set(lens.layer) == {0, 1, 2}
    for row in last.to_dict("records"):  # what the lens gives the target is what its token costs, one place on
        after = scored.loc[(row["prompt_id"], row["pos"] + 1)]
        assert row["target_id"] == after.token_id
        for side in ("base", "tuned"):
            assert -np.log(row[f"prob_{side}"]) == pytest.approx(after[f"nll_{side}"], rel=1e-3)
            assert (row[f"rank_{side}"] == 0) == (
                scored.loc[(row["prompt_id"], row["pos"])][f"greedy_{side}"] == after.token_id
            )
    _require_predictions(run, tmp_path)
    told = behaviour[behaviour.metric == "first_divergence"].set_index("prompt_id").value.to_dict()
    for prompt_id, rows in tokens.sort_values("pos").groupby("prompt_id"):
        n = (rows.role == "answer").sum()
        predicting = rows.iloc[-n - 1 : -1] if n else rows.iloc[-1:]
        parted = np.flatnonzero(predicting.greedy_base != predicting.greedy_tuned)
        assert told.get(prompt_id) == (parted[0] if len(parted) else None)
    assert told


def _require_predictions(run: probes.Run, folder: Path) -> None:
    """At every place both models' five likeliest tokens, as a forward pass of each alone has them."""
    tokens, predictions = run["tokens"], run["predictions"]
    assert len(predictions) == 2 * 5 * len(tokens)
    chosen = {name: tokens.groupby("prompt_id")[f"greedy_{side}"] for name, side in MODELS.items()}
    for model, side in MODELS.items():
        live = AutoModelForCausalLM.from_pretrained(folder / f"llama-{side}").eval()
        for prompt_id, rows in tokens.sort_values("pos").groupby("prompt_id"):
            with torch.no_grad():
                own = live(torch.tensor([rows.token_id.tolist()])).logits[0].softmax(-1).topk(5)
            found = predictions[(predictions.model == model) & (predictions.prompt_id == prompt_id)]
            assert found["rank"].tolist() == [1, 2, 3, 4, 5] * len(rows)
            assert found.pos.tolist() == rows.pos.repeat(5).tolist()
            assert found.token_id.tolist() == own.indices.flatten().tolist()
            assert found.probability.to_numpy() == pytest.approx(own.values.flatten().numpy(), rel=1e-4)
            assert (found.token_id[found["rank"] == 1] == chosen[model].get_group(prompt_id).to_numpy()).all()


def test_prompts_come_back_as_they_went_in(tmp_path: Path) -> None:
    """Attribution reads them out of the run again, continuations too."""
    rows = [{**row, "continuation": " light"} for row in PROMPTS]
    suite = write_suite(tmp_path, *build_pair(tmp_path), measure=["behaviour"], generate={"from": "given"})
    write_prompts(tmp_path / "prompts.jsonl", rows)
    run = probes.run(suite, out=tmp_path / "run", stages=["capture"])
    assert [(p.id, p.text, p.target, p.foil, p.continuation, p.chat) for p in prompts_of(run)] == [
        (row["id"], row["text"], row.get("target"), row.get("foil"), " light", None) for row in rows
    ]
    assert run["tokens"].groupby("prompt_id", sort=False).token.apply("".join).str.endswith(" light").all()


def test_no_domain_is_called_all(tmp_path: Path) -> None:
    """Which is what a file all.jsonl would be; it would be mixed up with every prompt's own rows."""
    suite = write_suite(tmp_path, *build_pair(tmp_path))
    write_prompts(tmp_path / "prompts.jsonl", [{**row, "domain": "all"} for row in PROMPTS])
    with pytest.raises(SuiteError, match=r"prompt 'a1' of prompts: a domain cannot be called 'all'"):
        probes.run(suite, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_kept_vectors_are_the_models_own(tmp_path: Path) -> None:
    run = _run(tmp_path, stages=["capture"], keep=["resid_post", "embed_out", "gate"])
    source = run.manifest["checkpoints"]["moved"]["source"]
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(source)(PROMPTS[0]["text"] + PROMPTS[0]["target"])["input_ids"]
    with torch.no_grad():
        states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    places, vectors = run.vectors("resid_post", 1, where=[("prompt_id", "==", "a1")])
    assert np.allclose(vectors, states[2][0], atol=5e-3)
    assert not vectors.flags.owndata and list(places.pos) == list(range(len(ids)))
    places, every = run.vectors("resid_post", 1, model="base")
    assert len(places) == len(every) == run.manifest["n_tokens"] and every.shape[1] == 48
    for match, asked in {"keep": {"site": "resid_mid"}, "model 'tuned_2': base or tuned": {"model": "tuned_2"}}.items():
        with pytest.raises(RunError, match=match):
            run.vectors(**{"site": "resid_post", "layer": 1} | asked)
    assert len(run.df("vectors", where=[("site", "==", "embed_out")])) == run.manifest["n_tokens"]
    gates = run.df("vectors", where=[("site", "==", "gate"), ("layer", "==", 1)])
    assert {len(vector) for vector in gates.vector_base} == {2 * 80}


@pytest.mark.parametrize(
    ("parameter", "rows", "site", "on"),
    [
        ("lm_head", slice(None), "logits", "random tokens"),
        ("model.layers.1.mlp.down_proj", slice(None), "mlp_out of layer 1", "random tokens"),
        ("model.embed_tokens", 274, "embed_out", "prompt 'a1'"),  # a token of that prompt alone
    ],
)
def test_numbers_too_large_for_the_model_are_refused(
    parameter: str, rows: slice | int, site: str, on: str, tmp_path: Path
) -> None:
    """Finite weights whose products are not, in the tuned model: which one, where, and on which prompt."""
    base, tuned = build_pair(tmp_path, "llama")
    model = AutoModelForCausalLM.from_pretrained(tuned, dtype=torch.float32)
    with torch.no_grad():
        model.get_submodule(parameter).weight[rows].mul_(1e38)
    model.save_pretrained(tuned)
    suite = write_suite(tmp_path, base, tuned, measure=["changes", "behaviour"], noise_floor=False, attribute=None)
    with pytest.raises(probes.ActivationError, match=rf"model 'moved': {site} is NaN or Inf on {on}"):
        probes.run(suite, out=tmp_path / "run", stages=["capture"])


def test_gate_rows_are_the_bits_of_both_models(llama: probes.Run) -> None:
    """Each prompt alone, through the plain model, its activation modules' inputs recorded by hand."""
    gates = llama["gates"]
    sources = llama.manifest["checkpoints"]
    tokenizer = AutoTokenizer.from_pretrained(sources["base"]["source"])
    for row in PROMPTS:
        ids = torch.tensor([tokenizer(row["text"] + row.get("target", ""))["input_ids"]])
        bits = {}
        for model_name in ("base", "moved"):
            model = AutoModelForCausalLM.from_pretrained(sources[model_name]["source"], dtype=torch.float32)
            bits[model_name] = _recorded_gates(model, ids)
        for layer in range(3):
            here = gates[(gates.prompt_id == row["id"]) & (gates.layer == layer)].sort_values("pos")
            base, xor = (
                unpack(np.stack([np.frombuffer(b, np.uint8) for b in here[c]]), 80) for c in ("gate_base", "gate_xor")
            )
            assert np.array_equal(base, bits["base"][layer])
            assert np.array_equal(base ^ xor, bits["moved"][layer])
            assert np.allclose(here.flip_rate, xor.mean(1), atol=1e-6)


def _recorded_gates(model: torch.nn.Module, ids: torch.Tensor) -> list[np.ndarray]:
    seen: list[np.ndarray] = []
    for layer in model.model.layers:
        layer.mlp.gate_proj.register_forward_hook(lambda m, args, output: seen.append((output[0] > 0).numpy()))
    with torch.no_grad():
        model(ids)
    return seen


def test_dla_of_all_components_is_the_logit_difference(llama: probes.Run) -> None:
    contributions = llama.df("contributions", where=[("head", "==", -1)])
    behaviour = llama.df("behaviour", where=[("metric", "==", "logit_diff")]).set_index(["model", "prompt_id"]).value
    tokenizer = AutoTokenizer.from_pretrained(llama.manifest["checkpoints"]["base"]["source"])
    answered = [item for item in encode(prompts_of(llama), tokenizer, 64) if item.foil_id >= 0]
    assert len(answered) == 5
    for item in answered:
        at = contributions[(contributions.prompt_id == item.prompt.id) & (contributions.pos == item.answer_pos)]
        for model, parts in at.groupby("model"):
            assert len(parts) == 7
            assert parts.dla.sum() == pytest.approx(behaviour[model, item.prompt.id], abs=1e-4)


def test_heads_sum_to_attention_in_the_tables(llama: probes.Run) -> None:
    """DLA is linear: the heads' shares add up to attention's."""
    changes = llama.df("changes", where=[("component", "==", "attn")])
    keys = ["layer", "prompt_id", "pos"]
    whole = changes[changes["head"] == -1].set_index(keys).sort_index()
    heads = changes[changes["head"] >= 0].groupby(keys)[["dla_base", "dla_tuned"]].sum(min_count=4).sort_index()
    for column in ("dla_base", "dla_tuned"):
        assert np.allclose(heads[column], whole[column], atol=1e-4, equal_nan=True)
        assert whole[column].notna().any()


def test_padding_never_leaks(tmp_path: Path) -> None:
    """One prompt a batch and all in one batch give the same rows, whichever side the tokenizer pads on."""
    base, tuned = build_pair(tmp_path, "llama")

    def run(size: int, side: str) -> probes.Run:
        for path in (base, tuned):
            tokenizer = AutoTokenizer.from_pretrained(path)
            tokenizer.padding_side = side
            tokenizer.save_pretrained(path)
        suite = write_suite(tmp_path, base, tuned, batch_size=size, bootstrap=50)
        return probes.run(suite, out=tmp_path / f"{side}-{size}", stages=["weights", "capture", "attribute"])

    by_itself = run(1, "right")
    for side in ("left", "right"):
        _require_close(by_itself, run(6, side))


def _require_close(run: probes.Run, other: probes.Run) -> None:
    for table in ("tokens", "gates", "changes", "contributions", "ledger", "behaviour", "prompt_effects"):
        alone, together = (_sorted(each[table]) for each in (run, other))
        assert len(alone) == len(together)
        for column in alone.columns:
            if alone[column].dtype == np.float32:
                assert np.allclose(alone[column], together[column], atol=2e-4, rtol=1e-3, equal_nan=True), column
            else:
                assert alone[column].equals(together[column]), (table, column)


def _sorted(frame: pd.DataFrame) -> pd.DataFrame:
    keys = ["tuned", "model", "prompt_id", "layer", "component", "module", "head", "method", "metric", "pos"]
    return frame.sort_values([key for key in keys if key in frame.columns]).reset_index(drop=True)


def test_two_tuned_models_in_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known: list[int] = []

    def asked(*args: Any, **kwargs: Any) -> pd.DataFrame:
        known.append(len(kwargs["known"]))
        return answers(*args, **kwargs)

    monkeypatch.setattr("probes.job.stages.answers", asked)
    base, tuned = build_pair(tmp_path, "llama")
    other = build_model()
    perturb(other, 0.1, seed=77)
    other.save_pretrained(tmp_path / "other")
    build_tokenizer().save_pretrained(tmp_path / "other")
    models = {"moved": str(tuned), "other": str(tmp_path / "other")}
    suite = write_suite(tmp_path, base, tuned, tuned=models)
    run = probes.run(suite, out=tmp_path / "run", stages=["weights", "capture"])
    assert set(run["changes"].tuned) == set(models)
    assert set(run["contributions"].model) == {"base", *models}
    assert not run["contributions"].duplicated(["model", "prompt_id", "pos", "layer", "component", "head"]).any()
    assert not run["behaviour"].duplicated(["prompt_id", "model", "metric"]).any()
    flips = run.df("gates", columns=["tuned", "flip_rate"]).groupby("tuned").flip_rate.mean()
    assert flips["other"] > flips["moved"]
    whole = run.df("cosines", where=[("scope", "==", "whole")])
    assert whole[["tuned", "reference"]].to_numpy().tolist() == [list(models)]
    vectors = [tv.extract(base, path) for path in models.values()]
    assert whole.cosine[0] == pytest.approx(vectors[0].cosine(vectors[1]), abs=1e-5)
    said = [
        rows.drop(columns="tuned") for _, rows in run.df("answers", where=[("model", "==", "base")]).groupby("tuned")
    ]
    pd.testing.assert_frame_equal(*(rows.sort_values("prompt_id", ignore_index=True) for rows in said))
    assert len(said[0]) == len(PROMPTS) and known == [0, len(PROMPTS)]  # the base writes once


def test_live_models_are_accepted_and_left_as_they_were(tmp_path: Path) -> None:
    base_path, tuned_path = build_pair(tmp_path, "llama")
    base, tuned = (AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in (base_path, tuned_path))
    before = {name: value.clone() for name, value in base.state_dict().items()}
    suite = write_suite(tmp_path, base_path, tuned_path, bootstrap=50)
    run = probes.run(suite, base=base, tuned={"moved": tuned}, out=tmp_path / "live", stages=NO_REPORT)
    assert set(run.tables) == TABLES
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    assert not any(module._forward_hooks for module in base.modules())


def test_a_suite_may_ask_for_less(tmp_path: Path) -> None:
    run = _run(tmp_path, stages=None, measure=["gates"], positions="last", attribute=None)
    assert "ledger" not in run.tables and "effects" not in run.tables
    assert len(run["gates"]) == 3 * len(PROMPTS)
    assert (run.path / "report.html").exists()


def test_prompts_without_targets(tmp_path: Path) -> None:
    base, tuned = build_pair(tmp_path, "llama")
    suite = write_suite(tmp_path, base, tuned, attribute=None, bootstrap=50)
    write_prompts(tmp_path / "prompts.jsonl", [{"id": "x", "text": "The heart"}, {"id": "y", "text": "A lamp gives"}])
    run = probes.run(suite, out=tmp_path / "run", stages=NO_REPORT)
    assert set(run["behaviour"].metric) == {"kl"}
    assert run["changes"].dla_base.isna().all()


def test_stages_can_be_repeated(runs: Runs, tmp_path: Path) -> None:
    run = runs.copy("llama", tmp_path / "run")
    effects, link = run["effects"], run["link"]
    pd.testing.assert_frame_equal(probes.attribute(run), effects)
    pd.testing.assert_frame_equal(probes.link(probes.load(run.path)), link)
    only = probes.attribute(run, method="graft", metric="target_nll")
    assert set(only.method) == {"graft"} and set(only.metric) == {"target_nll"}
    assert set(run["prompt_effects"].method) == {"graft"}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("architecture", ["llama", "qwen3_moe"])
def test_every_method_of_attribution_through_the_job(architecture: str, tmp_path: Path) -> None:
    wanted = {
        "methods": ["path", "graft", "revert", "patch", "gradient", "depth", "split", "shapley"],
        "granularity": ["component", "module", "head", "kv_head", "expert", "neuron"],
        "controls": ["random", "shuffled", "spectrum"],
        "curve_rankings": "all",
        **{"orders": 1, "curve_points": 3, "curve_draws": 2, "neurons": 3, "most_nodes": 16, "control_draws": 2},
    }
    run = _run(tmp_path, architecture, None if architecture == "llama" else NO_REPORT, attribute=wanted)
    tables = {"token_effects", "neuron_effects", "depth", "curves", "areas", "control_draws", "sampled"}
    assert set(run.tables) == TABLES | tables
    effects = run["effects"]
    methods = {*wanted["methods"], "mean", "synergy", "inside", "outside"} - {"split", "depth"}
    assert set(effects.method) == methods
    kinds = {*wanted["granularity"], "type", "all"} - ({"expert"} if architecture == "llama" else set())
    assert set(effects.granularity) == kinds
    assert set(effects.control) == {"", "random", "shuffled", "spectrum"}
    assert effects[effects.method != "path"].effect.notna().all()
    still = set(effects.domain[effects.effect.isna()])  # where rounding alone moves a mixture as far
    assert still <= {"math", "general", "medical"} and (architecture == "qwen3_moe" or not still)
    neurons = effects[effects.granularity == "neuron"]
    assert set(neurons.method) == {"graft", "revert", "mean", "synergy"}
    checks = run["checks"]
    exact = checks[checks.check.ne("completeness")]
    assert exact.holds.all() and {"endpoint", "no_op", "weights_restored"} == set(exact.check)
    if architecture == "llama":
        assert checks.holds.all() and set(checks[checks.check == "completeness"].method) == {"path", "dla"}
    over_all = effects[effects.domain == "all"]
    change = over_all.query("granularity == 'all' and method == 'graft' and control == ''").effect.item()
    whole = effects.query("method == 'shapley' and domain == 'all'").effect.sum()
    assert whole == pytest.approx(change, rel=1e-4, abs=1e-6)
    measures = {"ssa", "kappa", "ledger", "norm", "random", "path", "graft", "revert", "mean", "shapley"}
    assert measures <= set(run["areas"].ranking)
    assert run["link"].path.notna().any()
    assert (run.path / "report.html").exists() == (architecture == "llama")


def test_a_prompt_set_says_which_prompts_share_a_template(tmp_path: Path) -> None:
    base, tuned = build_pair(tmp_path, "llama")
    suite = write_suite(tmp_path, base, tuned, bootstrap=50)
    rows = [row | {"cluster": "one"} for row in PROMPTS]
    write_prompts(tmp_path / "prompts.jsonl", rows)
    run = probes.run(suite, out=tmp_path / "run", stages=["weights", "capture", "attribute"])
    assert set(run["prompts"].cluster) == {"one"}
    effects = run["effects"]
    assert (effects.n == 1).all() and effects[["lo", "hi", "p", "q"]].isna().all(axis=None)  # one draw has no spread


def test_the_manifest_counts_what_was_replaced(runs: Runs, tmp_path: Path) -> None:
    run = runs.copy("llama", tmp_path / "run")
    only = probes.attribute(run, method="graft")
    assert json.loads((run.path / "manifest.json").read_text())["tables"]["effects"]["rows"] == len(only)
