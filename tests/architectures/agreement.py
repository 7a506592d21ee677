"""A finished run beside what `independent` finds of the same pair: the largest error of every kind of number."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel

import probes
from tests.architectures.files import PROMPTS, answers
from tests.architectures.independent import Added, Bench
from tv.architecture.anatomy import Architecture, Module
from tv.checkpoints.opening import open_checkpoint

#: Errors above this are disagreements.
TOLERANCE = 2e-3
#: A value far below its column's largest counts as this part of it.
_FLOOR = 1e-2
#: A pre-activation this close to 0, beside the largest, has no sure sign.
_UNSURE = 1e-4


def agreement(
    run: probes.Run, base: PreTrainedModel, tuned: PreTrainedModel, architecture: Architecture, directory: Path
) -> dict[str, float]:
    """Errors by what is compared; what a model does not have is not there. A missing row is an infinite error.

    Of `architecture`, which a live model bore out, only the names of modules are taken.

    sum: the components and the embedding against the last residual stream. contributions, dla, heads, experts: the
    table `changes`. gates: the share of bits that differ. graft: the table `prompt_effects`. weights: squares of norms
    against the parameters'. files: parameters that the files do not give back bit by bit.
    """
    errors: dict[str, float] = defaultdict(float)
    for prompt in PROMPTS[1:]:
        of_prompt = [("prompt_id", "==", prompt["id"])]
        ids = torch.tensor([run.df("tokens", where=of_prompt).sort_values("pos").token_id.tolist()])
        benches = [Bench(model, architecture, ids) for model in (base, tuned)]
        _changes(run.df("changes", where=of_prompt), benches, prompt, errors)
        if "gates" in run.tables:
            _gates(run.df("gates", where=of_prompt), benches, errors)
    errors["graft"] = max(_grafts(run, base, tuned, architecture))
    errors["weights"] = _weights(run["weights"], base, tuned)
    errors["files"] = float(_from_files(directory, base, tuned))
    return dict(errors)


def stored(model: PreTrainedModel) -> dict[str, Tensor]:
    """What a checkpoint of the model holds: parameters, each once, and saved buffers of floats (±∞ is a bound)."""
    buffers = dict(model.named_buffers())
    saved = {name: buffers[name] for name in model.state_dict() if name in buffers}
    floats = {name: b for name, b in saved.items() if b.is_floating_point() and bool(b.isfinite().all())}
    return dict(model.named_parameters()) | floats


def worst(found: Any, expected: Any) -> float:
    """The largest relative error."""
    found, expected = (np.asarray(x, np.float64) for x in (found, expected))
    if found.shape != expected.shape or np.isnan(found).any() or np.isnan(expected).any():
        return float("inf")
    scale = np.abs(expected) + _FLOOR * np.abs(expected).max(initial=0)
    return float((np.abs(found - expected) / np.where(scale > 0, scale, 1.0)).max(initial=0))


def _changes(table: pd.DataFrame, benches: Sequence[Bench], prompt: dict[str, str], errors: dict[str, float]) -> None:
    """Every component, expert, and the first and last head, in both models."""
    keys = ["layer", "component", "expert", "head"]
    rows = {key: part.sort_values("pos") for key, part in table.groupby(keys, observed=True)}
    found: list[Added] = []
    for bench in benches:
        added, error = bench.added([key for key in rows])
        errors["sum"] = max(errors["sum"], error)
        found.append(added)
    pushes = [bench.pushes(added, *answers(prompt)) for bench, added in zip(benches, found, strict=True)]
    whole = {key for key in found[0] if key[2:] == (-1, -1)}
    if whole != {key for key in rows if key[2:] == (-1, -1)}:
        errors["contributions"] = float("inf")
    for key in found[0].keys() & rows.keys():
        part = rows[key]
        at = torch.tensor(part.pos.tolist())
        here, there = (added[key][at] for added in found)
        kind = "experts" if key[2] >= 0 else "heads" if key[3] >= 0 else "contributions"
        own = {
            "norm_base": here.norm(dim=-1),
            "norm_tuned": there.norm(dim=-1),
            "delta_norm": (there - here).norm(dim=-1),
            "cosine": torch.cosine_similarity(here, there, dim=-1),
            "dla_base": pushes[0][key][at],
            "dla_tuned": pushes[1][key][at],
        }
        for name, value in own.items():
            what = "dla" if name.startswith("dla") else kind
            errors[what] = max(errors[what], worst(part[name], value))
        if kind == "experts":  # at all other places it adds nothing
            others = [i for i in range(len(found[0][key])) if i not in set(part.pos)]
            rest = max((float(added[key][others].norm()) for added in found), default=0.0)
            errors[kind] = max(errors[kind], rest / float(here.norm() + 1e-9))


def _gates(table: pd.DataFrame, benches: Sequence[Bench], errors: dict[str, float]) -> None:
    """The sign of W_gate x, from the weights and what the module takes."""
    for (layer, expert), part in table.groupby(["layer", "expert"]):
        part = part.sort_values("pos")
        bits = []
        for packed, bench in zip(_packed(part), benches, strict=True):
            raw = _entering(bench, int(layer), int(expert))
            if raw is None:
                return
            at = raw[torch.tensor(part.pos.tolist())]
            width = at.shape[-1]
            shown = torch.from_numpy(np.unpackbits(packed, axis=-1)[:, :width].astype(bool))
            sure = at.abs() > _UNSURE * at.abs().max()
            bits.append(float(((at > 0) != shown)[sure].float().mean()))
        errors["gates"] = max(errors["gates"], *bits)


def _packed(part: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    base, changed = (
        np.stack([np.frombuffer(row, np.uint8) for row in part[name]]) for name in ("gate_base", "gate_xor")
    )
    return base, base ^ changed


def _entering(bench: Bench, layer: int, expert: int) -> Tensor | None:
    """W_gate x of a layer's MLP, or of one expert, (pos, d_ff); None where x does not come place by place."""
    block = next(block for block in bench.architecture.blocks if block.layer == layer)
    if expert < 0:
        gate, path = block.gate, None if block.gate is None else block.gate.path
    else:
        own = [m for m in bench.architecture.modules if m.layer == layer and m.expert == expert]
        gate, path = next((m for name in ("gate", "up") for m in own if m.name == name), None), block.experts
    if gate is None or path is None:
        return None
    taken, state = bench.seen[path][0], dict(bench.model.named_parameters())
    assert taken is not None
    x = taken.reshape(-1, taken.shape[-1])
    if len(x) != bench.ids.shape[1]:
        return None
    stored = state[gate.parameter].detach()
    out = x @ _rows(gate, stored).T
    name = f"{gate.path}.bias" if expert < 0 else f"{gate.parameter}_bias"
    if name in state:
        bias = state[name].detach()
        out = out + _rows(gate, bias, vector=True)
    return out


def _rows(module: Module, stored: Tensor, vector: bool = False) -> Tensor:
    """The module's matrix, (out, in), or its part of a bias, out of the parameter as stored."""
    if module.expert >= 0 and stored.ndim == (2 if vector else 3):
        stored = stored[module.expert]
    if module.transposed and not vector:
        stored = stored.T
    return stored[_index(module, len(stored))]


def _index(module: Module, rows: int) -> Tensor:
    ranges = module.ranges or ((0, rows),)
    return torch.cat([torch.arange(start, stop, module.step) for start, stop in ranges])


def _grafts(
    run: probes.Run, base: PreTrainedModel, tuned: PreTrainedModel, architecture: Architecture
) -> Iterator[float]:
    """One component, one matrix and one other parameter, or part beside the text model, put into a copy by hand."""
    effects = run.df("prompt_effects", where=[("method", "==", "graft")])
    last = architecture.blocks[-1]
    writer = last.writers[0]
    names = list(stored(base))
    inside = [name for name in names if name.startswith(f"{writer.path}.")]
    owned = [name for name in names if architecture.component_of(name) == (last.layer, writer.component)]
    if not {*inside} <= {*owned}:
        yield float("inf")
    whole = ("component", last.layer, writer.component)
    yield _graft(run, effects, base, tuned, {name: None for name in owned}, whole)
    matrices = [m for m in architecture.modules if m.kind == "linear" and m.component not in ("embed", "unembed")]
    matrix = matrices[len(matrices) // 2]
    parts: dict[str, Module | None] = {matrix.parameter: matrix}
    bias = f"{matrix.path}.bias" if matrix.expert < 0 else f"{matrix.parameter}_bias"
    parts |= {bias: matrix} if bias in names else {}
    yield _graft(
        run, effects, base, tuned, parts, ("module", matrix.layer, matrix.component, matrix.name, matrix.expert)
    )
    vectors = [m for m in architecture.others if m.kind == "vector"]
    for other in vectors[len(vectors) // 2 :][:1]:
        own = ("module", other.layer, other.component, other.name, -1)
        yield _graft(run, effects, base, tuned, {other.parameter: None}, own)
    for group in architecture.groups[:1]:
        below = {name: None for name in names if name.startswith(f"{group.parameter}.")}
        yield _graft(run, effects, base, tuned, below, ("component", -1, group.component))


def _graft(
    run: probes.Run,
    effects: pd.DataFrame,
    base: PreTrainedModel,
    tuned: PreTrainedModel,
    parts: dict[str, Module | None],
    where: tuple[Any, ...],
) -> float:
    chosen = effects[(effects.granularity == where[0]) & (effects.layer == where[1]) & (effects.component == where[2])]
    if where[0] == "module":
        chosen = chosen[(chosen.module == where[3]) & (chosen.expert == where[4])]
    if chosen.empty:
        return float("inf")
    moved, source = copy.deepcopy(base), stored(tuned)
    with torch.no_grad():
        for name, parameter in stored(moved).items():
            if name not in parts:
                continue
            of, into, out_of = parts[name], parameter, source[name]
            if of is None:
                into.copy_(out_of)
                continue
            is_bias = name != of.parameter
            if of.expert >= 0 and into.ndim == (2 if is_bias else 3):
                into, out_of = into[of.expert], out_of[of.expert]
            if of.transposed and not is_bias:
                into, out_of = into.T, out_of.T
            at = _index(of, len(into))
            into[at] = out_of[at]
    differences = _by_prompt(run, moved) - _by_prompt(run, base)
    own = chosen.set_index("prompt_id").effect.reindex([prompt["id"] for prompt in PROMPTS])
    whole = np.abs(_by_prompt(run, tuned) - _by_prompt(run, base)).max()  # an effect of nearly 0 is as exact as this
    return float(np.abs(own.to_numpy() - differences).max() / (np.abs(differences).max() + _FLOOR * whole + 1e-12))


def _by_prompt(run: probes.Run, model: PreTrainedModel) -> np.ndarray:
    """The logit difference of every prompt."""
    tokens, values = run["tokens"], []
    place = run["prompts"].set_index("prompt_id").answer_pos
    for prompt in PROMPTS:
        rows = tokens[tokens.prompt_id == prompt["id"]].sort_values("pos")
        with torch.no_grad():
            ids = torch.tensor([rows.token_id.tolist()])
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0]
        at, (target, foil) = logits[int(place[prompt["id"]])].double(), answers(prompt)
        values.append(float(at[target] - at[foil]))
    return np.array(values)


def _weights(table: pd.DataFrame, base: PreTrainedModel, tuned: PreTrainedModel) -> float:
    """Squares of the norms of whole rows against those of all that is stored: none is missing, none is there twice."""
    whole = table[(table["head"] == -1) & ~table.tied.astype(bool)]
    pairs = zip(stored(base).values(), stored(tuned).values(), strict=True)
    squares = [(p.double().square().sum().item(), (q.double() - p.double()).square().sum().item()) for p, q in pairs]
    expected = np.array(squares).sum(0)
    return worst([(whole.weight_norm**2).sum(), (whole.delta_norm**2).sum()], expected)


def _from_files(directory: Path, base: PreTrainedModel, tuned: PreTrainedModel) -> int:
    wrong = 0
    for name, model in (("base", base), ("tuned", tuned)):
        checkpoint = open_checkpoint(directory / name)
        wrong += len(dict(model.named_parameters()).keys() - set(checkpoint.names))
        wrong += sum(not torch.equal(checkpoint.tensor(key), value.detach()) for key, value in stored(model).items())
    return wrong
