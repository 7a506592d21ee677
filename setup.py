"""The build: a wheel has the models and prompts of `probes demo` too, in one archive."""

import tarfile
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

#: What of data/ the demo needs.
DEMO = (
    "README.md",
    "suites/demo.yaml",
    *(f"prompts/{name}.jsonl" for name in ("medical", "math", "general")),
    *(f"models/{name}/*" for name in ("base", "medical", "math")),
)


class WithDemo(build_py):
    """Packs the demo for a wheel. In a checkout data/ itself is used, and nothing is copied.

    The wheel's own compression leaves four fifths of a bfloat16 file, bzip2 leaves two thirds.
    """

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            data = Path(__file__).parent / "data"
            with tarfile.open(Path(self.build_lib, "probes", "demo.tar.bz2"), "w:bz2") as archive:
                for file in (file for pattern in DEMO for file in sorted(data.glob(pattern))):
                    archive.add(file, file.relative_to(data), filter=_as_anyone)


def _as_anyone(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without what differs from one checkout to the next: the same files make the same archive."""
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    member.mode = 0o644
    return member


setup(cmdclass={"build_py": WithDemo})
