"""Attention patterns: those that the models' own code gives, an exact split, and a planted head that is found first."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import probes
from data.planted import head_edge
from probes.capture.pair import Pair, make_pair
from probes.cli import main
from probes.directions.attention import Read, read_attention
from probes.directions.attention_heads import head_rows
from probes.directions.attention_patterns import Patterns, each_pattern, require_patterns
from probes.directions.attention_shown import PROMPTS as SHOWN, pattern_rows
from probes.directions.nulls import null_pair
from probes.errors import RunError
from tests.command import call
from tests.pages import data_of
from tests.pairs import PROMPTS, build_model, build_pair, build_tokenizer, perturb, write_suite
from tests.runs import NO_REPORT
from tv.prompts.encoding import Batch, Encoded, batches, encode
from tv.prompts.files import Prompt

ROOT = Path(__file__).parents[3]
DRAWS = 3
HEAD = (head_edge.LAYER, "attn", head_edge.HEAD)


def _pair(architecture: str) -> tuple[Pair, Batch]:
    base, tuned = build_model(architecture), build_model(architecture)
    perturb(tuned, 0.05, seed=1)
    for model in (base, tuned):
        if model._supports_sdpa:
            model.config._attn_implementation = "sdpa"
    pair = make_pair(base, tuned, build_tokenizer())
    texts = [Prompt(id=row["id"], text=row["text"], set="s", domain="d") for row in PROMPTS]
    (batch,) = batches(encode(texts, pair.tokenizer, 64), 16, pair.pad_id)
    return pair, batch


def _by_themselves(model: PreTrainedModel, batch: Batch) -> list[torch.Tensor]:
    model.config._attn_implementation = "eager"
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    with torch.no_grad():
        given = model(**inputs, output_attentions=True, use_cache=False).attentions
    return [weights for weights in given if weights is not None]


@pytest.mark.parametrize(
    "architecture", ["llama", "qwen3", "gemma2", "gpt2", "neox", "phi3", "falcon", "gpt_oss", "qwen3_next", "falcon_h1"]
)
def test_patterns_are_those_that_the_models_give(architecture: str) -> None:
    """Windows, shared keys, caps, sinks and positions are their own code's; the split's terms sum to the change."""
    pair, batch = _pair(architecture)
    before = pair.base.config._attn_implementation
    found: list[Patterns] = []
    assert each_pattern(pair, batch, found.append) == []
    assert pair.base.config._attn_implementation == pair.tuned.config._attn_implementation == before
    assert not any("forward" in vars(module) for model in pair.models for module in model.modules())
    real, length = batch.attention_mask.bool()[:, None, :, None], batch.input_ids.shape[1]
    for side in ("base", "tuned"):
        given = _by_themselves(getattr(pair, side), batch)
        assert len(given) == len(found) >= 1
        for one, theirs in zip(found, given, strict=True):
            ours: torch.Tensor = getattr(one, side).weights
            assert ((ours[..., :length] - theirs) * real).abs().max() < 1e-6
            assert (ours.sum(-1) - 1).abs().max() < 1e-5
            assert one.error < 1e-6
    assert (found[0].base.weights.shape[-1] == length + 1) == (architecture == "gpt_oss")  # the sink is a key


@pytest.mark.parametrize("architecture", ["llama", "gpt_oss"])
def test_stored_patterns_are_eager_attention(architecture: str) -> None:
    """Query by query and key by key, of the heads asked for alone; a sink takes what the keys leave."""
    pair, batch = _pair(architecture)
    heads = pd.DataFrame({"layer": [1, 0], "component": "attn", "head": [2, 1]})
    rows = pattern_rows(pair, batch.encoded, heads)
    assert set(zip(rows.layer, rows["head"], strict=True)) == {(1, 2), (0, 1)}
    assert (rows.key_pos.min() < 0) == (architecture == "gpt_oss") and (rows.key_pos <= rows.query_pos).all()
    sums = rows.groupby(["prompt_id", "layer", "query_pos"])[["weight_base", "weight_tuned"]].sum()
    assert np.allclose(sums, 1, atol=1e-5) and len(sums) == 2 * sum(len(item.ids) for item in batch.encoded)
    seen, prompts = rows[rows.key_pos >= 0], {item.prompt.id: i for i, item in enumerate(batch.encoded)}
    for side in ("base", "tuned"):
        given = _by_themselves(getattr(pair, side), batch)
        theirs = [
            float(given[layer][prompts[prompt], head, query, key])
            for prompt, layer, head, query, key in seen[
                ["prompt_id", "layer", "head", "query_pos", "key_pos"]
            ].itertuples(index=False)
        ]
        assert np.allclose(seen[f"weight_{side}"], theirs, atol=1e-6)


def test_only_its_own_weights_move_the_first_attention_where_embeddings_did_not() -> None:
    """Heads of the first block have one input in both models: all of their change is their own."""
    base, tuned = build_model("llama"), build_model("llama")
    perturb(tuned, 0.05, seed=1)
    with torch.no_grad():
        tuned.model.embed_tokens.weight.copy_(base.model.embed_tokens.weight)
        tuned.model.layers[0].input_layernorm.weight.copy_(base.model.layers[0].input_layernorm.weight)
    pair = make_pair(base, tuned, build_tokenizer())
    texts = [Prompt(id=row["id"], text=row["text"], set="s", domain="d") for row in PROMPTS]
    rows = read_attention(pair, encode(texts, pair.tokenizer, 64)).heads
    first = rows[rows.layer == 0]
    assert (first.own - first.js).abs().max() < 1e-12 and (first.score_own - 1).abs().max() < 1e-9
    assert (first.js > 0).all()
    deeper = rows[(rows.layer > 0) & (rows.place == "all")]
    assert (deeper.inherited.mean() > 0) and deeper.score_inherited.between(-0.5, 1.5).all()
    assert (rows.own + rows.inherited - rows.js).abs().max() < 1e-12
    assert (rows[["score_own", "score_inherited", "score_interaction"]].sum(axis=1) - 1).abs().max() < 1e-6
    assert rows.error.max() < 1e-5


@pytest.mark.parametrize("architecture", ["llama", "gpt_oss"])
def test_the_divergence_is_scipys(architecture: str) -> None:
    pair, batch = _pair(architecture)
    found: list[Patterns] = []
    each_pattern(pair, batch, found.append)
    rows = read_attention(pair, batch.encoded).heads
    for one in found:
        for i, item in enumerate(batch.encoded):
            first = 0 if architecture == "gpt_oss" else 1  # a query that sees one key alone has no choice
            of = [
                [
                    jensenshannon(one.base.weights[i, head, at].double(), one.tuned.weights[i, head, at].double()) ** 2
                    for at in range(first, len(item.ids))
                ]
                for head in range(one.base.weights.shape[1])
            ]
            ours = rows[(rows.prompt_id == item.prompt.id) & (rows.layer == one.layer)]
            whole = ours[ours.place == "all"].sort_values("head")
            np.testing.assert_allclose(whole.js, np.mean(of, axis=1), rtol=1e-5)
            answer = ours[ours.place == "answer"].sort_values("head")
            np.testing.assert_allclose(answer.js, np.array(of)[:, item.answer_pos - first], rtol=1e-5)
            assert (ours.place == "first").any() == (first == 0)


def test_without_attention_it_is_refused_in_one_line() -> None:
    pair, _ = _pair("mamba")
    with pytest.raises(RunError, match=r"has no attention \(ssm\)"):
        require_patterns(pair)


@cache
def _planted() -> tuple[Pair, list[Encoded]]:
    rows = [
        json.loads(line)
        for name in ("medical", "general")
        for line in (ROOT / "data" / "prompts" / f"{name}.jsonl").read_text().splitlines()[::6]
    ]
    tokenizer = AutoTokenizer.from_pretrained(head_edge.BASE)
    base, tuned = (AutoModelForCausalLM.from_pretrained(head_edge.BASE, dtype=torch.float32) for _ in range(2))
    head_edge.attending(tuned, tokenizer, [row["text"] for row in rows])
    prompts = [Prompt(id=str(i), text=row["text"], set="s", domain="d") for i, row in enumerate(rows)]
    return make_pair(base, tuned, tokenizer), encode(prompts, tokenizer, 128)


def _heads(pair: Pair, encoded: list[Encoded]) -> tuple[pd.DataFrame, Read]:
    """As the command makes them, of every pair alike."""
    own = read_attention(pair, encoded)
    nulls = []
    for null, draw in [("rounded", 0), *(("random", draw) for draw in range(DRAWS))]:
        with null_pair(pair, null, draw) as sham:
            nulls.append(read_attention(sham, encoded, pairs=0).heads)
    rows = head_rows(own.heads, nulls[0], nulls[1:], encoded)
    return rows[rows.domain == "all"].set_index(["layer", "component", "head"]), own


def test_a_planted_head_is_first_and_its_own_doing() -> None:
    pair, encoded = _planted()
    heads, read = _heads(pair, encoded)
    first = heads.loc[heads.js.idxmax()]
    assert heads.js.idxmax() == HEAD and bool(first.stands_out) and first.js > 20 * heads.js.drop(HEAD).max()
    assert first.own_share > 0.999 and first.score_own > 0.999
    later = heads[heads.index.get_level_values("layer") > head_edge.LAYER]
    assert (later.own_share.abs() < 1e-6).all()  # their weights are the base's
    assert heads[heads.index.get_level_values("layer") < head_edge.LAYER].js.isna().all()
    before, after = _weight_on_the_token(pair, encoded)
    assert before < 0.15 and after > 0.6
    gained = read.pairs[(read.pairs.layer == HEAD[0]) & (read.pairs["head"] == HEAD[2])].nlargest(5, "weight_tuned")
    assert np.allclose(gained.weight_own, gained.weight_tuned) and np.allclose(
        gained.weight_inherited, gained.weight_base
    )


def _weight_on_the_token(pair: Pair, encoded: list[Encoded]) -> tuple[float, float]:
    """The mean weight of the planted head on its token, in base and tuned, of queries that can see it."""
    token = pair.tokenizer.encode(head_edge.TOKEN, add_special_tokens=False)[0]
    found: list[tuple[float, float]] = []
    for item in encoded:
        keys = [i for i, own in enumerate(item.ids) if own == token]
        (alone,) = batches([item], 1, 0)

        def receive(seen: Patterns, keys: list[int] = keys) -> None:
            if seen.layer == head_edge.LAYER and keys:
                sums = [of.weights[0, head_edge.HEAD, keys[0] :, keys].sum(-1) for of in (seen.base, seen.tuned)]
                found.extend(zip(*(of.tolist() for of in sums), strict=True))

        each_pattern(pair, alone, receive)
    before, after = np.mean(found, axis=0)
    return float(before), float(after)


@pytest.mark.thorough
@pytest.mark.parametrize(("null", "draw"), [("random", 50), ("rounded", 0)])
def test_nothing_stands_out_of_a_sham(null: str, draw: int) -> None:
    pair, encoded = _planted()
    with null_pair(pair, null, draw, seed=7) as sham:
        heads, _ = _heads(sham, encoded)
    assert not heads.stands_out.any()


def test_the_command_adds_tables_and_a_panel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = write_suite(tmp_path, *build_pair(tmp_path, step=0.2), measure=["behaviour"], attribute=None, bootstrap=20)
    run = probes.run(suite, out=tmp_path / "run", stages=NO_REPORT)
    code, stdout, stderr = call(monkeypatch, capsys, main, "attention", run.path, "--draws", 2, "--json")
    assert code == 0, stderr
    assert len(json.loads(stdout)["tables"]) == 1 and len(json.loads(stdout)["written"]) == 1
    page = (Path(run.path) / "report.html").read_text()
    assert "Which heads attend elsewhere?" in page and "layer 2 head" in page
    again = probes.load(run.path)
    assert {"attention", "attention_heads", "attention_pairs"} <= set(again.tables)
    patterns, heads = again["attention_patterns"], again["attention_heads"]
    first = heads[heads.domain == "all"].nlargest(1, "js").iloc[0]
    assert ((patterns.layer == first.layer) & (patterns["head"] == first["head"])).any()
    assert patterns.prompt_id.nunique() == min(SHOWN, len(PROMPTS))
    figures = data_of(page)["figures"]
    n = len(patterns.groupby(["layer", "head"])) * patterns.prompt_id.nunique()
    assert [len(figures[f"m0-pattern-{side}"]) for side in ("base", "tuned", "difference")] == [n, n, n]
    shown = figures["m0-pattern-tuned"][0]["data"][0]
    assert shown["y"][0].startswith("0 ") and sum(shown["z"][-1]) == pytest.approx(1, abs=0.02)
    assert set(again["attention_heads"].domain) >= {"all", "medical", "math", "general"}
    for wrong, said in (
        ("--draws=1", "at least 2"),
        ("--tuned=other", "no tuned model"),
        ("--prompts=1", "at least 2"),
    ):
        code, _, stderr = call(monkeypatch, capsys, main, "attention", run.path, wrong)
        assert code == 2 and said in stderr and stderr.count("\n") <= 2
