"""The tokens that moved most: planted rows are found and named."""

import json
import math
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel

import tv
from tests.pairs import build_model, build_pair, build_tokenizer
from tv.measures.tokens import rows_of, token_names


def saved(model: PreTrainedModel, path: Path) -> Path:
    model.save_pretrained(path)
    build_tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return saved(build_model(), tmp_path / "base")


def test_planted_rows_are_found_and_named(base: Path, tmp_path: Path) -> None:
    ids = build_tokenizer()(" blood light", add_special_tokens=False).input_ids
    model = build_model()
    with torch.no_grad():
        for step, token in enumerate(ids):
            model.model.embed_tokens.weight[token] *= 2.0 + step
        model.lm_head.weight[1, 5] += 0.25
    frame = tv.moved_tokens(base, saved(model, tmp_path / "tuned"))
    embed, unembed = (frame[frame.matrix == name] for name in ("embed", "unembed"))
    assert set(embed.token_id) == set(ids) and len(embed) == len(set(ids))
    assert "".join(embed.set_index("token_id").token[ids]) == " blood light"
    assert list(embed["rank"]) == list(range(1, len(embed) + 1)) and embed.delta_norm.is_monotonic_decreasing
    assert np.allclose(embed.set_index("token_id").relative_norm[ids], [1.0 + step for step in range(len(ids))])
    assert np.allclose(embed.cosine, 1)
    assert np.allclose(embed.mean_relative_norm, sum(1.0 + step for step in range(len(ids))) / 306)  # <pad> is 0
    assert (frame.rows == 307).all()
    (row,) = unembed.to_dict("records")
    assert row["token"] == "<eos>" and row["delta_norm"] == pytest.approx(0.25)
    assert row["mean_delta_norm"] == pytest.approx(0.25 / 307)
    w = build_model().lm_head.weight[1].detach().double()
    moved = w.clone()
    moved[5] += 0.25
    assert row["cosine"] == pytest.approx(float(torch.cosine_similarity(w, moved, dim=0)))
    assert set(frame.attrs["fingerprints"]) == {"base", "tuned"}


def test_n_rows_of_each_matrix_by_distance(base: Path, tmp_path: Path) -> None:
    pair = build_pair(tmp_path)
    frame = tv.moved_tokens(*pair, n=7)
    assert [*frame.matrix] == ["embed"] * 7 + ["unembed"] * 7
    vector = tv.extract(*pair)
    for matrix, name in (("embed", "model.embed_tokens.weight"), ("unembed", "lm_head.weight")):
        norms = vector[name].double().norm(dim=1)
        own = frame[frame.matrix == matrix]
        assert list(own.token_id) == norms.topk(7).indices.tolist()
        assert np.allclose(own.delta_norm, norms.topk(7).values)
        assert np.allclose(own.mean_delta_norm, float(norms.mean()))
    with pytest.raises(tv.InputError, match="n = 0"):
        tv.moved_tokens(*pair, n=0)


def test_tied_weights_are_one_matrix_and_conv1d_models_have_one(tmp_path: Path) -> None:
    for architecture in ("qwen2", "gpt2"):
        assert set(tv.moved_tokens(*build_pair(tmp_path, architecture), n=3).matrix) == {"embed"}


def test_rows_in_common_of_a_grown_vocabulary(base: Path, tmp_path: Path) -> None:
    model = build_model()
    model.resize_token_embeddings(320, mean_resizing=False)
    with torch.no_grad():
        model.model.embed_tokens.weight[3] += 1
        model.model.embed_tokens.weight[310] += 100
    frame = tv.moved_tokens(base, saved(model, tmp_path / "grown"))
    assert list(frame.token_id) == [3] and (frame.rows == 307).all()


def test_without_a_tokenizer_tokens_have_no_name() -> None:
    model = build_model()
    with torch.no_grad():
        model.lm_head.weight[4] += 1
    frame = tv.moved_tokens(build_model(), model)
    assert list(frame.token_id) == [4] and frame.token.isna().all()


def test_a_pair_that_is_one_model_moves_nothing(base: Path) -> None:
    frame = tv.moved_tokens(base, base)
    assert frame.empty and {"matrix", "token", "mean_relative_norm"} <= set(frame.columns)


def test_a_tokenizer_that_cannot_be_read_is_one_line(base: Path, tmp_path: Path) -> None:
    content = json.loads((base / "tokenizer.json").read_text())
    content["decoder"] = {"type": "no such decoder"}  # readable JSON with a vocabulary, and yet no tokenizer
    (base / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(tv.CheckpointError, match=r"tokenizer\.json: cannot be read"):
        tv.moved_tokens(base, base)


def test_names_are_text_where_there_is_text() -> None:
    byte_level = build_tokenizer()._tokenizer
    vocabulary = byte_level.get_vocab()
    ids = [vocabulary["Ġ"], vocabulary["<bos>"], vocabulary["Ã"], 5000]  # a space, a special, half a letter, none
    assert token_names(byte_level, ids) == [" ", "<bos>", "Ã", None]
    pieces = Tokenizer(models.BPE({"▁the": 0, "re": 1, "<0x0A>": 2, "<0xE2>": 3}, [], byte_fallback=True))
    pieces.pre_tokenizer = pre_tokenizers.Metaspace()
    pieces.decoder = decoders.Sequence([decoders.Metaspace(), decoders.ByteFallback()])
    assert token_names(pieces, [0, 1, 2, 3]) == [" the", "re", "\n", "<0xE2>"]
    assert token_names(None, [0]) == [None]


def test_bands_give_what_the_whole_gives_and_zero_rows_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, delta = torch.randn(2, 50, 12)
    weight[7] = 0
    whole = rows_of(weight, delta)
    alive: list[weakref.ref[torch.Tensor]] = []
    split = torch.Tensor.double

    def counted(tensor: torch.Tensor) -> torch.Tensor:
        value = split(tensor)
        alive.append(weakref.ref(value))
        assert len(value) <= 2 and sum(reference() is not None for reference in alive) <= 4
        return value

    monkeypatch.setattr("tv.measures.tokens._PIECE", 24)
    monkeypatch.setattr(torch.Tensor, "double", counted)
    bands = rows_of(weight, delta)
    for name in ("delta_norm", "relative_norm", "cosine"):
        assert torch.allclose(getattr(bands, name), getattr(whole, name), equal_nan=True)
    assert math.isnan(bands.relative_norm[7]) and math.isnan(bands.cosine[7]) and bands.delta_norm[7] > 0
    assert not bands.relative_norm[:7].isnan().any()
