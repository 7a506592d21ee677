"""The plugin in a pytest of its own."""

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import yaml

from tests.docs.commands import ROOT
from tests.probes.gating.runs import written

_TESTS = """
import pytest

@pytest.mark.probes_gate(run="run", rules="{rules}"{more})
def test_it_may_ship(gate):
    assert gate.passed and len(gate.ruled) == 1
"""


def _run(directory: Path, *options: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "probes.gating.pytest_plugin", "-p", "no:cacheprovider"]
    ended = subprocess.run([*command, *options], cwd=directory, capture_output=True, text=True, env=_environment())
    return ended.returncode, ended.stdout + ended.stderr


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


def test_marked_tests_hold_where_the_rules_pass(tmp_path: Path) -> None:
    written(tmp_path / "run", {"general": 0.3, "medical": -1.0})
    for name, size in (("fails", 0.05), ("passes", 0.5), ("unsure", 0.3)):
        rule = {"metric": "target_nll", "domain": "general", "worse_by_at_most": size}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump([{"behaviour": rule, "name": "kept"}]))
        text = _TESTS.format(rules=f"{name}.yaml", more="")
        (tmp_path / f"test_{name}.py").write_text(text)
    (tmp_path / "test_skips.py").write_text(_TESTS.format(rules="unsure.yaml", more=', cannot_tell="skip"'))
    (tmp_path / "test_typo.py").write_text(_TESTS.format(rules="no.yaml", more=""))
    status, said = _run(tmp_path, "-p", "xdist.plugin", "-n", "1", "--strict-markers", "--junitxml=found.xml")
    assert status == 1 and "2 failed, 1 passed, 1 skipped, 1 error" in said, said
    assert "kept (tuned): fail: 0.3 nats" in said and "no.yaml: no such rules file" in said
    cases = ElementTree.parse(tmp_path / "found.xml").getroot().iter("testcase")
    verdicts = {case.get("classname"): {p.get("name"): p.get("value") for p in case.iter("property")} for case in cases}
    assert verdicts["test_fails"] == {"gate": "fail", "gate: kept (tuned)": "fail"}
    assert verdicts["test_passes"]["gate"] == "pass"


def test_it_is_light_where_no_test_is_marked(tmp_path: Path) -> None:
    heavy = "torch numpy pandas probes.gating.verdicts yaml"
    (tmp_path / "test_none.py").write_text(
        f"import sys\n\ndef test_none():\n    assert not set('{heavy}'.split()) & set(sys.modules)\n"
    )
    status, said = _run(tmp_path)
    assert status == 0, said
