"""The config.json that transformers writes beside weights of another dtype."""

from __future__ import annotations

import copy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PretrainedConfig

#: What weights are stored in, by name.
STORED = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def write_config(directory: Path, config: PretrainedConfig, architecture: str, dtype: torch.dtype) -> None:
    """Write the configuration of a model of this class and dtype to a directory, as transformers writes it."""
    config = copy.deepcopy(config)
    config.dtype = dtype
    config.architectures = [architecture]
    config.save_pretrained(directory)


def written_configs(config: PretrainedConfig, architecture: str) -> dict[str, str]:
    """The text that `write_config` writes, by the dtype's name; none where transformers refuses to."""
    texts = {}
    with TemporaryDirectory() as directory:
        for name, dtype in STORED.items():
            try:
                write_config(Path(directory), config, architecture, dtype)
            except Exception:  # what it is, writing the checkpoint says
                return {}
            texts[name] = (Path(directory) / "config.json").read_text(encoding="utf-8")
    return texts
