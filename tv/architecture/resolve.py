"""Modules and sites of an architecture, read off the Hugging Face module tree.

Names and shapes alone are read, so the tree may live on the meta device: no weight is loaded. tv's own rules come
first, and what they say of sites is not assumed but proved when a model is loaded (`probes.pair`). Where no rule fits,
TransformerLens's adapter is asked what the matrices do, and where it does not know either they stand by name alone.
"""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from tv.architecture.anatomy import Architecture, Block, Component, Module, Roles
from tv.architecture.fallback import by_adapter, by_name
from tv.architecture.rules import by_rules
from tv.errors import ArchitectureError

__all__ = ["Architecture", "Block", "Component", "Module", "Roles", "resolve", "skeleton"]


def skeleton(config: PretrainedConfig) -> PreTrainedModel:
    """The model's module tree on the meta device: names and shapes, no weights."""
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except ValueError as error:
        raise ArchitectureError(
            f"model type {config.model_type!r}: transformers has no causal language model of it; name one that has"
        ) from error


def resolve(model: PreTrainedModel) -> Architecture:
    """Name every module of `model` (live, or a `skeleton`), and every site where tv's own rules fit.

    `Architecture.roles` says whose word the names are, and `Architecture.note` what to make of them.
    """
    try:
        return by_rules(model)
    except ArchitectureError as refusal:
        why = str(refusal).partition(": ")[2]
        return by_adapter(model, why) or by_name(model, why)
