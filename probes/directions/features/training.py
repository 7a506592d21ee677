"""A BatchTopK dictionary trained on states of both models: a crosscoder, or an SAE of Δh.

Sources: crosscoders, Lindsey et al. 2024 ("Sparse Crosscoders for Cross-Layer Features and Model Diffing"); BatchTopK,
Bussmann et al. 2024 (arXiv 2412.06410); both together, Minder et al. 2025 (arXiv 2504.02922).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probes.directions.features.dictionary import Above, Dictionary, read_tensors, write_tensors
from probes.errors import RunError
from tv.runtime.seeds import seed_of

#: Progress: (steps done, steps in all).
Told = Callable[[int, int], None]
#: A training goes in so many rounds at the least, each of at most so many steps; dead latents start anew after the
#: rounds of this first part.
_ROUNDS, _LONGEST, _REVIVING = 5, 500, 0.8
#: The cosine above which two residuals are one direction.
_ALIKE = 0.8


@dataclass(frozen=True)
class Training:
    """How a dictionary is trained."""

    form: Literal["crosscoder", "delta"] = "crosscoder"
    latents: int = 1024
    k: int = 16  # latents that fire at a place, on average over a batch
    steps: int = 450
    batch: int = 512  # places of a step
    rate: float = 5e-3  # of Adam, warmed up over the first tenth and led to 0 over the last half
    seed: int = 0


@dataclass
class _State:
    """What a training resumes from: everything between two rounds."""

    round: int
    values: dict[str, Tensor]
    first: dict[str, Tensor]  # Adam's moments
    second: dict[str, Tensor]


def train(
    base: Float[Tensor, "n d_model"],
    tuned: Float[Tensor, "n d_model"],
    training: Training,
    *,
    kept: Path | None = None,
    stamp: str = "",
    told: Told | None = None,
) -> Dictionary:
    """Train a dictionary; a training that was killed resumes after its last round and ends with the same numbers.

    Minimises ‖x − x̂‖² over places, x the two models' states side by side (or Δh), x̂ = f D + b and f = BatchTopK(x E +
    e): of a batch of n places the k n largest pre-activations above 0. The rows of D have norm 1 over both models
    together. A latent that did not fire in a round starts anew at the residual of a place, drawn by its square.

    Args:
        base, tuned: States of both models at the same places.
        training: How.
        kept: A file for what was reached after every round.
        stamp: What the states are of. A state with another stamp is not resumed.
        told: Called at each step.

    Returns:
        The dictionary, on the CPU, in units of h. Its latents fire above the mean over batches of the least
        pre-activation that BatchTopK kept.
    """
    x, centre, scale = _scaled(base, tuned, training)
    state = _reached(kept, training, stamp, x.device) or _started(x, training)
    rounds = max(_ROUNDS, -(-training.steps // _LONGEST))
    for i in range(state.round, rounds):
        steps = range(i * training.steps // rounds, (i + 1) * training.steps // rounds)
        fired = _round(x, state, training, steps, told)
        if i < _REVIVING * rounds - 1:
            _revive(x, state, fired == 0, training)
        state.round = i + 1
        if kept is not None and state.round < rounds:
            _keep(state, kept, training, stamp)
    threshold = _threshold(x, state.values, training)
    if kept is not None:
        kept.unlink(missing_ok=True)
    return _unscaled(state.values, threshold, centre, scale, training)


def batch_top_k(before: Float[Tensor, "n latents"], k: int) -> Float[Tensor, "n latents"]:
    """The k·n largest pre-activations of a batch, where they are above 0; 0 elsewhere."""
    flat = before.flatten()
    at = flat.topk(min(k * len(before), flat.numel()), sorted=False).indices
    kept = torch.zeros_like(flat)
    kept[at] = flat[at].relu()
    return kept.view_as(before)


def loss_of(values: dict[str, Tensor], x: Float[Tensor, "n sides d_model"], k: int) -> tuple[Tensor, Tensor]:
    """(the mean of ‖x − x̂‖² over places, the activations (n, latents))."""
    active = batch_top_k(x.flatten(1) @ values["encoder"] + values["encoder_bias"], k)
    return (active @ values["decoder"] + values["bias"] - x.flatten(1)).square().sum(1).mean(), active


def gradients(
    values: dict[str, Tensor], x: Float[Tensor, "n sides d_model"], k: int
) -> tuple[Float[Tensor, "n latents"], dict[str, Tensor]]:
    """The activations, and the gradient of `loss_of` by every value: written out, as it is twice as quick."""
    flat = x.flatten(1)
    active = batch_top_k(torch.addmm(values["encoder_bias"], flat, values["encoder"]), k)
    off = torch.addmm(values["bias"], active, values["decoder"]).sub_(flat).mul_(2 / len(flat))
    behind = (off @ values["decoder"].T).mul_(active > 0)
    return active, {
        "encoder": flat.T @ behind,
        "encoder_bias": behind.sum(0),
        "decoder": active.T @ off,
        "bias": off.sum(0),
    }


def _scaled(
    base: Float[Tensor, "n d_model"], tuned: Float[Tensor, "n d_model"], training: Training
) -> tuple[Float[Tensor, "n sides d_model"], Float[Tensor, "sides d_model"], float]:
    """States around their mean, so large that a side has the norm √d_model on average; the mean, and the scale."""
    x = torch.stack([base, tuned], 1) if training.form == "crosscoder" else (tuned - base)[:, None]
    centre = x.mean(0)
    x = x - centre
    norm = float(x.square().sum(2).mean().sqrt())
    scale = norm / x.shape[2] ** 0.5 if norm > 0 else 1.0
    return x / scale, centre, scale


def _started(x: Float[Tensor, "n sides d_model"], training: Training) -> _State:
    generator = _generator(training, "start")
    width = x[0].numel()
    rows = torch.randn(training.latents, x.shape[2], generator=generator).to(x).repeat(1, x.shape[1])
    rows = rows / rows.norm(dim=1, keepdim=True)  # both models' rows are the same at first
    values = {
        "encoder": rows.T.clone(),
        "encoder_bias": x.new_zeros(training.latents),
        "decoder": rows.clone(),
        "bias": x.new_zeros(width),
    }
    moments = [{name: torch.zeros_like(value) for name, value in values.items()} for _ in range(2)]
    return _State(0, values, *moments)


def _round(
    x: Float[Tensor, "n sides d_model"], state: _State, training: Training, steps: range, told: Told | None
) -> Float[Tensor, " latents"]:
    """Some steps; how often each latent fired in them."""
    fired = x.new_zeros(training.latents)
    for step, at in zip(steps, _batches(len(x), state.round, training), strict=False):
        active, slopes = gradients(state.values, x[at.to(x.device)], training.k)
        fired += (active > 0).sum(0)
        _adam(state, slopes, step, _rate(step, training.steps, training.rate))
        rows = state.values["decoder"]
        rows /= rows.norm(dim=1, keepdim=True).clamp(min=1e-8)
        if told:
            told(step + 1, training.steps)
    return fired


def _batches(n: int, of_round: int, training: Training) -> Iterator[Int[Tensor, " batch"]]:
    """The places of every step of a round: all in a drawn order, then all in another, without end."""
    generator = _generator(training, f"order {of_round}")
    while True:
        yield from torch.randperm(n, generator=generator).split(min(training.batch, n))


def _adam(state: _State, slopes: dict[str, Tensor], done: int, rate: float) -> None:
    for name, slope in slopes.items():
        first, second = state.first[name], state.second[name]
        first.lerp_(slope, 0.1)
        second.mul_(0.999).addcmul_(slope, slope, value=0.001)
        size = (second / (1 - 0.999 ** (done + 1))).sqrt_().add_(1e-8)
        state.values[name].addcdiv_(first, size, value=-rate / (1 - 0.9 ** (done + 1)))


def _rate(done: int, total: int, most: float) -> float:
    return most * min(1.0, (done + 1) / (0.1 * total), 2 * (total - done) / total)


def _revive(x: Float[Tensor, "n sides d_model"], state: _State, dead: Tensor, training: Training) -> None:
    """Dead latents start anew at residuals."""
    n = int(dead.sum())
    if not n:
        return
    generator = _generator(training, f"revive {state.round}")
    some = x[torch.randperm(len(x), generator=generator)[: 8 * training.batch].to(x.device)]
    _, active = loss_of(state.values, some, training.k)
    off = some.flatten(1) - active @ state.values["decoder"] - state.values["bias"]
    weight = off.square().sum(1).cpu() + 1e-12
    at = torch.multinomial(weight, n, replacement=n > len(weight), generator=generator).to(x.device)
    rows = off[at] / off[at].norm(dim=1, keepdim=True).clamp(min=1e-8)
    # of residuals that are one direction one latent starts: many would all write it, and die of what they overshoot
    first = ~((rows @ rows.T).triu(1) > _ALIKE).any(0)
    rows, dead = rows[first], dead.nonzero()[:, 0][first]
    size = state.values["encoder"].norm(dim=0).mean()
    state.values["decoder"][dead] = rows
    state.values["encoder"][:, dead] = rows.T * size
    state.values["encoder_bias"][dead] = 0.0
    for moments in (state.first, state.second):
        moments["encoder"][:, dead] = 0.0
        moments["decoder"][dead] = 0.0
        moments["encoder_bias"][dead] = 0.0


def _threshold(x: Float[Tensor, "n sides d_model"], values: dict[str, Tensor], training: Training) -> float:
    """The mean over batches of the least pre-activation that is kept."""
    least = []
    for part in x.split(training.batch):
        before = part.flatten(1) @ values["encoder"] + values["encoder_bias"]
        n = min(training.k * len(part), before.numel())
        least.append(before.flatten().topk(n, sorted=False).values.min())
    return max(float(torch.stack(least).mean()), 0.0)


def _unscaled(
    values: dict[str, Tensor], threshold: float, centre: Float[Tensor, "sides d_model"], scale: float, how: Training
) -> Dictionary:
    """The same in units of h: f and its threshold are multiplied by the scale."""
    sides, width = centre.shape
    encoder = values["encoder"].view(sides, width, -1)
    # f/scale = ((h − centre)/scale) E + e, so f = h E + (scale e − centre E)
    bias = scale * values["encoder_bias"] - torch.einsum("sd,sdm->m", centre, encoder)
    decoder = values["decoder"].view(-1, sides, width).transpose(0, 1)
    mean = values["bias"].view(sides, width) * scale + centre
    if sides == 1:
        decoder = torch.cat([torch.zeros_like(decoder), decoder])
        mean = torch.cat([torch.zeros_like(mean), mean])
    least = torch.full_like(bias, threshold * scale)
    encoder, bias, decoder, mean, least = (part.contiguous().cpu() for part in (encoder, bias, decoder, mean, least))
    return Dictionary(how.form, encoder, bias, decoder, mean, Above(least))


def _generator(training: Training, of: str) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(f"{training.seed} {of}"))


def _keep(state: _State, path: Path, training: Training, stamp: str) -> None:
    tensors = {
        f"{kind}.{name}": value.cpu().contiguous()
        for kind in ("values", "first", "second")
        for name, value in getattr(state, kind).items()
    }
    write_tensors(tensors, path, _said(training, stamp) | {"round": state.round})


def _reached(path: Path | None, training: Training, stamp: str, device: torch.device) -> _State | None:
    if path is None or not path.is_file():
        return None
    try:
        tensors, said = read_tensors(path)
    except RunError:
        return None
    reached = said.pop("round", None)
    if reached is None or said != _said(training, stamp):
        return None
    kinds: dict[str, dict[str, Tensor]] = {"values": {}, "first": {}, "second": {}}
    for name, value in tensors.items():
        kind, _, rest = name.partition(".")
        kinds[kind][rest] = value.to(device)
    return _State(reached, **kinds)


def _said(training: Training, stamp: str) -> dict[str, Any]:
    return {"training": asdict(training), "stamp": stamp}
