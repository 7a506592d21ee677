"""A YAML file as plain values, and the line of each value for error messages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tv.errors import InputError

#: The longest file of settings: YAML is slow to read.
MOST_BYTES = 2**20


@dataclass(frozen=True)
class YamlFile:
    """The values of a file, and their lines."""

    data: Any
    node: yaml.Node

    def line(self, keys: Sequence[int | str]) -> int:
        """The line of a value, from 1.

        Args:
            keys: The keys and indices that lead to it; for a missing value, those of what should hold it.

        Examples:
            >>> text = "name: demo\\nprompts:\\n- file: a.jsonl\\n"
            >>> YamlFile(yaml.safe_load(text), yaml.compose(text)).line(["prompts", 0, "file"])
            3
        """
        node, line = self.node, self.node.start_mark.line
        for key in keys:
            if isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
                node = node.value[key]
                line = node.start_mark.line
            elif isinstance(node, yaml.MappingNode):
                pair = next(((name, value) for name, value in node.value if name.value == str(key)), None)
                if pair is None:
                    break
                line, node = pair[0].start_mark.line, pair[1]
            else:
                break
        return line + 1


def read_yaml(path: Path, error: type[InputError], what: str) -> YamlFile | None:
    """The values of a YAML file of plain types; None for a file that holds nothing.

    Args:
        path: The file.
        error: What to raise.
        what: What the file is, for messages: "suite".

    Raises:
        InputError: As `error`, in one line with its place: no such file, not text, too long, not YAML, another type, or
            a key that is given twice.
    """
    text = _text(path, error, what)
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is None:
            return None
        _refuse_twin_keys(node, path, error)
        return YamlFile(yaml.safe_load(text), node)
    except yaml.YAMLError as mistake:
        mark = getattr(mistake, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        problem = getattr(mistake, "problem", None) or str(mistake).split("\n")[0]
        raise error(f"{path}: {line}not valid YAML: {problem}") from None
    except (ValueError, RecursionError) as mistake:
        raise error(f"{path}: not valid YAML: {str(mistake).split(chr(10))[0]}") from None


def _text(path: Path, error: type[InputError], what: str) -> str:
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            raise error(f"{path}: {size:,} bytes are no {what}; prompts go into files of their own")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise error(f"{path}: no such {what} file") from None
    except UnicodeDecodeError:
        raise error(f"{path}: not UTF-8 text; save the {what} as UTF-8") from None
    except OSError as mistake:
        raise error(f"{path}: cannot be read: {mistake.strerror}") from None


def _refuse_twin_keys(root: yaml.Node, path: Path, error: type[InputError]) -> None:
    """Refuse duplicate keys: YAML forbids them, but its parsers let the last one win."""
    todo, seen = [root], set()
    while todo:
        node = todo.pop()
        if id(node) in seen:  # an alias may point back at its parent
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            todo += node.value
        elif isinstance(node, yaml.MappingNode):
            lines: dict[str, int] = {}
            for key, value in node.value:
                line = key.start_mark.line + 1
                if isinstance(key, yaml.ScalarNode) and lines.setdefault(key.value, line) != line:
                    raise error(f"{path}: line {line}: {key.value}: already given on line {lines[key.value]}")
                todo.append(value)
