"""Where what can be made again is kept between runs, and how a file of it is known to be whole."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from tv.errors import InputError
from tv.runtime.atomic import replacing

#: A folder in place of the usual one; "off" for none.
VARIABLE = "TUNING_PROBES_CACHE"
_KEPT = 200  # files of one kind; the oldest go


def cache_folder(kind: str) -> Path | None:
    """The folder for one kind of files; None where caching is off, or there is no home.

    It lies under $TUNING_PROBES_CACHE, or tuning-probes under $XDG_CACHE_HOME, or under ~/.cache.

    Examples:
        >>> os.environ["TUNING_PROBES_CACHE"] = "off"
        >>> cache_folder("trees") is None
        True
    """
    chosen = os.environ.get(VARIABLE)
    if chosen:
        return None if chosen == "off" else Path(chosen).expanduser() / kind
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home, "tuning-probes", kind) if os.path.isabs(home) else None


def read_cached(file: Path) -> Any:
    """The JSON value that `write_cached` wrote; None where it is missing, damaged or another's."""
    try:
        digest, _, text = file.read_text(encoding="utf-8").partition("\n")
        return json.loads(text) if digest == _digest(text) else None
    except (OSError, ValueError, RecursionError):
        return None


def write_cached(file: Path, value: Any) -> None:
    """Write a JSON value, whole or not at all. Where that fails nothing is said: it is made again next time."""
    text = json.dumps(value, separators=(",", ":"))
    with suppress(OSError, InputError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file, InputError) as temporary:
            temporary.write_text(f"{_digest(text)}\n{text}", encoding="utf-8")
        others = sorted(file.parent.glob(f"*{file.suffix}"), key=lambda other: other.stat().st_mtime, reverse=True)
        for old in others[_KEPT:]:
            old.unlink()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
