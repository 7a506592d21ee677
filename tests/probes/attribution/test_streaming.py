"""Attribution of a pair that is read a layer at a time: the same tables, each layer read once for all variants."""

import gc
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import probes
import tv
from probes.attribution import by_block, reading, waiting
from probes.attribution.by_block import ByBlock
from probes.attribution.forwards import Floats, Variant
from probes.attribution.kept import Kept
from probes.attribution.methods.path import path_effects
from probes.attribution.metric import metric_of
from probes.attribution.shares import Shares
from probes.attribution.units import Unit, components, units_of
from probes.attribution.work import Work
from probes.capture.hooks.turns import take_turns
from probes.capture.noise_floor import twin_of
from probes.capture.pair import Pair, make_pair
from probes.errors import RunError
from tests.pairs import CONFIGS, WIDE, build_pair, build_tokenizer, write_suite
from tests.probes.attribution.conftest import GIVEN
from tv.checkpoints import streamed as streaming
from tv.checkpoints.live import load_model
from tv.checkpoints.streamed import Weights, streamed
from tv.prompts.encoding import batches, encode
from tv.runtime.compute import Compute

#: How far the values of one variant may be apart, read in one way or in the other.
NEAR = 2e-5


@pytest.mark.thorough
@pytest.mark.parametrize(("architecture", "metric"), [("qwen2", "logit_diff"), ("gpt2", "kl")])
def test_tables_are_those_of_models_in_memory(tmp_path: Path, architecture: str, metric: str) -> None:
    attribute = {
        "methods": ["path", "graft", "revert", "depth"],
        "metric": metric,
        "granularity": ["component", "head", "kv_head"],
        "controls": ["random"],
        "control_draws": 2,
        "curve_draws": 1,
        "curve_points": 3,
    }
    suite = write_suite(
        tmp_path, *build_pair(tmp_path, architecture), measure=["gates"], batch_size=2, attribute=attribute
    )
    tables: list[dict[str, pd.DataFrame]] = []
    for streams in (False, True):
        run = probes.run(
            suite,
            out=tmp_path / str(streams),
            stages=["weights", "capture", "attribute"],
            compute=Compute(stream=streams),
        )
        tables.append({name: run[name] for name in run.tables if name not in ("gates", "neurons")})
    whole, found = tables
    assert (
        whole.keys() == found.keys()
        and {"effects", "token_effects", "depth", "curves", "control_draws"} <= whole.keys()
    )
    for name in whole:
        loose = 1e-3 if name == "agreement" else NEAR  # of ranks and bootstraps
        pd.testing.assert_frame_equal(found[name], whole[name], check_exact=False, rtol=1e-4, atol=loose)
    assert found["checks"].holds.all() and len(found["checks"]) == len(whole["checks"])


@pytest.mark.sampled(2)
@pytest.mark.parametrize("architecture", ["gemma2", "mixtral", "starcoder2"])
def test_each_layer_is_read_once_for_all_variants(tmp_path: Path, architecture: str) -> None:
    work = opened(tmp_path, architecture)
    pair, units = work.pair, components(work.pair.architecture)
    sets: list[tuple[Unit, ...]] = [(), *((unit,) for unit in units), tuple(units[::2]), tuple(units)]
    for granularity in ("module", "head", "kv_head", "expert"):
        sets += [(unit,) for unit in units_of(pair.architecture, granularity)[::3]]
    variants = [Variant("base", some) for some in sets]
    assert work.reading.stacked("base")
    before = [model.weights.reads for model in pair.models]
    _, found = work.under(variants)
    for model, earlier in zip(pair.models, before, strict=True):
        once = sum(value.nbytes for value in model.parameters())
        embedding = model.get_submodule(pair.architecture.embed).weight.nbytes  # may leave for the next one's change
        assert model.weights.reads - earlier <= once + embedding
    assert np.allclose(found, in_memory(tmp_path, architecture, variants), rtol=0, atol=NEAR)


def test_hidden_states_beyond_the_bound_wait_in_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    mapped = waiting._mapped
    monkeypatch.setattr(waiting, "_mapped", lambda n, dtype: sizes.append(n) or mapped(n, dtype))
    monkeypatch.setattr(waiting, "_FILE", 30_000)
    monkeypatch.setattr(waiting, "IN_MEMORY", 10_000)
    monkeypatch.setattr(Weights, "largest", 10_000)
    work = opened(tmp_path)
    variants = [Variant("tuned", (unit,)) for unit in components(work.pair.architecture)]
    _, found = work.under(variants)
    assert np.allclose(found, in_memory(tmp_path, "llama", variants), rtol=0, atol=NEAR)
    assert set(sizes) == {30_000} and len(sizes) > 3


@pytest.mark.thorough
def test_no_more_than_a_layer_of_both_models_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {**CONFIGS["llama"][1], "num_hidden_layers": 8, "intermediate_size": 400}
    monkeypatch.setitem(CONFIGS, "deep", ("LlamaConfig", sizes))
    work = opened(tmp_path, "deep")
    pair, units = work.pair, components(work.pair.architecture)
    largest = 2 * pair.base.weights.largest  # of both models
    work.under([Variant("base")])  # proves
    gc.collect()  # what earlier tests left must not go while it is counted
    before, most = alive(), 0

    def look(*_: Any) -> None:
        nonlocal most
        most = max(most, alive() - before)

    for block in pair.architecture.blocks:
        pair.base.get_submodule(block.path).register_forward_hook(look)
    work.under([Variant("base", (unit,)) for unit in units])
    tokens, width = sum(len(item.ids) for item in work.encoded), 48 * 4
    states = 2 * len(units) * tokens * width  # before a block and behind it
    assert largest < most <= 2.5 * largest + states
    assert sum(value.nbytes for value in pair.base.parameters()) > 2.5 * largest


@pytest.mark.sampled(1)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_variants_that_are_not_stacked_are_a_sweep_each(tmp_path: Path, dtype: str) -> None:
    """A mixer of another kind, or rounding that would hide a wrong mask."""
    architecture = "mamba" if dtype == "float32" else "llama"
    work = opened(tmp_path, architecture, dtype=dtype)
    units = components(work.pair.architecture)
    variants = [Variant("base", (units[0], units[2])), Variant("tuned", (units[-1],))]
    for variant in variants:
        assert not work.reading.stacked(variant.model)
        work.under([Variant(variant.model)])
        work.swaps.levels(variant)  # looks at what moved
        model, other = work.pair.models if variant.model == "base" else work.pair.models[::-1]
        before, beside = model.weights.reads, other.weights.reads
        _, found = work.under([variant])
        assert model.weights.reads - before <= 1.5 * sum(value.nbytes for value in model.parameters())
        assert other.weights.reads - beside < sum(value.nbytes for value in other.parameters())
        near = NEAR if dtype == "float32" else 0.05
        assert np.allclose(found, in_memory(tmp_path, architecture, [variant], dtype), rtol=0, atol=near)


def test_a_sweep_that_was_finished_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "at_once", lambda *_: 3)
    work = opened(tmp_path, known=Kept(tmp_path / "kept"))
    variants = [Variant("base", (unit,)) for unit in components(work.pair.architecture)]
    run, tasks = reading.Stacked.__call__, list[reading.Stacked]()

    def twice(task: reading.Stacked, on: Work) -> Any:
        tasks.append(task)
        if len(tasks) == 3:
            raise MemoryError("killed")
        return run(task, on)

    monkeypatch.setattr(reading.Stacked, "__call__", twice)
    with pytest.raises(MemoryError):
        work.under(variants)
    monkeypatch.setattr(reading.Stacked, "__call__", run)
    again = opened(tmp_path, known=Kept(tmp_path / "kept"))
    assert sum(again.known.has(variant, again.prompts) for variant in variants) == 5  # and the model as it is
    _, found = again.under(variants)
    assert np.allclose(found, in_memory(tmp_path, "llama", variants), rtol=0, atol=NEAR)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("architecture", ["gpt2", "qwen2", "falcon", "mixtral"])
def test_path_goes_there_and_back_a_layer_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str
) -> None:
    work = opened(tmp_path, architecture)
    whole = work_of(loaded(tmp_path, architecture))
    same = {"batch_size": 2, "nodes": 3, "most_nodes": 3}
    found, wanted = (path_effects(each.pair, each.encoded, each.metric, **same) for each in (work, whole))
    for own, other in zip(found.shares, wanted.shares, strict=True):
        for mine, theirs in zip(own._all, other._all, strict=True):
            assert list(mine) == list(theirs)
            assert all(torch.allclose(mine[key], theirs[key], rtol=1e-5, atol=1e-6) for key in mine)
    there_and_back = ByBlock(work.pair, work.metric)
    batches_at = [(alpha, batch) for alpha in (0.2, 0.7) for batch in work.batches]
    list(there_and_back.passes(batches_at))  # looks at the blocks
    read, from_checkpoint = Counter[tuple[int, str]](), Weights._from_checkpoint

    def counted(weights: Weights, name: str) -> nn.Parameter:
        read[id(weights), name] += 1
        return from_checkpoint(weights, name)

    monkeypatch.setattr(Weights, "_from_checkpoint", counted)
    passes = list(there_and_back.passes(batches_at))
    assert [(one.alpha, one.batch.encoded) for one in passes] == [(at, batch.encoded) for at, batch in batches_at]
    assert all(not one.entered for one in passes)
    of_blocks = [n for (_, name), n in read.items() if name.startswith(work.pair.architecture.blocks[0].path[:-1])]
    assert len(of_blocks) > 20 and max(of_blocks) == 2  # on the way there, and on the way back


def test_an_embedding_is_kept_where_blocks_are_small_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is found is the same to the bit as where it is read for every sweep."""
    monkeypatch.setitem(CONFIGS, "wide", WIDE)
    read, from_checkpoint = Counter[tuple[int, str]](), Weights._from_checkpoint

    def counted(weights: Weights, name: str) -> nn.Parameter:
        read[id(weights), name] += 1
        return from_checkpoint(weights, name)

    monkeypatch.setattr(Weights, "_from_checkpoint", counted)
    found, times = list[tuple[Floats, list[float]]](), list[list[int]]()
    for copies in (streaming._COPIES, 0):
        monkeypatch.setattr(streaming, "_COPIES", copies)
        read.clear()
        work = opened(tmp_path, "wide")
        _, grafted = work.under([Variant("base", (unit,)) for unit in components(work.pair.architecture)])
        shares = path_effects(work.pair, work.encoded, work.metric, batch_size=2, nodes=3, most_nodes=3).shares
        found.append((grafted, [total(each) for each in shares]))
        embedding = f"{work.pair.architecture.embed}.weight"
        times.append([read[id(model.weights), embedding] for model in work.pair.models])
        with twin_of(work.pair):  # a third model
            assert work.pair.tuned.get_parameter(embedding).is_meta
    kept, again = times
    assert kept == [1, 1] and min(again) > 5
    assert np.array_equal(found[0][0], found[1][0]) and found[0][1] == found[1][1]


def test_path_keeps_what_enters_a_block_in_files_beyond_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = opened(tmp_path)
    once = [(0.3, batch) for batch in work.batches]
    wanted = list(ByBlock(work.pair, work.metric).passes(once))
    sizes: list[int] = []
    mapped = waiting._mapped
    monkeypatch.setattr(waiting, "_mapped", lambda n, dtype: sizes.append(n) or mapped(n, dtype))
    monkeypatch.setattr(waiting, "IN_MEMORY", 10_000)
    monkeypatch.setattr(by_block, "FILED", 20_000)  # and more sweeps than one
    monkeypatch.setattr(Weights, "largest", 10_000)
    found = list(ByBlock(work.pair, work.metric).passes(once))
    assert sizes and [total(one.shares) for one in found] == [total(one.shares) for one in wanted]


def test_a_gradient_through_whole_models_is_refused(tmp_path: Path) -> None:
    work = opened(tmp_path, "gpt_oss")
    with pytest.raises(RunError, match="takes a gradient through whole models; leave --stream out"):
        path_effects(work.pair, work.encoded, work.metric, batch_size=2)


@pytest.mark.parametrize(
    ("attribute", "what"),
    [
        (
            {"methods": ["graft", "patch"]},
            "patch needs both models in memory, and path, graft, revert, depth, shapley do not",
        ),
        ({"methods": ["graft"], "metric": "first_divergence"}, "first_divergence has a model write continuations"),
    ],
)
def test_what_needs_whole_models_is_refused_first(tmp_path: Path, attribute: dict[str, Any], what: str) -> None:
    suite = write_suite(tmp_path, *build_pair(tmp_path), attribute=attribute)
    with pytest.raises(RunError, match=what):
        probes.prepare(suite, compute=Compute(stream=True))
    assert not probes.prepare(suite).models.streams
    assert probes.prepare(suite, stages=["weights", "capture"], compute=Compute(stream=True)).models.streams


def opened(directory: Path, architecture: str = "llama", *, dtype: str = "float32", **more: Any) -> Work:
    """A pair on disk, read a layer at a time."""
    models = []
    for path in build_pair(directory, architecture):
        checkpoint = tv.open_checkpoint(path)
        models.append(streamed(checkpoint, getattr(torch, dtype)))
        take_turns(models[-1], checkpoint.architecture)
    return work_of(make_pair(*models, build_tokenizer()), **more)


def work_of(pair: Pair, **more: Any) -> Work:
    some = batches(encode(GIVEN, pair.tokenizer, 64), 2, pair.pad_id)
    return Work(pair, metric_of("logit_diff", pair.tuned, some), some, 2, **more)


def in_memory(directory: Path, architecture: str, variants: Sequence[Variant], dtype: str = "float32") -> Floats:
    return work_of(loaded(directory, architecture, dtype)).under(variants)[1]


def loaded(directory: Path, architecture: str, dtype: str = "float32") -> Pair:
    models = [load_model(directory / f"{architecture}-{side}", dtype=dtype) for side in ("base", "tuned")]
    return make_pair(*models, build_tokenizer())


def total(shares: Shares) -> float:
    return sum(float(value.sum()) for own in shares._all for value in own.values())


def alive() -> int:
    """Bytes of all tensors that are in memory."""
    tensors = [value for value in gc.get_objects() if issubclass(type(value), torch.Tensor) and not value.is_meta]
    storages = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in tensors}
    return sum(storages.values())
