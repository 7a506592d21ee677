"""Size and first text of a report, in a browser: `python benchmarks/report_page.py RUN [--before FOLDER]`.

`RUN` is a finished run, such as reports/demo. Each round writes its report with this build and, if given, with the
build in FOLDER, and opens both in a fresh Chromium: until the first text is painted, until the page is loaded, and how
tall it is on a phone. Needs Chromium and playwright.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright
from results import add_option, allowed, ratio, report

HERE = Path(__file__).resolve().parent.parent
_WRITE = "import sys, pathlib, probes; probes.report(probes.load(sys.argv[1]), to=pathlib.Path(sys.argv[2]))"
_PHONE, _DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
#: What is measured of a page, with its unit.
_UNITS = {"size": "MB", "first text": "s", "loaded": "s", "height on a phone": "px"}
#: What a page of the demo may take at most.
_MOST = {"size": 6, "first text": 1}


def main() -> None:
    """Rounds of every build in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--before", type=Path, help="a checkout of the build to compare with")
    parser.add_argument("--rounds", type=int, default=5)
    add_option(parser)
    options = parser.parse_args()
    builds = {"ours": HERE, **({"before": options.before} if options.before else {})}
    found: dict[str, dict[str, list[float]]] = {name: {what: [] for what in _UNITS} for name in builds}
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        pages = {name: _written(place, options.run, Path(folder) / f"{name}.html") for name, place in builds.items()}
        for _ in range(options.rounds):
            for name, page in pages.items():
                browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
                for what, value in _measured(browser, page).items():
                    found[name][what].append(value)
                browser.close()
    for what, unit in _UNITS.items():
        for name in builds:
            values = found[name][what]
            print(f"{what}, {name}: {statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f}) {unit}")
    ratios = [allowed(f"report of the demo, {w}", most, _UNITS[w], found["ours"][w]) for w, most in _MOST.items()]
    if options.before:
        ratios += [
            ratio(f"report of the demo, {w}", ("before", found["before"][w]), ("ours", found["ours"][w]))
            for w in _UNITS
        ]
    report(ratios, options.json)


def _written(build: Path, run: Path, page: Path) -> Path:
    environment = os.environ | {"PYTHONPATH": str(build)}
    subprocess.run([sys.executable, "-P", "-c", _WRITE, str(run.resolve()), str(page)], check=True, env=environment)
    return page


def _measured(browser: Browser, page: Path) -> dict[str, float]:
    opened = browser.new_page(viewport=_DESK)
    opened.goto(page.as_uri())
    opened.wait_for_timeout(500)
    painted = opened.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    loaded = opened.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
    opened.set_viewport_size(_PHONE)
    opened.reload()
    height = opened.evaluate("document.documentElement.scrollHeight")
    opened.close()
    size = page.stat().st_size / 1e6
    return {"size": size, "first text": painted / 1e3, "loaded": loaded / 1e3, "height on a phone": float(height)}


if __name__ == "__main__":
    main()
