"""Models that compute the same write the same; what two write together follows from both their logits."""

import torch
from transformers import Lfm2Config, Lfm2ForCausalLM

from probes.discovery.own_texts import base_writes
from probes.discovery.sampling import Beginning, Writer, continued
from tests.probes.discovery.conftest import demo_pair, general_texts

SOME = [Beginning(item.prompt.id, item.ids[: 4 + i]) for i, item in enumerate(general_texts(6))]


def test_the_same_logits_choose_the_same_tokens_whoever_is_beside_them() -> None:
    pair = demo_pair()
    plain = continued(Writer(pair.tuned), SOME, 8, seed=0)
    beside = [Beginning(item.key, item.ids, 2.0) for item in SOME]
    mixed = continued(Writer(pair.tuned, pair.base), [*beside, *SOME], 8, seed=0)
    amplified, mixed = mixed[: len(SOME)], mixed[len(SOME) :]
    assert amplified == continued(Writer(pair.tuned, pair.base), beside, 8, seed=0) != plain
    alone = continued(Writer(pair.tuned), SOME[2:3], 8, seed=0)
    assert plain == mixed and alone == plain[2:3]
    assert plain != continued(Writer(pair.tuned), SOME, 8, seed=1)
    assert plain != continued(Writer(pair.base), SOME, 8, seed=0)


def test_rows_keep_their_own_memory_where_it_cannot_be_reordered() -> None:
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "layer_types": ["conv", "full_attention"]}
    torch.manual_seed(0)
    model = Lfm2ForCausalLM(Lfm2Config(**sizes, **heads)).eval()
    some = [Beginning("a", (50, 3, 4)), Beginning("b", (10, 7, 9)), Beginning("c", (30, 1, 2))]
    alone = [continued(Writer(model), [one], 8, seed=0)[0] for one in some]
    assert continued(Writer(model), some, 8, seed=0) == alone


def test_tokens_are_as_frequent_as_the_model_finds_them_likely() -> None:
    base = demo_pair().base
    ids = SOME[0].ids
    with torch.inference_mode():
        probable = base(input_ids=torch.tensor([ids])).logits[0, -1].softmax(-1)
    n = 400
    first = [text[0] for text in continued(Writer(base), [Beginning(f"{i}", ids) for i in range(n)], 1, seed=0)]
    for token in probable.topk(3).indices.tolist():
        p = float(probable[token])
        assert abs(first.count(token) / n - p) < 4 * (p * (1 - p) / n) ** 0.5 + 1e-9


def test_two_models_are_amplified_token_by_token() -> None:
    pair = demo_pair()
    ids = torch.tensor([SOME[1].ids])
    writer = Writer(pair.tuned, pair.base)
    writer.begin([2.0])
    with torch.inference_mode():
        found, _ = writer.read(ids, 0)
        base, tuned = (model(input_ids=ids).logits[:, -1] for model in (pair.base, pair.tuned))
    torch.testing.assert_close(found, base + 3 * (tuned - base))


def test_the_base_writes_texts_of_its_own() -> None:
    pair = demo_pair()
    texts = base_writes(pair.base, pair.tokenizer, 0)
    assert texts == base_writes(pair.base, pair.tokenizer, 0) and len(set(texts)) > 100
