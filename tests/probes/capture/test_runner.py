"""One batch: what is read for one table goes into that table alone."""

import pytest

from probes.capture.pair import make_pair
from probes.capture.runner import Session, run_shard, shards
from probes.suite import load_suite
from tests.pairs import PROMPTS, build_model, build_tokenizer, perturb
from tv.prompts.encoding import encode
from tv.prompts.files import Prompt


@pytest.mark.parametrize(
    ("asked", "tables"),
    [
        ({"measure": ["gates"]}, {"gates", "neurons", "tokens", "predictions"}),
        ({"measure": ["ledger"]}, {"ledger", "tokens", "predictions"}),
        (
            {"measure": ["gates"], "keep": ["mlp_out", "head_out", "embed_out"]},
            {"gates", "neurons", "tokens", "predictions", "vectors"},
        ),
        (
            {"measure": ["changes"], "sites": ["attn_out"], "keep": ["mlp_out"]},
            {"changes", "tokens", "predictions", "vectors"},
        ),
    ],
)
def test_a_site_read_for_one_table_is_in_no_other(asked: dict[str, object], tables: set[str], tmp_path) -> None:
    base, tuned = build_model("mixtral"), build_model("mixtral")
    perturb(tuned, 0.05, seed=1)
    pair = make_pair(base, tuned, build_tokenizer())
    suite = load_suite(
        {"name": "one", "base": "base", "tuned": {"moved": "tuned"}, "prompts": [{"file": "none.jsonl"}], **asked}
    )
    given = [Prompt(row["id"], "tiny", "tiny", row["text"], row.get("target"), row.get("foil")) for row in PROMPTS]
    encoded = encode(given[:2], pair.tokenizer, 64)
    session = Session.open(pair, suite)
    (shard,) = shards(encoded, suite, "moved", pair.architecture)
    written = run_shard(shard, session, tmp_path)["tables"]
    assert set(written) == tables
    if "changes" in tables:  # the embedding and attention, of 3 layers
        at_one_place = sum(len(item.ids) for item in encoded)
        assert written["changes"]["rows"] == 4 * at_one_place
