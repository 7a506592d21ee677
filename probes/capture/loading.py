"""The live models of a suite: where they compute, and each pair loaded on first use."""

from __future__ import annotations

import copy
import gc
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from probes.capture.hooks.backends import require_installed
from probes.capture.hooks.turns import take_turns
from probes.capture.pair import Pair, make_pair
from probes.capture.runner import Bases, Session, output_bases
from probes.errors import RunError
from probes.methods import METHODS, all_methods
from probes.suite import Attribution, Suite
from tv.checkpoints.adapters.live import as_model as in_peft
from tv.checkpoints.checkpoint import Checkpoint
from tv.checkpoints.live import LiveSource, load_model, load_tokenizer
from tv.checkpoints.opening import open_checkpoint
from tv.checkpoints.own_tokenizer import borrow_template, reading
from tv.checkpoints.pairing import of_two_forms
from tv.checkpoints.streamed import streamed
from tv.checkpoints.ties import untied
from tv.checkpoints.tokenizers import tokenizer_of
from tv.evaluation.ends import own_ends
from tv.matching.matching import match_pair
from tv.matching.running import write_into
from tv.measures.cache import decomposer
from tv.runtime.compute import Compute
from tv.runtime.memory import free_memory


@dataclass
class Pairs:
    """A suite's models, loaded on first use: the base stays, the tuned models come one at a time.

    It can be sent to another process, which loads them itself, if it has no live models.
    """

    suite: Suite
    compute: Compute = Compute()  # without progress, if sent to another process
    live: Mapping[str, PreTrainedModel] = field(default_factory=dict)  # by name, in place of the suite's sources
    remote: bool = False  # capture runs on nnsight's server, all else here
    _opened: dict[str, Checkpoint] = field(default_factory=dict, repr=False)
    _base: PreTrainedModel | None = field(default=None, repr=False)
    _tokenizer: PreTrainedTokenizerBase | None = field(default=None, repr=False)
    _pair: tuple[str, Pair] | None = field(default=None, repr=False)
    _session: tuple[str, Session] | None = field(default=None, repr=False)
    _bases: Bases | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_opened": {}, "_base": None, "_pair": None, "_session": None, "_bases": None}

    @property
    def start(self) -> LiveSource:
        """The base's source, or the live base."""
        return self.live.get("base", self.suite.base)

    def opened(self, name: str = "base") -> Checkpoint:
        """The base, or the tuned model of this name over it, opened once."""
        if name not in self._opened:
            source, over = (self.start, None) if name == "base" else (self._source(name), self.opened())
            self._opened[name] = open_checkpoint(source, base=over)
        return self._opened[name]

    def _source(self, tuned: str) -> LiveSource:
        return self.live.get(tuned, self.suite.tuned[tuned])

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base's, which encodes for every pair. It has the tuned models' chat template by the name "tuned"."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.start)
            chats = [chosen.chat for chosen in self.suite.prompts if chosen.chat is not None]
            if chats:
                own = {name: self._beside(name) for name in self.suite.tuned}
                borrow_template(self._tokenizer, own, any(chat.template == "tuned" for chat in chats))
        return self._tokenizer

    def own_tokenizer(self, tuned: str) -> PreTrainedTokenizerBase:
        """The tuned model's own; the base's where it has none."""
        own = self._beside(tuned)
        return self.tokenizer if own is None else reading(own, self.tokenizer)

    @property
    def generates(self) -> bool:
        """Whether one of the models writes the continuations of the prompts."""
        return self.suite.generate is not None and self.suite.generate.source != "given"

    @property
    def answers(self) -> bool:
        """Whether both models write answers, if their weights are in memory."""
        return self.suite.tokenizer == "base" and "behaviour" in self.suite.measure and not self.remote

    @cached_property
    def ends(self) -> dict[str, set[int]]:
        """The end-of-text ids of each model's own, by name; a continuation ends with one of any."""
        sources = {"base": self.start, **{name: self._source(name) for name in self.suite.tuned}}
        return {name: own_ends(source, self.tokenizer, self.start) for name, source in sources.items()}

    def _beside(self, tuned: str) -> PreTrainedTokenizerBase | None:
        return tokenizer_of(self.opened(tuned))

    def pair(self, tuned: str) -> Pair:
        """The base and the tuned model of this name, proved."""
        if self._pair is None or self._pair[0] != tuned:
            if self._pair is not None:  # the model goes before the next one is loaded
                self._pair = self._session = None
                gc.collect()  # a bridge's modules reference each other in cycles
            if self._base is None:
                self._base = self.load()
            model = self.load(tuned)
            if self.suite.align:
                model = self._aligned(model, tuned)
            self._pair = tuned, make_pair(self._base, model, self.tokenizer, tuned)
        return self._pair[1]

    def lend(self, base: PreTrainedModel) -> None:
        """The base, where it was loaded before the job was there. One that is to be read otherwise is loaded again."""
        if not (self.streams or self.apart):
            self._base = base

    def prove(self) -> list[str]:
        """Prove the first pair before any work; what the proof leaves out of the tables, a line each.

        It stays loaded, unless other processes do the work.

        Raises ArchitectureError where the models are not read as their architecture says, and InputError where one
        cannot be loaded.
        """
        if self.remote:
            return []
        first, *_ = self.suite.tuned
        left_out = self.pair(first).left_out
        if self.compute.elsewhere:
            self._pair = self._session = self._base = None
            gc.collect()
        return left_out

    def bases(self) -> Bases:
        """The base's output subspaces. Only while a pair is loaded."""
        if self._bases is None:
            assert self._pair is not None
            base = self.opened()
            directory = None if self.compute.cache is None else Path(self.compute.cache)
            held = partial(decomposer, base.untied() if self.apart else base, directory=directory)
            self._bases = output_bases(self._pair[1], held)
        return self._bases

    def keep_decompositions(self, directory: Path) -> None:
        """Decompose each matrix of the base once: what one stage, process or tuned model needs, the others find there.

        A run that has a cache keeps them in that one.
        """
        if self.compute.cache is None:
            self.compute = replace(self.compute, cache=directory)

    def session(self, tuned: str) -> Session:
        """The pair with what its reductions need."""
        pair = self.pair(tuned)
        if self._session is None:
            bases = self.bases() if "ledger" in self.suite.measure else {}
            remote = (self.suite.base, self.suite.tuned[tuned]) if self.remote else None
            self._session = tuned, Session.open(pair, self.suite, bases, remote)
        return self._session[1]

    def load(self, name: str = "base") -> PreTrainedModel:
        """The base model, or the tuned model of this name over it."""
        checkpoint = self.opened(name)
        if self.streams:
            checkpoint = checkpoint.untied() if self.apart else checkpoint
            streams = streamed(checkpoint, getattr(torch, self.compute.dtype), self.compute.device)
            take_turns(streams, checkpoint.architecture)
            return streams
        source, over = (self.start, None) if name == "base" else (self._source(name), self.start)
        device = "cpu" if self.compute.offload and over is not None else self.compute.device
        model = load_model(source, base=over, opened=checkpoint, dtype=self.compute.dtype, device=device)
        return untied(model) if self.apart else model

    def _aligned(self, model: PreTrainedModel, tuned: str) -> PreTrainedModel:
        """The tuned model of this name, written as the base is; a live model that is lent stays as it is."""
        sides = [side.untied() if self.apart else side for side in (self.opened(), self.opened(tuned))]
        found = match_pair(*sides, compute=Compute(progress=False))
        if found.is_identity:
            return model
        lent = isinstance(self._source(tuned), PreTrainedModel)
        return write_into(copy.deepcopy(model) if lent else model, found.tuned)

    @cached_property
    def apart(self) -> bool:
        """Whether some models have an unembedding of their own: then each is given one, so that all are of one form."""
        return of_two_forms([self.opened(), *map(self.opened, self.suite.tuned)])

    @cached_property
    def streams(self) -> bool:
        """Whether the models' weights are read a layer at a time: as asked for, or where two models do not fit."""
        if self.compute.stream is not None:
            return self.compute.stream
        if self.compute.device != "cpu" or self.live or why_not_streamed(self) is not None:
            return False
        base = self.opened()
        width = getattr(torch, self.compute.dtype).itemsize
        one = width * sum(math.prod(base.info(name).shape) for name in base.names)
        return 2 * one > free_memory()

    def on(self, device: str) -> Pairs:
        """The same work on a device; nothing is loaded there unless it is the device already in use."""
        if device == self.compute.device:
            return self
        return Pairs(self.suite, replace(self.compute, device=device), self.live, self.remote)

    def computed(self) -> dict[str, Any]:
        """The device and dtype that models compute in, as the manifest records them."""
        compute = self.compute
        named = {"device": compute.device, "dtype": compute.dtype, "offload": compute.offload}
        return {**named, "remote": self.remote}


def require_streamable(pairs: Pairs) -> None:
    """Raise RunError, before any work, where a run is to be streamed that cannot be."""
    reason = why_not_streamed(pairs) if pairs.compute.stream else None
    if reason is not None:
        raise RunError(f"stream: {reason}")


def attributing(compute: Compute, wanted: Attribution) -> Compute:
    """The same for a run that attributes. Raises RunError where it is to be streamed and a method needs whole models.

    Where nothing is asked for, such a run is not streamed.
    """
    reason = _needs_whole_models(wanted)
    if compute.stream and reason is not None:
        raise RunError(f"stream: {reason}")
    return compute if reason is None else replace(compute, stream=False)


def _needs_whole_models(wanted: Attribution) -> str | None:
    others = [name for name in wanted.methods if not METHODS[name].streams]
    if others:
        able = ", ".join(method.name for method in all_methods() if method.streams)
        return (
            f"{', '.join(others)} needs both models in memory, and {able} do not; choose among these (attribute: "
            "{methods: [graft, revert]}), name the other stages with --stages, or leave --stream out"
        )
    if wanted.metric == "first_divergence":
        return "first_divergence has a model write continuations; choose another metric, or leave --stream out"
    return None


def why_not_streamed(pairs: Pairs) -> str | None:
    """Why the models of a run cannot be read a layer at a time, and what to do; None where they can."""
    suite, compute = pairs.suite, pairs.compute
    if pairs.live:
        return f"{', '.join(pairs.live)}: a live model is in memory already; pass its path, or leave --stream out"
    if suite.backend != "torch":
        return f"backend {suite.backend} runs whole models; use backend: torch, or leave --stream out"
    if pairs.remote:
        return "the server holds the models; leave --stream or --remote out"
    if compute.device == "auto" or compute.offload:
        return "the models are read to one device; name it, and leave --offload out"
    if suite.align:
        return "a model that is written differently is rewritten as a whole; leave --align or --stream out"
    if pairs.generates or suite.answer_pattern is not None:
        return (
            "a continuation would read both models once per token; give the continuations (from: given), leave "
            "answer_pattern out, or leave --stream out"
        )
    return None


def require_backend(pairs: Pairs) -> None:
    """Raise InputError, before any work, where a suite's backend is not installed or cannot run its models."""
    name = pairs.suite.backend
    require_installed(name)
    if name != "torch" and pairs.compute.device == "auto":
        raise RunError(f"device 'auto': backend {name} cannot run a model that is spread over devices; use torch")
    if not pairs.remote:
        return
    if pairs.suite.tokenizer == "own":
        raise RunError("tokenizer: own: the server reads one tokenization with both models; leave --remote out")
    if name != "nnsight":
        raise RunError(f"remote: backend {name} has no server; add --backend nnsight")
    if pairs.suite.align:
        raise RunError("align: the server runs the models as they are stored; leave --align or --remote out")
    if pairs.live:
        raise RunError(f"{', '.join(pairs.live)}: a live model cannot run on a server; pass its hub id")
    for source in (pairs.suite.base, *pairs.suite.tuned.values()):
        if os.path.isabs(source):
            raise RunError(
                f"{source}: what lies here cannot run on a server, which has models of the hub; pass a hub id, or "
                "leave --remote out"
            )


def as_model(source: Any) -> Any:
    """The model in a live TransformerBridge or PeftModel; any other source unchanged."""
    if "transformer_lens" in sys.modules:
        from transformer_lens.model_bridge import TransformerBridge

        from probes.capture.hooks.transformer_lens_backend import model_of

        if isinstance(source, TransformerBridge):
            return model_of(source)
    return in_peft(source)
