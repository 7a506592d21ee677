"""CONTRIBUTING.md's recipes, followed to the letter in a copy of both packages: one file adds one thing, everywhere."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.pairs import build_pair, write_suite

ROOT = Path(__file__).resolve().parents[2]
#: Makes tables of the plug-ins' own, and asks both command lines, in a process that sees the copy.
PROGRAM = """
import sys
import probes, tv
from probes.cli import main as of_probes
from tv.cli import main as of_tv
from probes.store.schemas import SCHEMAS

base, tuned, suite, out = sys.argv[1:]
tables = tv.measured(base, tuned, {"steps": {"n": 3}, "weights": {}})
assert tables["steps"].groupby(["layer", "module"]).size().eq(3).all()
assert (tv.geometry(base, tuned).largest_step > 0).any() and "largest_step" in SCHEMAS["weights"].names
assert (tv.ssa(base, tuned, null="unmoved").ssa_null == 0).all()
minus = tv.control(tv.extract(base, tuned), "negated", seed=0)
assert minus.cosine(tv.extract(base, tuned)) < -0.999
run = probes.run(suite, out=out)
for name in ("weights", "steps", "gaps", "effects", "behaviour"):
    run[name].to_parquet(f"{out}.{name}.parquet")
assert run.sql("SELECT count(*) AS n FROM gaps").n[0] == len(run["gaps"])
for main, line in (
    (of_tv, ["apply", "--help"]),
    (of_probes, ["attribute", "--help"]),
    (of_tv, ["apply", base, "--add", tuned, "--method", "softened", "--softness", "0.25", "-o", f"{out}/m"]),
):
    sys.argv = ["command", *line]
    try:
        main()
    except SystemExit as end:
        assert not end.code, end.code
    print("end of", *line[:2])
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both packages, with every file of the recipes at its place."""
    directory = tmp_path_factory.mktemp("copy")
    for package in ("tv", "probes"):
        shutil.copytree(ROOT / package, directory / package, ignore=shutil.ignore_patterns("__pycache__"))
    for place, text in recipes():
        assert not (directory / place).exists(), f"{place} is taken"
        (directory / place).write_text(text, encoding="utf-8")
    return directory


def recipes() -> list[tuple[str, str]]:
    """(place, content) of every file that the page tells to write."""
    blocks = re.findall(r"^```python\n# (\S+\.py)\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(), re.M | re.S)
    return [(place, text) for place, text in blocks]


def _call(copy: Path, *arguments: object) -> str:
    environment = os.environ | {"PYTHONPATH": str(copy), "COLUMNS": "400", "TERM": "dumb"}
    ended = subprocess.run(
        [sys.executable, *map(str, arguments)], env=environment, cwd=copy, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended.stdout


def test_the_page_has_a_recipe_for_each_kind() -> None:
    folders = {place.rpartition("/")[0] for place, _ in recipes()}
    assert folders == {
        "tv/arithmetic",
        "tv/arithmetic/methods",
        "tv/measures",
        "tv/prompts/metrics",
        "probes/measures",
        "probes/attribution/methods",
        "probes/reporting/panels",
    }


def test_the_job_and_the_commands_have_what_was_added(copy: Path, tmp_path: Path) -> None:
    base, tuned = build_pair(tmp_path, "llama")
    section = {
        **{"methods": ["graft", "sharpened"], "sharpness": 2.0, "metric": "largest_logit"},
        **{"controls": ["negated"], "curves": False},
    }
    measure = ["gates", "changes", "behaviour", "gaps"]
    suite = write_suite(tmp_path, base, tuned, measure=measure, attribute=section, bootstrap=20, noise_floor=False)
    out = tmp_path / "run"
    told = _call(copy, "-c", PROGRAM, base, tuned, suite, out)
    of_apply, _, rest = told.partition("end of apply --help")
    of_attribute = rest.partition("end of attribute --help")[0]
    assert "softened" in of_apply and "--softness" in of_apply
    assert "sharpened" in of_attribute and "--sharpness" in of_attribute and "largest_logit" in of_attribute
    found = {path.name.split(".")[1]: pd.read_parquet(path) for path in tmp_path.glob("run.*.parquet")}
    assert (
        (found["weights"].largest_step > 0).any()
        and len(found["steps"])
        and set(found["gaps"].site)
        == {
            "attn_out",
            "mlp_out",
        }
    )
    effects = found["effects"].query("granularity == 'component' and control == ''").set_index("method").effect
    assert effects["sharpened"].to_numpy() == pytest.approx(2 * effects["graft"].to_numpy(), rel=1e-4, nan_ok=True)
    assert "negated" in set(found["effects"].control) and "largest_logit" in set(found["behaviour"].metric)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Modules that were counted" in page and "sharpened" in page
    assert (out / "m" / "model.safetensors").exists()
