"""What packages export: there when asked for, and not loaded before."""

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import probes
import tv
import tv.path  # the module, which must not hide the function

HEAVY = "torch transformers pandas pyarrow plotly"
#: Runs command lines one after the other in this process, and tells which of these are loaded then.
PROGRAM = """
import os, sys
import probes.cli, tv.cli

def call(line):
    sys.argv = line.split()
    try:
        (tv.cli if sys.argv[0] == "tv" else probes.cli).main()
    except SystemExit:
        pass

lines, heavy = sys.argv[1].split(";"), sys.argv[2].split()
for line in lines:
    call(line)
os.environ |= {"_TV_COMPLETE": "complete_bash", "COMP_WORDS": "tv ss", "COMP_CWORD": "1"}
call("tv")
print()
print("loaded:", *(name for name in heavy if name in sys.modules))
"""


@pytest.mark.parametrize("package", [tv, probes], ids=["tv", "probes"])
def test_all_that_is_promised_is_there(package: ModuleType) -> None:
    for name in package.__all__:
        assert isinstance(getattr(package, name), ModuleType) == (name == "plot"), name
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        package.nothing  # noqa: B018


def test_a_function_is_not_hidden_by_the_module_of_its_name() -> None:
    assert callable(tv.path) and importlib.import_module("tv.path") is not tv.path


@pytest.mark.parametrize("module_first", [True, False])
def test_in_either_order(module_first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a package of its own, since this process has loaded tv long ago."""
    name = f"exporting_{module_first}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "walk.py").write_text("def walk():\n    return 'walked'\n")
    (tmp_path / name / "__init__.py").write_text(
        "from typing import TYPE_CHECKING\nfrom tv.exports import export\nif TYPE_CHECKING:\n"
        f"    from {name}.walk import walk\n__all__ = ['walk']\nexport(__name__)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    package = importlib.import_module(name)
    assert f"{name}.walk" not in sys.modules
    if module_first:
        importlib.import_module(f"{name}.walk")
    assert package.walk() == "walked"
    importlib.import_module(f"{name}.walk")
    assert package.walk() == "walked"


def test_help_and_bad_usage_and_completion_load_nothing_heavy() -> None:
    lines = "tv --help;tv ssa --help;tv ssa;probes --help;probes run --help;probes run --fast"
    done = subprocess.run([sys.executable, "-c", PROGRAM, lines, HEAVY], capture_output=True, text=True, check=False)
    assert "Subspace alignment" in done.stdout and "No such option: --fast" in done.stderr and "\nssa\n" in done.stdout
    assert done.stdout.splitlines()[-1] == "loaded:"
