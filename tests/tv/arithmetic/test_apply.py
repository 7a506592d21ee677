"""`tv.apply`: what is written is the model that the arithmetic makes, complete, and whole or absent."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, HrmTextConfig, PreTrainedModel

import tv
from tests.command import call
from tests.pairs import CONFIGS, build_model, build_pair, build_tokenizer, perturb
from tv.arithmetic.methods.terms import METHODS
from tv.checkpoints.live import load_model
from tv.cli import main
from tv.cli.apply import split

IDS = torch.arange(3, 20)[None]


def family(directory: Path, architecture: str = "llama", **options: object) -> tuple[Path, Path, Path]:
    """A base and two tuned models."""
    base, first = build_pair(directory, architecture, **options)
    model = build_model(architecture)
    perturb(model, 0.02, seed=9)
    second = directory / "second"
    model.to(options.get("dtype", torch.float32)).save_pretrained(second)
    build_tokenizer().save_pretrained(second)
    return base, first, second


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(IDS).logits


def loaded(path: Path) -> PreTrainedModel:
    model, info = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    assert not any(info.values()), info
    return model


@pytest.mark.sampled(4)
@pytest.mark.parametrize("architecture", CONFIGS)
def test_own_vector_at_one_is_the_tuned_model_and_at_zero_the_base(architecture: str, tmp_path: Path) -> None:
    """Bit for bit: the differences of these checkpoints, which are bfloat16, are exact in float32."""
    base, tuned = build_pair(tmp_path, architecture, dtype=torch.bfloat16)
    for scale, target in ((1.0, tuned), (0.0, base)):
        out = tmp_path / f"at-{scale}"
        applied = tv.apply(base, {str(tuned): scale}, out=out, shard=100_000)
        assert applied.rounding.error == 0 and bool(applied.rounding.signal) == bool(scale)
        written, expected = loaded(out), loaded(target)
        assert written.dtype == torch.float32
        for (name, left), right in zip(written.named_parameters(), expected.parameters(), strict=True):
            assert torch.equal(left, right.float()), name
        before = {file.name for file in base.iterdir()} - {"model.safetensors"}
        assert before < {file.name for file in out.iterdir()} and (out / "README.md").is_file()
        index = json.loads((out / "model.safetensors.index.json").read_text())
        keys = {tensor for shard in base.glob("*.safetensors") for tensor in load_file(shard)}
        assert index["weight_map"].keys() == keys  # the names of the base's own files
        assert index["metadata"]["total_size"] == sum(
            value.numel() * 4 for shard in out.glob("*.safetensors") for value in load_file(shard).values()
        )


def test_a_float32_pair_is_the_tuned_one_to_a_unit_in_the_last_place(tmp_path: Path) -> None:
    base, tuned = build_pair(tmp_path)
    tv.apply(base, {tuned: 1.0}, out=tmp_path / "out")
    for left, right in zip(loaded(tmp_path / "out").parameters(), loaded(tuned).parameters(), strict=True):
        size = torch.maximum(left.abs(), right.abs())
        assert bool(((left - right).abs() <= torch.nextafter(size, size + 1) - size).all())


@pytest.mark.sampled(4)
@pytest.mark.parametrize("method", METHODS)
def test_what_is_written_is_the_live_variant(method: str, tmp_path: Path) -> None:
    base, first, second = family(tmp_path, "qwen2")  # tied, with biases
    scales = {tv.extract(base, first): 0.7, tv.extract(base, second): -0.4}
    tv.apply(base, scales, out=tmp_path / "out", method=method, seed=3, exclude=["gate"])
    written, live = loaded(tmp_path / "out"), load_model(base)
    assert written.get_output_embeddings().weight is written.get_input_embeddings().weight
    before = logits(live)
    with tv.variant(live, scales, method=method, seed=3, exclude=["gate"]):
        moved = logits(live)
        assert torch.equal(logits(written), moved) and not torch.equal(moved, before)
    assert torch.equal(logits(live), before)


def test_negation_also_of_a_model_that_the_vector_did_not_come_from(tmp_path: Path) -> None:
    base, first, second = family(tmp_path, dtype=torch.bfloat16)
    tv.extract(base, first).save(tmp_path / "t.safetensors")
    own = tv.apply(first, {str(tmp_path / "t.safetensors"): -1.0}, out=tmp_path / "own")
    assert any("another fingerprint" in note for note in own.notes)
    assert torch.equal(logits(loaded(tmp_path / "own")), logits(load_model(base)))
    from_file = tv.apply(second, {str(tmp_path / "t.safetensors"): -1.3}, out=tmp_path / "a")
    with pytest.raises(tv.CheckpointError, match=r"is .* itself.*name that base as its origin"):
        tv.apply(first, {str(first): -1.3}, out=tmp_path / "b")
    tv.apply(second, {str(first): -1.3}, out=tmp_path / "b", origin=base)
    assert torch.equal(logits(loaded(tmp_path / "a")), logits(loaded(tmp_path / "b")))
    assert from_file.rounding.ratio > 1e4
    expected = load_model(second)
    with tv.variant(expected, {tv.extract(base, first): -1.3}):
        assert torch.equal(logits(loaded(tmp_path / "a")), logits(expected))


def test_other_sources(tmp_path: Path) -> None:
    """A live base, a base that is an adapter over another, and a vector in memory."""
    base, first, second = family(tmp_path)
    vector = tv.extract(base, first)
    tv.apply(load_model(base), {vector: 0.5}, out=tmp_path / "live")
    tv.apply(base, {vector: 0.5}, out=tmp_path / "files")
    assert torch.equal(logits(loaded(tmp_path / "live")), logits(loaded(tmp_path / "files")))
    tv.lora_export(base, second, out=tmp_path / "adapter", rank=4)
    tv.apply(tmp_path / "adapter", {vector: 0.5}, out=tmp_path / "over")
    expected = load_model(tmp_path / "adapter", base=base)
    with tv.variant(expected, {vector: 0.5}):
        assert torch.allclose(logits(loaded(tmp_path / "over")), logits(expected), atol=1e-5)
    assert AutoTokenizer.from_pretrained(tmp_path / "over")("heart")["input_ids"]


def test_a_base_in_older_names_keeps_them(tmp_path: Path) -> None:
    """GPT-2's first checkpoints lack the prefix, and hold masks that no model needs."""
    base, tuned = build_pair(tmp_path, "gpt2", dtype=torch.bfloat16)
    tensors = {k.removeprefix("transformer."): v for k, v in load_file(base / "model.safetensors").items()}
    save_file(tensors | {"h.0.attn.bias": torch.ones(1, 1, 64, 64)}, base / "model.safetensors", {"format": "pt"})
    tv.apply(base, {tuned: 1.0}, out=tmp_path / "out")
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == tensors.keys()
    assert torch.equal(logits(loaded(tmp_path / "out")), logits(load_model(tuned)))


def test_a_gguf_base_becomes_a_plain_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from tests.tv.checkpoints.test_gguf import build_model as build_small, write_gguf

    file = write_gguf(build_small(), tmp_path / "base.gguf")
    live, other = load_model(file), load_model(file)
    perturb(other, 0.05, seed=1)
    tv.apply(file, {tv.extract(file, other): 1.0}, out=tmp_path / "out")
    assert torch.allclose(logits(loaded(tmp_path / "out")), logits(other), atol=1e-5)
    assert not torch.allclose(logits(live), logits(other), atol=1e-3)


def test_a_float8_base_is_written_dequantised(tmp_path: Path) -> None:
    base, tuned = build_pair(tmp_path)
    vector, config = tv.extract(base, tuned), json.loads((base / "config.json").read_text())
    tensors = load_file(base / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    scale = tensors[name].abs().max() / 448
    tensors[f"{name}_scale_inv"] = torch.full((1, 1), float(scale))
    tensors[name] = (tensors[name] / scale).to(torch.float8_e4m3fn)
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (base / "config.json").write_text(json.dumps(config))
    before = tv.open_checkpoint(base).read(name).float()
    tv.apply(base, {vector: 0.5}, out=tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(written[name], before + 0.5 * vector[name]) and f"{name}_scale_inv" not in written
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert loaded(tmp_path / "out").dtype == torch.float32


def test_patterns_and_the_rest_stays(tmp_path: Path) -> None:
    base, tuned = build_pair(tmp_path, dtype=torch.bfloat16)
    tv.apply(base, {tuned: 1.0}, out=tmp_path / "out", only=["layer=0-1,mlp", "q"], exclude=["norm"])
    written, left, right = (dict(loaded(path).named_parameters()) for path in (tmp_path / "out", base, tuned))
    for name, value in written.items():
        moved = "q_proj" in name or (".mlp." in name and ".2." not in name)
        assert torch.equal(value, (right if moved else left)[name].float()), name


def test_bfloat16_says_what_it_loses_and_is_loadable(tmp_path: Path) -> None:
    base, tuned = build_pair(tmp_path, step=2e-3)
    plain = tv.apply(base, {tuned: 1.0}, out=tmp_path / "plain", out_dtype="bfloat16")
    chance = tv.apply(base, {tuned: 1.0}, out=tmp_path / "chance", out_dtype="bfloat16", stochastic_rounding=True)
    assert 1 < plain.rounding.ratio < 1.5 and chance.rounding.ratio < plain.rounding.ratio
    assert loaded(tmp_path / "plain").dtype == torch.bfloat16
    assert "stochastic" in (tmp_path / "chance" / "README.md").read_text()


def test_conflicts_are_those_of_cosine(tmp_path: Path) -> None:
    base, first, second = family(tmp_path)
    sources, out = {first: 1.0, second: 1.0}, tmp_path / "out"
    found = tv.apply(base, sources, out=out, method="ties", directions=True).conflicts
    table = tv.cosine(base, {"a": first, "b": second})
    whole = table[table.scope == "whole"].iloc[0]
    assert len(found) == 1 and found.a[0] == "llama-tuned" and found.b[0] == "second"
    for column in ("cosine", "cosine_z", "cosine_shared_z", "sign_conflict", "conflict_energy"):
        assert found[column][0] == pytest.approx(whole[column], abs=1e-6), column
    linear = table[table.module.isin(["q", "k", "v", "o", "gate", "up", "down", "unembed"])]
    assert found.overlap_left_kappa[0] == pytest.approx(linear.overlap_left_kappa.mean(), abs=1e-5)
    entries = tv.apply(base, sources, out=tmp_path / "sum").conflicts  # the default: what adds up over entries
    for column in ("cosine", "cosine_z", "sign_conflict", "sign_conflict_null", "conflict_energy"):
        assert entries[column][0] == pytest.approx(found[column][0], rel=1e-9), column
    assert entries[["cosine_shared_z", "overlap_left_kappa", "overlap_right_kappa"]].isna().all(axis=None)
    plain = tv.apply(base, {first: 1.0, second: 1.0}, out=tmp_path / "plain", method="ties", conflicts=False)
    assert plain.conflicts.empty and list(plain.conflicts) == list(found)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "plain")]
    assert weights[0] == weights[1]


def test_a_grown_vocabulary_moves_by_token(tmp_path: Path) -> None:
    """The vector's tokenizer numbers two tokens the other way round and knows one more."""
    base, tuned = build_pair(tmp_path, dtype=torch.bfloat16)
    vector = tv.extract(base, tuned)
    saved = tmp_path / "t.safetensors"
    vector.save(saved)
    other = tmp_path / "other"
    model = build_model()
    model.resize_token_embeddings(310, mean_resizing=False)
    model.save_pretrained(other)
    build_tokenizer().save_pretrained(other)
    tokens = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokens["model"]["vocab"]
    vocabulary["e"], vocabulary["h"] = vocabulary["h"], vocabulary["e"]
    (other / "tokenizer.json").write_text(json.dumps(tokens))
    applied = tv.apply(other, {str(saved): 1.0}, out=tmp_path / "out")
    assert any("in common move by name" in note for note in applied.notes)
    name = "model.embed_tokens.weight"
    before, after = (load_file(path / "model.safetensors")[name] for path in (other, tmp_path / "out"))
    step, delta = after - before, vector[name]
    there, here = vocabulary["e"], vocabulary["h"]  # in the other model, and in the vector
    assert torch.allclose(step[there], delta[here], atol=1e-6) and torch.allclose(step[here], delta[there], atol=1e-6)
    same = [i for i in vocabulary.values() if i not in (there, here)]
    assert torch.allclose(step[same], delta[same], atol=1e-6)
    assert step[len(vocabulary) :].abs().max() == 0  # rows that no token of the vector's belongs to
    assert applied.rounding.ratio > 1e4


def test_provenance(tmp_path: Path) -> None:
    base, first, second = family(tmp_path)
    tv.apply(base, {first: 0.5, second: 0.25}, out=tmp_path / "out", method="dare", density=0.5, seed=7)
    card = (tmp_path / "out" / "README.md").read_text()
    for text in (
        "dare, density 0.5, seed 7",
        "| second | 0.25 |",
        tv.open_checkpoint(base).fingerprint()["content"][:16],
    ):
        assert text in card
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as file:
        made = json.loads(file.metadata()["tv_apply"])
    assert made["options"] == {"density": 0.5} and [one["scale"] for one in made["vectors"]] == [0.5, 0.25]


def test_buffers_are_written_and_tied_copies_are_not(tmp_path: Path) -> None:
    base, tuned = build_pair(tmp_path, "qwen2", dtype=torch.bfloat16)
    for path in (base, tuned):
        tensors = load_file(path / "model.safetensors")
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        save_file(tensors, path / "model.safetensors", {"format": "pt"})
    tv.apply(base, {tuned: 1.0}, out=tmp_path / "out")
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(logits(loaded(tmp_path / "out")), logits(load_model(tuned)))


def test_an_error_leaves_nothing_behind_and_the_old_one_stays(tmp_path: Path) -> None:
    base, tuned = build_pair(tmp_path)
    vector, out = tv.extract(base, tuned), tmp_path / "out"

    def read(name: str) -> torch.Tensor:
        if "layers.2" in name:
            raise tv.CheckpointError("damaged")
        return vector[name]

    bad = tv.TuningVector(vector.shapes, read, vector.provenance)
    before = set(tmp_path.iterdir())
    with pytest.raises(tv.CheckpointError, match="damaged"):
        tv.apply(base, {bad: 1.0}, out=out)
    assert set(tmp_path.iterdir()) == before
    tv.apply(base, {vector: 1.0}, out=out)
    with pytest.raises(tv.CheckpointError, match="already exists"):
        tv.apply(base, {vector: 0.5}, out=out)
    with pytest.raises(tv.CheckpointError, match="damaged"):
        tv.apply(base, {bad: 0.5}, out=out, force=True)
    assert torch.allclose(logits(loaded(out)), logits(load_model(tuned)), atol=1e-4)
    tv.apply(base, {vector: 0.0}, out=out, force=True)
    assert torch.equal(logits(loaded(out)), logits(load_model(base)))
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in before} | {"out"}


def _apply_and_be_killed(base: Path, tuned: Path, out: Path) -> None:
    def stop(stage: str, done: int, total: int, name: str) -> None:
        if done > 5:
            os.kill(os.getpid(), signal.SIGKILL)

    tv.apply(base, {tuned: 1.0}, out=out, progress=stop)


def test_a_killed_one_is_absent_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    base, tuned = build_pair(tmp_path)
    process = multiprocessing.get_context("fork").Process(
        target=_apply_and_be_killed, args=(base, tuned, tmp_path / "out")
    )
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "out").exists() and list(tmp_path.glob(".out.*"))
    time.sleep(0.05)
    tv.apply(base, {tuned: 1.0}, out=tmp_path / "out")
    assert not list(tmp_path.glob(".out.*")) and loaded(tmp_path / "out")


def test_memory_is_a_module_at_a_time(tmp_path: Path) -> None:
    """Experts are read one by one, and never as the whole tensor."""
    base, tuned = build_pair(tmp_path, "mixtral")
    vector, asked = tv.extract(base, tuned), []
    counted = tv.TuningVector(
        vector.shapes,
        lambda name: asked.append(name) or vector[name],
        vector.provenance,
        lambda name, i: vector.expert(name, i),
    )
    tv.apply(base, {counted: 1.0}, out=tmp_path / "out")
    assert asked and not any(len(vector.shapes[name]) == 3 for name in asked)
    assert torch.allclose(logits(loaded(tmp_path / "out")), logits(load_model(tuned)), atol=1e-4)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    base, first, second = family(tmp_path)
    out = tmp_path / "out"
    options = [
        "--add",
        f"{first}:0.7",
        "--subtract",
        f"{second}:0.3",
        "--method",
        "ties",
        "--density",
        "0.5",
        "-o",
        out,
    ]
    code, stdout, stderr = call(monkeypatch, capsys, main, "apply", base, *options)
    assert code == 0, stderr
    assert "how much the vectors conflict" in stdout and "times what rounding added" in stdout
    assert "signs differ" in stdout.replace("\n", " ") and "κ left" not in stdout
    live = load_model(base)
    scales = {tv.extract(base, first): 0.7, tv.extract(base, second): -0.3}
    with tv.variant(live, scales, method="ties", density=0.5):
        assert torch.equal(logits(loaded(out)), logits(live))


def test_earlier_names_of_options_are_taken_and_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base, tuned = build_pair(tmp_path)
    for name, options in (
        ("now", ["--exclude", "norm", "--exclude", "q", "--out-dtype", "bfloat16"]),
        ("before", ["--exclude", "norm", "--except", "q", "--dtype", "bfloat16"]),
    ):
        code, _, stderr = call(
            monkeypatch, capsys, main, "apply", base, "--add", tuned, *options, "-o", tmp_path / name
        )
        assert code == 0, stderr
    now, before = (load_file(tmp_path / name / "model.safetensors") for name in ("now", "before"))
    assert {tensor.dtype for tensor in now.values()} == {torch.bfloat16}
    assert now.keys() == before.keys() and all(torch.equal(now[key], before[key]) for key in now)
    told = call(monkeypatch, capsys, main, "apply", "--help")[1]
    assert "--out-dtype" in told and "--dtype" not in told.replace("--out-dtype", "")
    assert "--exclude" in told and "--except" not in told


def test_names_with_colons(tmp_path: Path) -> None:
    odd = tmp_path / "a:0.5"
    odd.mkdir()
    assert split(str(odd)) == (str(odd), 1.0)
    assert split(f"{odd}:0.25") == (str(odd), 0.25)
    assert split("org/model@v1:1.5") == ("org/model@v1", 1.5)
    assert split("C:model") == ("C:model", 1.0)
    assert split("x:-2e-1") == ("x", -0.2)


def bad_input(base: Path, tuned: Path, other: Path, directory: Path) -> dict[str, tuple[list[object], str]]:
    out = ["-o", directory / "out"]
    add = ["--add", tuned]
    return {
        "no vector": ([base, *out], "no tuning vector given"),
        "no such vector": ([base, "--add", directory / "nothing", *out], "no such directory"),
        "λ": ([base, "--add", f"{tuned}:much", *out], "'much', which is not a number"),
        "infinite λ": ([base, "--add", f"{tuned}:inf", *out], "finite"),
        "twice": ([base, *add, *add, *out], "given twice"),
        "method": ([base, *add, "--method", "best", *out], "there are sum, ties"),
        "option": ([base, *add, "--density", "0.5", *out], "has no option 'density'"),
        "pattern": ([base, *add, "--only", "layer=9", *out], "names no parameter"),
        "dtype": ([base, *add, "--dtype", "int8", *out], "int8"),
        "stochastic float32": ([base, *add, "--stochastic-rounding", *out], "is for bfloat16"),
        "another model": ([base, "--add", other, *out], "Qwen2ForCausalLM, but the base"),
        "no parent": ([base, *add, "-o", directory / "no" / "out"], "its directory does not exist"),
        "itself": ([base, *add, "-o", tuned, "--force"], "is read from"),
        "a directory of other things": (
            [base, *add, "-o", directory, "--force"],
            "is not a checkpoint, so it is not replaced",
        ),
    }


def test_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    base, tuned = build_pair(tmp_path)
    other, _ = build_pair(tmp_path, "qwen2")
    for case, (arguments, message) in bad_input(base, tuned, other, tmp_path).items():
        before = set(tmp_path.iterdir())
        code, _, stderr = call(monkeypatch, capsys, main, "apply", *arguments)
        assert code == 2 and message in stderr and len(stderr.strip().splitlines()) == 1, (case, stderr)
        assert set(tmp_path.iterdir()) == before


def test_a_vector_that_does_not_fit_names_the_first_tensor(tmp_path: Path) -> None:
    base, tuned = build_pair(tmp_path)
    good = tv.extract(base, tuned)
    name = "model.layers.1.mlp.up_proj.weight"
    cases = {
        rf"{name}' has shape \[70, 48\] in the vector and \[80, 48\] there": {**good.shapes, name: (70, 48)},
        "moves tensor 'model.layers.7.x', which is not there": {"model.layers.7.x": (2,), **good.shapes},
    }
    for message, shapes in cases.items():
        with pytest.raises(tv.CheckpointError, match=message):
            tv.apply(base, {tv.TuningVector(shapes, good.__getitem__, {}): 1.0}, out=tmp_path / "out")


def test_a_disk_that_is_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, tuned = build_pair(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(tv.CheckpointError, match="the disk has 1,000"):
        tv.apply(base, {tuned: 1.0}, out=tmp_path / "out")


def test_folders_beside_the_weights_are_written_too(tmp_path: Path) -> None:
    base, tuned, _ = family(tmp_path)
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    out = tv.apply(base, {tuned: 1.0}, out=tmp_path / "out", conflicts=False).path
    assert (out / "additional_chat_templates" / "tool_use.jinja").read_text() == "{{ tools }}"


def test_what_transformers_makes_of_other_tensors_is_written_back(tmp_path: Path) -> None:
    """An architecture whose files hold a fused matrix that is three in memory."""
    config = HrmTextConfig(
        **{"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4},
        **{"num_key_value_heads": 2, "head_dim": 16, "vocab_size": 307, "max_position_embeddings": 64},
    )
    base, tuned = tmp_path / "base", tmp_path / "tuned"
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(base)
    perturb(model, 0.05, seed=1)
    model.save_pretrained(tuned)
    assert tv.open_checkpoint(base).converted
    out = tv.apply(base, {tuned: 1.0}, out=tmp_path / "out", conflicts=False).path
    written, expected = load_file(out / "model.safetensors"), load_file(tuned / "model.safetensors")
    assert written.keys() == expected.keys()
    assert all(torch.allclose(written[key], value, atol=1e-6) for key, value in expected.items())
