"""How the neurons and heads of two models respond to the same tokens, as sums over tokens: no activation is stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tv.prompts.encoding import Batch, positions

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Sums(Protocol):
    """What is summed over tokens at one module."""

    def add(self, base: Float[Tensor, "tokens n"], tuned: Float[Tensor, "tokens n"]) -> None:
        """Add the same tokens' activations in both models, float32."""


class Correlations:
    """Pearson correlation of every base neuron with every tuned neuron. Holds n × n numbers in float32."""

    def __init__(self) -> None:
        self.tokens = 0
        self._shifts: tuple[Tensor, Tensor] = (torch.empty(0), torch.empty(0))
        self._cross = torch.empty(0)
        self._sums: list[Tensor] = []  # of each model
        self._squares: list[Tensor] = []

    def add(self, base: Float[Tensor, "tokens n"], tuned: Float[Tensor, "tokens n"]) -> None:
        if not self.tokens:  # shifted by the first tokens' mean, so that no large mean is squared
            self._shifts = base.mean(0), tuned.mean(0)
            self._cross = base.new_zeros(base.shape[1], tuned.shape[1])
            self._sums = [side.new_zeros(side.shape[1], dtype=torch.float64) for side in (base, tuned)]
            self._squares = [value.clone() for value in self._sums]
        centred = [side - shift for side, shift in zip((base, tuned), self._shifts, strict=True)]
        self.tokens += len(base)
        self._cross.addmm_(centred[0].T, centred[1])
        for i, side in enumerate(centred):
            self._sums[i] += side.sum(0, dtype=torch.float64)
            self._squares[i] += side.double().pow(2).sum(0)

    def correlation(self) -> Float[Tensor, "n n"]:
        """r of base neuron i and tuned neuron j; 0 where one does not vary."""
        means = [total / self.tokens for total in self._sums]
        variances = [square / self.tokens - mean.pow(2) for square, mean in zip(self._squares, means, strict=True)]
        # A variance within rounding error counts as zero.
        varies = [
            variance > 1e-10 * square / self.tokens for variance, square in zip(variances, self._squares, strict=True)
        ]
        factors = [
            torch.where(moves, variance.clamp(min=0).rsqrt(), 0.0).float()
            for moves, variance in zip(varies, variances, strict=True)
        ]
        covariance = (self._cross / self.tokens).addr_(means[0].float(), means[1].float(), alpha=-1)
        return covariance.mul_(factors[0][:, None]).mul_(factors[1])


class HeadProducts:
    """Σ z z'ᵀ over tokens, of what the heads of both models hand to the output projection."""

    def __init__(self, heads: int) -> None:
        self._heads = heads
        self.cross = self.own = self.tuned_own = torch.zeros(1)  # for `contribution_scores`, once `add` was called

    def add(self, base: Float[Tensor, "tokens n"], tuned: Float[Tensor, "tokens n"]) -> None:
        left, right = (side.unflatten(1, (self._heads, -1)) for side in (base, tuned))
        self.cross = self.cross + (base.T @ tuned).reshape(*left.shape[1:], *right.shape[1:])
        self.own = self.own + torch.einsum("tha,thb->hab", left, left)
        self.tuned_own = self.tuned_own + torch.einsum("tha,thb->hab", right, right)


@torch.inference_mode()
def gather_sums(
    base: PreTrainedModel, tuned: PreTrainedModel, batches: Sequence[Batch], sums: Mapping[str, Sums]
) -> None:
    """Run both models over the same tokens, and add the inputs of the modules that `sums` names by path.

    Of conversations, what the template and the system say before the user's own words is not counted.
    """
    for batch in batches:
        tokens = torch.zeros_like(batch.attention_mask, dtype=torch.bool)
        for row, item in zip(tokens, batch.encoded, strict=True):
            places = positions(item, "after template")
            row[places.start : places.stop] = True
        seen = [_inputs(model, batch, tokens, list(sums)) for model in (base, tuned)]
        for path, place in sums.items():
            place.add(seen[0][path], seen[1][path].to(seen[0][path].device))


def _inputs(
    model: PreTrainedModel, batch: Batch, tokens: Bool[Tensor, "batch pos"], paths: Sequence[str]
) -> dict[str, Float[Tensor, "tokens n"]]:
    activations: dict[str, Tensor] = {}

    def catch(path: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            activations[path] = inputs[0][tokens.to(inputs[0].device)].float()

        return hook

    with ExitStack() as stack:
        for path in paths:
            handle = model.get_submodule(path).register_forward_pre_hook(catch(path))
            stack.callback(handle.remove)
        ids, mask = batch.input_ids.to(model.device), batch.attention_mask.to(model.device)
        model(input_ids=ids, attention_mask=mask, use_cache=False)
    return activations
