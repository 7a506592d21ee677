"""A dictionary: latents that both models are read through, and the direction that each writes in either."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from probes.errors import RunError
from tv.runtime.atomic import replacing

#: How a dictionary reads two models: together, their difference, or each by itself.
Form = Literal["crosscoder", "delta", "public"]
#: From pre-activations (n, latents) to activations, which are 0 where a latent does not fire.
Rule = Callable[[Float[Tensor, "n latents"]], Float[Tensor, "n latents"]]


@dataclass(frozen=True)
class Above:
    """A latent fires where its pre-activation is above its threshold, and is worth what it is."""

    threshold: Float[Tensor, " latents"]

    def __call__(self, before: Float[Tensor, "n latents"]) -> Float[Tensor, "n latents"]:
        return torch.where(before > self.threshold.to(before), before, 0.0)


@dataclass(frozen=True)
class Largest:
    """The k largest of a place fire, where they are above 0."""

    k: int

    def __call__(self, before: Float[Tensor, "n latents"]) -> Float[Tensor, "n latents"]:
        kept = before.topk(min(self.k, before.shape[1]), dim=1)
        return torch.zeros_like(before).scatter_(1, kept.indices, kept.values.relu())


@dataclass(frozen=True)
class Gated:
    """A latent fires where x + gate is above 0, and is worth relu(x · scale + magnitude)."""

    gate: Float[Tensor, " latents"]
    scale: Float[Tensor, " latents"]
    magnitude: Float[Tensor, " latents"]

    def __call__(self, before: Float[Tensor, "n latents"]) -> Float[Tensor, "n latents"]:
        worth = (before * self.scale.to(before) + self.magnitude.to(before)).relu()
        return worth * (before + self.gate.to(before) > 0)


_RULES: dict[str, Callable[..., Rule]] = {"Above": Above, "Largest": Largest, "Gated": Gated}


@dataclass(frozen=True)
class Activations:
    """Of n places: what every latent is worth in base and in tuned; of a crosscoder both are the same."""

    base: Float[Tensor, "n latents"]
    tuned: Float[Tensor, "n latents"]

    @property
    def either(self) -> Float[Tensor, "n latents"]:
        """The larger of both."""
        return self.base if self.base is self.tuned else torch.maximum(self.base, self.tuned)


@dataclass(frozen=True)
class Dictionary:
    """Reads states h of a site: a = rule(h E + e), and writes â = a D + b for both models.

    A latent's part in Δh is a_tuned d_tuned − a_base d_base.
    """

    form: Form
    encoder: Float[Tensor, "sides d_model latents"]  # crosscoder: of base and of tuned; else one
    encoder_bias: Float[Tensor, " latents"]
    decoder: Float[Tensor, "2 latents d_model"]  # of base and tuned; delta: 0 and that of Δh; public: the same twice
    bias: Float[Tensor, "2 d_model"]  # what is written where no latent fires; delta: 0 and the mean of Δh
    rule: Rule

    @property
    def size(self) -> int:
        """How many latents it has."""
        return len(self.encoder_bias)

    @property
    def step(self) -> Float[Tensor, "latents d_model"]:
        """d_tuned − d_base: of a latent that fires alike in both, its direction in Δh."""
        return self.decoder[1] - self.decoder[0]

    def to(self, device: torch.device | str) -> Dictionary:
        """The same on a device."""
        encoder, bias, decoder, mean = (
            part.to(device) for part in (self.encoder, self.encoder_bias, self.decoder, self.bias)
        )
        return Dictionary(self.form, encoder, bias, decoder, mean, self.rule)

    def activations(self, base: Float[Tensor, "n d_model"], tuned: Float[Tensor, "n d_model"]) -> Activations:
        """What every latent is worth at places with these states."""
        if self.form == "public":
            one, other = (self.rule(x @ self.encoder[0] + self.encoder_bias) for x in (base, tuned))
            return Activations(one, other)
        if self.form == "delta":
            before = (tuned - base) @ self.encoder[0]
        else:
            before = base @ self.encoder[0] + tuned @ self.encoder[1]
        both = self.rule(before + self.encoder_bias)
        return Activations(both, both)

    def written(self, active: Activations) -> tuple[Float[Tensor, "n d_model"], Float[Tensor, "n d_model"]]:
        """The reconstructions of base and tuned; of the form delta, 0 and that of Δh."""
        return active.base @ self.decoder[0] + self.bias[0], active.tuned @ self.decoder[1] + self.bias[1]

    def parts(self, active: Activations, chosen: Int[Tensor, " k"]) -> Float[Tensor, "n d_model"]:
        """What the chosen latents write into Δh, together."""
        tuned, base = (
            active.tuned[:, chosen] @ self.decoder[1, chosen],
            active.base[:, chosen] @ self.decoder[0, chosen],
        )
        return tuned - base


def save_dictionary(dictionary: Dictionary, path: Path, said: dict[str, Any]) -> None:
    """Write a dictionary, whole or not at all: tensors, and what they are of as JSON in the file's header."""
    named = ("encoder", "encoder_bias", "decoder", "bias")
    tensors = {name: getattr(dictionary, name).contiguous().cpu() for name in named}
    rule: dict[str, Any] = {"name": type(dictionary.rule).__name__}
    for name, value in vars(dictionary.rule).items():
        if isinstance(value, Tensor):
            tensors[f"rule.{name}"] = value.contiguous().cpu()
        else:
            rule[name] = value
    write_tensors(tensors, path, said | {"form": dictionary.form, "rule": rule})


def read_dictionary(path: Path) -> tuple[Dictionary, dict[str, Any]]:
    """A dictionary that `save_dictionary` wrote, and what it said. Raises RunError where it is none."""
    tensors, said = read_tensors(path)
    try:
        plain = dict(said["rule"])
        of_rule = {name.removeprefix("rule."): tensors.pop(name) for name in list(tensors) if name.startswith("rule.")}
        rule = _RULES[plain.pop("name")](**of_rule, **plain)
        return Dictionary(said["form"], rule=rule, **tensors), said
    except (KeyError, TypeError) as error:
        raise RunError(f"{path}: no dictionary that `probes features` wrote ({error})") from None


def write_tensors(tensors: dict[str, Tensor], path: Path, said: dict[str, Any]) -> None:
    """A safetensors file with JSON in its header, written whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, RunError) as temporary:
        save_file(tensors, temporary, {"said": json.dumps(said)})


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write_tensors` wrote. Raises RunError, in one line, for another file."""
    try:
        with safe_open(path, "pt") as file:
            said = json.loads((file.metadata() or {}).get("said", "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, said  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise RunError(f"{path}: cannot be read as safetensors: {str(error).splitlines()[0]}") from None
