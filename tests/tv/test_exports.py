"""What packages export: there when asked for, not loaded before, and never in the place of a module."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import probes
import tv

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
PACKAGES = pytest.mark.parametrize("package", [tv, probes], ids=["tv", "probes"])


@PACKAGES
def test_all_that_is_promised_is_there(package: ModuleType) -> None:
    for name in package.__all__:
        assert isinstance(getattr(package, name), ModuleType) == (name in ("experiments", "plot")), name
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        package.nothing  # noqa: B018


@PACKAGES
def test_type_checkers_are_told_the_same(package: ModuleType) -> None:
    """The imports under TYPE_CHECKING, and the table that they are done by when a program runs."""
    imports = [
        node for node in ast.walk(ast.parse(Path(package.__file__).read_text())) if isinstance(node, ast.ImportFrom)
    ]
    told = {(alias.asname, node.module) for node in imports for alias in node.names if alias.asname}
    assert told == set(package._HOMES.items())


@PACKAGES
def test_an_imported_module_is_the_module(package: ModuleType) -> None:
    """`import tv.measures.ssa as m` binds the module: nothing a package exports takes the place of one of its files."""
    modules = [found.name for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    modules = [name for name in modules if not name.endswith("__main__")]
    assert len(modules) > 60
    for name in modules:
        importlib.import_module(name)
    for name in modules:
        folder, _, leaf = name.rpartition(".")
        assert getattr(sys.modules[folder], leaf) is sys.modules[name]


def test_help_and_bad_usage_and_completion_load_nothing_heavy() -> None:
    lines = "tv --help;tv ssa --help;tv ssa;probes --help;probes run --help;probes run --fast"
    done = subprocess.run([sys.executable, "-c", PROGRAM, lines, HEAVY], capture_output=True, text=True, check=False)
    assert "subspace alignment (SSA)" in done.stdout and "no option --fast" in done.stderr and "\nssa\n" in done.stdout
    assert done.stdout.splitlines()[-1] == "loaded:"
