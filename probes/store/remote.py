"""Runs at a URL that fsspec reaches: s3://bucket/run, gs://…, memory://…. A file there is whole or absent."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from getpass import getuser
from pathlib import Path
from typing import TypeAlias
from urllib.parse import quote

import fsspec
from fsspec import AbstractFileSystem

from probes.errors import RunError
from tv.errors import InputError, first_line


class Url(str):
    """The place of a run, or of a file of one, as fsspec knows it. `/` joins, as with a Path."""

    def __truediv__(self, name: str) -> Url:
        return Url(f"{self.rstrip('/')}/{name}")


Place: TypeAlias = Path | Url


def place_of(source: str | Path) -> Place:
    """A path, or a URL where it looks like one."""
    return Url(source) if isinstance(source, str) and "://" in source else Path(source)


def staging(url: Url) -> Path:
    """Where a run is built on this machine before it is complete at its URL: the same at every attempt."""
    return Path(tempfile.gettempdir()) / f"probes-{getuser()}" / quote(url, safe="")


@contextmanager
def system_of(url: Url) -> Iterator[tuple[AbstractFileSystem, str]]:
    """The file system behind a URL, and the URL's path on it. Its errors become RunErrors of one line."""
    try:
        system, path = fsspec.url_to_fs(url)
        system.invalidate_cache()
        yield system, path.rstrip("/")
    except InputError:
        raise
    except ImportError as error:  # the packages for s3://, gs://, … are installed separately
        raise RunError(f"{url}: {first_line(error)} (for s3://, tuning-probes[s3])") from error
    except Exception as error:  # every file system raises different exceptions
        raise RunError(f"{url}: {first_line(error)}; check the address and the credentials for it") from error


def sizes(url: Url) -> dict[str, int]:
    """Bytes of every file below a URL, by path below it; {} where there is nothing."""
    with system_of(url) as (system, root):
        entries = system.find(root, detail=True)
        return {path[len(root) + 1 :]: int(entry["size"]) for path, entry in entries.items() if path != root}


def read(url: Url) -> bytes | None:
    """A file's content; None where there is no file."""
    with system_of(url) as (system, path):
        return bytes(system.cat_file(path)) if system.isfile(path) else None


def content_of(place: Place) -> bytes | None:
    """The content of a file here or at a URL; None where there is no file."""
    if isinstance(place, Url):
        return read(place)
    return place.read_bytes() if place.is_file() else None


def require_writable(url: Url) -> None:
    """Raise RunError where no file can be put below a URL."""
    with system_of(url) as (system, root):
        system.pipe_file(f"{root}/.writable", b"")
        system.rm_file(f"{root}/.writable")


def upload(directory: Path, url: Url, names: Sequence[str] | None = None) -> dict[str, str]:
    """Put files of `directory` (all, or those of these relative names) below a URL; return their URLs by name."""
    local_names = [path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()]
    with system_of(url) as (system, root):
        for name in local_names if names is None else names:
            system.put_file(str(directory / name), f"{root}/{name}")
    return {name: url / name for name in (local_names if names is None else names)}


def fetch(files: Mapping[str, str], directory: Path) -> None:
    """Download what `upload` put elsewhere into `directory`, under the same names."""
    for name, place in files.items():
        target = directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with system_of(Url(place)) as (system, path):
            system.get_file(path, str(target))


def publish(directory: Path, names: Sequence[str], url: Url, via: Url, *, last: str) -> None:
    """Make the files of `directory` the only ones below a URL, with `last` last: it says that the rest is there.

    A file below `via` of the same name is copied from there instead of uploaded; `via` is removed at the end.
    """
    remove(url, [last])
    near = sizes(via)
    with system_of(url) as (system, root):
        _, start = fsspec.url_to_fs(via)
        for name in near.keys() & set(names):
            system.cp_file(f"{start.rstrip('/')}/{name}", f"{root}/{name}")
    upload(directory, url, [name for name in names if name not in near and name != last])
    remove(url, [name for name in sizes(url) if name not in names])
    upload(directory, url, [last])
    remove(via)


def remove(url: Url, names: Sequence[str] | None = None) -> None:
    """Remove files below a URL: all, or those of these names that are there."""
    there = sizes(url)
    with system_of(url) as (system, root):
        for name in there if names is None else [name for name in names if name in there]:
            system.rm_file(f"{root}/{name}")
