"""Who captures: by name, installed or not, and what each cannot run, said before any work."""

from pathlib import Path
from typing import Any

import pytest
import torch

from probes.capture.hooks import backends
from probes.capture.hooks.backends import BACKENDS, open_backend
from probes.capture.hooks.plan import plan
from probes.capture.hooks.shell import shell
from probes.capture.loading import Pairs, require_backend
from probes.cli import main
from probes.errors import ActivationError, RunError, SuiteError
from probes.suite import Suite, load_suite
from tests.command import call
from tests.pairs import build_model, build_pair, build_tokenizer, write_suite
from tv.architecture.resolve import resolve
from tv.runtime.compute import Compute


def _suite(**changes: object) -> Suite:
    keys = {
        "name": "x",
        "base": "org/base",
        "tuned": {"moved": "org/tuned"},
        "prompts": [{"file": "prompts.jsonl"}],
    }
    return load_suite(keys | changes)


def test_every_name_of_a_suite_is_a_backend() -> None:
    assert _suite().backend == "torch"
    for name in BACKENDS:
        assert (
            load_suite(_suite().model_dump(), settings={"backend": name}).backend
            == _suite(backend=name).backend
            == name
        )
    with pytest.raises(SuiteError, match="backend: should be 'torch', 'transformer_lens' or 'nnsight', not 'jax'"):
        _suite(backend="jax")


def test_a_backend_that_is_not_installed_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    found = backends.find_spec
    monkeypatch.setattr(backends, "find_spec", lambda name: None if name == "nnsight" else found(name))
    model = build_model()
    for ask in (
        lambda: open_backend("nnsight", model, model, build_tokenizer()),
        lambda: require_backend(Pairs(_suite(backend="nnsight"))),
    ):
        with pytest.raises(ActivationError, match=r"nnsight: not installed; pip install 'tuning-probes\[backends\]'"):
            ask()


@pytest.mark.parametrize(
    ("changes", "where", "said"),
    [
        ({}, {"remote": True}, "backend torch has no server; add --backend nnsight"),
        ({"backend": "nnsight", "base": "/"}, {"remote": True}, "/: what lies here cannot run on a server"),
        ({"backend": "nnsight", "tuned": {"a": "/"}}, {"remote": True}, "/: what lies here cannot run"),
        (
            {"backend": "nnsight"},
            {"compute": Compute("auto")},
            "backend nnsight cannot run a model that is spread over devices",
        ),
        (
            {"backend": "transformer_lens"},
            {"compute": Compute("auto")},
            "backend transformer_lens cannot run a model that is",
        ),
    ],
)
def test_what_cannot_be_done_is_said_before_any_work(
    changes: dict[str, Any], where: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda _: True)
    require_backend(Pairs(_suite(backend="nnsight"), remote=True))  # what can be done is not refused
    with pytest.raises(RunError, match=said):
        require_backend(Pairs(_suite(**changes), **where))


def test_live_models_are_not_sent_to_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda _: True)
    with pytest.raises(RunError, match="base: a live model cannot run on a server; pass its hub id"):
        require_backend(Pairs(_suite(backend="nnsight"), live={"base": build_model()}, remote=True))


def test_a_model_spread_over_devices_is_torchs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda _: True)
    model = build_model()
    model.hf_device_map = {"": "cpu"}
    with pytest.raises(ActivationError, match="nnsight: cannot run a model that is spread over devices"):
        open_backend("nnsight", model, model, build_tokenizer())
    assert callable(open_backend("torch", model, model, build_tokenizer()))


def test_the_command_refuses_a_local_directory_on_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda _: True)
    suite, out = write_suite(tmp_path, *build_pair(tmp_path)), tmp_path / "run"
    done = call(monkeypatch, capsys, main, "run", suite, "--backend", "nnsight", "--remote", "--out", out)
    assert done[0] == 2 and "llama-base: what lies here cannot run on a server" in done[2] and not out.exists()


def test_a_bridge_that_would_install_packages_is_refused_before_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """TransformerLens runs pip for the processor of a model of images and text."""
    pytest.importorskip("transformer_lens")
    monkeypatch.setattr("subprocess.check_call", lambda *_: pytest.fail("a package is installed"))
    model = build_model()
    monkeypatch.setattr(model.config, "get_text_config", lambda *_, **__: type(model.config)())
    with pytest.raises(
        ActivationError, match=r"\(LlamaForCausalLM\): TransformerLens installs packages .*backend: torch"
    ):
        open_backend("transformer_lens", model, model, build_tokenizer())


def test_a_shell_shares_the_tensors_and_nothing_else() -> None:
    model = build_model("qwen2")  # its embedding is tied
    own = shell(model)
    assert [t.data_ptr() for t in own.parameters()] == [t.data_ptr() for t in model.parameters()]
    own.model.layers[0].mlp.act_fn = torch.nn.Identity()
    own.config.use_cache = not model.config.use_cache
    handle = own.lm_head.register_forward_hook(lambda *_: None)
    assert not isinstance(model.model.layers[0].mlp.act_fn, torch.nn.Identity)
    assert (
        model.config.use_cache is not own.config.use_cache
        and not model.lm_head._forward_hooks
        and own.lm_head._forward_hooks
    )
    handle.remove()


def test_a_read_says_which_of_its_ends_are_looked_at() -> None:
    arch = resolve(build_model())

    def ends(*sites: str) -> set[tuple[bool, bool]]:
        return {read.ends for read in plan(arch, sites)}

    assert ends("resid_pre") == ends("embed_out") == {(True, False)}
    assert ends("gate") == ends("gate_act") == ends("attn_out") == {(False, True)}
    assert ends("head_out") == ends("module") == {(True, True)}
    assert ends("resid_pre", "resid_post") == {(True, True)}
