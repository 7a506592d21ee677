"""SHA-256 of what a run consists of: its manifest lists every file, and says its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from probes.errors import RunError
from probes.store import remote
from probes.store.remote import Place, Url

#: The manifest's keys for the digests of files by their path in the run, and for that of all its other keys.
FILES, OWN = "digests", "sha256"
_PIECE = 2**22


def digest_of(manifest: Mapping[str, Any]) -> str:
    """The SHA-256 of a manifest, its own digest aside; the order of keys does not matter."""
    rest = {key: value for key, value in manifest.items() if key != OWN}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def file_digest(place: Place, read: Callable[[int], None] | None = None) -> str:
    """The SHA-256 of a file, also at a URL. `read` gets the number of bytes read since it was last called."""
    digest = hashlib.sha256()
    with _opened(place) as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
            if read is not None:
                read(len(piece))
    return digest.hexdigest()


def digests_of(directory: Path, below: tuple[str, ...]) -> dict[str, str]:
    """The digests of all files of a run that lie in, or are, one of `below`."""
    roots = [directory / name for name in below]
    files = [path for root in roots for path in ([root] if root.is_file() else root.rglob("*")) if path.is_file()]
    return {path.relative_to(directory).as_posix(): file_digest(path) for path in sorted(files)}


def sizes_of(place: Place) -> dict[str, int]:
    """Bytes of every file of a run, by its path there."""
    if isinstance(place, Url):
        return remote.sizes(place)
    files = (path for path in place.rglob("*") if path.is_file())
    return {path.relative_to(place).as_posix(): path.stat().st_size for path in sorted(files)}


@contextmanager
def _opened(place: Place) -> Iterator[IO[bytes]]:
    if isinstance(place, Url):
        with remote.system_of(place) as (system, path), system.open(path, "rb") as file:
            yield file
        return
    try:
        with open(place, "rb") as file:
            yield file
    except OSError as error:
        raise RunError(f"{place}: cannot be read: {error.strerror}") from error
