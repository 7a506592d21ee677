"""Take the pictures of the README: `python docs/images/shots.py RUN`, a finished run of the demo with its report.

`report.png` is the top of the report, `view.png` the live page after one prompt. Needs Chromium and playwright.
"""

from __future__ import annotations

import shutil
import sys
import threading
from pathlib import Path
from queue import Queue
from typing import Any

from playwright.sync_api import sync_playwright

import probes
from probes.viewing.server import serve
from probes.viewing.session import Session

HERE = Path(__file__).parent
SIZE = {"width": 1280, "height": 900}
#: The component that the picture of the live page takes from the tuned model.
MOVED = "unembed"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def take(run: Path) -> None:
    """Take both."""
    program = next(filter(None, map(shutil.which, BROWSERS)))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE, color_scheme="light")
        page.goto((run / "report.html").resolve().as_uri())
        page.wait_for_timeout(2000)  # figures draw as they come into view
        page.screenshot(path=HERE / "report.png")
        _view(page, run)
        browser.close()


def _view(page: Any, run: Path) -> None:
    addresses: Queue[str] = Queue()
    work = {"open_browser": False, "told": addresses.put}
    threading.Thread(target=serve, args=(Session([probes.load(run)]),), kwargs=work, daemon=True).start()
    page.goto(addresses.get(timeout=60))
    page.get_by_role("combobox").first.select_option("0")  # a prompt of the run
    page.locator(".said", has_text="Read in").wait_for(timeout=120_000)
    page.locator(f'[data-component="{MOVED}"] input').fill("1")
    page.locator('[data-model="mixed"]').first.wait_for()
    page.locator(".said", has_text="Read in").wait_for()
    page.screenshot(path=HERE / "view.png")


if __name__ == "__main__":
    take(Path(sys.argv[1]))
