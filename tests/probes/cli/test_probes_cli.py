"""The `probes` command on good and on bad input: exit status, one line, nothing left behind."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

import probes
from probes.cli import main
from probes.cli.effects import print_checks, print_effects
from tests.command import call
from tests.pairs import PROMPTS, build_model, build_pair, build_tokenizer, write_prompts, write_suite
from tests.runs import NO_REPORT
from tv.cli.terminal import begin, end

Paths = tuple[Path, Path, Path]  # folder, base, tuned


def test_run_then_every_stage_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    quick = {"measure": ["gates", "behaviour"], "noise_floor": False, "bootstrap": 20}
    suite = write_suite(tmp_path, *build_pair(tmp_path), **quick)
    out = tmp_path / "run"
    code, stdout, stderr = call(monkeypatch, capsys, main, "run", suite, "--out", out)
    assert code == 0 and str(out / "report.html") in stdout.replace("\n", "")
    verdict = probes.load(out).verdict["moved"]
    assert str(verdict) in stdout and {"Learnt", "Lost", "Where"} <= set(verdict.sentences) and "held out" not in stdout
    assert "LlamaForCausalLM" in stderr
    for command in (["attribute", out, "--method", "graft"], ["link", out], ["report", out]):
        code, stdout, stderr = call(monkeypatch, capsys, main, *command, "--json")
        result = json.loads(stdout)
        assert code == 0 and result["command"] == f"probes {command[0]}"
        assert bool(result["tables"]) != bool(result["written"])
        lines = [json.loads(line) for line in stderr.splitlines()]
        assert {line["stage"] for line in lines if "stage" in line} == (
            {"attribute moved"} if command[0] == "attribute" else set()
        )
        said = [line["remark"] for line in lines if "remark" in line]
        assert said == [] if command[0] == "report" else said[0].startswith(f"next: probes report {out}")
    code, _, stderr = call(monkeypatch, capsys, main, "run", suite, "--out", out)
    assert code == 2 and "--force" in stderr
    code, stdout, stderr = call(monkeypatch, capsys, main, "run", suite, "--out", out, "--force", "--json")
    assert code == 0 and json.loads(stdout)["written"] == [str(out / "report.html")]
    assert [table["title"] for table in json.loads(stdout)["tables"]] == [
        "largest effects on logit difference",
        "checks",
    ]
    told = [json.loads(line) for line in stderr.splitlines()]
    assert {"weights moved", "capture moved"} <= {line["stage"] for line in told if "stage" in line}
    assert any("on disk" in line.get("remark", "") for line in told)


def test_stages_by_and_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    quick = {"measure": ["gates", "behaviour"], "noise_floor": False, "bootstrap": 20}
    suite = write_suite(tmp_path, *build_pair(tmp_path), **quick)
    words = ("run", suite, "--out", tmp_path / "run", "--json")
    code, stdout, _ = call(monkeypatch, capsys, main, *words, "--stages", "weights,capture")
    assert code == 0 and "a run with the stages weights, capture" in stdout
    code, stdout, stderr = call(monkeypatch, capsys, main, *words)
    assert code == 0 and json.loads(stdout)["written"] == [str(tmp_path / "run" / "report.html")]
    assert "weights moved" not in stderr
    assert "already complete; use --force to redo" in call(monkeypatch, capsys, main, *words)[2]
    assert (
        "no stage 'weight'; did you mean 'weights'?" in call(monkeypatch, capsys, main, *words, "--stages", "weight")[2]
    )


def _edit(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def _nan_weight(paths: Paths) -> None:
    _edit(paths[2], lambda tensors: tensors["model.layers.1.mlp.up_proj.weight"].view(-1)[:1].fill_(float("nan")))


def _overflow(paths: Paths) -> None:
    _edit(paths[2], lambda tensors: tensors["model.layers.2.mlp.down_proj.weight"].fill_(3e38))


def _other_shape(paths: Paths) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = json.loads((paths[1] / "config.json").read_text())
    LlamaForCausalLM(LlamaConfig(**{**sizes, "intermediate_size": 96})).save_pretrained(paths[2])


def _other_architecture(paths: Paths) -> None:
    build_model("mistral").save_pretrained(paths[2])


def _truncated(paths: Paths) -> None:
    file = paths[2] / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def _missing_weights(paths: Paths) -> None:
    (paths[2] / "model.safetensors").unlink()


def _pickled(paths: Paths) -> None:
    torch.save(load_file(paths[2] / "model.safetensors"), paths[2] / "pytorch_model.bin")
    _missing_weights(paths)


def _other_tokenizer(paths: Paths) -> None:
    file = paths[2] / "tokenizer.json"
    content = json.loads(file.read_text())
    vocab = content["model"]["vocab"]
    names = sorted(vocab, key=vocab.get)[-2:]
    vocab[names[0]], vocab[names[1]] = vocab[names[1]], vocab[names[0]]
    file.write_text(json.dumps(content))


def _prompts(rows: str) -> Callable[[Paths], None]:
    return lambda paths: (paths[0] / "prompts.jsonl").write_text(rows) and None


def _suite(**changes: object) -> Callable[[Paths], None]:
    return lambda paths: write_suite(*paths, **changes) and None


def _long_prompt(paths: Paths) -> None:
    rows = [{"id": "long", "text": "the heart " * 200, "target": "pumps", "foil": "stops"}]
    write_prompts(paths[0] / "prompts.jsonl", rows)


BAD: dict[str, tuple[Callable[[Paths], None], str]] = {
    "NaN in a weight": (_nan_weight, "model.layers.1.mlp.up_proj.weight"),
    "Inf in an activation": (_overflow, "layer 2"),
    "another shape": (_other_shape, "mlp"),
    "another architecture": (_other_architecture, "Mistral"),
    "a truncated file": (_truncated, "model.safetensors"),
    "no weights": (_missing_weights, "safetensors"),
    "pickled weights": (_pickled, "safetensors"),
    "another tokenizer": (_other_tokenizer, "tokenizer"),
    "no prompt file": (lambda paths: (paths[0] / "prompts.jsonl").unlink(), "prompts.jsonl"),
    "a line that is no JSON": (_prompts('{"id": "a", "text": "x"}\n{"id": \n'), "line 2"),
    "an id twice": (_prompts('{"id": "a", "text": "x"}\n{"id": "a", "text": "y"}\n'), "'a'"),
    "an empty prompt": (_prompts('{"id": "a", "text": " "}\n'), "line 1"),
    "a prompt too long": (_long_prompt, "'long'"),
    "an unknown key": (_suite(promts=1), "promts"),
    "an unknown measurement": (_suite(measure=["gate"]), "measure"),
    "no such model": (_suite(tuned={"moved": "./nowhere"}), "nowhere"),
    "nothing to attribute": (_prompts('{"id": "a", "text": "x"}\n'), "target"),
}


@pytest.mark.sampled(9)
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(case: str, tmp_path: Path, monkeypatch, capsys) -> None:
    spoil, expected = BAD[case]
    base, tuned = build_pair(tmp_path)
    suite = write_suite(tmp_path, base, tuned, bootstrap=20)
    spoil((tmp_path, base, tuned))
    before = sorted(tmp_path.rglob("*"))
    code, _, stderr = call(monkeypatch, capsys, main, "run", suite, "--out", tmp_path / "run")
    errors = [line for line in stderr.splitlines() if line.startswith("error:")]
    assert code == 2 and len(errors) == 1, stderr
    assert expected in errors[0]
    assert "Traceback" not in stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_a_stream_that_no_sum_explains_is_refused_in_words(tmp_path: Path, monkeypatch, capsys) -> None:
    suite = write_suite(tmp_path, *build_pair(tmp_path))
    original = LlamaDecoderLayer.forward
    monkeypatch.setattr(LlamaDecoderLayer, "forward", lambda self, *args, **more: original(self, *args, **more).abs())
    code, _, stderr = call(monkeypatch, capsys, main, "run", suite, "--out", tmp_path / "run")
    assert code == 2 and "resid_pre + attn_out + mlp_out = resid_post does not hold in layer 0" in stderr


def test_a_foreign_directory_is_not_overwritten(tmp_path: Path, monkeypatch, capsys) -> None:
    suite = write_suite(tmp_path, *build_pair(tmp_path))
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.txt").write_text("three years of work")
    for extra in ([], ["--force"]):
        code, _, stderr = call(monkeypatch, capsys, main, "run", suite, "--out", out, *extra)
        assert code == 2 and "mine" in stderr
    assert (out / "thesis.txt").read_text() == "three years of work"


def test_a_grown_vocabulary_is_compared_where_it_overlaps(tmp_path: Path, monkeypatch, capsys) -> None:
    base, tuned = build_pair(tmp_path)
    model = build_model()
    model.resize_token_embeddings(311, mean_resizing=False)
    model.save_pretrained(tuned)
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["<new1>"])
    tokenizer.save_pretrained(tuned)
    suite = write_suite(tmp_path, base, tuned, bootstrap=20)
    stages = ",".join(NO_REPORT)
    code, _, stderr = call(monkeypatch, capsys, main, "run", suite, "--out", tmp_path / "run", "--stages", stages)
    assert code == 0, stderr
    assert "311" in stderr


def test_unknown_methods_and_metrics_are_one_line(tmp_path: Path, monkeypatch, capsys) -> None:
    out = tmp_path / "run"
    suite = write_suite(tmp_path, *build_pair(tmp_path), bootstrap=20)
    assert call(monkeypatch, capsys, main, "run", suite, "--out", out, "--stages", "capture")[0] == 0
    for option, known in (("--method", "graft, revert"), ("--metric", "target_nll, logit_diff")):
        code, _, stderr = call(monkeypatch, capsys, main, "attribute", out, option, "foo")
        assert code == 2 and "'foo'" in stderr and known in stderr and len(stderr.strip().splitlines()) == 1


def test_usage_errors_exit_2(tmp_path: Path, monkeypatch, capsys) -> None:
    assert call(monkeypatch, capsys, main, "run", tmp_path / "suite.yaml", "--fast")[0] == 2
    code, _, stderr = call(monkeypatch, capsys, main, "run", tmp_path / "no-suite.yaml")
    assert code == 2 and "no-suite.yaml" in stderr
    assert call(monkeypatch, capsys, main, "report", tmp_path)[0] == 2


def test_the_installed_command_answers() -> None:
    done = subprocess.run([sys.executable, "-m", "probes", "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "attribute" in done.stdout


def test_prompts_are_never_markup(tmp_path: Path, monkeypatch, capsys) -> None:
    rows = [*PROMPTS, {"id": "[red]x[/]", "text": "<script>alert(1)</script>", "domain": "general"}]
    suite = write_suite(tmp_path, *build_pair(tmp_path), bootstrap=20, attribute=None, noise_floor=False)
    write_prompts(tmp_path / "prompts.jsonl", rows)
    out = tmp_path / "run"
    assert call(monkeypatch, capsys, main, "run", suite, "--out", out)[0] == 0
    assert "<script>alert(1)" not in (out / "report.html").read_text()


def test_ctrl_c_says_how_to_go_on(tmp_path: Path, monkeypatch, capsys) -> None:
    suite = write_suite(tmp_path, *build_pair(tmp_path), bootstrap=20)
    run = ("run", suite, "--out", tmp_path / "run", "--stages", "weights,capture,noise_floor")

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("probes.job.job.write_floors", interrupted)
        code, _, stderr = call(patch, capsys, main, *run)
    assert code == 130 and "error: interrupted; rerun the same command to resume" in stderr
    with monkeypatch.context() as patch:
        patch.setattr("probes.store.run.load", interrupted)
        assert call(patch, capsys, main, "attribute", tmp_path / "run")[2] == "error: interrupted\n"
    assert not list(tmp_path.rglob("*.tmp")) and not (tmp_path / "run").exists()
    assert call(monkeypatch, capsys, main, *run)[0] == 0


def test_sites_to_keep_are_split_at_commas(monkeypatch, capsys) -> None:
    given: list[object] = []

    def looked_at(*_: object, settings: dict[str, object], **__: object) -> None:
        given.append(settings.get("keep"))
        raise KeyboardInterrupt

    monkeypatch.setattr("probes.job.prepare.prepare", looked_at)
    for words in ([], ["--keep", "resid_post"], ["--keep", "resid_post,attn_out"]):
        call(monkeypatch, capsys, main, "run", "data/suites/demo.yaml", *words)
    assert given == [None, ["resid_post"], ["resid_post", "attn_out"]]


def test_effects_and_checks_are_numbers_to_a_program(capsys) -> None:
    unit = {"granularity": "component", "layer": 1, "component": "mlp", "module": "", "head": -1, "expert": -1}
    told = {"neuron": -1, "tuned": "a", "domain": "all", "metric": "logit_diff", "control": "", "direction": "to_base"}
    row = unit | told | {"method": "revert", "effect": 1 / 3, "lo_all": 0.25, "hi_all": float("nan"), "q": 1e-12}
    row |= {"n": 24, "held_out": 0.25}
    check = {"tuned": "a", "domain": "all", "method": "path", "check": "gap", "value": 1 / 7, "holds": True}
    begin(quiet=False, json=True)
    print_effects(pd.DataFrame([row]))
    print_checks(pd.DataFrame([check]))
    end("probes attribute")
    begin(quiet=False, json=False)
    effects, checks = (table["data"] for table in json.loads(capsys.readouterr().out)["tables"])
    assert effects == [["a", "all", "revert", "mlp 1", 24, 1 / 3, [0.25, None], 1e-12, 0.25]]
    assert checks == [["a", "all", "path gap", 1 / 7, "holds"]]
    print_effects(pd.DataFrame([row]))
    assert "24 +0.333 +0.250 … +nan" in " ".join(capsys.readouterr().out.split())
    print_effects(pd.DataFrame([row | {"lo_all": float("nan"), "held_out": float("nan"), "q": float("nan")}]))
    assert "24 +0.333 – – –" in " ".join(capsys.readouterr().out.split())
    print_effects(pd.DataFrame([row | {"metric": "first_divergence"}]))  # whose effects are no count of tokens
    assert "largest effects on logit difference where the models part" in capsys.readouterr().out
