"""The capture backends by name. Each imports its package on first use."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from probes.capture.hooks.torch_backend import Lockstep, lockstep
from probes.errors import ActivationError

Open = Callable[[PreTrainedModel, PreTrainedModel, PreTrainedTokenizerBase], Lockstep]


def open_backend(
    name: str,
    base: PreTrainedModel,
    tuned: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    remote: tuple[str, str] | None = None,
) -> Lockstep:
    """A pair of models, ready to run in lockstep through the backend `name` (out of BACKENDS).

    With `remote`, the hub ids of both, nnsight runs them on its server. Raises ActivationError where the backend's
    package is not installed, or it cannot run such models.
    """
    require_installed(name)
    if name != "torch" and any(getattr(model, "hf_device_map", None) for model in (base, tuned)):
        raise ActivationError(f"backend {name}: cannot run a model that is spread over devices; use backend: torch")
    if remote is not None:
        from probes.capture.hooks.nnsight_remote import open_remote

        return open_remote(base, tuned, tokenizer, remote)
    return BACKENDS[name](base, tuned, tokenizer)


def require_installed(name: str) -> None:
    """Raise ActivationError where the package that a backend is named after is not installed."""
    if find_spec(name) is None:
        raise ActivationError(f"backend {name}: not installed; pip install 'tuning-probes[backends]'")


def _torch(base: PreTrainedModel, tuned: PreTrainedModel, _: PreTrainedTokenizerBase) -> Lockstep:
    return lambda reads, inputs, reduce, _at: lockstep(base, tuned, reads, inputs, reduce)


def _transformer_lens(base: PreTrainedModel, tuned: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Lockstep:
    from probes.capture.hooks.transformer_lens_backend import open_bridges

    return open_bridges(base, tuned, tokenizer)


def _nnsight(base: PreTrainedModel, tuned: PreTrainedModel, _: PreTrainedTokenizerBase) -> Lockstep:
    from probes.capture.hooks.nnsight_backend import open_traces

    return open_traces(base, tuned)


BACKENDS: dict[str, Open] = {"torch": _torch, "transformer_lens": _transformer_lens, "nnsight": _nnsight}
