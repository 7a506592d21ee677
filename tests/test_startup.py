"""What a command imports before it does its work: a small one waits for no library that it does not use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import tv
from probes.store.schemas import SCHEMA_VERSION
from probes.suite import load_suite
from tests.pairs import build_pair, write_suite

_ROOT = Path(__file__).parent.parent
#: Runs each command and writes what it answered and which of the libraries are there by then, a line of JSON each.
_PROGRAM = """
import contextlib, gc, io, json, sys
from importlib import import_module
program, commands, libraries = sys.argv[1], *map(json.loads, sys.argv[2:4])
main = import_module(program).main
for command in commands:
    sys.argv, out, err, status = command, io.StringIO(), io.StringIO(), None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            status = end.code
    found = [name for name in libraries if name in sys.modules]
    said = {"status": status, "out": out.getvalue(), "err": err.getvalue()}
    print(json.dumps({**said, "found": found, "frozen": gc.get_freeze_count(), "collects": gc.isenabled()}))
"""
_SLOW = ("torch", "transformers", "pandas", "scipy", "pyarrow", "plotly", "huggingface_hub", "tokenizers", "numpy")


def _answers(program: str, commands: list[list[str]], libraries: tuple[str, ...], **environment: str) -> list[Any]:
    given = [program, json.dumps(commands), json.dumps(libraries)]
    ended = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *given],
        capture_output=True,
        text=True,
        cwd=_ROOT,
        env=os.environ | environment,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return [json.loads(line) for line in ended.stdout.splitlines()]


def test_a_bad_suite_is_refused_before_torch_is_imported(tmp_path: Path) -> None:
    base, tuned = build_pair(tmp_path, "llama")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a b"}\n{"text": 3}\n')
    attribute = {"methods": ["path"]}
    mistakes: dict[str, tuple[dict[str, object], str]] = {
        "unknown key": ({"bootstrrap": 3}, "bootstrrap: unknown key; did you mean 'bootstrap'?"),
        "no prompts": ({"prompts": [{"file": "nowhere.jsonl"}]}, "no such prompt file"),
        "no model": ({"tuned": {"t": "./nowhere"}}, "no such checkpoint directory"),
        "bad row": ({"prompts": [{"file": str(rows)}]}, "text is int, not a string"),
        "no metric": (
            {"attribute": {**attribute, "metric": "logit_dif"}},
            "no metric 'logit_dif'; did you mean 'logit_diff'?",
        ),
        "no method": ({"attribute": {"methods": ["grft"]}}, "no method 'grft'; did you mean 'graft'?"),
        "no control": (
            {"attribute": {**attribute, "controls": ["rndom"]}},
            "no control 'rndom'; did you mean 'random'?",
        ),
        "no option": ({"attribute": {**attribute, "ndes": 3}}, "unknown key; did you mean 'nodes'?"),
        "bad option": ({"attribute": {**attribute, "nodes": 0}}, "greater than or equal to 1"),
        "contradiction": ({"attribute": {**attribute, "nodes": 9, "most_nodes": 8}}, "is below nodes"),
        "no measurement": ({"measure": ["gats"]}, "no measurement 'gats'; did you mean 'gates'?"),
    }
    commands = []
    for name, (changes, _) in mistakes.items():
        (tmp_path / name).mkdir()
        suite = write_suite(tmp_path / name, base, tuned, **changes)
        commands += [["probes", "run", str(suite)], ["probes", "run", str(suite), "--plan"]]
    answers = _answers("probes.cli", commands, _SLOW)
    assert len(answers) == 2 * len(mistakes)
    for (name, (_, line)), *pair in zip(mistakes.items(), answers[::2], answers[1::2], strict=True):
        for answer in pair:
            assert answer["status"] == 2 and answer["found"] == [], (name, answer)
            assert line in answer["err"] and answer["err"].count("\n") == 1, (name, answer["err"])


def test_settings_of_other_commands_are_refused_before_torch_is_imported(tmp_path: Path) -> None:
    base, tuned = build_pair(tmp_path, "llama")
    good, run, rules = write_suite(tmp_path, base, tuned), tmp_path / "run", tmp_path / "rules.yaml"
    manifest = {"schema_version": SCHEMA_VERSION, "tables": {}, "suite": load_suite(good).model_dump(mode="json")}
    run.mkdir()
    (run / "manifest.json").write_text(json.dumps(manifest))
    rules.write_text("- kl: {at_most: 0.1}")
    (tmp_path / "bad").mkdir()
    bad = write_suite(tmp_path / "bad", base, tuned, sed=1)
    twice = ["--amplify", "mlp", "--amplify", "mlp"]
    commands = {
        ("attribute", str(run), "--method", "grft"): "no method 'grft'; did you mean 'graft'?",
        ("attribute", str(run), "--metric", "logit_dif"): "no metric 'logit_dif'; did you mean 'logit_diff'?",
        ("discover", str(base), str(tuned), *twice): "mlp is listed twice",
        ("gate", str(bad), "--plan", "--rules", str(rules)): "sed: unknown key; did you mean 'seed'?",
        ("gate", str(run), "--rules", str(bad)): "rules are a list",
    }
    answers = _answers("probes.cli", [["probes", *words] for words in commands], ("torch", "transformers"))
    for (words, line), answer in zip(commands.items(), answers, strict=True):
        assert answer["status"] == 2 and answer["found"] == [] and line in answer["err"], (words, answer)


@pytest.mark.parametrize(
    ("program", "commands"),
    [
        ("tv.cli", [["tv", "--help"], ["tv", "info", "--help"], ["tv", "geometry", "--help"]]),
        ("probes.cli", [["probes", "--help"], ["probes", "run", "--help"], ["probes", "attribute", "--help"]]),
    ],
)
def test_help_waits_for_no_library(program: str, commands: list[list[str]]) -> None:
    answers = _answers(program, commands, _SLOW, COLUMNS="200")
    assert [answer["found"] for answer in answers] == [[], [], []] and all(answer["out"] for answer in answers)
    if program == "probes.cli":
        assert "--most-nodes" in answers[2]["out"] and "shapley" in answers[2]["out"]


def test_a_small_command_waits_for_what_it_uses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a model is described: `info` for no tables, no command for transformers or scipy's statistics."""
    base, tuned = build_pair(tmp_path, "llama")
    monkeypatch.setenv("TUNING_PROBES_CACHE", str(tmp_path / "cache"))
    expected = tv.info(base)
    pair, out = [str(base), str(tuned)], {name: str(tmp_path / name) for name in ("a.csv", "b.parquet", "c.json", "d")}
    vectors = ["--add", f"{tuned}:0.5", "--subtract", f"{tuned}/:0.25", "--out-dtype", "bfloat16"]
    commands = [
        ["tv", "info", *pair],
        ["tv", "extract", *pair, "-o", str(tmp_path / "vector.safetensors")],
        ["tv", "cosine", *pair, str(tmp_path / "vector.safetensors"), "-o", out["a.csv"]],
        ["tv", "geometry", *pair, "-o", out["b.parquet"]],
        ["tv", "apply", str(base), *vectors, "-o", out["d"]],
        ["tv", "ssa", *pair, "-o", out["c.json"]],
    ]
    libraries = ("transformers", "scipy.stats", "scipy.optimize", "scipy", "pandas", "pyarrow", "plotly")
    answers = _answers("tv.cli", commands, libraries)
    assert [answer["status"] for answer in answers] == [0] * len(commands), answers
    assert f"{tuned}: compatible with the base; same tokenizer" in answers[0]["out"]
    assert f"{expected.numbers.sum():,}" not in answers[0]["err"]
    assert answers[0]["found"] == answers[1]["found"] == []
    # What came with torch is left out of collections, and nothing else is.
    assert all(10_000 < answer["frozen"] <= answers[0]["frozen"] and answer["collects"] for answer in answers), [
        (a["frozen"], a["collects"]) for a in answers
    ]
    assert all(set(answer["found"]) <= {"pandas", "pyarrow"} for answer in answers[:-1]), answers
    assert set(answers[-1]["found"]) <= {"scipy", "pandas", "pyarrow"}, answers[-1]  # special functions alone
    assert all(Path(file).exists() for file in out.values())
    _require_as_without_the_cache(base, tuned, Path(out["d"]), monkeypatch)


def _require_as_without_the_cache(base: Path, tuned: Path, written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `tv apply` wrote without transformers is what it writes with it, and transformers loads it."""
    monkeypatch.setenv("TUNING_PROBES_CACHE", "off")
    written.rename(written.with_name("first"))
    tv.apply(base, {tuned: 0.5, f"{tuned}/": -0.25}, out=written, out_dtype="bfloat16")
    files = {file.name: file.read_bytes() for file in written.iterdir()}
    assert {file.name: file.read_bytes() for file in written.with_name("first").iterdir()} == files
    model = AutoModelForCausalLM.from_pretrained(written)
    assert model.dtype == torch.bfloat16 and type(model).__name__ == "LlamaForCausalLM"
    text = "the patient has a fever"
    assert AutoTokenizer.from_pretrained(written)(text) == AutoTokenizer.from_pretrained(base)(text)
