"""The live models of a suite: where they compute, and each pair loaded when the work first asks for it."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from probes.capture.hooks.backends import require_installed
from probes.capture.pair import Pair, make_pair
from probes.capture.runner import Bases, Session, output_bases
from probes.errors import RunError
from probes.suite import Suite
from tv.checkpoints.live import LiveSource, load_model, load_tokenizer

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class Placement:
    """Where models compute, and in which precision. Raises RunError for a device or a dtype that is not to be had."""

    device: str = "cpu"  # one of torch's, or "auto": over every GPU that there is
    dtype: str = "float32"
    offload: bool = False  # the tuned model stays on the CPU
    remote: bool = False  # what is captured is computed by nnsight's server; all else here

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise RunError(f"dtype {self.dtype!r}: there is no such dtype; use {', '.join(DTYPES)}")
        try:
            kind = "cpu" if self.device == "auto" else torch.device(self.device).type
        except RuntimeError:
            raise RunError(f"device {self.device!r}: there is no such device; use cpu, cuda, cuda:N or auto") from None
        if kind == "cuda" and not torch.cuda.is_available():
            raise RunError(f"device {self.device!r}: torch sees no GPU here; use cpu")

    def load(self, source: LiveSource, base: LiveSource | None = None) -> PreTrainedModel:
        """A model of the pair: the base, or over one the tuned model."""
        device = "cpu" if self.offload and base is not None else self.device
        return load_model(source, base=base, dtype=self.dtype, device=device)


@dataclass
class Pairs:
    """A suite's models, loaded when they are first asked for: the base for good, the tuned models one at a time.

    Before anything is loaded, and without live models, it can be sent to another process.
    """

    suite: Suite
    placement: Placement = field(default_factory=Placement)
    live: Mapping[str, PreTrainedModel] = field(default_factory=dict)  # by name, in place of the suite's sources
    _base: PreTrainedModel | None = field(default=None, repr=False)
    _tokenizer: PreTrainedTokenizerBase | None = field(default=None, repr=False)
    _pair: tuple[str, Pair] | None = field(default=None, repr=False)
    _session: tuple[str, Session] | None = field(default=None, repr=False)
    _bases: Bases | None = field(default=None, repr=False)

    @property
    def start(self) -> LiveSource:
        """The base's source, or the live base."""
        return self.live.get("base", self.suite.base)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base's, which encodes for every pair."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.start)
        return self._tokenizer

    def pair(self, tuned: str) -> Pair:
        """The base and the tuned model of this name, proved."""
        if self._pair is None or self._pair[0] != tuned:
            if self._pair is not None:  # the model goes before the next one is loaded
                self._pair = self._session = None
                gc.collect()  # a bridge holds its own in circles
            if self._base is None:
                self._base = self.placement.load(self.start)
            model = self.placement.load(self.live.get(tuned, self.suite.tuned[tuned]), base=self.start)
            self._pair = tuned, make_pair(self._base, model, self.tokenizer)
        return self._pair[1]

    def bases(self) -> Bases:
        """The base's own output subspaces. Only while a pair is loaded."""
        if self._bases is None:
            assert self._pair is not None
            self._bases = output_bases(self._pair[1])
        return self._bases

    def session(self, tuned: str) -> Session:
        """The pair with what its reductions need."""
        pair = self.pair(tuned)
        if self._session is None:
            bases = self.bases() if "ledger" in self.suite.measure else {}
            remote = (self.suite.base, self.suite.tuned[tuned]) if self.placement.remote else None
            self._session = tuned, Session.open(pair, self.suite, bases, remote)
        return self._session[1]

    def on(self, device: str) -> Pairs:
        """The same work on another device, nothing of it loaded."""
        return Pairs(self.suite, replace(self.placement, device=device), self.live)


def require_backend(pairs: Pairs) -> None:
    """Raise InputError, before any work, where a suite's backend is not installed or cannot run its models."""
    name, placement = pairs.suite.backend, pairs.placement
    require_installed(name)
    if name != "torch" and placement.device == "auto":
        raise RunError(f"device 'auto': backend {name} cannot run a model that is spread over devices; use torch")
    if not placement.remote:
        return
    if name != "nnsight":
        raise RunError(f"remote: backend {name} has no server; add --backend nnsight")
    if pairs.live:
        raise RunError(f"{', '.join(pairs.live)}: a live model cannot run on a server; pass its hub id")
    for source in (pairs.suite.base, *pairs.suite.tuned.values()):
        if os.path.isabs(source):
            raise RunError(
                f"{source}: what lies here cannot run on a server, which has models of the hub; pass a hub id, or "
                "leave --remote out"
            )


def as_model(source: Any) -> Any:
    """A live TransformerBridge as the model that it was made of; any other source as it is."""
    if "transformer_lens" not in sys.modules:
        return source
    from transformer_lens.model_bridge import TransformerBridge

    from probes.capture.hooks.transformer_lens_backend import model_of

    return model_of(source) if isinstance(source, TransformerBridge) else source
