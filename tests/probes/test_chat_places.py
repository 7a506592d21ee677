"""The template is not the prompt: places of a conversation begin after it, and the answer's tokens count from 0."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import probes
from tests.pairs import PROMPTS, build_pair, write_suite

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)
SYSTEM = "The capital of France is Paris. Seven and five make"
CHAT = [row for row in PROMPTS if row["id"] in ("a1", "a2", "b1")]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    paths = build_pair(tmp_path_factory.mktemp("chat"), seed=3, step=0.01)
    for path in paths:
        tokenizer = AutoTokenizer.from_pretrained(path)
        tokenizer.chat_template = TEMPLATE
        tokenizer.save_pretrained(path)
    return paths


def _suite(directory: Path, pair: tuple[Path, Path], **changes: object) -> dict[str, Any]:
    """A suite over a chat set behind one system prompt, which says nothing of positions."""
    path = write_suite(directory, *pair, attribute=None, measure=["gates", "ledger", "behaviour"])
    (directory / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in CHAT), encoding="utf-8")
    suite = json.loads(path.read_text(encoding="utf-8"))
    del suite["positions"]
    return suite | {"prompts": [{"file": str(directory / "prompts.jsonl"), "chat": {"system": SYSTEM}}]} | changes


def _captured(directory: Path, suite: Mapping[str, Any]) -> probes.Run:
    return probes.run(suite, out=directory / "run", stages=["capture"])


def test_the_system_prompt_is_not_measured_by_default(pair: tuple[Path, Path], tmp_path: Path) -> None:
    run = _captured(tmp_path, _suite(tmp_path, pair))
    assert run.manifest["suite"]["positions"] == "after template"
    tokens, gates, neurons = run["tokens"], run["gates"], run["neurons"]
    assert set(tokens.role) == {"user", "template", "answer"}  # of the template what follows the user's words
    begin = tokens.sort_values("pos").groupby("prompt_id").first()
    assert (begin.role == "user").all() and begin.pos.nunique() == 1  # all of them differ in their first word
    places = set(zip(tokens.prompt_id, tokens.pos, strict=True))
    assert set(zip(gates.prompt_id, gates.pos, strict=True)) == places
    domains = run["prompts"].set_index("prompt_id").domain
    counted = tokens.prompt_id.map(domains).astype(str).value_counts()
    assert neurons.groupby(neurons.domain.astype(str)).n.first().to_dict() == counted.to_dict()
    of_user = tokens[tokens.role == "user"].sort_values("pos").groupby("prompt_id").token.apply("".join)
    assert of_user.to_dict() == {row["id"]: row["text"] for row in CHAT}


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("positions", "roles"),
    [
        ({"from": "all"}, {"system", "user", "template", "answer"}),
        ({"from": "user"}, {"user", "template", "answer"}),
        ({"from": "answer"}, {"template", "answer"}),
        ("target", {"template", "answer"}),
    ],
)
def test_places_that_are_asked_for(positions: Any, roles: set[str], pair: tuple[Path, Path], tmp_path: Path) -> None:
    suite = _suite(tmp_path, pair, positions=positions, ledger_positions=positions)
    sizes = probes.prepare(suite, out=tmp_path / "run", stages=["capture"]).sizes
    run = _captured(tmp_path, suite)
    tokens, ledger = run["tokens"], run["ledger"]
    assert set(tokens.role) == roles
    places = len(tokens)
    assert len(run["gates"]) == 3 * places and ledger.groupby(["layer", "module"]).size().unique() == [places]
    assert probes.load_suite(run.manifest["suite"]) == probes.load_suite(suite)
    larger = probes.prepare({**suite, "positions": "all", "ledger_positions": "all"}, out=tmp_path / "more").sizes
    assert all(sizes[name] <= larger[name] for name in ("tokens", "gates", "ledger"))
    assert (sizes["ledger"] == larger["ledger"]) == (positions == {"from": "all"})
    share = (tokens.role == "system").mean()
    assert share > 0.3 if "system" in roles else share == 0


@pytest.mark.sampled(3)
@pytest.mark.parametrize("positions", [{"from": "all"}, {"from": "user"}, "last"])
@pytest.mark.parametrize("generate", [None, {"tokens": 9, "from": "base"}])
def test_first_divergence_counts_the_answers_tokens(
    generate: Any, positions: Any, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """The same, whatever is measured. Both models differ inside the system prompt of every prompt."""
    run = _captured(tmp_path, _suite(tmp_path, pair, positions=positions, generate=generate, measure=["behaviour"]))
    found = run.df("behaviour", where=[("metric", "==", "first_divergence")]).set_index("prompt_id").value.to_dict()
    models = [AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval() for path in pair]
    tokenizer = AutoTokenizer.from_pretrained(pair[0])
    expected, inside = {}, []
    for row in CHAT:
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": row["text"]}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        start = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        if generate is None:
            ids = tokenizer(text + row["target"], add_special_tokens=False, return_tensors="pt").input_ids
        else:
            ids = models[0].generate(start, max_new_tokens=9, do_sample=False, pad_token_id=2)
        with torch.no_grad():
            base, tuned = (model(input_ids=ids).logits[0].argmax(-1) for model in models)
        n = start.shape[1]
        parted = [k for k in range(ids.shape[1] - n) if base[n - 1 + k] != tuned[n - 1 + k]]
        inside.append(bool((base != tuned)[: n - 1].any()))
        if parted:
            expected[row["id"]] = float(parted[0])
    assert found == expected and all(inside)
    if generate is not None:  # one late, one early, and one prompt after which both say the same
        assert len(expected) == 2 and min(expected.values()) > 0


def test_texts_and_conversations_in_one_suite(pair: tuple[Path, Path], tmp_path: Path) -> None:
    suite = _suite(tmp_path, pair, measure=["gates"])
    (tmp_path / "plain.jsonl").write_text('{"id": "x", "text": "The heart pumps blood"}\n', encoding="utf-8")
    run = _captured(tmp_path, {**suite, "prompts": [*suite["prompts"], {"file": str(tmp_path / "plain.jsonl")}]})
    plain = run["tokens"].query("prompt_id == 'x'").sort_values("pos")
    assert plain.pos.min() == 0 and plain.role.tolist()[0] == "template" and set(plain.role[1:]) == {"user"}
    assert "".join(plain.token[1:]) == "The heart pumps blood"
