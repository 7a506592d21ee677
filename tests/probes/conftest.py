"""A real browser for the tests of pages, and short answers in runs."""

import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from probes.capture import final_answers

final_answers.SHORT = 5  # of 16 tokens that models write in a run, a tenth of a tiny one's work
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if BROWSER is None:
        if os.environ.get("PROBES_REQUIRE_BROWSER"):
            pytest.fail("PROBES_REQUIRE_BROWSER is set, and there is no Chromium")
        pytest.skip("there is no Chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def fits() -> Callable[[Any, int], bool]:
    """Whether a page, once its figures are drawn anew for a width in pixels, is no wider.

    The page's own policy forbids what a browser would need to wait for this by itself.
    """

    def wait(page: Any, width: int) -> bool:
        page.set_viewport_size({"width": width, "height": 800})
        for _ in range(40):
            if page.evaluate("document.documentElement.scrollWidth") <= width:
                return True
            page.wait_for_timeout(250)
        return False

    return wait
