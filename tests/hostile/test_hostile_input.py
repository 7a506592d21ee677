"""Broken and hostile files: exit status 2, one line, nothing changed on disk, and no memory to speak of."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import probes
import tv.cli
from probes import cli
from tests.hostile.forked import command, forked, tree
from tests.pairs import build_pair, write_suite

MEMORY = 2**30  # a child may map this much more than it has; the tiny models take a few MB
WEIGHTS, INDEX, UP = "model.safetensors", "model.safetensors.index.json", "model.layers.0.mlp.up_proj.weight"
FACTORS = "adapter_model.safetensors"
Spoil = Callable[[Path], None]


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/, tuned/, prompts.jsonl, suite.yaml and a finished run/. Its page of 5 MB would be copied for every case."""
    directory = tmp_path_factory.mktemp("clean")
    base, tuned = build_pair(directory)
    base.rename(directory / "base")
    tuned.rename(directory / "tuned")
    suite = write_suite(directory, Path("base"), Path("tuned"), measure=["changes", "behaviour"], noise_floor=False)
    run = probes.run(suite, out=directory / "run")
    (run.path / "report.html").write_text("<title>tiny</title>", encoding="utf-8")
    return directory


def _cut(n: int) -> Spoil:
    def spoil(here: Path) -> None:
        os.truncate(here / "tuned" / WEIGHTS, n)

    return spoil


def _bytes(name: str, content: bytes | str) -> Spoil:
    body = content.encode() if isinstance(content, str) else content

    def spoil(here: Path) -> None:
        (here / name).unlink(missing_ok=True)
        (here / name).write_bytes(body)

    return spoil


def _header(change: Callable[[dict[str, Any]], object]) -> Spoil:
    def spoil(here: Path) -> None:
        file = here / "tuned" / WEIGHTS
        content = file.read_bytes()
        length = struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])

    return spoil


def _length(n: int) -> Spoil:
    def spoil(here: Path) -> None:
        with open(here / "tuned" / WEIGHTS, "r+b") as file:
            file.write(struct.pack("<Q", n))

    return spoil


def _twins(here: Path) -> None:
    """One name twice in a header: readers disagree which counts."""
    file = here / "tuned" / WEIGHTS
    content = file.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = content[8 : 8 + length].rstrip()
    entry = json.dumps({UP: json.loads(header)[UP]})[1:]
    text = header[:-1] + b"," + entry.encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def _value(number: float) -> Spoil:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[UP][3, 4] = number

    return _tensors(change)


def _tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Spoil:
    def spoil(here: Path) -> None:
        tensors = load_file(here / "tuned" / WEIGHTS)
        change(tensors)
        save_file(tensors, here / "tuned" / WEIGHTS, metadata={"format": "pt"})

    return spoil


def _index(target: object, content: str | None = None) -> Spoil:
    def spoil(here: Path) -> None:
        shutil.copy(here / "tuned" / WEIGHTS, here / "elsewhere.safetensors")
        (here / "tuned" / WEIGHTS).rename(here / "tuned" / "a.safetensors")
        text = json.dumps({"weight_map": {UP: target}}) if content is None else content
        (here / "tuned" / INDEX).write_text(text)

    return spoil


def _json(name: str, /, **changes: object) -> Spoil:
    def spoil(here: Path) -> None:
        (here / name).write_text(json.dumps(json.loads((here / name).read_text()) | changes))

    return spoil


def _gone(name: str) -> Spoil:
    def spoil(here: Path) -> None:
        path = here / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return spoil


def _instead(name: str, make: Callable[[Path], object]) -> Spoil:
    def spoil(here: Path) -> None:
        _gone(name)(here)
        make(here / name)

    return spoil


def _link(name: str, target: str) -> Spoil:
    return _instead(name, lambda path: path.symlink_to(target))


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("unpickled",)


def _pickled(name: str) -> Spoil:
    def spoil(here: Path) -> None:
        (here / "tuned" / WEIGHTS).unlink()
        (here / "tuned" / name).write_bytes(pickle.dumps(_Bomb()))

    return spoil


def _adapter(config: dict[str, Any] | str | None, **tensors: tuple[int, ...]) -> Spoil:
    """tuned/ as a LoRA adapter of one matrix."""
    good = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["up_proj"]}
    good["base_model_name_or_path"] = "base"

    def spoil(here: Path) -> None:
        shutil.rmtree(here / "tuned")
        (here / "tuned").mkdir()
        if config is not None:
            text = config if isinstance(config, str) else json.dumps(good | config)
            (here / "tuned" / "adapter_config.json").write_text(text)
        place = "base_model.model.model.layers.0.mlp.up_proj.lora_"
        shapes = {"A": (2, 48), "B": (80, 2)} | tensors
        values = {f"{place}{name}.weight": torch.ones(shape) for name, shape in shapes.items()}
        save_file(values, here / "tuned" / FACTORS)

    return spoil


def _factors(change: Callable[[dict[str, torch.Tensor]], object]) -> Spoil:
    def spoil(here: Path) -> None:
        tensors = load_file(here / "tuned" / FACTORS)
        change(tensors)
        save_file(tensors, here / "tuned" / FACTORS)

    return spoil


def _elsewhere(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.replace("layers.0", "layers.99"): value.clone() for name, value in tensors.items()}


def _all(*spoils: Spoil) -> Spoil:
    def spoil(here: Path) -> None:
        for each in spoils:
            each(here)

    return spoil


def _gguf(content: bytes) -> Spoil:
    return _all(_gone("tuned"), lambda here: (here / "tuned").mkdir(), _bytes("tuned/model.gguf", content))


def _shards(**shards: list[str]) -> Spoil:
    """tuned/ in shards that hold these tensors of it."""

    def spoil(here: Path) -> None:
        tensors = load_file(here / "tuned" / WEIGHTS)
        (here / "tuned" / WEIGHTS).unlink()
        held = {"rest": [name for name in tensors if not any(name in names for names in shards.values())], **shards}
        for shard, names in held.items():
            save_file({name: tensors[name] for name in names}, here / "tuned" / f"{shard}.safetensors")
        index = {name: f"{shard}.safetensors" for shard, names in held.items() for name in names}
        (here / "tuned" / INDEX).write_text(json.dumps({"weight_map": index}))

    return spoil


def _suite(**changes: object) -> Spoil:
    return _json("suite.yaml", **changes)


def _bomb(levels: int = 30) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join([*lines, "name: bomb", "base: base", f"tuned: *a{levels - 1}", "prompts: []"])


def _prompts(content: bytes | str) -> Spoil:
    return _bytes("prompts.jsonl", content)


def _parquet(table: str, n: int | None = None, content: bytes | None = None) -> Spoil:
    def spoil(here: Path) -> None:
        file = next((here / "run" / "tables" / table).rglob("*.parquet"))
        file.write_bytes(content if content is not None else file.read_bytes()[:n])

    return spoil


def _manifest(change: Callable[[dict[str, Any]], object]) -> Spoil:
    def spoil(here: Path) -> None:
        manifest = json.loads((here / "run" / "manifest.json").read_text())
        change(manifest)
        (here / "run" / "manifest.json").write_text(json.dumps(manifest))

    return spoil


def _turned(table: str) -> Spoil:
    """One bit of what a file holds is another: its form is whole, and its page's checksum knows."""

    def spoil(here: Path) -> None:
        for file in (here / "run" / "tables" / table).rglob("*.parquet"):
            content = bytearray(file.read_bytes())
            content[len(content) // 3] ^= 1
            file.write_bytes(content)

    return spoil


CHECKPOINTS: dict[str, Spoil] = {
    **{f"weights cut to {n} bytes": _cut(n) for n in (0, 7, 8, 100, 50_000)},
    **{f"header of {n} bytes": _length(n) for n in (0, 1, 2**40, 2**64 - 1)},
    "overlapping tensors": _header(lambda h: h[UP].update(data_offsets=h["model.norm.weight"]["data_offsets"])),
    "two tensors in one place": _header(
        lambda h: h[UP].update(data_offsets=h["model.layers.1.mlp.up_proj.weight"]["data_offsets"])
    ),
    "huge shape": _header(lambda h: h[UP].update(shape=[2**40, 2**20])),
    "huge shape and offsets": _header(lambda h: h[UP].update(shape=[2**20, 2**20], data_offsets=[0, 2**42])),
    "negative shape": _header(lambda h: h[UP].update(shape=[-80, -48])),
    "shape of text": _header(lambda h: h[UP].update(shape="80x48")),
    "shape of fractions": _header(lambda h: h[UP].update(shape=[80.0, 48.0])),
    "empty shape": _header(lambda h: h[UP].update(shape=[0, 48], data_offsets=[0, 0])),
    "swapped shape": _header(lambda h: h[UP].update(shape=[48, 80])),
    "offsets backwards": _header(lambda h: h[UP].update(data_offsets=[100, 0])),
    "negative offsets": _header(lambda h: h[UP].update(data_offsets=[-15360, 0])),
    "three offsets": _header(lambda h: h[UP].update(data_offsets=[0, 1, 2])),
    "unknown dtype": _header(lambda h: h[UP].update(dtype="F7")),
    "dtype of another width": _header(lambda h: h[UP].update(dtype="BF16")),
    "no dtype": _header(lambda h: h[UP].pop("dtype")),
    "integer weights": _tensors(lambda t: t.update({UP: t[UP].int()})),
    "header a list": _bytes(f"tuned/{WEIGHTS}", struct.pack("<Q", 2) + b"[]"),
    "header not JSON": _bytes(f"tuned/{WEIGHTS}", struct.pack("<Q", 8) + b"{{{{{{{{"),
    "header nested deep": _bytes(f"tuned/{WEIGHTS}", struct.pack("<Q", 200_000) + b"[" * 200_000),
    "one name twice": _twins,
    "NaN": _value(float("nan")),
    "infinity": _value(float("-inf")),
    "tensor missing": _tensors(lambda t: t.pop(UP)),
    "no weights": _gone(f"tuned/{WEIGHTS}"),
    "no config": _gone("tuned/config.json"),
    "no directory": _gone("tuned"),
    "pickle as .bin": _pickled("pytorch_model.bin"),
    "pickle as .pt": _pickled("model.pt"),
    "pickle as safetensors": _pickled(WEIGHTS),
    "index out of the directory": _index("../elsewhere.safetensors"),
    "index with an absolute path": _index("/etc/passwd"),
    "index to a directory": _index("."),
    "index to nothing": _index("b.safetensors"),
    "index of numbers": _index(7),
    "index of lists": _index(["a.safetensors"]),
    "index with a zero byte": _index("a\0b"),
    "index not JSON": _index("", content="{"),
    "index a list": _index("", content="[]"),
    "index nested deep": _index("", content="[" * 100_000),
    "index without a map": _index("", content="{}"),
    "a tensor in two shards": _shards(a=[UP, "model.norm.weight"], b=[UP]),
    "a shard cut": _all(_shards(a=[UP]), lambda here: os.truncate(here / "tuned" / "a.safetensors", 1_000)),
    "a shard a link to nothing": _all(_shards(a=[UP]), _link("tuned/a.safetensors", "../nothing")),
    "a shard a pickle": _all(_shards(a=[UP]), _bytes("tuned/a.safetensors", pickle.dumps(_Bomb()))),
    "link to itself": _link(f"tuned/{WEIGHTS}", WEIGHTS),
    "link to a device": _link(f"tuned/{WEIGHTS}", "/dev/zero"),
    "link to nothing": _link(f"tuned/{WEIGHTS}", "../nothing"),
    "config not JSON": _bytes("tuned/config.json", "{"),
    "config a list": _bytes("tuned/config.json", "[]"),
    "config of zeros": _bytes("tuned/config.json", b"\0" * 100),
    "config nested deep": _bytes("tuned/config.json", "[" * 100_000),
    "config of another kind": _json("tuned/config.json", model_type="nothing-known"),
    "config of remote code": _json(
        "tuned/config.json", model_type="nothing-known", auto_map={"AutoConfig": "evil.Config"}
    ),
    "layers without end": _json("tuned/config.json", num_hidden_layers=10**9),
    "no layers": _json("tuned/config.json", num_hidden_layers=0),
    "a negative width": _json("tuned/config.json", hidden_size=-48),
    "another width": _json("tuned/config.json", hidden_size=2**40),
    "another vocabulary": _json("tuned/config.json", vocab_size=10**12),
}
ADAPTERS: dict[str, Spoil] = {
    "adapter config not JSON": _adapter("{"),
    "adapter config a list": _adapter("[]"),
    "adapter of another method": _adapter({"peft_type": "NOTHING"}),
    "adapter rank of text": _adapter({"r": "two"}),
    "adapter rank zero": _adapter({"r": 0}),
    "adapter of another rank": _adapter({}, A=(3, 48)),
    "adapter of another width": _adapter({}, A=(2, 49)),
    "adapter without B": _adapter({}, B=(0, 0)),
    "adapter alpha of text": _adapter({"lora_alpha": "much"}),
    "adapter alpha infinite": _adapter({"lora_alpha": float("inf")}),
    "adapter pattern hostile": _adapter({"rank_pattern": {"(": 2}}),
    "adapter of a matrix that is not there": _all(_adapter({}), _factors(lambda t: t.update(_elsewhere(t)))),
    "adapter of NaN": _all(_adapter({}), _factors(lambda t: next(iter(t.values())).fill_(float("nan")))),
    "adapter cut": _all(_adapter({}), lambda here: os.truncate(here / "tuned" / FACTORS, 200)),
    "adapter without weights": _all(_adapter({}), _gone(f"tuned/{FACTORS}")),
    "adapter as a pickle": _all(
        _adapter({}), _gone(f"tuned/{FACTORS}"), _bytes("tuned/adapter_model.bin", pickle.dumps(_Bomb()))
    ),
    "gguf of noise": _gguf(b"GGUF" + bytes(range(256)) * 40),
    "gguf empty": _gguf(b""),
    "gguf of 2⁶⁰ tensors": _gguf(b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0)),
    "gguf of 2⁶⁰ words": _gguf(b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**60)),
}
SUITES: dict[str, Spoil] = {
    "suite of aliases": _bytes("suite.yaml", _bomb()),
    "suite that holds itself": _bytes("suite.yaml", "&a {name: x, base: base, tuned: *a, prompts: [*a]}"),
    "suite with a tag": _bytes("suite.yaml", "!!python/object/apply:os.mkdir [unpickled]"),
    "suite empty": _bytes("suite.yaml", ""),
    "suite a list": _bytes("suite.yaml", "[1, 2]"),
    "suite of two documents": _bytes("suite.yaml", "a: 1\n---\nb: 2\n"),
    "suite not UTF-8": _bytes("suite.yaml", b"name: \xff\xfe"),
    "suite with control characters": _bytes("suite.yaml", b"name: a\x00b"),
    "suite nested deep": _bytes("suite.yaml", "[" * 5_000),
    "suite a line of 10 MB": _bytes("suite.yaml", "name: " + "a" * 10_000_000),
    "suite with an unknown key": _suite(nonsense=1),
    "suite name a list": _suite(name=["a"]),
    "suite name a path": _suite(name="../../outside"),
    "suite base a number": _suite(base=3),
    "suite base remote": _suite(base="https://example.com/model"),
    "suite without models": _suite(tuned={}),
    "suite without prompts": _suite(prompts=[]),
    "suite tuned name a path": _suite(tuned={"../x": "tuned"}),
    "suite prompts a mapping": _suite(prompts={"file": "prompts.jsonl"}),
    "suite prompts a directory": _suite(prompts=[{"file": "base"}]),
    "suite measure unknown": _suite(measure=["thoughts"]),
    "suite seed a text": _suite(seed="0; rm"),
    "suite seed too large": _suite(seed=2**70),
    "suite batch huge": _suite(batch_size=10**12),
    "suite epsilon NaN": _suite(epsilons=[float("nan")]),
    "suite metric of a module that is not": _suite(attribute={"metric": "no.such.module:f"}),
    "suite key with what a terminal obeys": _bytes("suite.yaml", '"\\e[2J\\nerror": 1\nname: x\n'),
    "suite key of a megabyte": _bytes("suite.yaml", "a" * 1_000_000 + ": 1\n"),
    "suite date as a key": _bytes("suite.yaml", "2020-01-01: x\n? [a, b]\n: c\n"),
    "suite is a directory": _instead("suite.yaml", os.mkdir),
}
PROMPTS: dict[str, Spoil] = {
    "prompts empty": _prompts(""),
    "prompts blank": _prompts("\n\n \n"),
    "prompts not UTF-8": _prompts(b'{"text": "\xff\xfe"}\n'),
    "prompts zero bytes": _prompts(b"\0" * 1000),
    "prompts not JSON": _prompts("The heart\n"),
    "prompts of numbers": _prompts("1\n2\n"),
    "prompts of lists": _prompts("[1]\n"),
    "prompts nested deep": _prompts('{"text": ' + "[" * 100_000 + "\n"),
    "prompts a line of 10 MB": _prompts(json.dumps({"text": "a " * 5_000_000})),
    "prompts text a number": _prompts('{"text": 7}\n'),
    "prompts text empty": _prompts('{"text": ""}\n'),
    "prompts text null": _prompts('{"text": null}\n'),
    "prompts half a surrogate": _prompts('{"text": "a \\ud800 b", "target": " c"}\n'),
    "prompts huge number": _prompts('{"text": ' + "9" * 10_000 + "}\n"),
    "prompts id twice": _prompts('{"id": "a", "text": "x"}\n{"id": "a", "text": "y"}\n'),
    "prompts with what a terminal obeys": _prompts('{"id": "\\u001b[2J\\u009b", "text": 7}\n' * 2),
    "prompts id twice, hostile": _prompts('{"id": "\\u001b[2J\\n", "text": "x"}\n' * 2),
    "prompts target equal to foil": _prompts('{"text": "x", "target": " y", "foil": " y"}\n'),
    "prompts a pipe": _instead("prompts.jsonl", os.mkfifo),
}
RUNS: dict[str, Spoil] = {
    "run nowhere": _gone("run"),
    "run without a manifest": _gone("run/manifest.json"),
    "run without tables": _gone("run/tables"),
    "manifest empty": _bytes("run/manifest.json", ""),
    "manifest a list": _bytes("run/manifest.json", "[]"),
    "manifest an empty mapping": _bytes("run/manifest.json", "{}"),
    "manifest not UTF-8": _bytes("run/manifest.json", b"\xff\xfe"),
    "manifest nested deep": _bytes("run/manifest.json", "[" * 100_000),
    "manifest of an older schema": _json("run/manifest.json", schema_version=0),
    "manifest of a newer schema": _json("run/manifest.json", schema_version=10**6),
    "manifest schema a text": _json("run/manifest.json", schema_version="1"),
    "manifest tables a list": _json("run/manifest.json", tables=["changes"]),
    "manifest tables without counts": _json("run/manifest.json", tables={"changes": 3}),
    "manifest tables unknown": _json("run/manifest.json", tables={"../../x": {"rows": 1, "files": 1}}),
    "manifest without a suite": _json("run/manifest.json", suite=None),
    "manifest with another count of files": _manifest(lambda m: m["tables"]["changes"].update(files=99)),
    "manifest with a seed of numbers": _manifest(lambda m: m["suite"].update(seed=[1])),
    "manifest with rows of text": _manifest(lambda m: m["tables"]["changes"].update(rows="many")),
    "parquet empty": _parquet("changes", 0),
    "parquet cut": _parquet("changes", -20),
    "parquet half": _parquet("weights", 500),
    "parquet of noise": _parquet("effects", content=bytes(range(256)) * 40),
    "parquet magic alone": _parquet("changes", content=b"PAR1\xff\xff\xff\x7fPAR1"),
    "parquet with a byte turned": _turned("changes"),
    "a table gone": _gone("run/tables/changes"),
}
#: What a report needs of a manifest, and linking does not.
REPORTS: dict[str, Spoil] = {
    **{
        f"manifest without {key}": _manifest(lambda m, key=key: m.pop(key))
        for key in ("suite", "seed", "versions", "architecture", "notes", "n_prompts")
    },
    **{
        f"manifest with {key} {value!r}": _manifest(lambda m, key=key, value=value: m.update({key: value}))
        for key, value in {"versions": 7, "architecture": {}, "checkpoints": "x", "notes": {"moved": 3}}.items()
    },
    "manifest of no tuned model": _manifest(lambda m: m["suite"].pop("tuned")),
    "manifest with a tuned model's number": _manifest(lambda m: m["suite"].update(tuned={"moved": 7})),
}


def test_links_of_a_hub_cache_are_followed(clean: Path, tmp_path: Path) -> None:
    """A snapshot is made of links to blobs outside its directory."""
    for name in ("base", "tuned"):
        snapshot, blobs = tmp_path / name / "snapshots" / "1a2b", tmp_path / name / "blobs"
        shutil.copytree(clean / name, blobs)
        snapshot.mkdir(parents=True)
        for blob in blobs.iterdir():
            (snapshot / blob.name).symlink_to(Path("../../blobs") / blob.name)
    pair = [tmp_path / name / "snapshots" / "1a2b" for name in ("base", "tuned")]
    ended = forked(command(tv.cli.main, "geometry", *pair, "-o", tmp_path / "table.csv"))
    assert ended.status == 0 and (tmp_path / "table.csv").exists(), ended.err


def _call(case: str, here: Path) -> Callable[[], None]:
    if case in RUNS:
        return command(cli.main, "link", here / "run")
    if case in REPORTS:
        return command(cli.main, "report", here / "run")
    if case in CHECKPOINTS or case in ADAPTERS:
        return command(tv.cli.main, "geometry", here / "base", here / "tuned")
    return command(cli.main, "run", here / "suite.yaml", "--out", here / "new")


CASES = CHECKPOINTS | ADAPTERS | SUITES | PROMPTS | RUNS | REPORTS


@pytest.mark.parametrize("case", CASES)
def test_refused_in_one_line(case: str, clean: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    shutil.copytree(clean, here, symlinks=True)
    CASES[case](here)
    before = tree(tmp_path)

    def work() -> None:
        os.chdir(here)
        _call(case, here)()

    ended = forked(work, memory=MEMORY)
    assert ended.status == 2, ended
    line = ended.err.strip()  # an empty line goes before it where a progress bar was taken away
    assert line.startswith("error: ") and line.isprintable() and len(line) < 1_000, ended.err
    assert tree(tmp_path) == before
