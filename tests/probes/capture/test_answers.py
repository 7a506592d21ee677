"""What both models write, against transformers' own greedy decoding; and what ended it."""

import pandas as pd
import pytest
import torch

from probes.capture.answers import TOKENS, answers
from probes.capture.pair import make_pair
from tests.pairs import PROMPTS, build_model, build_tokenizer, perturb
from tv.prompts.encoding import encode
from tv.prompts.files import Prompt


def test_both_models_write_greedily_and_it_is_said_what_ended_it() -> None:
    base, tuned, tokenizer = build_model(), build_model(), build_tokenizer()
    perturb(tuned, 0.05, seed=1)
    given = [Prompt(row["id"], "tiny", "tiny", row["text"], row.get("target"), row.get("foil")) for row in PROMPTS]
    encoded = encode(given, tokenizer, 64)
    pair = make_pair(base, tuned, tokenizer)
    rows = answers(pair, "moved", encoded, ends=()).set_index(["prompt_id", "model"])
    assert len(rows) == 2 * len(PROMPTS) and set(rows.end) == {"length", "line"}
    assert set(rows.n_tokens[rows.end == "length"]) == {TOKENS}
    item = encoded[0]
    assert (rows.end[item.prompt.id] == "length").all()
    text = torch.tensor([item.ids[: item.n_text]])
    for name, model in (("base", base), ("moved", tuned)):
        settings = {"do_sample": False, "max_new_tokens": TOKENS, "eos_token_id": -1, "pad_token_id": 2}
        ids = model.generate(text, **settings)[0, item.n_text :].tolist()
        assert rows.answer[item.prompt.id, name].strip() == tokenizer.decode(ids, skip_special_tokens=True).strip()
        third = ids.index(ids[2]) + 1
        ended = answers(pair, "moved", [item], ends={ids[2]}).set_index("model").loc[name]
        assert (ended.end, ended.n_tokens) == ("text", third)
        assert ended.answer.strip() == tokenizer.decode(ids[: third - 1], skip_special_tokens=True).strip()


def test_an_answer_is_one_line_where_the_target_is(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = make_pair(build_model(), build_model(), build_tokenizer())
    ends = {}
    for target in (" two", None, " two\nlines"):
        encoded = encode([Prompt("a", "tiny", "tiny", "What is", target)], pair.tokenizer, 64)
        with monkeypatch.context() as patch:
            patch.setattr(pair.tokenizer, "decode", lambda ids, **_: "What is" + " one\n two" * (len(ids) > TOKENS))
            row = answers(pair, "moved", encoded).iloc[0]
        ends[target] = row.answer, row.end
    whole = " one\n two", "length"
    assert ends == {" two": (" one", "line"), None: whole, " two\nlines": whole}


def test_what_the_base_is_known_to_write_is_not_made_again() -> None:
    base, tuned, tokenizer = build_model(), build_model(), build_tokenizer()
    perturb(tuned, 0.05, seed=1)
    encoded = encode([Prompt(row["id"], "tiny", "tiny", row["text"]) for row in PROMPTS], tokenizer, 64)
    pair = make_pair(base, tuned, tokenizer)
    whole = answers(pair, "moved", encoded)
    said = {
        row.prompt_id: (row.answer, row.n_tokens, row.end)
        for row in whole[whole.model == "base"].itertuples()
        if row.prompt_id != encoded[-1].prompt.id
    }
    read: list[int] = []
    handle = base.register_forward_pre_hook(
        lambda _model, _args, kwargs: read.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    again = answers(pair, "moved", encoded, known=said)
    all_known = answers(pair, "moved", encoded[:-1], known=said)
    handle.remove()
    pd.testing.assert_frame_equal(again, whole)
    assert set(read) == {1} and len(all_known) == 2 * len(said)
