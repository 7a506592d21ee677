"""Both models over the prompts, shard by shard: batches through the hooks and into closed files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool
from numpy.typing import NDArray
from torch import Tensor

from probes.capture.batch_files import BatchFiles
from probes.capture.by_layer import ByLayer
from probes.capture.halving import within_memory
from probes.capture.hooks.backends import open_backend
from probes.capture.hooks.plan import EXPERTS, MODULE, Read, plan
from probes.capture.hooks.torch_backend import Lockstep
from probes.capture.hooks.turns import together
from probes.capture.pair import Pair
from probes.capture.passed_layers import PassedLayers
from probes.capture.reduce import BatchReducer, Fixed, Piece, bias_change
from probes.capture.rows import Columns, Outputs, ShardTables
from probes.errors import ActivationError
from probes.measures.declared import MEASURES, ActivationMeasure
from probes.measures.dla import readout
from probes.measures.ledger import OutputBasis, Split, basis_of, split_by
from probes.measures.live_weights import matrix_of
from probes.measures.logit_lens import Reader
from probes.measures.losses import TokenLosses, likeliest, token_losses
from probes.measures.places import Places, places_of, sample_of
from probes.measures.predictions import Likeliest
from probes.measures.residual import HeadGrams, head_grams
from probes.measures.tall import TALL, Tall, tall_of
from probes.store.journal import BATCHES
from probes.suite import MEASUREMENTS, Suite
from tv.architecture.anatomy import Architecture, Module, Writer
from tv.checkpoints.streamed import is_streamed
from tv.measures.cache import Decompose, afresh
from tv.prompts import behaviour
from tv.prompts.encoding import Batch, Encoded, batches, positions
from tv.runtime.common_rows import common_rows

Progress = Callable[[int, int, str], None]
Bases = Mapping[Module, OutputBasis]
Decomposing = Callable[[Module], AbstractContextManager[Decompose]]
Made = TypeVar("Made")

#: A shard is closed at the end of the batch that brings it to this many rows, which bounds memory.
ROWS_PER_SHARD = 2_000_000


@dataclass(frozen=True)
class Shard:
    """A piece of work that one process does and writes; its bytes do not depend on which process."""

    tuned: str
    index: int
    encoded: tuple[Encoded, ...]  # in the order of the batches, which are `batch_size` long
    with_base: bool  # write the base's rows too (once is enough for several tuned models)

    @property
    def name(self) -> str:
        """The name in its files' names."""
        return f"{self.tuned}-{self.index:05d}"


@dataclass(frozen=True)
class Session:
    """A pair and what its reductions need, made once and used for every shard."""

    pair: Pair
    suite: Suite
    reads: tuple[Read, ...]
    fixed: Fixed
    lockstep: Lockstep
    text_of: dict[int, str] = field(default_factory=dict)  # of the tokens seen so far

    def texts(self, ids: NDArray[Any]) -> NDArray[Any]:
        """Every token as text."""
        for i in set(ids.tolist()) - self.text_of.keys():
            self.text_of[i] = self.pair.tokenizer.decode([i])
        return np.array([self.text_of[i] for i in ids.tolist()], dtype=object)

    @classmethod
    def open(
        cls, pair: Pair, suite: Suite, bases: Bases | None = None, remote: tuple[str, str] | None = None
    ) -> Session:
        """Everything that depends on the weights alone. `bases` are those of the base, if already computed.

        With `remote`, the hub ids of both, the models run on nnsight's server.
        """
        sites = sites_of(suite, pair.architecture)
        changes = _sites_of_changes(suite)
        grams = _grams(pair) if "head_out" in changes else {}
        splits: Mapping[Module, Split] = {}
        norms: Mapping[Module, float] = {}
        tall: Mapping[Module, Tall] = {}
        if "ledger" in suite.measure:
            bases = output_bases(pair) if bases is None else bases
            splits = _of_modules(pair, bases, lambda module: split_by(bases[module], *_weights(pair, module)))
            read = [module for module in pair.architecture.modules if module not in pair.architecture.unread]
            norms = _of_modules(pair, read, lambda module: _delta_norm(*_weights(pair, module)[:2]))
            tall = _of_modules(pair, _tall(pair, suite), lambda module: _coordinates(*_weights(pair, module)))
        form = pair.norms[pair.architecture.final_norm]
        readers = [
            Reader.of(model, pair.architecture, form, flow.logit_scale, flow.cap)
            for model, flow in zip(pair.models, pair.flows, strict=True)
        ]
        fixed = Fixed(
            grams,
            splits,
            norms,
            tall,
            changes,
            readers if "lens" in suite.measure else (),
            frozenset(suite.keep),
            _by_site(suite),
        )
        lockstep = open_backend(suite.backend, pair.base, pair.tuned, pair.tokenizer, remote)
        return cls(pair, suite, plan(pair.architecture, sites), fixed, lockstep)


def shards(
    encoded: Sequence[Encoded], suite: Suite, tuned: str, architecture: Architecture, with_base: bool = True
) -> list[Shard]:
    """The work of one tuned model. Which prompts make a shard depends on prompts, suite and architecture alone."""
    per_place = architecture.n_layers * (3 + architecture.n_heads)
    closed: list[Shard] = []
    pending: list[Encoded] = []
    rows = 0
    work = batches(encoded, suite.batch_size, 0)
    for i, batch in enumerate(work):
        pending += batch.encoded
        rows += per_place * sum(len(positions(item, suite.positions)) for item in batch.encoded)
        if rows >= ROWS_PER_SHARD or i == len(work) - 1:
            closed.append(Shard(tuned, len(closed), tuple(pending), with_base))
            pending, rows = [], 0
    return closed


def run_shard(
    shard: Shard, session: Session, directory: Path, progress: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """Run both models over a shard and write its part of every table below `directory`; return its manifest row.

    Batches that a killed process put aside there are taken up, and of a streamed pair the layers that it had behind it;
    those put aside here are left there until the caller has taken down that the shard is whole. `progress` gets the
    number of prompts of each batch that is done. Writing a shard again replaces the same files with the same bytes.
    Raises ActivationError, naming model, site and prompt, where an activation is not finite.
    """
    ids = [item.prompt.id for item in shard.encoded]
    aside = BatchFiles(directory / BATCHES / shard.name)
    done = aside.prompts
    tables = ShardTables(session.suite, shard.tuned, session.pair.architecture, ids, shard.with_base, aside)
    run = partial(_run_batch, session, shard.tuned)
    size, pair, left = session.suite.batch_size, session.pair, shard.encoded[done:]
    passing = together(pair.base)
    if is_streamed(pair.base) and pair.architecture.chained:
        layers = PassedLayers(aside.folder, pair, session.reads, left)
        run, passing, size = partial(run, layers=layers), layers.together(passing), layers.size or size
    for batch, reduced in within_memory(left, size, pair.pad_id, run, passing):
        tables.add(*reduced, batch)
        del reduced  # else it stays on the device beside the next batch
        done += len(batch.encoded)
        if done < len(shard.encoded):
            tables.put_aside(len(batch.encoded))
        if progress:
            progress(len(batch.encoded))
    return {"shard": shard.name, "prompts": len(shard.encoded), "tables": tables.write(directory, shard.name)}


def sites_of(suite: Suite, architecture: Architecture) -> set[str]:
    """The sites that a suite's measurements need, no others."""
    sites: set[str] = set(suite.keep)
    experts = any(block.experts is not None for block in architecture.blocks)
    if "gates" in suite.measure and "gate" in suite.sites:
        sites |= {"gate", EXPERTS} if experts else {"gate"}
    if changes := _sites_of_changes(suite):
        sites |= {"resid_final", *changes}
        sites |= {EXPERTS} if experts and "mlp_out" in changes else set()
    if "ledger" in suite.measure:
        sites |= {MODULE, EXPERTS} if experts else {MODULE}
    if "lens" in suite.measure:
        sites.add("resid_post")
    sites |= set(_by_site(suite))
    return sites


def _sites_of_changes(suite: Suite) -> frozenset[str]:
    """The sites whose contributions are compared; none where no table shows them."""
    shown = {"contributions", "changes"} & set(suite.measure)
    return frozenset({"embed_out", *suite.sites} - {"gate"}) if shown else frozenset()


def _by_site(suite: Suite) -> dict[str, list[ActivationMeasure]]:
    """The registered measures that a suite asks for, by the sites where they read."""
    chosen = [MEASURES[name] for name in suite.measure if name not in MEASUREMENTS]
    return {
        site: [measure for measure in chosen if site in measure.sites] for measure in chosen for site in measure.sites
    }


def output_bases(pair: Pair, decomposing: Decomposing = afresh) -> Bases:
    """The pretrained output subspaces that the ledger splits by. `decomposing` opens each module of the base."""

    def made(module: Module) -> OutputBasis:
        with decomposing(module) as decompose:
            return basis_of(decompose("-1", matrix_of(module, pair.base.get_submodule(module.path)).float()))

    return _of_modules(pair, with_bases(pair.architecture), made)


def _of_modules(pair: Pair, modules: Collection[Module], make: Callable[[Module], Made]) -> Mapping[Module, Made]:
    """A value of each module; of a streamed pair made when its layer's weights are in memory."""
    if is_streamed(pair.base):
        return ByLayer(modules, make, layer_of=lambda module: module.layer)
    return {module: make(module) for module in modules}


def with_bases(architecture: Architecture) -> list[Module]:
    """The modules of which the ledger splits the output: every matrix of every block that it reads."""
    return [
        module
        for module in architecture.modules
        if module.kind == "linear" and 0 <= module.layer < architecture.n_layers
        if module not in architecture.unread
    ]


def _tall(pair: Pair, suite: Suite) -> list[Module]:
    """The float32 modules with many rows, of which coordinates are made where the ledger reads all places."""
    if suite.ledger_positions != "all" or any(model.dtype != torch.float32 for model in pair.models):
        return []
    architecture = pair.architecture
    linear = [module for module in architecture.modules if module.kind == "linear" and module.expert < 0]
    return [m for m in linear if m not in architecture.unread and m.shape[0] >= TALL * m.shape[1]]


def _coordinates(base: Tensor, tuned: Tensor, bias_change: Tensor | None) -> Tall:
    return tall_of(*common_rows(base, tuned), bias_change)


def _weights(pair: Pair, module: Module) -> tuple[Tensor, Tensor, Tensor | None]:
    """W, W + T and Δb."""
    owners = [model.get_submodule(module.path) for model in (pair.base, pair.tuned)]
    base, tuned = (matrix_of(module, owner) for owner in owners)
    return base, tuned, bias_change(module, *owners) if module.kind == "linear" else None


def _delta_norm(base: Tensor, tuned: Tensor) -> float:
    """‖T‖_F over the rows in common, piece by piece."""
    parts = zip(*(side.split(4096) for side in common_rows(base, tuned)), strict=True)
    return float(torch.stack([(b.float().to(a.device) - a.float()).square().sum() for a, b in parts]).sum().sqrt())


def _run_batch(
    session: Session, tuned: str, batch: Batch, layers: PassedLayers | None = None
) -> tuple[BatchReducer, Outputs]:
    """The reduced hook readings, and what is read of the logits, of one batch."""
    pair, suite = session.pair, session.suite
    target, foil = (
        torch.tensor([getattr(item, f"{name}_id") for item in batch.encoded]) for name in ("target", "foil")
    )
    form = pair.norms[pair.architecture.final_norm]
    read_base, read_tuned = (
        readout(model, pair.architecture, form, target, foil, flow.logit_scale)
        for model, flow in zip(pair.models, pair.flows, strict=True)
    )
    ledger_places = places_of(batch, suite.ledger_positions)
    lens_places = sample_of(batch, suite.ledger_positions, suite.lens_places)
    reducer = BatchReducer(
        pair,
        session.fixed,
        places_of(batch, suite.positions),
        ledger_places,
        lens_places,
        _following(batch, lens_places),
        [item.prompt.domain for item in batch.encoded],
        read_base,
        read_tuned,
        check_all=suite.ledger_positions != "all",
    )
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if layers is None:
        logits = session.lockstep(session.reads, inputs, reducer, _looked_at(batch, reducer))
    else:
        logits = layers.run(batch, inputs, reducer)
    reducer.read_late()
    losses = token_losses(*logits, batch.input_ids, reducer.places)
    tokens = _token_columns(session, batch, reducer.places, losses)
    reducer.pieces = [_finished(piece, reducer) for piece in reducer.pieces]
    _require_finite(reducer, tokens, logits, batch, tuned)
    answers = _behaviour_columns(batch, tuned, *logits) if "behaviour" in suite.measure else {}
    return reducer, Outputs(tokens, _predictions(session, losses), answers)


def _looked_at(batch: Batch, reducer: BatchReducer) -> Bool[Tensor, "batch pos"]:
    """Every place that a table of the batch covers, and the one before it, which predicts its token."""
    at = torch.zeros_like(batch.input_ids, dtype=torch.bool)
    answers = [places_of(batch, which) for which in ("target", "generated", "last")]
    for places in (reducer.places, reducer.ledger_places, *answers):
        at[places.row, places.pos] = True
    at[:, :-1] |= at[:, 1:].clone()
    return at


def _following(batch: Batch, places: Places) -> Tensor:
    """The token after each place; −1 after a prompt's last."""
    ids = torch.where(batch.attention_mask.bool(), batch.input_ids, -1)
    after = torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], -1)], dim=1)
    return after[places.row, places.pos]


def _grams(pair: Pair) -> Mapping[tuple[int, str], HeadGrams]:
    """By layer and component, of every writer with heads; of a streamed pair when its layer is in memory."""
    writers = {
        (block.layer, writer.component): writer
        for block in pair.architecture.blocks
        for writer in block.writers
        if writer.head_module is not None
    }

    def make(place: tuple[int, str]) -> HeadGrams:
        return _gram(pair, place[0], writers[place])

    if is_streamed(pair.base):
        return ByLayer(writers, make, layer_of=lambda place: place[0])
    return {place: make(place) for place in writers}


def _gram(pair: Pair, layer: int, writer: Writer) -> HeadGrams:
    """What a writer's output projection, the norm behind it and its factor make of z."""
    module = writer.head_module
    assert module is not None
    matrices = []
    for matrix, model, flow in zip(_weights(pair, module)[:2], pair.models, pair.flows, strict=True):
        gain: float | Tensor = flow.factor(layer, writer.component)
        if writer.post_norm is not None:
            gain = gain * pair.norms[writer.post_norm].gain(model.get_submodule(writer.post_norm))
        matrices.append(matrix.float() * (gain[:, None] if isinstance(gain, Tensor) and gain.ndim else gain))
    return head_grams(matrices[0], matrices[1].to(matrices[0].device), module.n_heads)


def _finished(piece: Piece, reducer: BatchReducer) -> Piece:
    """`piece` completed at the end of the forward: pushes are divided by the final norm's scale."""
    if piece.table != "changes":
        return piece
    assert reducer.scales is not None
    columns = dict(piece.columns)
    where = _within(piece.places, reducer.places)
    for side, scale in zip(("base", "tuned"), reducer.scales, strict=True):
        push = columns.pop(f"push_{side}")
        own = scale.to(push.device)
        own = own if where is None else own[where.to(push.device)]
        columns[f"dla_{side}"] = push / (own if push.ndim == 1 else own[:, None])
    norm, delta = columns["norm_base"], columns["delta_norm"]
    columns["relative_change"] = torch.where(norm > 0, delta / norm, torch.zeros_like(norm))
    whole_mlp = piece.labels == {"component": "mlp", "expert": -1}
    chosen = reducer.overlaps.get(piece.layer) if whole_mlp else None
    columns["expert_overlap"] = torch.full_like(norm, float("nan")) if chosen is None else chosen.to(norm.device)
    return Piece(piece.table, piece.layer, piece.labels, columns, piece.places, piece.site)


def _within(some: Places, places: Places) -> Tensor | None:
    """The indices of `some` in `places`; None where they are the same."""
    if some is places:
        return None
    cpu = torch.device("cpu")
    return torch.searchsorted(places.flat(cpu), some.flat(cpu))


def _require_finite(
    reducer: BatchReducer, tokens: Columns, logits: tuple[Tensor, Tensor], batch: Batch, tuned: str
) -> None:
    """Every site's norms in execution order, then the logits: the first that is not finite is named."""
    for piece in reducer.pieces:
        for column, model in (("norm_base", "base"), ("norm_tuned", tuned), ("delta_norm", tuned)):
            values = piece.columns.get(column)
            if values is not None and not bool(values.isfinite().all()):
                bad = (~values.isfinite()).flatten(1).any(1) if values.ndim > 1 else ~values.isfinite()
                row = piece.places.row[bad.nonzero()[0, 0].cpu()]
                _refuse(model, str(piece.site), batch.encoded[int(row)])
    predicted = reducer.places.pos.numpy() > 0
    losses = np.concatenate([tokens["kl"], *(tokens[name][predicted] for name in ("nll_base", "nll_tuned"))])
    if not np.isfinite(losses).all():
        for model, values in zip(("base", tuned), logits, strict=True):
            for i, item in enumerate(batch.encoded):
                if not bool(values[i, : len(item.ids)].isfinite().all()):
                    _refuse(model, "logits", item)


def _refuse(model: str, site: str, item: Encoded) -> None:
    raise ActivationError(
        f"model {model!r}: {site} is NaN or Inf on prompt {item.prompt.id!r}; "
        "check that checkpoint (an overflow in its weights), or leave the prompt out"
    )


def _token_columns(session: Session, batch: Batch, places: Places, losses: TokenLosses) -> Columns:
    columns: Columns = {
        name: value.cpu().numpy() for name, value in vars(losses).items() if not isinstance(value, Likeliest)
    }
    columns["token_id"] = batch.input_ids[places.row, places.pos].numpy()
    roles = [item.roles for item in batch.encoded]
    at = zip(places.row.tolist(), places.pos.tolist(), strict=True)
    columns["role"] = np.array([roles[row][pos] for row, pos in at], dtype=object)
    named = {"token": "token_id", **{f"greedy_token_{side}": f"greedy_{side}" for side in ("base", "tuned")}}
    return columns | {name: session.texts(columns[ids]) for name, ids in named.items()}


def _predictions(session: Session, losses: TokenLosses) -> tuple[Columns, Columns]:
    """The likeliest next tokens of base and tuned, a row per place and rank."""

    def columns(likely: Likeliest) -> Columns:
        ids = likely.ids.cpu().numpy()
        ranks = np.tile(np.arange(1, ids.shape[1] + 1, dtype=np.int16), len(ids))
        flat, probability = ids.reshape(-1), likely.probabilities.cpu().numpy().reshape(-1)
        return {"rank": ranks, "token_id": flat, "token": session.texts(flat), "probability": probability}

    return columns(losses.likely_base), columns(losses.likely_tuned)


def _behaviour_columns(batch: Batch, tuned: str, base: Tensor, logits: Tensor) -> Columns:
    rows: list[tuple[str, str, str, float]] = []
    ids = [item.prompt.id for item in batch.encoded]
    for model, values in (("base", base), (tuned, logits)):
        for metric, scores in behaviour.metrics(values, batch).items():
            rows += [(i, model, metric, float(v)) for i, v in zip(ids, scores, strict=True) if not torch.isnan(v)]
    for i, item in enumerate(batch.encoded):
        at = list(positions(item, "target"))
        divergence = behaviour.kl_divergence(base[i, at], logits[i, at]).mean()
        rows.append((item.prompt.id, tuned, "kl", float(divergence)))
        at = list(item.generated) or at
        parted = likeliest(base[i, at].float()).cpu() != likeliest(logits[i, at].float()).cpu()
        if bool(parted.any()):  # of the answer's first tokens, so many are the same
            rows.append((item.prompt.id, tuned, "first_divergence", float(parted.nonzero()[0, 0])))
    names = ("prompt_id", "model", "metric", "value")
    return {name: np.array(values, dtype=object) for name, values in zip(names, zip(*rows, strict=True), strict=True)}
