"""A file of rules, checked key by key before anything is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import ValidationError

from probes.gating.rule import RULES, Rule, RuleError
from tv.errors import choices
from tv.runtime.yaml_file import YamlFile, read_yaml

#: A YAML file, or the same as a list of mappings.
RuleSource: TypeAlias = str | Path | Sequence[Mapping[str, Any]]
_NAME = "name"


@dataclass(frozen=True)
class Written:
    """A rule as it was written, and where."""

    rule: Rule
    name: str  # "" without one
    place: str  # "gate.yaml: line 3"


def load_rules(source: RuleSource) -> list[Written]:
    """Read and check a file of rules.

    Args:
        source: A YAML file with a list of rules, or the list itself. A rule is a mapping of its kind to its keys, and
            may have a `name` beside.

    Returns:
        The rules.

    Raises:
        RuleError: One line with the first mistake, its line and, of a name that is nearly right, what was meant.

    Examples:
        >>> [written] = load_rules([{"check": "completeness", "name": "attribution is right"}])
        >>> written.rule.kind, written.name
        ('check', 'attribution is right')
    """
    file: YamlFile | None = None
    data: Any = source
    where = "rules"
    if isinstance(source, str | Path):
        where = str(source)
        file = read_yaml(Path(source), RuleError, "rules")
        data = None if file is None else file.data
    if not isinstance(data, Sequence) or isinstance(data, str) or not data:
        raise RuleError(f"{where}: rules are a list that is not empty; write one a line: - kl: {{at_most: 0.1}}")
    return [_written(item, i, where, file) for i, item in enumerate(data)]


def _written(item: Any, i: int, where: str, file: YamlFile | None) -> Written:
    place = f"{where}: line {file.line([i])}" if file else f"{where}: rule {i + 1}"
    if not isinstance(item, Mapping):
        raise RuleError(f"{place}: a rule is a mapping of its kind to its keys, not {item!r}")
    kinds = [key for key in item if key != _NAME]
    for kind in kinds:
        if kind not in RULES:
            raise RuleError(f"{place}: no kind of rule {kind!r}{choices(kind, RULES)}")
    if len(kinds) != 1:
        raise RuleError(f"{place}: a rule has one kind, not {' and '.join(kinds) or 'none'}; begin each with a dash")
    kind, name = kinds[0], item.get(_NAME, "")
    if not isinstance(name, str):
        raise RuleError(f"{place}: name: should be text, not {name!r}")
    form = RULES[kind]
    keys = {form.shorthand: item[kind]} if form.shorthand and isinstance(item[kind], str) else item[kind]
    keys = {} if keys is None else keys
    if not isinstance(keys, Mapping):
        raise RuleError(f"{place}: {kind}: should be a mapping of keys to values, not {keys!r}")
    try:
        return Written(form.model_validate(dict(keys)), name, place)
    except ValidationError as error:
        raise RuleError(_sentence(error, form, [i, kind], place, file)) from None


def _sentence(error: ValidationError, form: type[Rule], keys: list[Any], place: str, file: YamlFile | None) -> str:
    """The first mistake; an unknown key comes first, as others may follow from it."""
    mistake = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    loc = [part for part in mistake["loc"] if isinstance(part, str)]
    if file is not None:
        place = f"{place.rpartition(': line ')[0]}: line {file.line([*keys, *loc])}"
    path = ".".join([form.kind, *loc])
    allowed = list(form.model_fields)
    if mistake["type"] == "extra_forbidden":
        return f"{place}: {path}: unknown key{choices(loc[-1], allowed)}"
    if mistake["type"] == "missing":
        return f"{place}: {path}: missing; add this key"
    message = (
        str(mistake["msg"]).removeprefix("Value error, ").replace("Input should", "should").replace("tuple", "list")
    )
    return (
        f"{place}: {path}: {message}"
        if mistake["type"] == "value_error"
        else f"{place}: {path}: {message}, not {mistake['input']!r}"
    )
