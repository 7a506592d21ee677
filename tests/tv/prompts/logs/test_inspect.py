"""Logs as Inspect writes them: genuine archives, beside what Inspect itself computed of them, and planted ones."""

import builtins
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from zstandard import ZstdCompressor

from tv.errors import PromptError
from tv.prompts.files import PromptSet, read_prompts
from tv.prompts.logs import zipped
from tv.prompts.logs.inspect import read_eval, read_json
from tv.prompts.logs.reading import read_log
from tv.prompts.logs.zipped import Members

LOGS = Path(__file__).resolve().parents[4] / "data" / "logs" / "inspect"


def content(*samples: dict[str, Any], **head: Any) -> dict[str, Any]:
    spec = {"task": "sums", "model": "some/model", "created": "2026-01-02T03:04:05+00:00"}
    return {"version": 2, "status": "success", "eval": spec, "samples": list(samples), **head}


def sample(name: Any = "s1", epoch: int = 1, value: Any = "C", **more: Any) -> dict[str, Any]:
    scores = {"match": {"value": value, "answer": "four"}}
    asked = {"id": name, "epoch": epoch, "input": "Two and two make", "target": "four", "scores": scores}
    return {**asked, "output": {"completion": "four"}, "metadata": {"level": 2}, **more}


def write(folder: Path, log: dict[str, Any], name: str = "log.json") -> Path:
    """The log as one JSON, or as an archive where the name says so."""
    path = folder / name
    if path.suffix == ".json":
        path.write_text(json.dumps(log), encoding="utf-8")
        return path
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for each in log["samples"]:
            archive.writestr(f"samples/{each['id']}_epoch_{each['epoch']}.json", json.dumps(each))
        archive.writestr("header.json", json.dumps({**log, "samples": None}), zipfile.ZIP_STORED)
    return path


@pytest.mark.parametrize("model", ["base", "medical"])
def test_a_genuine_archive_has_the_means_that_inspect_computed(model: str) -> None:
    (log,) = read_log(LOGS / f"{model}.eval")
    with Members(LOGS / f"{model}.eval") as members:
        results = json.loads(members.read("header.json"))["results"]
    assert len(log.items) == results["completed_samples"] == 22 and results["total_samples"] == 24
    for said in results["scores"]:
        name = said["name"] if said["name"] == said["scorer"] else f"{said['scorer']}/{said['name']}"
        values = [item.scores[name] for item in log.items]
        mean = next(metric["value"] for key, metric in said["metrics"].items() if key != "stderr")
        assert sum(values) / len(values) == pytest.approx(mean)
    assert log.notes == (f"{log.place}: 2 samples ended in an error and have no score; they are left out",)


def test_a_genuine_archive_is_a_prompt_set(tmp_path: Path) -> None:
    prompts = read_prompts([PromptSet(file=LOGS / "base.eval")])
    assert len(prompts) == 11 and prompts[0].id == "medical_cloze-medical/cloze/000"
    assert prompts[0].target is not None and prompts[0].target.startswith(" ")
    talk = read_prompts([PromptSet.model_validate({"file": LOGS / "base.eval", "chat": True})])
    assert talk[0].chat is not None and talk[0].target == prompts[0].target.strip()


@pytest.mark.parametrize("name", ["log.json", "log.eval"])
@pytest.mark.parametrize(
    ("value", "read"),
    [
        ("C", {"match": 1.0}),
        ("P", {"match": 0.5}),
        ("I", {"match": 0.0}),
        ("N", {"match": 0.0}),
        (True, {"match": 1.0}),
        (0.7, {"match": 0.7}),
        ("0.7", {"match": 0.7}),
        ({"a": "C", "b": 3}, {"match/a": 1.0, "match/b": 3.0}),
        ([1, "I"], {"match/0": 1.0, "match/1": 0.0}),
        ("fine", {}),
        (float("nan"), {}),
        (1e200, {}),
    ],
)
def test_grades_numbers_and_several_values(name: str, value: Any, read: dict[str, float], tmp_path: Path) -> None:
    (log,) = read_log(write(tmp_path, content(sample(value=value)), name))
    assert log.items[0].scores == read and len(log.notes) == (not read)


def test_errors_leave_the_denominator_unless_they_were_scored(tmp_path: Path) -> None:
    failed = sample("s2", error={"message": "planted"}, scores={})
    scored = sample("s3", value="I", error={"message": "planted"})
    log = read_json(write(tmp_path, content(sample(), failed, scored, status="error")))
    assert [item.id for item in log.items] == ["s1", "s3"]
    assert ["1 samples ended in an error" in log.notes[0], "status is error" in log.notes[1]] == [True, True]


def test_a_choice_is_asked_for_by_its_letter(tmp_path: Path) -> None:
    text = "Answer with 'ANSWER: $LETTER'.\n\nA) no\nB) yes"
    turns = [{"role": "user", "content": [{"type": "text", "text": "attachment://" + "0af1" * 8}], "source": "input"}]
    turns += [{"role": "assistant", "content": "ANSWER: A", "source": "generate"}]
    asked = sample(target="B", choices=["no", "yes"], messages=turns, attachments={"0af1" * 8: text})
    (prompt,) = read_prompts([PromptSet.model_validate({"file": write(tmp_path, content(asked)), "chat": True})])
    assert (prompt.text, prompt.target, prompt.foil) == (text, "ANSWER: B", "ANSWER: A")


def test_turns_are_read_whole_with_chat_and_pictures_are_left_out(tmp_path: Path) -> None:
    system = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Two and two?"}]
    picture = [{"role": "user", "content": [{"type": "image", "image": "data:,"}]}]
    log = content(sample(messages=system), sample("s2", input=picture, messages=picture))
    path = write(tmp_path, log)
    plain = read_prompts([PromptSet(file=path)])
    assert [prompt.text for prompt in plain] == ["Two and two?"]
    assert [note.partition(": ")[2] for note in plain.notes] == [
        "1 items are more than text, and are left out",
        "of 1 items with several turns the last is read; chat: true (--chat) reads all",
    ]
    (talk,) = read_prompts([PromptSet.model_validate({"file": path, "chat": True})])
    assert talk.chat is not None and "Be brief." in talk.chat


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_unfinished_archive_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "log.eval", "w") as archive:
        archive.writestr("_journal/start.json", json.dumps(content(status="started")))
        archive.writestr("samples/s1_epoch_1.json", json.dumps(sample()))
        archive.writestr("samples/s1_epoch_1.json", json.dumps(sample(value="I")))  # tried again: the last counts
    log = read_eval(tmp_path / "log.eval")
    assert [item.scores for item in log.items] == [{"match": 0.0}] and "status is started" in log.notes[0]


def _zstandard(path: Path, body: bytes, size: int) -> Path:
    """An archive with one member of method 93 that says it has this size."""
    packed = ZstdCompressor().compress(body)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("header.json", packed)
    # Both headers: the method, and the size that it is to have once it is read.
    raw = bytearray(path.read_bytes())
    for at, method, length in ((0, 8, 22), (raw.index(b"PK\x01\x02"), 10, 24)):
        raw[at + method : at + method + 2] = (93).to_bytes(2, "little")
        raw[at + length : at + length + 4] = size.to_bytes(4, "little")
    path.write_bytes(raw)
    return path


def test_members_are_no_larger_than_they_say(tmp_path: Path) -> None:
    body = b"0" * 10_000_000
    with Members(_zstandard(tmp_path / "right.eval", body, len(body))) as members:
        assert members.read("header.json") == body
    for name, size, said in (("bomb", 1000, "not of the size"), ("huge", 2**31, "more than the")):
        archive = _zstandard(tmp_path / f"{name}.eval", body, size)
        with Members(archive) as members, pytest.raises(PromptError, match=said):
            members.read("header.json")


def test_what_is_no_log_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = (LOGS / "base.eval").read_bytes()
    (tmp_path / "cut.eval").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "other.eval").write_bytes(b"PK")
    damaged = bytearray(whole)
    damaged[2000:2400] = bytes(400)
    (tmp_path / "damaged.eval").write_bytes(damaged)
    with zipfile.ZipFile(tmp_path / "empty.eval", "w") as archive:
        archive.writestr("readme", "")
    for name, said in (
        ("cut", "not a complete zip archive"),
        ("other", "not a complete zip archive"),
        ("damaged", "base.eval|damaged.eval"),
        ("empty", "no header.json"),
        ("none", "no such log|cannot be read"),
    ):
        with pytest.raises(PromptError, match=said):
            read_log(tmp_path / f"{name}.eval")
    for log in (
        {"version": 2, "eval": {}},
        {"version": 2, "eval": {"task": "a"}},
        content({"id": 1}),
        content(sample(), sample()),
    ):
        with pytest.raises(PromptError):
            read_log(write(tmp_path, log))

    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "zstandard":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(PromptError, match=r"pip install 'tuning-probes\[inspect\]'"):
        zipped._zstandard(tmp_path / "log.eval")
