"""SSA out of three Grams against plain SVDs: `python benchmarks/ssa_speed.py [--rounds 3] [--threads 2]`.

One layer of a model shaped like Qwen2-0.5B (d_model 896, d_ff 4864, 14 heads of 64, 2 of them for keys and values),
random weights with a few stronger directions and a random tuning vector. Every round runs, in turn, for each matrix:

- `grams`: this project; `first`: the same, with the decomposition written to a cache; `second`: another tuned model,
  the decomposition read back
- `svd64`, `svd32`: `torch.linalg.svd` of W, T projected once on all of its vectors, singular values of T for z
- `cuts64`: the same in float64 with projections for each cut of its own, as the formulas read

All give SSA left, right and two-sided at three ε and the fixed fraction, null, κ and z; T's spectrum, which z needs in
the plain ways, is extra in this project and timed apart. Prints medians with their range, ratios over the whole layer,
and the largest error of every output against float64. A model's layers are alike: ratios are the model's.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from results import Ratio, add_option, ratio, report
from torch import Tensor

from tv.measures.cache import DecompositionCache
from tv.measures.decomposition import Decomposition, Energies, decompose, energies_along
from tv.measures.ssa import Alignment, align_energies, cuts_of

SHAPES = {
    "q": (896, 896),
    "k": (128, 896),
    "v": (128, 896),
    "o": (896, 896),
    "gate": (4864, 896),
    "up": (4864, 896),
    "down": (896, 4864),
}
CUTS = cuts_of((0.01, 0.05, 0.1))
Found = tuple[list[Alignment], Callable[[], Tensor]]
Result = tuple[list[Alignment], Tensor]


def main() -> None:
    """One interleaved run after a round that does not count, then the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    add_option(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    errors: dict[str, float] = defaultdict(float)
    for turn in range(-1, options.rounds):
        for name, shape in SHAPES.items():
            weight, delta = _matrices(shape, seed=turn + 1)
            found: dict[str, Result] = {}
            with tempfile.TemporaryDirectory() as folder:
                for way, run in _ways(Path(folder)).items():
                    start = time.perf_counter()
                    rows, spectrum = run(weight, delta)
                    middle = time.perf_counter()
                    found[way] = rows, spectrum()
                    if turn >= 0:
                        seconds[way, name].append(middle - start)
                        seconds[f"{way} spectrum", name].append(time.perf_counter() - middle)
            for output, error in _errors(found["grams"], found["svd64"]).items():
                errors[output] = max(errors[output], error)
        print("warmed up" if turn < 0 else f"round {turn + 1} of {options.rounds}", flush=True)
    report(_ratios(_print(seconds, errors)), options.json)


def _matrices(shape: tuple[int, int], seed: int) -> tuple[Tensor, Tensor]:
    """A Gaussian W with 30 stronger directions, as trained matrices have, and a T of mixed rank."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    m, n = shape
    strong = (normal(m, 30) * torch.logspace(1, 0, 30)) @ normal(30, n)
    weight = 0.02 * (normal(m, n) + strong / n**0.5)
    return weight, 1e-4 * (normal(m, n) + normal(m, 8) @ normal(8, n))


def _ways(folder: Path) -> dict[str, Callable[[Tensor, Tensor], Found]]:
    def cached(weight: Tensor, delta: Tensor) -> Found:
        with DecompositionCache(folder, "base").module("matrix") as from_cache:
            return _by_grams(from_cache("-1", weight), delta)

    return {
        "grams": lambda weight, delta: _by_grams(decompose(weight), delta),
        "first": cached,
        "second": cached,
        "svd64": lambda weight, delta: _by_svd(weight.double(), delta.double()),
        "svd32": _by_svd,
        "cuts64": lambda weight, delta: _by_svd(weight.double(), delta.double(), once=False),
    }


def _by_grams(decomposition: Decomposition, delta: Tensor) -> Found:
    energies = energies_along(decomposition, delta)
    rows = align_energies(decomposition, delta, energies, CUTS)
    return rows, lambda: energies.spectrum.sqrt().flip(0)


def _by_svd(weight: Tensor, delta: Tensor, once: bool = True) -> Found:
    """The textbook way: singular vectors of W, projections of T on both, singular values of T."""
    u, sigma, vh = torch.linalg.svd(weight, full_matrices=False)
    decomposition = Decomposition(weight, sigma.double(), (u if weight.shape[0] <= weight.shape[1] else vh.T).double())
    spectrum = torch.linalg.svdvals(delta)
    if not once:
        for cut in CUTS:
            left, right, both = cut.keeps(decomposition)
            (u[:, : left.left].T @ delta).norm()
            (delta @ vh[: right.right].T).norm()
            (u[:, : both.left].T @ delta @ vh[: both.right].T).norm()
    inside = u.T @ delta
    total = delta.pow(2).sum()
    energies = Energies(decomposition, delta, torch.empty(0), torch.empty(0))
    found = {
        "left": inside.pow(2).sum(1) / total,
        "right": (delta @ vh.T).pow(2).sum(0) / total,
        "both": (inside @ vh.T).pow(2) / total,
        "concentration": float(spectrum.double().pow(4).sum() / spectrum.double().pow(2).sum().square()),
    }
    vars(energies).update(found)  # in place of what it would compute
    return align_energies(decomposition, delta, energies, CUTS), lambda: spectrum


def _errors(found: Result, exact: Result) -> dict[str, float]:
    errors = {"T's spectrum": float((found[1] - exact[1]).abs().max() / exact[1].max())}
    for name in ("k", "ssa", "ssa_null", "kappa", "ssa_z"):
        pairs = [(getattr(a, name), getattr(b, name)) for a, b in zip(found[0], exact[0], strict=True)]
        scale = max(1.0, *(abs(b) for _, b in pairs)) if name == "ssa_z" else 1.0
        errors[name] = max(abs(a - b) for a, b in pairs) / scale
    return errors


def _print(seconds: dict[tuple[str, str], list[float]], errors: dict[str, float]) -> dict[str, list[float]]:
    """Print every matrix's medians, and return every way's seconds for the whole layer, once a round."""
    ways = ("grams", "first", "second", "svd64", "svd32", "cuts64", "grams spectrum")
    print(f"\n{'seconds':<8}" + "".join(f"{way:>22}" for way in ways))
    for name in SHAPES:
        cells = [(statistics.median(v), min(v), max(v)) for v in (seconds[way, name] for way in ways)]
        print(f"{name:<8}" + "".join(f"{a:>8.3f} ({b:.3f}–{c:.3f})" for a, b, c in cells))
    layer = {
        way: [sum(turn) for turn in zip(*(seconds[way, name] for name in SHAPES), strict=True)]
        for way in {way for way, _ in seconds}
    }
    for way in ("grams", "first", "second"):
        layer[f"{way} + spectrum"] = [a + b for a, b in zip(layer[way], layer[f"{way} spectrum"], strict=True)]
    print("largest error against float64: " + ", ".join(f"{name} {error:.1e}" for name, error in errors.items()))
    return layer


def _ratios(layer: dict[str, list[float]]) -> list[Ratio]:
    pairs = [(slow, f"grams{extra}") for slow in ("svd64", "svd32", "cuts64") for extra in ("", " + spectrum")]
    pairs += [("first", "second"), ("first + spectrum", "second + spectrum")]
    return [ratio("SSA of a layer", (a, layer[a]), (b, layer[b])) for a, b in pairs]


if __name__ == "__main__":
    main()
