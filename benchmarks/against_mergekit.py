"""Our merges against mergekit's, on the embedded models: the largest difference in T, method by method.

    python -m venv mergekit-env && mergekit-env/bin/pip install mergekit
    python benchmarks/against_mergekit.py mergekit-env/bin/python

mergekit cannot share this package's environment (it pins older libraries), so its own does the merge, from a YAML file,
and what it wrote is read here. λ is mergekit's `weight`. Masks of `dare` are drawn otherwise, so at a density below 1
their statistics are compared.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

import tv

MODELS = Path(__file__).resolve().parent.parent / "data" / "models"
BASE, TUNED = MODELS / "base", (MODELS / "medical", MODELS / "math")


@dataclass(frozen=True)
class Case:
    """One merge, in mergekit's words and in ours."""

    title: str
    theirs: str  # merge_method
    parameters: dict[str, Any]
    ours: str
    scales: tuple[float, ...]
    options: dict[str, float] = field(default_factory=dict)
    note: str = ""


_EQUAL = "entries of one magnitude at the threshold, of which either may stay, and opposite ones that cancel: ours 0"
CASES = (
    Case("sum, λ = 0.7 and 0.3", "task_arithmetic", {"normalize": False}, "sum", (0.7, 0.3)),
    Case(
        "ties, density 0.5, λ = 1",
        "ties",
        {"normalize": True, "density": 0.5},
        "ties",
        (1, 1),
        {"density": 0.5},
        _EQUAL,
    ),
    Case(
        "ties, density 0.2, λ = 1",
        "ties",
        {"normalize": True, "density": 0.2},
        "ties",
        (1, 1),
        {"density": 0.2},
        _EQUAL,
    ),
    Case("dare, density 1", "dare_linear", {"normalize": False, "density": 1.0}, "dare", (0.7, 0.3), {"density": 1.0}),
    Case("dare, density 0.5", "dare_linear", {"normalize": False, "density": 0.5}, "dare", (1, 1), {"density": 0.5}),
    Case(
        "model-stock",
        "model_stock",
        {},
        "model-stock",
        (1, 1),
        note="the gains whose vectors lie at an obtuse angle: ours returns to the base, mergekit's t is negative",
    ),
    Case(
        "ties, one vector at λ = −1",
        "ties",
        {"normalize": True, "density": 0.5},
        "ties",
        (-1,),
        {"density": 0.5},
        "known: mergekit divides by the sum of the weights, so that a single negative one becomes +1",
    ),
    Case(
        "ties, λ = 0.7 and 0.3",
        "ties",
        {"normalize": True, "density": 0.5},
        "ties",
        (0.7, 0.3),
        {"density": 0.5},
        "known: mergekit divides by the weights that agree, so that a common factor is lost; ours by how many agree",
    ),
)


def main() -> None:
    """Merge by both, and print how far apart they are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", type=Path, help="the interpreter of an environment with mergekit")
    python = parser.parse_args().python
    version = "import importlib.metadata as m; print('mergekit', m.version('mergekit'), 'torch', m.version('torch'))"
    print(subprocess.run([python, "-c", version], check=True, capture_output=True, text=True).stdout.strip())
    base = _float32(load_file(BASE / "model.safetensors"))
    print(
        "largest |T_ours − T_theirs|, as a share of the largest |T|; entries that differ; ‖T_theirs‖/‖T_ours‖; cosine"
    )
    for case in CASES:
        with tempfile.TemporaryDirectory() as directory:
            theirs = _theirs(python, case, Path(directory))
            ours = _ours(case, Path(directory))
        print(f"{case.title:<28} {_compared(base, ours, theirs)}{'  ' + case.note if case.note else ''}", flush=True)


def _theirs(python: Path, case: Case, directory: Path) -> dict[str, Tensor]:
    models = [
        {"model": str(path), "parameters": {"weight": scale}} for path, scale in zip(TUNED, case.scales, strict=False)
    ]
    config = {
        "merge_method": case.theirs,
        "base_model": str(BASE),
        "models": models,
        "parameters": case.parameters,
        "dtype": "float32",
    }
    (directory / "merge.yaml").write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    out = directory / "theirs"
    command = [python, "-m", "mergekit.scripts.run_yaml", directory / "merge.yaml", out, "--no-copy-tokenizer"]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(f"mergekit failed on {case.title}:\n{run.stderr[-2000:]}")
    return _loaded(out)


def _ours(case: Case, directory: Path) -> dict[str, Tensor]:
    scales: dict[tv.checkpoint.Source, float] = dict(zip(TUNED, case.scales, strict=False))
    return _loaded(tv.apply(BASE, scales, out=directory / "ours", method=case.ours, **case.options).path)


def _loaded(directory: Path) -> dict[str, Tensor]:
    return _float32(
        {name: value for file in directory.glob("*.safetensors") for name, value in load_file(file).items()}
    )


def _float32(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.float() for name, value in tensors.items()}


def _compared(base: dict[str, Tensor], ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> str:
    assert ours.keys() == theirs.keys() == base.keys()
    left = torch.cat([(ours[name] - base[name]).flatten() for name in base]).double()
    right = torch.cat([(theirs[name] - base[name]).flatten() for name in base]).double()
    apart = (left - right).abs()
    largest = float(apart.max() / left.abs().max())
    many = int((apart > 1e-5 * left.abs().max()).sum())
    cosine = float(left @ right / (left.norm() * right.norm()))
    return (
        f"{largest:8.1e}  {many:>9,} of {len(left):,}  {float(right.norm() / left.norm()):.4f}  {cosine:+.4f}  "
        f"nonzero {float((left != 0).double().mean()):.3f} and {float((right != 0).double().mean()):.3f}"
    )


if __name__ == "__main__":
    main()
