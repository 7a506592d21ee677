"""What a run says of itself: everything that its rows depend on, and its manifest."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch

from probes.capture.loading import Pairs
from probes.discovery.found import source_of
from probes.job.pairs import Opened
from probes.store.prompts import prompt_digest
from probes.store.schemas import SCHEMA_VERSION
from probes.suite import Suite
from tv.architecture.anatomy import Architecture
from tv.architecture.in_words import in_words
from tv.checkpoints.tokenizers import tokenizer_digest
from tv.errors import WARNING
from tv.prompts.files import Prompt
from tv.runtime.products import is_quicker

if TYPE_CHECKING:
    from probes.job.job import Job


def identity_of(prompts: Sequence[Prompt], pairs: Sequence[Opened], models: Pairs) -> dict[str, Any]:
    """Everything that the rows of a run depend on. Which process does the work is not part of it."""
    writes = models.generates or models.answers or models.suite.answer_pattern is not None
    return {
        "suite": models.suite.model_dump(mode="json"),
        "prompts": [[prompt.id, prompt_digest(prompt)] for prompt in prompts],
        "checkpoints": {name: entry["fingerprint"] for name, entry in checkpoints_of(pairs).items()},
        "tokenizers": {
            "base": tokenizer_digest(pairs[0].base),
            **{pair.name: tokenizer_digest(pair.tuned) for pair in pairs},
        },
        **({"ends": {name: sorted(ids) for name, ids in models.ends.items()}} if writes else {}),
        **_finding(models.suite),
        "computed": models.computed(),
        "versions": versions_of(models.suite),
        "schema_version": SCHEMA_VERSION,
    }


def _finding(suite: Suite) -> dict[str, Any]:
    """The earlier run whose finding is the metric of effects: another one at its place would have other effects."""
    if suite.attribute is None or suite.attribute.discovered is None:
        return {}
    return {"discovered": source_of(suite.attribute.discovered).manifest.get("identity")}


def checkpoints_of(pairs: Sequence[Opened]) -> dict[str, dict[str, Any]]:
    """Of the base and every tuned model, by name: the source, and the fingerprint of what it holds."""
    named = {"base": pairs[0].base, **{pair.name: pair.tuned for pair in pairs}}
    return {
        name: {"source": checkpoint.source, "fingerprint": checkpoint.fingerprint()}
        for name, checkpoint in named.items()
    }


def versions_of(suite: Suite) -> dict[str, str]:
    """The versions of Python and of the packages that rows depend on."""
    packages = dict.fromkeys(("tuning-probes", "torch", "transformers", "pandas", "pyarrow", suite.backend))
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def manifest_of(job: Job) -> dict[str, Any]:
    """What a run says of itself beside its tables."""
    suite, pairs, encoded = job.suite, job.pairs, job.encoded
    architecture = pairs[0].base.architecture
    return {
        "suite": suite.model_dump(mode="json"),
        "seed": suite.seed,
        "versions": versions_of(suite),
        "threads": torch.get_num_threads(),
        "products": "oneDNN" if is_quicker() else "torch",
        "computed": job.models.computed(),
        "stages": list(job.stages),
        "architecture": {
            "name": architecture.name,
            "n_layers": architecture.n_layers,
            "d_model": architecture.d_model,
            "n_heads": architecture.n_heads,
            "n_kv_heads": architecture.n_kv_heads,
            "gated": architecture.gated,
            "parts": _parts(architecture),
            "in_words": in_words(architecture),
        },
        "checkpoints": checkpoints_of(pairs),
        "power": job.power,
        "sameness": {pair.name: pair.sameness for pair in pairs if pair.sameness is not None},
        "coverage": {
            pair.name: asdict(pair.facts.coverage) | {"note": pair.facts.coverage.note.removeprefix(WARNING)}
            for pair in pairs
        },
        "notes": {pair.name: [*pair.facts.notes, *job.notes] for pair in pairs},
        "shards": {
            shard.name: [item.prompt.id for item in shard.encoded] for pair in pairs for shard in job.shards(pair.name)
        },
        "n_prompts": len(encoded),
        "n_tokens": sum(len(item.ids) for item in encoded),
    }


def _parts(architecture: Architecture) -> list[dict[str, list[str]]]:
    """Of every block its components, in order, with their matrices; those of experts are not named."""
    parts: list[dict[str, list[str]]] = [{} for _ in range(architecture.n_layers)]
    for module in architecture.modules:
        if module.kind == "linear" and module.expert < 0 and 0 <= module.layer < architecture.n_layers:
            parts[module.layer].setdefault(module.component, []).append(module.name)
    return parts
