"""What a wheel has beside the code: the demo, and no more than a small download."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from probes.starting import demo
from probes.suite import load_suite
from tests.docs.commands import ROOT

SOURCES = (
    *("tv", "probes", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"),
    *(f"data/{name}" for name in ("README.md", "suites", "prompts", "models/base", "models/medical", "models/math")),
)
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"


def _build(what: str, directory: Path) -> Path:
    """The file that a build without isolation makes of a project."""
    asked = [sys.executable, "-c", BUILD, what, str(directory)]
    done = subprocess.run(asked, cwd=directory, check=True, capture_output=True, text=True)
    return directory / done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_the_wheel_of_a_source_distribution_has_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a package index has them: a source distribution, and the wheel that is built of it alone."""
    project = tmp_path / "project"
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        copy(ROOT / name, project / name)
    with tarfile.open(_build("build_sdist", project)) as sources:
        sources.extractall(tmp_path / "sources", filter="data")
    (unpacked,) = (tmp_path / "sources").iterdir()
    wheel = _build("build_wheel", unpacked)
    assert wheel.stat().st_size <= 12_000_000
    with zipfile.ZipFile(wheel) as files:
        packed = files.read("probes/demo.tar.bz2")
        assert {"probes/reporting/style.css", "probes/gating/texts.txt", "tv/py.typed"} <= {*files.namelist()}

    # The package as it is installed: the archive beside the code, and no data/.
    (tmp_path / "demo.tar.bz2").write_bytes(packed)
    monkeypatch.setattr(demo, "_PACKED", tmp_path / "demo.tar.bz2")
    monkeypatch.setenv("TUNING_PROBES_CACHE", str(tmp_path / "cache"))
    suite = demo.demo_suite()
    folder = suite.parents[1]
    assert folder.parent == tmp_path / "cache" / "demo" and demo.demo_suite() == suite
    files = {str(file.relative_to(folder)): file for file in folder.rglob("*") if file.is_file()}
    assert {"README.md", "models/base/model.safetensors", "models/medical/tokenizer.json"} <= {*files}
    assert all(file.read_bytes() == (ROOT / "data" / name).read_bytes() for name, file in files.items())
    chosen = load_suite(suite)
    assert [*chosen.tuned] == ["medical", "math"] and all(prompts.file for prompts in chosen.prompts)
