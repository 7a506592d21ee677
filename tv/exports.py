"""What a package exports, imported when it is first asked for: the help of a command does not wait for torch."""

from __future__ import annotations

import ast
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any


def export(package: str) -> None:
    """Let the names in `__all__` be what the package's own imports under TYPE_CHECKING say, each from its first use on.

    A function may be called as its module is (`tv.path`, of tv/path.py): importing the module does not hide it.
    """
    module = sys.modules[package]
    assert module.__file__ is not None
    source = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(source) if isinstance(node, ast.ImportFrom) and node.module]
    homes = {alias.name: str(node.module) for node in imports for alias in node.names}
    vars(module)["_homes"] = {name: homes[name] for name in vars(module)["__all__"]}
    module.__class__ = _Package


class _Package(ModuleType):
    _homes: Mapping[str, str]  # name → module

    def __getattr__(self, name: str) -> Any:
        if name not in self._homes:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        home = self._homes[name]
        value = import_module(f"{home}.{name}") if home == self.__name__ else getattr(import_module(home), name)
        super().__setattr__(name, value)
        return value

    def __setattr__(self, name: str, value: object) -> None:
        if name in self._homes and isinstance(value, ModuleType):
            return  # the import of a submodule sets it, but the name is the function's
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._homes})
