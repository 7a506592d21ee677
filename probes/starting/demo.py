"""The demo's suite with its models and prompts, wherever this package is installed."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path

from probes.errors import RunError
from tv.runtime.atomic import replacing_directory
from tv.runtime.cache_folder import VARIABLE, cache_folder

_PACKAGE = Path(__file__).parents[1]
_PACKED, _CHECKOUT = _PACKAGE / "demo.tar.bz2", _PACKAGE.parent / "data"
_SUITE = Path("suites", "demo.yaml")


def demo_suite() -> Path:
    """The suite of `probes demo`, with its models and prompts beside it.

    A checkout has them in data/. An installed package has them in an archive, which is unpacked once, into the cache
    folder.

    Returns:
        The path of demo.yaml.

    Raises:
        RunError: Neither is there, or the archive cannot be unpacked.

    Examples:
        >>> demo_suite().name
        'demo.yaml'
    """
    if not _PACKED.is_file():
        if not (_CHECKOUT / _SUITE).is_file():
            raise RunError(f"{_PACKED}: the demo is missing from this installation; install the package again")
        return _CHECKOUT / _SUITE
    cache = cache_folder("demo")
    if cache is None:
        raise RunError(f"the demo is unpacked into a folder of its own, and ${VARIABLE} is off; set it to a folder")
    folder = cache / hashlib.sha256(_PACKED.read_bytes()).hexdigest()[:12]
    if not folder.is_dir():
        _unpack(folder)
    return folder / _SUITE


def _unpack(folder: Path) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with replacing_directory(folder, RunError) as temporary, tarfile.open(_PACKED) as archive:
            archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.4 brought it
            archive.extractall(temporary)
    except (OSError, EOFError, tarfile.TarError) as error:
        raise RunError(f"{folder}: the demo cannot be unpacked there: {error}") from error
