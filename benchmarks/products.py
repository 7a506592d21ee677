"""Products with weights in float32, torch's own beside `tv.runtime.products.linear`: `python benchmarks/products.py`.

Matrices of SmolLM2-135M's and of a 1B shape, at a few numbers of tokens, forward and backward, on one thread. Every
round makes the same products both ways; CPU seconds. Where the processor has nothing quicker, both are one function.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from results import Ratio, add_option, ratio, report
from torch import Tensor
from torch.nn import functional

from tv.runtime.products import is_quicker, linear

SHAPES = {"SmolLM2-135M": (1536, 576), "1B": (8192, 2048)}
TOKENS = (1, 16, 1024)
#: So many matrices, one after another, as a model has them: not all of them are in the cache.
LAYERS = 12


def main() -> None:
    """Rounds of both ways in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    add_option(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"quicker here: {'yes' if is_quicker() else 'no'}, {torch.backends.cpu.get_cpu_capability()}")
    report([_compared(name, tokens, options.rounds) for name in SHAPES for tokens in TOKENS], options.json)


def _compared(name: str, tokens: int, rounds: int) -> Ratio:
    torch.manual_seed(0)
    weights, x = [torch.randn(*SHAPES[name]) for _ in range(LAYERS)], torch.randn(tokens, SHAPES[name][1])
    x.requires_grad_()
    times = max(1, 2**32 // (x.numel() * SHAPES[name][0] * LAYERS))
    took: list[list[float]] = [[], []]
    for turn in range(-1, rounds):
        for seconds, product in zip(took, (functional.linear, linear), strict=True):
            found = _seconds(product, x, weights, times)
            if turn >= 0:
                seconds.append(found)
    what = f"products of {name}'s shape, {tokens} token{'s' * (tokens > 1)}, CPU"
    return ratio(what, ("torch", took[0]), ("ours", took[1]))


def _seconds(product: Callable[[Tensor, Tensor], Tensor], x: Tensor, weights: list[Tensor], times: int) -> float:
    begin = time.process_time()
    for _ in range(times):
        for weight in weights:
            made = product(x, weight)
            torch.autograd.grad(made, x, made.detach())
    return time.process_time() - begin


if __name__ == "__main__":
    main()
