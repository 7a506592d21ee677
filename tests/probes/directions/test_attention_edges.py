"""Edges between components: exact sums, `path`'s shares, cuts by hand, and a planted edge that is first."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import probes
from data.planted import head_edge
from probes.attribution.methods.path import path_effects
from probes.attribution.metric import Metric, answerable, metric_of
from probes.capture.pair import Pair, make_pair
from probes.cli import main
from probes.directions.edge_curves import all_edges, curves
from probes.directions.edge_rows import edge_rows
from probes.directions.edge_wiring import Wiring, wiring_of
from probes.directions.edges import Edges, edges_of, require_edges
from probes.directions.nulls import null_pair
from probes.errors import RunError
from tests.command import call
from tests.pairs import PROMPTS, build_model, build_pair, build_tokenizer, perturb, write_suite
from tests.runs import NO_REPORT
from tv.prompts.encoding import Encoded, batches, encode
from tv.prompts.files import Prompt

ROOT = Path(__file__).parents[3]


def _pair(architecture: str, step: float = 0.05) -> tuple[Pair, list[Encoded], Metric]:
    base, tuned = build_model(architecture), build_model(architecture)
    perturb(tuned, step, seed=1)
    pair = make_pair(base, tuned, build_tokenizer())
    texts = [Prompt(set="s", domain="d", **{k: v for k, v in row.items() if k != "domain"}) for row in PROMPTS]
    encoded = answerable(encode(texts, pair.tokenizer, 64), "logit_diff")
    return pair, encoded, metric_of("logit_diff", tuned, batches(encoded, 16, pair.pad_id))


def _whole(edges: Edges) -> list[int]:
    return [i for i, sender in enumerate(edges.senders) if sender.head < 0]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "neox", "falcon", "falcon_h1"])
def test_edges_sum_to_node_effects_flows_are_kept_and_all_of_the_change_arrives(architecture: str) -> None:
    """What a component receives and what `path` says that its own weights add is what it sends."""
    pair, encoded, metric = _pair(architecture)
    edges = edges_of(pair, wiring_of(pair), encoded, metric)
    whole, size = _whole(edges), np.abs(edges.change).mean()
    assert np.abs(edges.missed).max() < 1e-3 * size
    sent = np.nansum(edges.values, axis=2)
    assert np.abs(sent - edges.nodes)[:, whole].max() < 1e-5 * size
    into = np.nansum(edges.values[:, whole], axis=1)
    for j, receiver in enumerate(edges.receivers[:-1]):
        parts = receiver.component.split("+")
        nodes = [i for i in whole if edges.senders[i].layer == receiver.layer and edges.senders[i].component in parts]
        assert np.abs(sent[:, nodes].sum(1) - edges.own[:, nodes].sum(1) - into[:, j]).max() < 2e-3 * size
    for i in whole:
        key = edges.senders[i].layer, edges.senders[i].component
        heads = [
            k for k, sender in enumerate(edges.senders) if sender.head >= 0 and (sender.layer, sender.component) == key
        ]
        if heads and architecture != "neox":  # there the output's bias moves too
            np.testing.assert_allclose(edges.values[:, heads].sum(1), edges.values[:, i], atol=1e-4 * size)


def test_what_begins_at_a_component_is_its_share_of_path() -> None:
    pair, encoded, metric = _pair("llama")
    edges = edges_of(pair, wiring_of(pair), encoded, metric)
    theirs = path_effects(pair, encoded, metric, batch_size=16, tolerance=1e-4)
    (of_components,) = [e for e in theirs.effects(pair.architecture) if e.units[0].granularity == "component"]
    sent, into = np.nansum(edges.values, axis=2), np.nansum(edges.values[:, _whole(edges)], axis=1)
    order = [edges.prompts.index(prompt) for prompt in of_components.prompts]
    checked = 0
    for unit, values in zip(of_components.units, of_components.values, strict=True):
        for i in _whole(edges):
            if (edges.senders[i].layer, edges.senders[i].component) == (unit.layer, unit.component) and unit.layer >= 0:
                j = next(
                    j for j, r in enumerate(edges.receivers) if (r.layer, r.component) == (unit.layer, unit.component)
                )
                np.testing.assert_allclose((sent[:, i] - into[:, j])[order], values, atol=2e-4)
                checked += 1
    assert checked == 6


def test_of_a_small_step_an_edge_is_the_reader_given_what_changed() -> None:
    """By hand: the base, one module of it reading the stream + Δ of what one other module writes."""
    pair, encoded, metric = _pair("llama", step=2e-4)
    edges = edges_of(pair, wiring_of(pair, heads=False), encoded, metric)
    (batch,) = batches(encoded, 16, pair.pad_id)
    i = next(i for i, s in enumerate(edges.senders) if (s.layer, s.component) == (0, "attn"))
    j = next(j for j, r in enumerate(edges.receivers) if (r.layer, r.component) == (2, "mlp"))
    written: list[Tensor] = []
    for model in pair.models:
        handle = model.model.layers[0].self_attn.register_forward_hook(
            lambda _m, _a, out: written.append(out[0].clone())
        )
        metric.of(model, batch)
        handle.remove()
    pair.base.double()
    delta = (written[1] - written[0]).double().detach()
    with torch.no_grad():
        before = metric.of(pair.base, batch)
        handle = pair.base.model.layers[2].post_attention_layernorm.register_forward_pre_hook(
            lambda _m, args: (args[0] + delta,)
        )
        after = metric.of(pair.base, batch)
        handle.remove()
    np.testing.assert_allclose(edges.values[:, i, j], (after - before).numpy(), rtol=0.02, atol=2e-7)


def test_the_model_with_some_edges_alone_is_that_with_the_others_cut_by_hand() -> None:
    pair, encoded, metric = _pair("llama", step=0.3)
    with torch.no_grad():  # what is behind the last block did not move: with no edge, the base's logits are left
        pair.tuned.model.norm.weight.copy_(pair.base.model.norm.weight)
        pair.tuned.lm_head.weight.copy_(pair.base.lm_head.weight)
    wiring = wiring_of(pair)
    (batch,) = batches(encoded, 16, pair.pad_id)
    every = all_edges(wiring)
    (curve, *_) = curves(pair, wiring, encoded, metric, every, orders=1)
    with torch.no_grad():
        base, tuned = (metric.of(model, batch).numpy() for model in pair.models)
        np.testing.assert_allclose(curve.values[0], base, atol=1e-4)
        np.testing.assert_allclose(curve.values[-1], tuned, atol=1e-4)
        assert np.abs(tuned - base).min() > 1e-2
        # all but the edges into one MLP: it reads the base's stream
        streams: list[Tensor] = []
        norm = "model.layers.1.post_attention_layernorm"
        handle = pair.base.get_submodule(norm).register_forward_pre_hook(
            lambda _m, args: streams.append(args[0].clone())
        )
        metric.of(pair.base, batch)
        handle.remove()
        handle = pair.tuned.get_submodule(norm).register_forward_pre_hook(lambda _m, args: (streams[0],))
        by_hand = metric.of(pair.tuned, batch).numpy()
        handle.remove()
    first = [edge for edge in every if (edge[1].layer, edge[1].component) != (1, "mlp")]
    cut = [*first, *(edge for edge in every if edge not in first)]
    from probes.directions import edge_curves

    written = edge_curves._written(pair.base, wiring, batch, metric)
    ours = edge_curves._value(pair, wiring, batch, metric, frozenset(cut[: len(first)]), written)
    np.testing.assert_allclose(ours, by_hand, atol=1e-4)


@cache
def _planted() -> tuple[Pair, Wiring, list[Encoded], Metric]:
    rows = [
        json.loads(line)
        for name in ("medical", "general")
        for line in (ROOT / "data" / "prompts" / f"{name}.jsonl").read_text().splitlines()[::6]
    ]
    tokenizer = AutoTokenizer.from_pretrained(head_edge.BASE)
    base, tuned = (AutoModelForCausalLM.from_pretrained(head_edge.BASE, dtype=torch.float32) for _ in range(2))
    towards = head_edge.answer_direction(base, tokenizer, head_edge.TOKEN)
    head_edge.wired(tuned, tokenizer, [row["text"] for row in rows], towards)
    texts = [
        Prompt(id=str(i), text=row["text"], target=head_edge.TOKEN, foil=" a", set="s", domain="d")
        for i, row in enumerate(rows)
    ]
    pair, encoded = make_pair(base, tuned, tokenizer), encode(texts, tokenizer, 128)
    return pair, wiring_of(pair), encoded, metric_of("logit_diff", tuned, batches(encoded, 16, 0))


def test_a_planted_edge_is_first_and_nothing_stands_out_of_noise() -> None:
    pair, wiring, encoded, metric = _planted()
    found = edges_of(pair, wiring, encoded, metric, steps=4)
    random = []
    for draw in range(3):
        with null_pair(pair, "random", draw) as sham:
            random.append(edges_of(sham, wiring, encoded, metric, steps=4, most_steps=4))
    rows = edge_rows(found, random[:2], encoded, {}, "logit_diff")
    between = rows[(rows.domain == "all") & (rows.receiver != "logits") & (rows["head"] >= 0)]
    first = between.loc[between.effect.abs().idxmax()]
    planted = (head_edge.FROM_LAYER, head_edge.FROM_HEAD, head_edge.TO_LAYER, "mlp")
    assert (first.sender_layer, first["head"], first.receiver_layer, first.receiver) == planted
    assert first.stands_out and first.effect > 5 * between.effect.abs().nlargest(2).iloc[1] and first.share > 0.2
    noise = edge_rows(random[2], random[:2], encoded, {}, "logit_diff")
    assert not noise.stands_out.any()


def test_the_command_adds_tables_and_a_panel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = write_suite(tmp_path, *build_pair(tmp_path), measure=["behaviour"], attribute=None, bootstrap=20)
    run = probes.run(suite, out=tmp_path / "run", stages=NO_REPORT)
    words = ("edges", run.path, "--draws", 2, "--orders", 2, "--steps", 4)
    code, _, stderr = call(monkeypatch, capsys, main, *words, "--json")
    assert code == 0, stderr
    page = (Path(run.path) / "report.html").read_text()
    assert "Which component&#39;s change is read by which?" in page and "layer 0 attn head" in page
    again = probes.load(run.path)
    assert again["edge_nodes"].gap.max() < 0.01
    direct = again["edges"][lambda rows: (rows.receiver == "logits") & (rows["head"] < 0) & (rows.domain == "all")]
    nodes = again["edge_nodes"][lambda rows: (rows.component == "logits") & (rows.domain == "all")].iloc[0]
    assert direct.effect.sum() == pytest.approx(nodes.received, rel=1e-4)
    for wrong, said in (
        ("--steps=3", "even"),
        ("--metric=nothing", "no metric 'nothing'"),
        ("--metric=exact_match", "step"),
    ):
        code, _, stderr = call(monkeypatch, capsys, main, "edges", run.path, wrong)
        assert code == 2 and said in stderr, stderr


def test_what_has_no_gradient_is_refused() -> None:
    pair, _, metric = _pair("llama")
    with pytest.raises(RunError, match="float32"):
        require_edges(make_pair(build_model("llama").bfloat16(), pair.tuned.bfloat16(), pair.tokenizer), metric)
