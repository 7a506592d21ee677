"""Modules and sites of an architecture, read off the Hugging Face module tree.

Names and shapes alone are read, so the tree may live on the meta device: no weight is loaded. What tv's rules say is
proved when a model is loaded (`probes.capture.proof`). Where they find no trunk, matrices go by name alone.
"""

from __future__ import annotations

import torch
from transformers import PretrainedConfig, PreTrainedModel

from tv.architecture.anatomy import Architecture, Block, Component, Module, Roles
from tv.architecture.classes import built
from tv.architecture.fallback import by_name
from tv.architecture.rules import by_rules
from tv.errors import ArchitectureError

__all__ = ["Architecture", "Block", "Component", "Module", "Roles", "resolve", "skeleton"]


def skeleton(config: PretrainedConfig) -> PreTrainedModel:
    """The model's module tree on the meta device: names and shapes, no weights."""
    with torch.device("meta"):
        return built(config)


def resolve(model: PreTrainedModel) -> Architecture:
    """Name every module of `model` (live, or a `skeleton`), and every site where tv's rules find its blocks.

    `Architecture.roles` says where the names come from, and `Architecture.note` how to read them.
    """
    try:
        return by_rules(model)
    except ArchitectureError as refusal:
        return by_name(model, str(refusal).partition(": ")[2])
