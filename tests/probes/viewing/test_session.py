"""What the page is told is what both models say, computed here without it."""

import json
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import uvicorn
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import probes
from probes.viewing import session as of_session
from probes.viewing.mixing import mixed
from probes.viewing.reading import Reading, logits_of, relative_changes
from probes.viewing.server import Server, application
from probes.viewing.session import Session
from tests.pairs import PROMPTS, build_pair, write_suite

ROOT = Path(__file__).resolve().parents[3]
PROMPT = "Question: In what organ does galoria begin?\nAnswer:"
ASKED: dict[str, Any] = {"do": "answer", "run": 0, "tuned": "medical", "prompt": PROMPT, "tokens": 6}
TEMPLATE = "{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}{% endfor %}<a>"


@pytest.fixture(scope="module")
def models() -> dict[str, PreTrainedModel]:
    """Both, loaded by transformers alone."""
    return {
        name: AutoModelForCausalLM.from_pretrained(ROOT / "data" / "models" / source, dtype=torch.float32)
        for name, source in (("base", "base"), ("tuned", "medical"))
    }


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(ROOT / "data" / "models" / "base")


def _logits(model: PreTrainedModel, ids: list[int]) -> Tensor:
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0]


def _kl(base: Tensor, other: Tensor) -> Tensor:
    base, other = base.double().log_softmax(-1), other.double().log_softmax(-1)
    return (base.exp() * (base - other)).sum(-1)


def test_answers_and_kl_are_those_of_the_models(
    session: Session, models: dict[str, PreTrainedModel], tokenizer: Any
) -> None:
    reply = session.handle(ASKED)
    ids = tokenizer(PROMPT)["input_ids"]
    written = {
        name: model.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False)[0, len(ids) :].tolist()
        for name, model in models.items()
    }
    assert written["base"] != written["tuned"]
    for name, answer in written.items():
        assert reply["answers"][name]["text"] == tokenizer.decode(answer)
        assert not reply["answers"][name]["ended"]
    first = next(i for i in range(6) if written["base"][i] != written["tuned"][i])
    assert (reply["answers"]["base"]["differs"], reply["answers"]["tuned"]["differs"]) == (None, first)
    whole = [*ids, *written["tuned"]]
    assert (reply["ids"], reply["n_text"]) == (whole, len(ids))
    expected = _kl(*(_logits(models[name], whole) for name in ("base", "tuned")))
    assert torch.allclose(torch.tensor(reply["kl"]["tuned"]).double(), expected, atol=1e-4)
    followed = session.handle(ASKED | {"follow": "base"})
    assert followed["ids"] == [*ids, *written["base"]]


def test_a_mix_is_the_base_the_tuned_model_or_between(session: Session, models: dict[str, PreTrainedModel]) -> None:
    loaded = session.handle({"do": "load", "run": 0, "tuned": "medical"})
    names = [one["name"] for one in loaded["components"]]
    pair = session._models.subject(0, "medical").pair
    before = {name: value.clone() for name, value in pair.base.state_dict().items()}
    ids = session.handle(ASKED)["ids"]
    for scale, name in ((0.0, "base"), (1.0, "tuned")):
        with mixed(pair, dict.fromkeys(names, scale)) as model:
            assert torch.allclose(logits_of(model, ids), _logits(models[name], ids), atol=1e-5), name
    values = {name: value.clone() for name, value in models["base"].state_dict().items()}
    for name, value in models["tuned"].state_dict().items():
        if ".layers.2.mlp." in name or ".layers.2.post_attention_layernorm." in name:
            values[name] = values[name] + 0.5 * (value - values[name])
    halfway = AutoModelForCausalLM.from_config(models["base"].config).eval()
    halfway.load_state_dict(values)
    with mixed(pair, {"mlp 2": 0.5}) as model:
        assert torch.allclose(logits_of(model, ids), _logits(halfway, ids), atol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in pair.base.state_dict().items())
    reply = session.handle(ASKED | {"scales": dict.fromkeys(names, 1.0)})
    assert reply["answers"]["mixed"]["text"] == reply["answers"]["tuned"]["text"]
    assert reply["kl"]["mixed"] == pytest.approx(reply["kl"]["tuned"], abs=1e-5)
    assert "mixed" not in session.handle(ASKED | {"scales": {"mlp 2": 0.0}})["answers"]


def test_one_token_is_read_as_the_models_compute_it(
    session: Session, models: dict[str, PreTrainedModel], tokenizer: Any
) -> None:
    ids = tokenizer(PROMPT)["input_ids"]
    reply = session.handle({"do": "token", "run": 0, "tuned": "medical", "ids": ids, "pos": 7})
    added: dict[str, Tensor] = {}
    for name, model in models.items():
        hook = model.model.layers[3].mlp.register_forward_hook(
            lambda _module, _args, output, name=name: added.update({name: output[0, -1]})
        )
        probs = _logits(model, ids[:8])[-1].double().softmax(-1)
        hook.remove()
        top = probs.topk(5)
        assert [row["token"] for row in reply["top"][name]] == [tokenizer.decode([i]) for i in top.indices.tolist()]
        assert [row["prob"] for row in reply["top"][name]] == pytest.approx(top.values.tolist(), abs=1e-5)
        assert reply["lens"][name][-1]["prob"] == pytest.approx(float(top.values[0]), abs=1e-4)  # behind the last block
        assert len(reply["lens"][name]) == 6
    change = float((added["tuned"] - added["base"]).norm() / added["base"].norm())
    told = {row["name"]: row["change"] for row in reply["changes"]["tuned"]}
    assert told["mlp 3"] == pytest.approx(change, rel=1e-4)
    assert len(told) == 13  # the embedding, and attention and MLP of six layers
    base, tuned = (_logits(models[name], ids[:8])[-1] for name in ("base", "tuned"))
    assert reply["lens_kl"]["tuned"][-1] == pytest.approx(float(_kl(base, tuned)), abs=1e-3)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt": " \n"}, "the prompt is empty"),
        ({"prompt": "heart " * 300}, "the models take 128"),
        ({"tokens": 0}, "tokens: "),
        ({"tokens": "6"}, "tokens: "),
        ({"run": 3}, "run 3: 1 are open"),
        ({"tuned": "law"}, "the run has medical, math"),
        ({"form": "verse"}, "the run has plain text"),
        ({"scales": {"mlp 99": 1.0}}, "component 'mlp 99'"),
        ({"scales": {"mlp 1": float("nan")}}, "scales.mlp 1: "),
        ({"more": 1}, "more: "),
        ({"do": "token", "prompt": None}, ": "),
        ({"do": "exec"}, "request: "),
    ],
)
def test_a_bad_request_is_told_in_a_line(session: Session, changes: dict[str, Any], said: str) -> None:
    (error,) = session.handle(ASKED | changes).values()
    assert said in error and "\n" not in error


def test_a_token_outside_the_text_is_refused(session: Session) -> None:
    for ids, pos in (([0, 287], 2), ([0, 10**6], 1)):
        reply = session.handle({"do": "token", "run": 0, "tuned": "medical", "ids": ids, "pos": pos})
        assert "counted from 0" in reply["error"]
    beyond = session.handle({"do": "token", "run": 0, "tuned": "medical", "ids": [0] * 129, "pos": 128})
    assert "the models take 128 tokens" in beyond["error"]


def test_checkpoints_that_are_gone_are_told(run: probes.Run) -> None:
    manifest = json.loads(json.dumps(run.manifest))
    manifest["suite"]["tuned"]["medical"] = "/gone/medical"
    reply = Session([probes.Run(run.path, manifest)]).handle({"do": "load", "run": 0, "tuned": "medical"})
    assert "/gone/medical" in reply["error"]


def test_what_json_does_not_hold_is_null(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = Reading(torch.zeros(3), torch.zeros(1, 3), {(0, "mlp"): torch.zeros(2)})
    assert str(relative_changes(nothing, nothing)[0, "mlp"]) == "nan"
    monkeypatch.setattr(of_session, "relative_changes", lambda base, other: {(0, "mlp"): float("nan")})
    reply = session.handle({"do": "token", "run": 0, "tuned": "medical", "ids": [0], "pos": 0})
    assert reply["changes"]["tuned"][0]["change"] is None
    json.dumps(reply, allow_nan=False)


def test_a_request_that_is_overtaken_is_not_worked_on(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    began, go, asked = threading.Event(), threading.Event(), list[str]()

    def slow(model: PreTrainedModel, texts: Any, *rest: Any, **named: Any) -> list[tuple[int, ...]]:
        began.set()
        assert go.wait(30)
        asked.append(session._models.subject(0, "medical").pair.tokenizer.decode(texts[0]))
        return [(5,)]

    monkeypatch.setattr(of_session, "continue_greedily", slow)
    replies: dict[str, dict[str, Any]] = {}

    def ask(prompt: str, pane: str) -> threading.Thread:
        request = ASKED | {"prompt": prompt, "pane": pane}
        thread = threading.Thread(target=lambda: replies.update({prompt: session.handle(request)}))
        thread.start()
        return thread

    threads = [ask("first", "a")]
    assert began.wait(30)  # it holds the lock
    for i, (prompt, pane) in enumerate((("second", "a"), ("third", "a"), ("other", "b"))):
        threads.append(ask(prompt, pane))
        while sum(session._newest.get((one, "answer"), 0) for one in "ab") < i + 2:
            pass
    go.set()
    for thread in threads:
        thread.join(30)
    assert replies["first"] == replies["second"] == {"overtaken": True}
    assert "answers" in replies["third"] and "answers" in replies["other"]
    assert not any("second" in text for text in asked)


def test_work_in_progress_stops_when_the_server_does(run: probes.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Session([run])
    server = Server(uvicorn.Config(application(own, "token", 1)), own)
    real = of_session.continue_greedily

    def interrupted(*asked: Any, **named: Any) -> Any:
        server.handle_exit(signal.SIGINT, None)
        return real(*asked, **named)

    monkeypatch.setattr(of_session, "continue_greedily", interrupted)
    assert own.handle(ASKED) == own.handle(ASKED) == {"overtaken": True}
    assert server.should_exit
    assert not any(model._forward_pre_hooks for model in own._models.subject(0, "medical").pair.models)


def test_prompts_are_written_as_those_of_the_run(tmp_path: Path) -> None:
    paths = build_pair(tmp_path)
    for path in paths:
        tokenizer = AutoTokenizer.from_pretrained(path)
        tokenizer.chat_template = TEMPLATE
        tokenizer.save_pretrained(path)
    suite = json.loads(write_suite(tmp_path, *paths, attribute=None, measure=["behaviour"]).read_text())
    suite["prompts"] = [{"file": str(tmp_path / "prompts.jsonl"), "chat": {"system": "Seven"}}]
    run = probes.run(suite, stages=("capture",), out=tmp_path / "run")
    session = Session([run])
    loaded = session.handle({"do": "load", "run": 0, "tuned": "moved"})
    assert loaded["forms"] == ["chat template", "plain text"]
    assert [row["text"] for row in loaded["prompts"]] == [row["text"] for row in PROMPTS]
    asked = ASKED | {"tuned": "moved", "prompt": "The heart"}
    told = {form: session.handle(asked | {"form": form}) for form in ("", "plain text")}
    text = {form: "".join(reply["tokens"][: reply["n_text"]]) for form, reply in told.items()}
    assert text == {"": "<s>Seven<u>The heart<a>", "plain text": "<bos>The heart"}


def test_two_pairs_of_one_base_share_it(session: Session) -> None:
    bases = [session._models.subject(0, name).pair.base for name in ("medical", "math")]
    assert bases[0] is bases[1]
