"""What a run would take, from the configuration alone, against what runs take."""

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import probes
from probes.attribution.attributor import Attributor, steps
from probes.attribution.forwards import Variant
from probes.attribution.known import Known
from probes.attribution.reading import Each, Reading
from probes.attribution.work import Rows
from probes.capture.pair import Pair, make_pair
from probes.capture.runner import output_bases, with_bases
from probes.cli import main
from probes.errors import RunError
from probes.measures.ledger import most_bytes, split_by
from probes.suite import Attribution
from probes.trial import Pace, Trial
from tests.command import call
from tests.pairs import PROMPTS, build_model, build_pair, build_tokenizer, perturb, write_suite
from tv.errors import LackOfMemory
from tv.prompts.encoding import encode
from tv.prompts.files import Prompt
from tv.runtime.compute import Compute

CONFIGS = Path(__file__).parents[1] / "architectures" / "configs"
GIVEN = [Prompt(row["id"], "tiny", "tiny", row["text"], row.get("target"), row.get("foil")) for row in PROMPTS]


def pair_of(architecture: str) -> Pair:
    base, tuned = build_model(architecture), build_model(architecture)
    perturb(tuned, 0.05, seed=9)
    return make_pair(base, tuned, build_tokenizer())


@contextmanager
def counted(pair: Pair) -> Iterator[list[int]]:
    """Prompts that go through either model, once for each variant that they are read under, together or not."""
    seen: list[int] = []
    counting, read = [True], Reading.of

    def count(_module: Any, _args: Any, given: Mapping[str, Any]) -> None:
        if counting[0]:
            seen.append(len(given["input_ids"]))

    def of(self: Reading, variants: Sequence[Variant], known: Known, each: Each) -> Iterator[Any]:
        counting[0] = False
        for prompts, found, done, total in read(self, variants, known, each):
            seen.append(len(prompts) * len(found))
            yield prompts, found, done, total
        counting[0] = True

    handles = [model.register_forward_pre_hook(count, with_kwargs=True) for model in pair.models]
    try:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Reading, "of", of)
            yield seen
    finally:
        for handle in handles:
            handle.remove()


@pytest.fixture(scope="module")
def llama() -> Pair:
    return pair_of("llama")


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("methods", "more"),
    [
        (["graft"], {"granularity": ["component", "head"], "control_draws": 3, "component_controls": True}),
        (["revert", "graft"], {"granularity": ["module"], "controls": []}),
        (["patch", "gradient"], {"granularity": ["component", "head"]}),
        (["depth", "graft"], {}),
        (["path"], {"nodes": 4, "most_nodes": 4}),
        (["path", "graft"], {"nodes": 2, "most_nodes": 2, "granularity": ["neuron"], "neurons": 3}),
        (["split", "graft"], {"granularity": ["component", "module"]}),
    ],
)
def test_every_method_costs_the_forwards_it_says(llama: Pair, methods: list[str], more: dict[str, Any]) -> None:
    wanted = Attribution.model_validate({"methods": methods, "curves": False, **more})
    encoded = encode([prompt for prompt in GIVEN if prompt.foil], llama.tokenizer, 64)
    work = Attributor(llama, encoded, wanted, batch_size=len(encoded), seed=0)
    bases = output_bases(llama)
    told = shared = 0
    for asked, _, units in steps(wanted, llama.architecture):
        for method in asked:
            cost = method.costs(llama.architecture, units, wanted)
            assert cost is not None
            told += cost.forwards
            shared += 2  # a model as it is, and what grafts the unembedding alone, may be known from another method
    with counted(llama) as seen:
        for result in work._results(replace(work.work, make_bases=lambda: bases)):
            if isinstance(result, Rows):
                work.work.tables[result.table] = result.rows
    assert (told - shared) * len(encoded) <= sum(seen) <= told * len(encoded)


def test_shapley_and_path_cost_no_more_than_they_say(llama: Pair) -> None:
    wanted = Attribution.model_validate(
        {"methods": ["shapley", "path"], "orders": 2, "nodes": 1, "most_nodes": 4, "tolerance": 1e-6, "curves": False}
    )
    encoded = encode([prompt for prompt in GIVEN if prompt.foil], llama.tokenizer, 64)
    work = Attributor(llama, encoded, wanted, batch_size=len(encoded), seed=0)
    costs = [m.costs(llama.architecture, u, wanted) for asked, _, u in steps(wanted, llama.architecture) for m in asked]
    with counted(llama) as seen:
        list(work._results(work.work))
    least = sum(cost.forwards for cost in costs if cost.most is not None)
    most = sum(cost.forwards if cost.most is None else cost.most for cost in costs)
    assert least * len(encoded) < sum(seen) <= most * len(encoded)


@pytest.mark.parametrize("architecture", ["gpt2", "qwen3_moe", "mixtral"])
def test_bases_take_no_more_than_their_bound(architecture: str) -> None:
    """In float32, with UᵀT of tall matrices; kernels and embeddings have none."""
    pair = pair_of(architecture)
    bases = output_bases(pair)
    told = {module: most_bytes(*module.shape) for module in with_bases(pair.architecture)}
    assert set(told) == set(bases)
    for module, basis in bases.items():
        weight = torch.zeros(module.shape)
        split = split_by(basis, weight, weight, None)
        held = {id(t): t.numel() * t.element_size() for t in (basis.vectors, split.along)}
        assert sum(held.values()) <= told[module] <= 25 * sum(held.values())


def test_a_plan_of_a_pair_is_what_its_run_says(tmp_path: Path) -> None:
    """The same disk space, modules and parameters; with a tokenizer the prompts' own lengths."""
    suite = write_suite(tmp_path, *build_pair(tmp_path, "qwen2_moe"))
    job, plan = probes.prepare(suite, out=tmp_path / "run"), probes.plan(suite)
    assert plan.tables == job.sizes and plan.tokens == sum(len(item.ids) for item in job.encoded)
    facts = job.pairs[0].facts
    assert plan.parameters["total"] == plan.parameters["text model"] == facts.n_parameters
    assert sum(plan.modules.values()) == len(job.pairs[0].base.architecture.modules)
    assert plan.memory["two models"] == 2 * 4 * facts.n_parameters


def test_a_configuration_is_enough_and_lengths_are_said_to_be_unknown(tmp_path: Path) -> None:
    """No weights and no tokenizer: the lengths are asked for."""
    base, _ = build_pair(tmp_path, "gemma3")
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(base / "config.json", alone)
    suite = write_suite(tmp_path, alone, alone, attribute=None)
    plan = probes.plan(suite)  # transformers would make a tokenizer without a vocabulary
    assert (plan.tokens, plan.tables) == (0, {}) and "capture of a batch" not in plan.memory
    assert (
        plan.notes[0].startswith(f"the prompts' lengths are unknown ({alone}: no tokenizer")
        and "--tokens N" in plan.notes[0]
    )
    told = probes.plan(suite, tokens=5)
    assert told.tokens == 5 * plan.prompts and told.peak > plan.peak > 0
    assert told.sites == plan.sites and told.modules == plan.modules
    more = probes.plan(suite, tokens=5, settings={"generate": {"tokens": 7}})
    assert more.tokens == (4 + 7) * plan.prompts and more.forwards["continuations"].forwards == 7


def test_the_peak_follows_dtype_offload_and_measurements(tmp_path: Path) -> None:
    suite: dict[str, Any] = {
        "name": "plan",
        "base": str(CONFIGS / "gpt-oss-20b.json"),
        "tuned": {"a": "nowhere", "b": "nowhere"},
        "prompts": [{"file": str(CONFIGS.parents[2] / "data" / "prompts" / "medical.jsonl")}],
        "attribute": {"methods": ["graft", "revert"]},
    }
    half = probes.plan(suite, tokens=32, compute=Compute(dtype="bfloat16"))
    assert half.memory["two models"] == 2 * 2 * 20_914_757_184
    assert half.memory["noise floor"] > 4 * 20_914_757_184  # the twin of a bfloat16 base is float32
    offloaded = probes.plan(suite, tokens=32, compute=Compute(dtype="bfloat16", offload=True))
    assert half.peak - offloaded.peak == 2 * 20_914_757_184
    spread = probes.plan(suite, tokens=32, compute=Compute("auto", "bfloat16"))
    assert "noise floor" not in spread.memory and "noise floor" in half.memory
    less = probes.plan(suite, tokens=32, settings={"measure": ["changes"], "sites": ["mlp_out"]})
    assert not [name for name in less.memory if "ledger" in name]
    assert set(less.sites) == {"embed_out", "resid_final", "mlp_out", "experts"} and less.sites["experts"] == 24
    assert half.forwards["capture"].forwards == 4  # both models, for two tuned ones
    with pytest.raises(RunError, match="path needs float32"):
        probes.plan({**suite, "attribute": {"methods": ["path"]}}, compute=Compute(dtype="bfloat16"))


def test_path_holds_what_it_integrates_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """θ(α) and T beside both models; where T is much, one matrix of it."""
    suite = write_suite(tmp_path, *build_pair(tmp_path), batch_size=1, attribute={"methods": ["path"]})
    plan = probes.plan(suite)
    weights = plan.memory["two models"] // 2
    monkeypatch.setattr("probes.planning.KEPT", weights - 1)
    less = probes.plan(suite)
    largest = 4 * max(math.prod(shape) for _, _, shape in plan.modules)
    assert plan.memory["path"] - less.memory["path"] == weights - largest > 0
    assert plan.memory["path"] > 2 * weights and less.memory["path"] > weights + largest


def test_logits_are_counted_where_the_metric_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One position a prompt, and its probabilities; of a metric that may read any, all tokens."""
    methods = {"methods": ["path"], "metric": "logit_diff", "controls": []}
    suite = write_suite(tmp_path, *build_pair(tmp_path), batch_size=1, attribute=methods)
    read = probes.plan(suite)
    monkeypatch.setattr("probes.planning.read_by", lambda _metric: None)
    whole, longest = probes.plan(suite), max(len(item.ids) for item in probes.prepare(suite).encoded)
    vocab = build_model().config.vocab_size
    assert whole.memory["path"] - read.memory["path"] == (longest - 2) * vocab * 4


def test_a_wrapper_says_its_towers(tmp_path: Path) -> None:
    prompts = CONFIGS.parents[2] / "data" / "prompts" / "medical.jsonl"
    base = CONFIGS / "mistral-small-3.1.json"
    plan = probes.plan({"name": "p", "base": str(base), "tuned": {"a": "x"}, "prompts": [{"file": str(prompts)}]})
    assert plan.parameters == {
        "total": 24_011_361_280,
        "text model": 23_572_403_200,
        "model.vision_tower": 403_305_472,
        "model.multi_modal_projector": 35_652_608,
        "in no row": 0,
    }
    assert plan.modules["up", "linear", (32768, 5120)] == 40 and plan.sites["gate"] == 40


def test_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = write_suite(tmp_path, CONFIGS / "qwen3.5-27b.json", CONFIGS / "qwen3.5-27b.json", attribute=None)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr("probes.spreading.tried", lambda *_: Trial(Pace(0.4, 0.2), Pace(0.4, 0.2), Pace(0.0, 0.0)))
    asked = ("run", suite, "--plan", "--tokens", 9, "--dtype", "bfloat16", "--json", "--workers", 2)
    status, out, err = call(monkeypatch, capsys, main, *asked)
    assert (status, err) == (0, "") and sorted(tmp_path.rglob("*")) == before
    result = json.loads(out)
    assert result["said"][0].endswith("64 layers: 48 × linear_attn + mlp, 16 × attn + mlp")
    titles = [table["title"] for table in result["tables"]]
    assert titles[:5] == ["723 modules", "sites", "forwards per prompt", "memory in bfloat16", "disk"]
    assert titles[5:] == ["time on cpu in bfloat16, by a short trial"]
    columns, rows = result["tables"][5]["columns"], result["tables"][5]["data"]
    assert columns == ["step", "CPU time", "here", "each of 2"]
    assert [row[0] for row in rows] == ["capture", "noise floor", "all"] and rows[1][3] == "one process"
    assert "loading and proving the pair" in result["said"][-2] and "each of 2 workers loads" in result["said"][-1]
    sites = dict(result["tables"][1]["data"])
    assert (sites["attn_out"], sites["linear_attn_out"]) == (16, 48)  # each by its own name
    assert ["two models", "109.4 GB"] in result["tables"][3]["data"]

    def unable(*_: object) -> None:
        raise LackOfMemory("a trial holds one block of it, 9 GB")

    monkeypatch.setattr("probes.spreading.tried", unable)
    status, out, err = call(monkeypatch, capsys, main, *asked)
    result = json.loads(out)
    assert (status, err, len(result["tables"])) == (0, "", 5)
    assert result["said"][-1] == "no seconds are told: a trial holds one block of it, 9 GB"
    status, _, err = call(monkeypatch, capsys, main, "run", suite, "--tokens", 9)
    assert (status, err) == (2, "error: --tokens needs --plan; a run counts its tokens itself\n")
    status, _, err = call(monkeypatch, capsys, main, "run", suite, "--plan", "--base", tmp_path)
    assert (status, err.count("\n")) == (2, 1) and f"{tmp_path}: no config.json; pass a model's directory" in err
