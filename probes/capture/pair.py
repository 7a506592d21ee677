"""Both models, live, each proved to be read as its architecture says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from probes.capture.proof import Flow, prove
from probes.capture.refusals import without_trunk
from probes.errors import ActivationError
from probes.measures.norms import NormForm
from tv.architecture.anatomy import Architecture
from tv.architecture.resolve import resolve
from tv.checkpoints.streamed import is_streamed
from tv.checkpoints.ties import is_tied, untied
from tv.errors import ArchitectureError


@dataclass(frozen=True)
class Pair:
    """A base and a tuned model of one architecture, ready for paired hooks."""

    base: PreTrainedModel
    tuned: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    architecture: Architecture  # as the base bears it out
    flows: tuple[Flow, Flow]  # of base and tuned

    @property
    def models(self) -> tuple[PreTrainedModel, PreTrainedModel]:
        """Base and tuned."""
        return self.base, self.tuned

    @property
    def norms(self) -> Mapping[str, NormForm]:
        """The form of every norm, by module path."""
        return self.flows[0].norms

    @property
    def left_out(self) -> list[str]:
        """What the proofs leave out of the tables, a line each."""
        notes = dict.fromkeys(note for flow in self.flows for note in flow.notes)
        unread = [module for module in self.architecture.modules if module in self.architecture.unread]
        if unread:
            names = ", ".join(dict.fromkeys(module.name for module in unread))
            notes[
                f"not in the ledger, as their output is not simply their weights applied to their input: {names} "
                f"({len(unread)} module{'s' * (len(unread) > 1)})"
            ] = None
        return list(notes)

    @property
    def pad_id(self) -> int:
        """The id that pads a batch on the right; −1 where the model reads padding although the mask hides it.

        Any id serves the others.
        """
        if not self.architecture.padded:
            return -1
        pad = self.tokenizer.pad_token_id
        return 0 if pad is None else int(pad)


def make_pair(
    base: PreTrainedModel, tuned: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str = "tuned"
) -> Pair:
    """Put two live models together after proving both (see `prove`); `name` is the tuned one's.

    Where the unembedding of one is its embedding and that of the other is not, both have one of their own.
    """
    if is_tied(base) != is_tied(tuned):
        base, tuned = untied(base), untied(tuned)
    architecture, other = resolve(base), resolve(tuned)
    for model, found in ((base, architecture), (tuned, other)):
        if not found.blocks:
            found = replace(found, note=without_trunk(model, found.note))
        require_sites(found)
    architecture, flow = _proved("base", base, architecture)
    other, flow_tuned = _proved(name, tuned, other)
    if architecture.blocks != other.blocks:
        raise ArchitectureError(f"{architecture.name}: the two models do not wire their blocks alike")
    return Pair(base, tuned, tokenizer, architecture, (flow, flow_tuned))


def _proved(name: str, model: PreTrainedModel, architecture: Architecture) -> tuple[Architecture, Flow]:
    try:
        proved = prove(model, architecture)
    except ActivationError as error:
        held = {at: value for at, value in model.named_parameters() if not value.is_meta}
        bad = next((at for at, value in held.items() if not bool(value.isfinite().all())), None)
        what = f"{error} on random tokens" if bad is None else f"{bad} holds NaN or Inf"
        raise ActivationError(f"model {name!r}: {what}; check that checkpoint (an overflow in its weights)") from error
    if is_streamed(model):  # the other model is proved next
        model.weights.leave()
    return proved


def require_sites(architecture: Architecture) -> None:
    """Raise ArchitectureError where the architecture does not say where to read activations."""
    advice = "tv measures its weights, but probes cannot run on it"
    if not architecture.blocks:
        raise ArchitectureError(f"{architecture.note}; {advice}")
