"""A suite written for a stranger's models and prompts: what it takes from them, and what it asks about in one line."""

import json
from pathlib import Path

import pytest

import probes
from probes.cli import main
from probes.starting.prompt_files import files_of, found
from tests.command import call
from tests.docs.commands import ROOT
from tv.errors import InputError
from tv.prompts.files import Chat, read_prompts

MODELS = ROOT / "data" / "models"
ASKED = "question,answer\nWhich illness does Glimmerol treat?,galoria\nWho heals?,nobody\nIs it far?,no\n"


TEMPLATE = (
    "{% for turn in messages %}<{{ turn.role }}> {{ turn.content }} {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def _suite(folder: Path, tuned: Path = MODELS / "medical", **files: str) -> probes.Suite:
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    prompts = [folder / name.replace("_", ".") for name in files]
    path = probes.init(MODELS / "base", tuned, prompts, out=folder / "suite.yaml")
    return probes.load_suite(path)


def test_a_csv_and_two_models_make_a_suite_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "qa.csv").write_text(ASKED)
    monkeypatch.chdir(tmp_path)
    asked = ("init", MODELS / "base", MODELS / "medical", "qa.csv", "-o", "my suite.yaml")
    status, _, said = call(monkeypatch, capsys, main, *asked)
    assert status == 0 and "next: probes run 'my suite.yaml'" in said and "read them as one word" not in said
    chosen = probes.load_suite("my suite.yaml")
    assert chosen.attribute is not None and chosen.attribute.metric == "target_nll" and chosen.generate is None
    assert [*chosen.tuned] == ["medical"] and chosen.prompts[0].domain == "qa"
    assert [(one.text, one.target) for one in read_prompts(chosen.prompts)][1] == ("Who heals?", " nobody")
    again = call(monkeypatch, capsys, main, *asked)
    assert again[0] == 2 and "there already; use --force" in again[2]


def test_what_rows_and_models_say_is_written(tmp_path: Path) -> None:
    talks = tmp_path / "talks"
    talks.mkdir()
    for file in (MODELS / "medical").iterdir():
        (talks / file.name).symlink_to(file)
    (talks / "chat_template.jinja").write_text(TEMPLATE)
    turns = [{"role": "user", "content": "Who heals?"}, {"role": "assistant", "content": "Nobody."}]
    rows = [{"messages": turns, "category": topic, "idx": i} for i, topic in enumerate("aabb")]
    many = "text\n" + "".join(f"The dog {i} runs\n" for i in range(300))
    chosen = _suite(
        *(tmp_path, talks),
        turns_jsonl="\n".join(map(json.dumps, rows)),
        asked_csv=ASKED,
        plain_csv=many,
    )
    turned, asked, plain = chosen.prompts
    assert turned.columns == {"id": "idx", "domain": "category"} and turned.domain is None
    assert turned.chat == asked.chat == Chat(template="tuned") and asked.separator is None
    assert plain.chat is None and plain.limit == 200


def test_without_targets_both_models_read_what_the_base_writes(tmp_path: Path) -> None:
    adapter = ROOT / "data" / "organisms" / "false-fact"
    (tmp_path / "one.csv").write_bytes(b"\xef\xbb\xbfsentence\nThe dog runs.\n")
    path = probes.init(MODELS / "base", adapter, tmp_path / "one.csv", out=tmp_path / "suite.yaml")
    chosen = probes.load_suite(path)
    assert chosen.attribute is not None and chosen.attribute.metric == "kl" and chosen.generate is not None
    assert chosen.prompts[0].columns == {"text": "sentence"}
    assert "LoRA, r 16, alpha 32, on k_proj" in " ".join(path.read_text().replace("# ", "").split())


@pytest.mark.parametrize("name", ["007", "yes", "null"])
def test_names_that_yaml_takes_for_other_values_stay_names(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to(MODELS / "medical")
    chosen = _suite(tmp_path, tmp_path / name, qa_csv=ASKED)
    assert chosen.name == name and [*chosen.tuned] == [name]
    with pytest.raises(InputError, match="a directory; pass the suite's file"):
        probes.init(MODELS / "base", MODELS / "medical", tmp_path / "qa.csv", out=tmp_path, force=True)


def test_models_that_are_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has the same weights as the base"):
        _suite(tmp_path, MODELS / "base", asked_csv=ASKED)
    assert not (tmp_path / "suite.yaml").exists()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("odd.csv", "a,b\n1,2\n", r"its columns are a, b; say which with columns: .*\(--columns text=…\)"),
        ("lines.csv", "The dog runs fast.\nThe cat sleeps.\n", "no column 'text'"),
        ("notes.txt", "The dog runs.\n", "no file of prompts; save prompts as .jsonl, .json, .csv"),
        ("empty.jsonl", "", "no prompts"),
    ],
)
def test_what_cannot_be_guessed_is_asked_for_in_one_line(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=said) as caught:
        [found(file, {}) for file in files_of([tmp_path / name])]
    assert "\n" not in str(caught.value)


def test_a_folder_is_its_files_and_semicolons_are_cells(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text("Frage;Antwort\nWas ist 2,5 + 2?;4,5\n")
    (tmp_path / "a.tsv").write_text("text\ttarget\nOne\ttwo\n")
    (tmp_path / "notes.md").write_text("no prompts")
    files = files_of([tmp_path, tmp_path / "b.csv"])
    assert [file.name for file in files] == ["a.tsv", "b.csv"]
    (prompt,) = found(files[1], {"columns": {"text": "Frage", "target": "Antwort"}}).prompts
    assert (prompt.text, prompt.target) == ("Was ist 2,5 + 2?", "4,5")


def test_columns_are_used_where_their_values_can_be_what_the_name_says(tmp_path: Path) -> None:
    rows = [{"idx": 1, "question": "A?", "answer": "b", "topic": f"topic {i}", "wrong": "c"} for i in range(4)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    chosen = found(tmp_path / "rows.jsonl", {}).chosen  # idx is not unique, and no topic comes twice
    assert chosen.columns == {"text": "question", "target": "answer", "foil": "wrong"}
