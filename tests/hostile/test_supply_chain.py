"""What `make install` brings is locked, to the last package of a package: on Linux, with torch for the CPU.

A torch for CUDA brings NVIDIA's libraries and triton at the versions that it was built with; they are its own affair.
"""

import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]


def _needed() -> dict[str, str]:
    """Version by name of every package here that our own requirements lead to, with the extras of the Makefile."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = re.findall(r"--editable '\.\[([\w,]+)\]'", (ROOT / "Makefile").read_text())
    chosen = [project["optional-dependencies"][extra] for extra in ",".join(extras).split(",")]
    todo = [Requirement(line) for lines in (project["dependencies"], *chosen) for line in lines]
    found, seen = dict[str, str](), set[tuple[str, frozenset[str]]]()
    while todo:
        wanted = todo.pop()
        key = (canonicalize_name(wanted.name), frozenset(wanted.extras))
        if key not in seen and not _of_cuda(key[0]):
            seen.add(key)
            try:
                found[key[0]] = Version(version(wanted.name)).public
            except PackageNotFoundError:  # of an extra that this environment was made without
                continue
            todo += _required_by(wanted)
    return found


def _of_cuda(name: str) -> bool:
    return name.startswith(("nvidia-", "cuda-")) or name == "triton"


def _required_by(wanted: Requirement) -> Iterator[Requirement]:
    for line in requires(wanted.name) or []:
        other = Requirement(line)
        if other.marker is None or any(other.marker.evaluate({"extra": extra}) for extra in (*wanted.extras, "")):
            yield other


def test_every_package_is_locked_at_the_version_that_is_here() -> None:
    locked = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines())
    pins = {canonicalize_name(name): Version(pin).public for name, pin in locked.items()}
    needed = _needed()
    assert len(needed) > 100
    assert {name: pins.get(name) for name in needed} == needed
