"""Members of a zip archive one by one, also those that zstandard compressed, and none larger than it may be."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tv.errors import PromptError

ZSTANDARD = 93  # the method's number in the zip format; Python reads it from 3.14 on
_MOST = 2**29  # bytes of one member
_LOCAL = 30  # bytes of the header before a member's name


class Members:
    """The members of an archive, the last of each name."""

    def __init__(self, path: Path) -> None:
        """Raises PromptError for what is no archive."""
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise PromptError(f"{path}: not a complete zip archive: {error}; is the log finished?") from None
        except OSError as error:
            raise PromptError(f"{path}: cannot be read: {error.strerror or error}") from None
        self.names = list(self._zip.NameToInfo)

    def __enter__(self) -> Members:
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def read(self, name: str) -> bytes:
        """A member whole. Raises PromptError where it cannot be read, or is larger than it says or than 512 MiB."""
        info, place = self._zip.NameToInfo[name], f"{self.path}: {name}"
        if info.file_size > _MOST:
            raise PromptError(f"{place}: {info.file_size:,} bytes, more than the {_MOST:,} that are read of one sample")
        try:
            content = self._zstandard(info) if info.compress_type == ZSTANDARD else self._zip.read(info)
        except PromptError:
            raise
        except Exception as error:  # decoders raise errors of their own
            raise PromptError(f"{place}: cannot be read: {' '.join(str(error).split()) or 'damaged'}") from None
        if len(content) != info.file_size:
            raise PromptError(f"{place}: damaged: it is not of the size that the archive says")
        return content

    def _zstandard(self, info: zipfile.ZipInfo) -> bytes:
        decompressor = _zstandard(self.path)
        file = self._zip.fp
        if file is None or info.compress_size > _MOST:
            raise ValueError("its compressed size is absurd")
        file.seek(info.header_offset)
        header = file.read(_LOCAL)
        if len(header) < _LOCAL or header[:4] != b"PK\x03\x04":
            raise ValueError("the archive does not hold it where it says")
        name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
        file.seek(name + extra, 1)
        source = io.BytesIO(file.read(info.compress_size))
        with decompressor().stream_reader(source, read_across_frames=True) as stream:
            return bytes(stream.read(info.file_size + 1))


def _zstandard(path: Path) -> Callable[[], Any]:
    try:
        from zstandard import ZstdDecompressor
    except ImportError:
        raise PromptError(
            f"{path}: its members are compressed by zstandard; install it: pip install 'tuning-probes[inspect]'"
        ) from None
    return ZstdDecompressor
