"""Questions of a task as conversations: whose template, what is in them, and what another model would read."""

from __future__ import annotations

from pathlib import Path

import pytest

import tv
from tests.command import call
from tests.pairs import build_model, build_tokenizer
from tests.tv.evaluation.test_decoding import TEXTS, task_file
from tv.cli import main
from tv.evaluation.harness import Harness
from tv.evaluation.tasks import load_tasks
from tv.prompts.sets import Chat

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<a>{{ mood|default('') }}{% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TEMPLATE


def checkpoint(path: Path, template: str | None) -> Path:
    model, tokenizer = build_model(), build_tokenizer()
    model.config.max_position_embeddings = 128
    tokenizer.chat_template = template
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("chat")
    templates = {"base": None, "a": TEMPLATE, "b": TEMPLATE.replace("<a>", "<reply>"), "gemma": NO_SYSTEM}
    return {name: checkpoint(folder / name, template) for name, template in templates.items()}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the harness shows the models, in order."""
    shown: list[str] = []
    items = Harness.items

    def told(self: Harness, task: tv.evaluation.tasks.Task, limit: int | None = None) -> object:
        try:
            return items(self, task, limit)
        finally:
            shown.extend(instance.args[0] for instance in task.harness.instances or ())

    monkeypatch.setattr(Harness, "items", told)
    return shown


def test_other_templates_are_told_with_their_count(models: dict[str, Path], tmp_path: Path) -> None:
    two = {name: models[name] for name in ("a", "b")}
    items = tv.evaluate(two, task_file(tmp_path, max_gen_toks=2), chat=True, limit=2)
    (note,) = items.attrs["notes"]
    assert note.startswith("b: 2 of 2 prompts become other tokens with its own tokenizer (first prompt 'written-0'")
    assert tv.evaluate(two, task_file(tmp_path, max_gen_toks=2), limit=2).attrs["notes"] == []


@pytest.mark.parametrize("chat", ["tuned", {"template": "tuned"}, Chat(template="tuned")])
def test_a_base_without_a_template_takes_the_tuned_models(
    chat: object, models: dict[str, Path], tmp_path: Path, asked: list[str]
) -> None:
    two = {name: models[name] for name in ("base", "a")}
    tv.evaluate(two, task_file(tmp_path, max_gen_toks=2), chat=chat, limit=1)  # type: ignore[arg-type]
    assert asked == [f"<bos><u>{TEXTS[0]}\n<a>"] * 2
    with pytest.raises(tv.InputError, match=r"no chat template; take the tuned model's with chat: tuned \(--chat-temp"):
        tv.evaluate(two, task_file(tmp_path), chat=True)


def test_the_system_turn_and_the_options_reach_the_template(
    models: dict[str, Path], tmp_path: Path, asked: list[str]
) -> None:
    chat = {"system": "Be brief.", "options": {"mood": "Well, "}}
    tv.evaluate(models["a"], task_file(tmp_path, max_gen_toks=2), chat=chat, limit=1)
    assert asked == [f"<bos><s>Be brief.\n<u>{TEXTS[0]}\n<a>Well, "]


def test_a_refused_system_turn_is_not_left_out(models: dict[str, Path], tmp_path: Path) -> None:
    task = task_file(tmp_path, max_gen_toks=2)
    with pytest.raises(tv.InputError, match=r"refuses .*no system role"):
        tv.evaluate(models["gemma"], task, chat={"system": "Be brief."}, limit=1)
    (loaded,) = load_tasks(task)
    harness = Harness(build_model(), tv_tokenizer(NO_SYSTEM), chat=Chat(system="Be brief."))
    with pytest.raises(tv.InputError, match=r"the chat template refuses the turns \(system, user\): no system role"):
        harness.items(loaded, 1)


def tv_tokenizer(template: str) -> object:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def test_what_is_no_conversation(models: dict[str, Path], tmp_path: Path) -> None:
    task = task_file(tmp_path)
    for chat, message in {
        "other": "chat: .*'tuned'",
        ("moods", 1): "chat: Extra inputs",
        ("system", ""): "chat: ",
    }.items():
        with pytest.raises(tv.InputError, match=message):
            tv.evaluate(models["a"], task, chat=chat if isinstance(chat, str) else dict([chat]))  # type: ignore[arg-type]
    with pytest.raises(tv.InputError, match="asks for the chat template of a tuned model, and none has one"):
        tv.evaluate(models["base"], task, chat="tuned")
    with pytest.raises(tv.InputError, match="no chat template; leave out chat"):
        tv.evaluate(models["base"], task, chat=True)


def test_the_command(
    models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    asked: list[str],
) -> None:
    words = ["evaluate", models["base"], models["a"], "--task", task_file(tmp_path, max_gen_toks=2), "--limit", 1]
    more = ["--chat-template", "tuned", "--system", "Be.", "--chat-option", "mood=calm"]
    code, _, err = call(monkeypatch, capsys, main, *words, *more)
    assert code == 0 and asked == [f"<bos><s>Be.\n<u>{TEXTS[0]}\n<a>calm"] * 2, err
    code, _, err = call(monkeypatch, capsys, main, *words, "--chat")
    assert code == 2 and "--chat-template tuned" in err
    code, _, err = call(monkeypatch, capsys, main, *words, "--system", "Be.")
    assert code == 2 and "--system needs a conversation; add --chat" in err
