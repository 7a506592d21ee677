"""Where directions come from: mean Δh, T's singular directions, the ledger's direct term, a probe, a file.

What has a length of its own keeps it: mean Δh, the direct term, a file's vector. Unit vectors get the length of mean Δh
at their place, and the sign with which they go along with it, so that doses can be compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from probes.capture.hooks.plan import MODULE, Read, Seen, plan
from probes.capture.hooks.torch_backend import lockstep
from probes.capture.pair import Pair
from probes.directions.leading import leading
from probes.directions.probing import probe_weight
from probes.directions.states import Place
from probes.directions.summed import Summed, summed
from probes.errors import RunError
from probes.measures.places import places_of
from probes.store.prompts import prompts_of
from probes.store.run import load
from tv.architecture.anatomy import Architecture, Module
from tv.architecture.values import values_of
from tv.errors import first_line
from tv.prompts.encoding import Batch, Positions, batches, encode
from tv.runtime.common_rows import common_rows

#: The vectors of each place, one for each half of the prompts: what is made on one half is read on the other.
Vectors = dict[Place, Float[Tensor, "2 d_model"]]


@dataclass(frozen=True)
class Making:
    """What directions are made of: the prompts' mean states, and who is in which half and in the chosen domain."""

    pair: Pair
    states: Summed
    half: NDArray[np.int64]  # of each prompt
    inside: NDArray[np.bool_]  # whether a prompt is of the domain whose mean Δh is meant
    positions: Positions
    batch_size: int

    def of_half(self, half: int) -> NDArray[np.bool_]:
        """The prompts of the domain that are in a half."""
        return self.inside & (self.half == half)

    def mean(self, place: Place) -> Float[Tensor, "2 d_model"]:
        """Mean Δh of the domain's prompts, by half."""
        return torch.stack([self.states.mean(place, self.of_half(half)) for half in (0, 1)])

    def sized(self, place: Place, vector: Float[Tensor, " d_model"]) -> Float[Tensor, "2 d_model"]:
        """A vector without a length: mean Δh's, along with which it goes."""
        mean = self.mean(place)
        sign = torch.where(mean @ vector < 0, -1.0, 1.0)
        return normalize(vector, dim=0) * (sign * mean.norm(dim=1))[:, None]


def vectors_of(spec: str, making: Making, places: Sequence[Place]) -> Vectors:
    """The direction of this source at each place that has one.

    Args:
        spec: See `probes.directions.declared.direction`.
        making: What it may be made of.
        places: Sites and layers.

    Returns:
        By place, the vector of each half of the prompts.

    Raises:
        RunError: The source has no direction at any of the places.
    """
    kind, _, rest = spec.partition(":")
    if kind == "mean":
        return _of_run(rest, making, places) if _is_run(rest) else {place: making.mean(place) for place in places}
    if kind == "singular":
        found = {place: _singular(rest, making, place) for place in places}
    elif kind == "ledger":
        found = _direct(rest, making, places)
    elif kind == "probe":
        found = _probe(rest, making, places)
    else:
        found = _file(Path(spec), making, places)
    vectors = {place: vector for place, vector in found.items() if vector is not None and bool(vector.any())}
    if not vectors:
        raise RunError(
            f"direction {spec!r}: nothing there at {_said(places)}: T is 0, or no matrix of that name writes "
            "the residual stream (o and down do)"
        )
    return vectors


def is_domain(spec: str) -> str | None:
    """The domain that a source names; None where it names none."""
    kind, _, rest = spec.partition(":")
    return rest if kind == "mean" and rest and not _is_run(rest) else None


def _is_run(text: str) -> bool:
    return bool(text) and ("/" in text or Path(text).is_dir())


def _of_run(path: str, making: Making, places: Sequence[Place]) -> Vectors:
    """Mean Δh over all places of another run's prompts, such as the texts of a discovery."""
    pair = making.pair
    encoded = encode(prompts_of(load(path)), pair.tokenizer, pair.architecture.context)
    states = summed(pair, encoded, places, "all", making.batch_size)
    return {place: states.delta(place).mean(0).expand(2, -1) for place in places}


def _singular(rest: str, making: Making, place: Place) -> Tensor | None:
    """A left singular direction of T of one module of the layer: singular:down, singular:down:2 for the second."""
    name, _, rank = rest.partition(":")
    if not (rank or "1").isdigit() or int(rank or 1) < 1:
        raise RunError(f"direction singular:{rest}: {rank!r} is no rank; write singular:{name}:1")
    module = _writing(making.pair.architecture, place[1], name)
    step = None if module is None else _step(making.pair, module)
    if step is None or not bool(step.any()):
        return None
    left, _, _ = leading(step, int(rank or 1))
    return making.sized(place, left[-1]) if len(left) == int(rank or 1) else None


def _direct(name: str, making: Making, places: Sequence[Place]) -> dict[Place, Tensor | None]:
    """Mean T·x of what a layer's modules read in the base: what their own weights add, by half."""
    pair, encoded = making.pair, making.states.encoded
    modules: dict[str, list[tuple[Place, Tensor]]] = {}
    for place in places:
        for module in _writers(pair.architecture, place[1]):
            step = _step(pair, module) if name in ("", module.name) else None
            if step is not None and bool(step.any()):
                modules.setdefault(module.path, []).append((place, step))
    if name and not any(_writing(pair.architecture, layer, name) for _, layer in places):
        raise RunError(f"direction ledger:{name}: no matrix of that name writes the residual stream in these layers")
    by_prompt: dict[Place, list[Tensor]] = {place: [] for found in modules.values() for place, _ in found}
    for batch in batches(encoded, making.batch_size, pair.pad_id):
        for place, values in _direct_of(pair, batch, modules, making.positions).items():
            by_prompt[place].append(values)
    halves = [torch.from_numpy(making.of_half(half)) for half in (0, 1)]
    joined = {place: torch.cat(parts) for place, parts in by_prompt.items()}
    return {place: torch.stack([values[half].mean(0) for half in halves]) for place, values in joined.items()}


def _direct_of(
    pair: Pair, batch: Batch, modules: Mapping[str, Sequence[tuple[Place, Tensor]]], positions: Positions
) -> dict[Place, Float[Tensor, "prompts d_model"]]:
    """Σ T·x of the modules at each place, a mean over the positions of each prompt."""
    at = places_of(batch, positions)
    found: dict[Place, Tensor] = {}
    reads = [read for read in plan(pair.architecture, (MODULE,)) if read.path in modules]

    def reduce(read: Read, base: Seen, _: Seen) -> None:
        for place, step in modules[read.path]:
            moved = at.take(base.input).float().cpu() @ step.T
            found[place] = found[place] + moved if place in found else moved

    lockstep(
        pair.base, pair.tuned, reads, {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}, reduce
    )
    return {
        place: torch.stack([moved[at.row == i].mean(0) for i in range(len(batch.encoded))])
        for place, moved in found.items()
    }


def _probe(rest: str, making: Making, places: Sequence[Place]) -> dict[Place, Tensor | None]:
    """The base's probe of a label: probe:RUN#LABEL, or probe:RUN#LABEL=CLASS where it has several."""
    path, _, said = rest.rpartition("#")
    label, _, wanted = said.partition("=")
    if not path:
        raise RunError(f"direction probe:{rest}: of which run? write probe:RUN#{said}")
    run, found = load(path), dict[Place, Tensor | None]()
    for site, layer in places:
        classes = probe_weight(run, label, layer, "base", site=site)
        name = wanted or next(iter(classes))
        if name not in classes or (len(classes) > 1 and not wanted):
            raise RunError(f"direction probe:{rest}: which class? write {label}= and one of {', '.join(classes)}")
        found[site, layer] = making.sized((site, layer), torch.tensor(classes[name]))
    return found


def _file(path: Path, making: Making, places: Sequence[Place]) -> dict[Place, Tensor | None]:
    """A vector for one layer, or an array with one a layer; of a safetensors file, tensors called by the layer."""
    d_model, n_layers = making.pair.architecture.d_model, making.pair.architecture.n_layers
    by_layer = _read(path, n_layers)
    if set(by_layer) == {-1}:
        if len({layer for _, layer in places}) > 1:
            raise RunError(f"{path}: one vector, for which layer? name it: --layer 3")
        by_layer = {places[0][1]: by_layer[-1]}
    for layer, vector in by_layer.items():
        if tuple(vector.shape) != (d_model,) or not bool(torch.isfinite(vector).all()):
            raise RunError(
                f"{path}: the vector of layer {layer} has shape {list(vector.shape)}, and directions of this model are "
                f"{d_model} finite numbers"
            )
    return {place: by_layer[place[1]].float().expand(2, -1) for place in places if place[1] in by_layer}


def _read(path: Path, n_layers: int) -> dict[int, Tensor]:
    """By layer, −1 for a single vector that names none."""
    try:
        if path.suffix == ".npy":
            array = torch.from_numpy(np.load(path, allow_pickle=False).astype(np.float32))
            return {-1: array} if array.ndim == 1 else dict(enumerate(array))
        from safetensors.torch import load_file

        tensors = load_file(path)
    except Exception as error:  # whatever a damaged file makes its reader raise
        raise RunError(f"{path}: cannot be read as a direction: {first_line(error)}") from error
    if len(tensors) == 1 and not next(iter(tensors))[-1].isdigit():
        return {-1: next(iter(tensors.values()))}
    found = {}
    for name, tensor in tensors.items():
        number = name.rpartition(".")[2]
        if not number.isdigit() or int(number) >= n_layers:
            raise RunError(f"{path}: tensor {name!r} names no layer; call it by its layer, such as layer.3")
        found[int(number)] = tensor
    return found


def _writers(architecture: Architecture, layer: int) -> list[Module]:
    """The matrices of a layer whose output is added to the residual stream."""
    block = architecture.blocks[layer]
    writing = [writer.head_module for writer in block.writers if writer.head_module is not None]
    writing += [module for module in architecture.rows_of(layer, "mlp") if module.name in ("down", "shared_down")]
    return [module for module in writing if module.expert < 0]


def _writing(architecture: Architecture, layer: int, name: str) -> Module | None:
    return next((module for module in _writers(architecture, layer) if module.name == name), None)


def _step(pair: Pair, module: Module) -> Tensor | None:
    before, after = (values_of(model)[module.parameter].detach() for model in pair.models)
    before, after = common_rows(before, after)
    return module.matrix(after.float().cpu() - before.float().cpu())


def _said(places: Sequence[Place]) -> str:
    layers = ", ".join(str(layer) for _, layer in places)
    return f"{places[0][0]} of layer{'s' if len(places) > 1 else ''} {layers}"
