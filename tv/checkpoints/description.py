"""A model's configuration and all that follows from it, kept on disk: reading weights then needs no model class.

What is kept is known by the configuration's text, the version of transformers and the text of this package's rules. It
holds names and shapes, no weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import cached_property, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tv.architecture.as_json import from_json, to_json
from tv.checkpoints.config_differences import Settings, settings_of
from tv.checkpoints.quantised.declaration import IN_CONFIG
from tv.checkpoints.tree import Tree, tree_of
from tv.checkpoints.written_config import written_configs
from tv.errors import CheckpointError, InputError, first_line
from tv.runtime.cache_folder import cache_folder, read_cached, write_cached
from tv.runtime.transformers_private import classes_registered

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from tv.architecture.anatomy import Architecture


class Description:
    """What the configuration of a model's directory, or its file, says of the model. Each part is made when asked for.

    Raises CheckpointError where there is none, or it describes no model.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.file = path, path if path.is_file() else path / "config.json"
        if not self.file.is_file():
            raise CheckpointError(f"{path}: no config.json; pass a Hugging Face model directory")
        self._place = _place(self.file)
        self.known, self._layouts = False, 0  # whether its model has been described before, and of how many files
        self._as_read = False  # whether its model is known to leave the configuration as it is
        #: The text of config.json beside weights of a dtype, by its name, where it is known.
        self.written: dict[str, str] = {}
        kept = None if self._place is None else read_cached(self._place)
        if kept is not None:
            try:
                tree = Tree.from_json(kept["tree"], self.get_model)
                found = from_json(kept["architecture"]), Settings.from_json(kept["settings"])
            except (KeyError, TypeError, ValueError, IndexError, AttributeError):
                return  # it is made again
            # cached properties that need not be computed any more
            self.tree, (self.architecture, self.settings) = tree, found
            self.known, self._layouts = True, len(tree.layouts)
            self._as_read = kept.get("config_as_read") is True
            self.written = kept.get("written", {})

    @cached_property
    def config(self) -> PretrainedConfig:
        """The configuration, without its quantisation."""
        return _config(self.path, self.file)

    @cached_property
    def model(self) -> PreTrainedModel:
        """Its module tree on the meta device."""
        from tv.architecture.resolve import skeleton

        return of_config(skeleton, self.config, self.file)

    @cached_property
    def tree(self) -> Tree:
        """The same as data."""
        return tree_of(self.model)

    @cached_property
    def architecture(self) -> Architecture:
        """Its modules by role."""
        from tv.architecture.resolve import resolve

        return of_config(resolve, self.model, self.file)

    @cached_property
    def settings(self) -> Settings:
        """What of the configuration is compared with another."""
        return settings_of(self.get_config())

    @property
    def weights(self) -> str | None:
        """The file that the configuration names as that of its weights."""
        if self.known:
            return self.settings.values.get("transformers_weights")
        return getattr(self.config, "transformers_weights", None)

    def get_config(self) -> PretrainedConfig:
        """The configuration as its model has it: some classes change theirs, of the others none is built."""
        return self.config if self._as_read else self.model.config

    def get_model(self) -> PreTrainedModel:
        return self.model

    def keep(self) -> None:
        """Keep what has been found out, where it is new and follows from the configuration's text alone."""
        if self._place is None or (self.known and self._layouts == len(self.tree.layouts)):
            return
        if type(self.model).__module__.startswith("transformers."):
            as_read = self.model.config.to_dict() == _config(self.path, self.file).to_dict()
            parts = {"tree": self.tree.to_json(), "settings": self.settings.to_json(), "config_as_read": as_read}
            written = written_configs(self.model.config, self.architecture.name)
            write_cached(self._place, {**parts, "architecture": to_json(self.architecture), "written": written})


def of_config(step: Callable[[Any], Any], given: Any, file: Path) -> Any:
    """A step from a configuration to its model. Raises CheckpointError where it describes none."""
    try:
        return step(given)
    except InputError:
        raise
    except Exception as error:  # numbers that describe no model can make transformers raise anything
        raise CheckpointError(f"{file}: describes no model: {first_line(error)}") from error


def _config(path: Path, file: Path) -> PretrainedConfig:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except StrictDataclassError as error:  # it names the field on its first line, and what is wrong on the next
        raise CheckpointError(f"{file}: {' '.join(str(error).split())}") from error
    except (OSError, ValueError, KeyError, TypeError, ArithmeticError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{file}: cannot be read: {first_line(error)}") from error
    for key in IN_CONFIG:
        if hasattr(config, key):
            delattr(config, key)
    return config


def _place(file: Path) -> Path | None:
    """The file that keeps what follows from a configuration; None where that is more than its text."""
    folder = cache_folder("descriptions")
    if folder is None or classes_registered():
        return None
    try:
        text = file.read_bytes()
        config = json.loads(text)
    except (OSError, ValueError, RecursionError):
        return None  # reading it as a configuration says what is wrong
    # Without a type its directory's name is asked; with other files for other versions, they are read.
    if not isinstance(config, dict) or "model_type" not in config or "configuration_files" in config:
        return None
    return folder / f"{hashlib.sha256(_rules() + text).hexdigest()}.json"


@lru_cache(maxsize=1)
def _rules() -> bytes:
    """Whatever else the description follows from, as a digest."""
    digest = hashlib.sha256(f"transformers {version('transformers')} torch {version('torch')}".encode())
    for room in (Path(__file__).parent.parent / "architecture", Path(__file__).parent):
        for file in sorted(room.glob("*.py")):
            digest.update(file.name.encode() + file.read_bytes())
    return digest.digest()
