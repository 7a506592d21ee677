"""What transformers calls a stored tensor when it loads it into a model, and which of them make up one parameter."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from tv.checkpoints.layout import Files, Read
from tv.runtime.transformers_private import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    get_model_conversion_mapping,
    rename_source_key,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ModelNames:
    """The names that transformers gives to stored tensors when it loads them into `model`.

    Older checkpoints lack the base model's prefix, or use other names; experts of a fused tensor are stored apart.
    A stored name is kept where the model has it and has no parameter of the new name.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        changes = get_model_conversion_mapping(model)
        self._renamings = [change for change in changes if isinstance(change, WeightRenaming)]
        self._converters = [change for change in changes if isinstance(change, WeightConverter)]
        self._prefix, self._state = model.base_model_prefix, model.state_dict()

    def of(self, stored: str) -> tuple[str, str | None]:
        """(parameter, pattern of the converter that makes it), the pattern None where the tensor is the parameter."""
        name, pattern = rename_source_key(stored, self._renamings, self._converters, self._prefix, self._state)
        if name not in self._state and stored in self._state:
            return rename_source_key(stored, [], [], self._prefix, self._state)
        return name, pattern

    def sort(self, stored: Iterable[str]) -> dict[str, Files]:
        """The stored names by the parameter that they make up."""
        parameters: dict[str, dict[str | None, list[str]]] = defaultdict(lambda: defaultdict(list))
        for key in sorted(stored, key=_natural):  # some renamings depend on those before them
            name, pattern = self.of(key)
            parameters[name][pattern].append(key)
        return {other: files for name, patterns in parameters.items() for other, files in self._files(name, patterns)}

    def _files(self, name: str, patterns: Mapping[str | None, list[str]]) -> Iterator[tuple[str, Files]]:
        keys = [key for group in patterns.values() for key in group]
        if None in patterns:
            yield name, Files(keys, [[patterns[None][0]]])
            return
        converter = next(c for c in self._converters if patterns.keys() & set(c.source_patterns))
        first = converter.target_patterns[0]
        for target in converter.target_patterns:  # one stored tensor may make several parameters
            yield name.replace(first, target, 1), self._converted(name, keys, patterns, converter)

    def _converted(
        self, name: str, keys: list[str], patterns: Mapping[str | None, list[str]], converter: WeightConverter
    ) -> Files:
        groups = [patterns[p] for p in converter.source_patterns if p in patterns]
        if not _merges_experts(converter):
            form = " then ".join(type(operation).__name__ for operation in converter.operations)
            return Files(keys, [], form=form, convert=partial(self._convert, name, patterns, converter))
        if len(groups) < len(converter.source_patterns) or len({len(group) for group in groups}) > 1:
            return Files(keys, [])
        return Files(keys, [list(row) for row in zip(*groups, strict=True)], stacked=True)

    def _convert(
        self, name: str, patterns: Mapping[str | None, list[str]], converter: WeightConverter, read: Read
    ) -> dict[str, Tensor]:
        """The parameters that a converter makes, by name. `name` is its first one's."""
        steps = copy.deepcopy(converter)
        for pattern, keys in patterns.items():
            for key in keys:
                steps.add_tensor(name, key, pattern, partial(read, key))
        made = steps.convert(name, model=self._model, config=self._model.config)
        return {other: value[0] if isinstance(value, list) else value for other, value in made.items()}


def _merges_experts(converter: WeightConverter) -> bool:
    """Whether it stacks the experts, and lays the pieces of each along its rows."""
    steps = [(type(operation), getattr(operation, "dim", None)) for operation in converter.operations]
    return steps in ([(MergeModulelist, 0)], [(MergeModulelist, 0), (Concatenate, 1)])


def _natural(key: str) -> list[tuple[int, str]]:
    """A sort key: layers and experts by number, as transformers reads them."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in key.split(".")]
