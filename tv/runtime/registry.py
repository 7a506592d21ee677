"""Extension by one file: functions register themselves by name where they are defined.

A registry imports the files of its rooms that use its decorator, when it is first asked. Another package adds entries
by an entry point of the group "tuning_probes", whose value is the module to import.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Generic, TypeVar

from tv.errors import InputError, choices

#: The entry points of packages that register functions.
GROUP = "tuning_probes"

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """The entries of one kind by name, in the order of their files and of their lines in a file."""

    def __init__(self, kind: str, *rooms: str, by: str = "") -> None:
        """Args:
        kind: What an entry is, for messages: "merge method".
        rooms: Packages whose modules register entries, such as "tv.arithmetic.methods".
        by: The decorator that registers: files that do not name it are not imported. Without it, all are.
        """
        self.kind, self._rooms, self._by = kind, rooms, by
        self._entries: dict[str, tuple[str, T]] = {}  # name → (module, entry)
        self._loaded = False

    def add(self, name: str, entry: T, module: str) -> T:
        """Register `entry`. Raises ValueError where another module has taken the name."""
        taken = self._entries.get(name)
        if taken is not None and taken[0] != module:
            raise ValueError(f"{self.kind} {name!r} is registered by {taken[0]} and by {module}; rename one")
        self._entries[name] = module, entry
        return entry

    def replace(self, name: str, entry: T) -> None:
        """Replace an existing entry; it keeps its place in the order."""
        self._load()
        self._entries[name] = self._entries[name][0], entry

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator: the function becomes the entry of this name.

        Examples:
            >>> greetings = Registry("greeting")
            >>> @greetings.register("hello")
            ... def hello() -> str:
            ...     return "hello"
            >>> list(greetings), greetings["hello"]()
            (['hello'], 'hello')
        """

        def decorate(entry: T) -> T:
            return self.add(name, entry, str(getattr(entry, "__module__", "")))

        return decorate

    def __getitem__(self, name: str) -> T:
        self._load()
        return self._entries[name][1]

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(sorted(self._entries, key=lambda name: self._entries[name][0]))  # stable: by line within a file

    def __len__(self) -> int:
        self._load()
        return len(self._entries)

    def one(self, name: str) -> T:
        """The entry of this name. Raises InputError, which lists the names that exist, for another."""
        if name not in self:
            raise InputError(f"no {self.kind} {name!r}{choices(name, self)}")
        return self[name]

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True  # set first: modules may ask for entries while they are imported
        for room in self._rooms:
            for module in pkgutil.iter_modules(import_module(room).__path__):
                if self._registers(module):
                    import_module(f"{room}.{module.name}")
        for point in entry_points(group=GROUP):
            import_module(point.value)

    def _registers(self, module: pkgutil.ModuleInfo) -> bool:
        """Whether a module may register entries: it names the decorator, or its text is not at hand."""
        file = Path(getattr(module.module_finder, "path", ""), f"{module.name}.py")
        return not self._by or not file.is_file() or self._by in file.read_text(encoding="utf-8")
