"""A discovery of models whose weights are read a block at a time finds what one of whole models does."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

import probes
from probes.capture.loading import Pairs
from probes.discovery.discover import Search, discovering
from probes.discovery.gradients import gradients
from probes.discovery.part import PARTS
from probes.suite import Discovery, load_suite
from tests.pairs import TEXT, build_pair, write_suite
from tv.prompts.encoding import Batch, batches, encode
from tv.prompts.files import Prompt
from tv.runtime.compute import Compute

WANTED = Discovery(parts=[name for name, part in PARTS.items() if part.streams], draws=2, null_texts=16)


def _pairs(folder: Path, architecture: str) -> tuple[Pairs, Pairs]:
    write_suite(folder, *build_pair(folder, architecture, step=0.3))
    suite = load_suite(folder / "suite.yaml")
    return Pairs(suite, Compute(stream=False)), Pairs(suite, Compute(stream=True))


def _settled(rows: pd.DataFrame) -> pd.DataFrame:
    """Without what a factorization of noise gives, which comes to rest where rounding leads it."""
    kind = next((name for name in ("reading", "method") if name in rows), None)
    return rows if kind is None else rows[rows[kind] != "nmf"]


def _texts(pairs: Pairs) -> list[Prompt]:
    words = TEXT.split()
    return [Prompt(f"t{i}", "texts", "texts", " ".join(words[i : i + 6])) for i in range(20)]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("architecture", ["gpt2", "gemma2", "qwen2_moe"])
def test_gradients_are_those_of_the_whole_model(architecture: str, tmp_path: Path) -> None:
    whole, streamed = (pairs.pair("moved") for pairs in _pairs(tmp_path, architecture))
    texts = encode([Prompt(f"t{i}", "t", "t", TEXT[i : i + 60]) for i in range(3)], whole.tokenizer, 32)
    some = batches(texts, 2, whole.pad_id)

    def loss(batch: Batch, logits: torch.Tensor) -> torch.Tensor:
        return logits.float().log_softmax(-1)[..., 5][batch.attention_mask.bool()].sum()

    expected = gradients(whole.base, whole.architecture, some, loss)
    found = gradients(streamed.base, streamed.architecture, some, loss)
    assert found.keys() == expected.keys() and len(found) > 10
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)
    assert all(value.grad is None for value in streamed.base.parameters())


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")  # with two draws little can be said
def test_the_tables_are_those_of_whole_models(tmp_path: Path) -> None:
    tables = []
    for pairs in _pairs(tmp_path, "gemma2"):
        pair = pairs.pair("moved")
        search = Search.of(pair, encode(_texts(pairs), pair.tokenizer, 32), WANTED, 8, 0)
        search.see(0, len(search.which), lambda _: None)
        tables.append([rows for part in search.parts.values() for _, rows in part.results()])
        if pairs.compute.stream:
            assert all(value.is_meta for name, value in pair.base.named_parameters() if ".0." in name)
    for one, other in zip(*tables, strict=True):
        pd.testing.assert_frame_equal(_settled(one), _settled(other), check_exact=False, rtol=1e-3, atol=1e-5)


def test_a_part_that_writes_is_refused_where_models_are_streamed() -> None:
    with pytest.raises(probes.InputError, match=r"spoken, divergences of a discovery need .* token_shifts"):
        discovering(Compute(stream=True), Discovery())
    assert discovering(Compute(), Discovery()).stream is False
    assert discovering(Compute(), WANTED).stream is None


def test_blocks_that_pass_on_more_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    _, streamed = _pairs(tmp_path, "gpt2")
    pair = streamed.pair("moved")
    pair = replace(pair, architecture=replace(pair.architecture, chained=False))
    with pytest.raises(probes.InputError, match="leave --stream out"):
        Search.of(pair, encode(_texts(streamed), pair.tokenizer, 32), WANTED, 8, 0)


def test_a_streamed_base_writes_no_texts(tmp_path: Path) -> None:
    with pytest.raises(probes.InputError, match="give --texts"):
        probes.discover("a", "b", out=tmp_path / "run", settings={"parts": ["topics"]}, compute=Compute(stream=True))
