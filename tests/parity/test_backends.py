"""Every backend against our own hooks: architecture × backend × dtype, on what is reduced from both models.

Gate patterns are equal bit by bit, and all else is within 1e-5 of what the torch backend finds. Where a backend cannot
do a case, CANNOT says why, and a person who asks for it is told so.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple, get_args

import huggingface_hub
import pytest
import torch
from torch import Tensor

import probes
from probes.capture.hooks.backends import open_backend
from probes.capture.pair import make_pair
from probes.capture.reduce import Piece
from probes.capture.rows import fetched
from probes.capture.runner import Session, _run_batch
from probes.errors import ActivationError
from probes.suite import VectorSite, load_suite
from tests.pairs import HYBRIDS, MEASURED, PROMPTS, build_model, build_tokenizer, perturb, write_suite
from tv.prompts.encoding import Batch, batches, encode
from tv.prompts.files import Prompt

pytest.importorskip("transformer_lens")
pytest.importorskip("nnsight")

BACKENDS = ("transformer_lens", "nnsight")
#: What nnsight is also asked for on a server.
REMOTE = ("llama", "mixtral")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
#: What is tried in bfloat16 too: one of every kind of block.
IN_BFLOAT16 = ("llama", "olmo2", "gpt2", "mixtral")
#: What cannot be done, and what is said of it.
CANNOT = {("olmo2", "transformer_lens", "bfloat16"): "cannot run its bridge in bfloat16"}
CASES = [(name, "float32") for name in (*MEASURED, *HYBRIDS)] + [(name, "bfloat16") for name in IN_BFLOAT16]
TABLE = [(name, backend, dtype) for name, dtype in CASES for backend in BACKENDS]
TABLE += [(name, "nnsight remote", "float32") for name in REMOTE]


class Server(NamedTuple):
    """Where it listens, and where its models lie."""

    address: str
    place: Path


@pytest.mark.sampled(7)
@pytest.mark.parametrize(("architecture", "backend", "dtype"), TABLE)
def test_reduces_to_the_same(
    architecture: str, backend: str, dtype: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, expected, logits = _by_torch(architecture, dtype)
    pair, names = session.pair, None
    if backend == "nnsight remote":
        names = f"org/{architecture}-base", f"org/{architecture}-tuned"
        _serve_from(request.getfixturevalue("server"), names, monkeypatch)
    if reason := CANNOT.get((architecture, backend, dtype)):
        with pytest.raises(ActivationError, match=reason):  # where it can be done by now, its line is to be struck out
            _measure(replace(session, lockstep=open_backend(backend, pair.base, pair.tuned, pair.tokenizer)))
        return
    lockstep = open_backend(backend.split()[0], pair.base, pair.tuned, pair.tokenizer, names)
    found, own_logits = _measure(replace(session, lockstep=lockstep))
    tables = {"changes", "ledger", "lens"} | ({"gates"} if architecture != "mamba" else set())
    assert found.keys() == expected.keys() and {table for table, *_ in found} >= tables
    for place, columns in expected.items():
        for name, values in columns.items():
            own = found[place][name]
            if name == "new_norm":  # the root of a difference of squares, and as exact as these
                own, values = own.square(), values.square()
            _require_same(own, values, f"{place}: {name}")
    for own, theirs in zip(own_logits, logits, strict=True):
        _require_same(own, theirs, "logits")


def test_the_table_has_what_cannot_be_done() -> None:
    assert set(CANNOT) <= set(TABLE)


def test_a_job_runs_on_a_server(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From hub ids on; the hub's own cache stands in for the hub."""
    names = "org/llama-base", "org/llama-tuned"
    for name in names:
        cached = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        shutil.copytree(server.place / name.removeprefix("org/"), cached / "snapshots" / "1a2b3c")
        (cached / "refs").mkdir()
        (cached / "refs" / "main").write_text("1a2b3c")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("probes.job.job.report", lambda run: None)
    _serve_from(server, names, monkeypatch)
    suite = write_suite(tmp_path, *names, attribute=None, measure=["gates"], noise_floor=False, bootstrap=10)
    run = probes.run(suite, settings={"backend": "nnsight"}, remote=True, out=tmp_path / "run")
    own = probes.run(
        suite, base=server.place / "llama-base", tuned={"moved": server.place / "llama-tuned"}, out=tmp_path / "own"
    )
    assert run.manifest["computed"]["remote"] and run.manifest["suite"]["base"] == "org/llama-base"
    assert run["gates"].equals(own["gates"])


def test_what_a_server_refuses_is_said(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    session, *_ = _by_torch("llama", "float32")
    pair, names = session.pair, ("org/other", "org/llama-tuned")
    _serve_from(server, names, monkeypatch)
    lockstep = open_backend("nnsight", pair.base, pair.tuned, pair.tokenizer, names)
    with pytest.raises(ActivationError, match=r"org/other: the nnsight server gave no result \(KeyError"):
        _measure(replace(session, lockstep=lockstep))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that has the models of REMOTE, in a process that does not have this project."""
    place = tmp_path_factory.mktemp("ndif")
    served = []
    for name in REMOTE:
        pair = _by_torch(name, "float32")[0].pair
        for side, model in (("base", pair.base), ("tuned", pair.tuned)):
            model.save_pretrained(place / f"{name}-{side}")
            pair.tokenizer.save_pretrained(place / f"{name}-{side}")
            served.append(f"org/{name}-{side}={place / f'{name}-{side}'}")
    command = [sys.executable, str(Path(__file__).with_name("ndif.py")), str(place / "port"), *served]
    process = subprocess.Popen(command, cwd=place, env={**os.environ, "PYTHONPATH": ""})
    try:
        while not (place / "port").exists():
            assert process.poll() is None, "the server did not start"
            time.sleep(0.1)
        yield Server(f"http://127.0.0.1:{(place / 'port').read_text()}", place)
    finally:
        process.kill()
        process.wait()


def _serve_from(server: Server, names: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nnsight ask that server, and not the hub for how the names are spelled."""
    import nnsight
    from nnsight.modeling import huggingface

    monkeypatch.setattr(nnsight.CONFIG.API, "HOST", server.address)
    for name in names:
        monkeypatch.setitem(huggingface._ID_CACHE, name, name)


def _require_same(found: Tensor, expected: Tensor, what: str) -> None:
    if not expected.is_floating_point():
        assert torch.equal(found, expected), what
    step = 1e-3 if expected.dtype == torch.float16 else 1e-5  # of vectors as they are stored
    torch.testing.assert_close(found.float(), expected.float(), rtol=step, atol=1e-5, equal_nan=True, msg=what)


Reduced = dict[tuple[str, str, str], dict[str, Tensor]]


@cache
def _by_torch(architecture: str, dtype: str) -> tuple[Session, Reduced, tuple[Tensor, Tensor]]:
    base, tuned = build_model(architecture), build_model(architecture)
    perturb(tuned, 0.05, seed=5)
    pair = make_pair(base.to(DTYPES[dtype]), tuned.to(DTYPES[dtype]), build_tokenizer())
    suite = load_suite(
        {"name": "parity", "base": "base", "tuned": {"moved": "tuned"}, "prompts": [{"file": "prompts.jsonl"}]}
        | {"ledger_positions": "all", "keep": get_args(VectorSite)}
    )
    session = Session.open(pair, suite)
    return session, *_measure(session)


def _measure(session: Session) -> tuple[Reduced, tuple[Tensor, Tensor]]:
    """What one batch comes to, by table, site and labels; and both models' logits at its tokens."""
    kept: list[tuple[Tensor, Tensor]] = []
    batch = _batch(session)

    def watched(*args: object) -> tuple[Tensor, Tensor]:
        kept.append(session.lockstep(*args))
        return kept[0]

    reducer, *_ = _run_batch(replace(session, lockstep=watched), "moved", batch)
    real = batch.attention_mask.bool()
    tables = [{name: torch.from_numpy(own) for name, own in columns.items()} for columns in fetched(reducer.pieces)]
    reduced = dict(zip(map(_place, reducer.pieces), tables, strict=True))
    return reduced, (kept[0][0][real], kept[0][1][real])


def _place(piece: Piece) -> tuple[str, str, str]:
    return piece.table, str(piece.site), str(sorted(piece.labels.items()))


def _batch(session: Session) -> Batch:
    prompts = [Prompt(set="set", **row) for row in PROMPTS[:4]]
    return batches(encode(prompts, session.pair.tokenizer, 64), 4, session.pair.pad_id)[0]
