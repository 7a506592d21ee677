"""The page's prompts in a real browser: both answers side by side, likely tokens, and from a map's cell and back."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import probes
from probes.reporting.prompts import shown_prompts
from tests.pages import drawn
from tests.pairs import build_pair, write_suite

MAP = "m0-relative"


pytestmark = pytest.mark.sampled(1)  # test_page.py opens a report on a phone


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> probes.Run:
    folder = tmp_path_factory.mktemp("prompts")
    suite = write_suite(folder, *build_pair(folder), bootstrap=20, attribute=None, measure=["changes", "behaviour"])
    return probes.run(suite, out=folder / "run", stages=["capture", "report"])


@pytest.fixture(scope="module", params=[(1280, "light"), (390, "dark")], ids=["wide and light", "phone and dark"])
def page(request: pytest.FixtureRequest, browser: Any, run: probes.Run) -> Iterator[Any]:
    width, scheme = request.param
    opened = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said: list[str] = []
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.goto((Path(run.path) / "report.html").as_uri())
    opened.evaluate("document.querySelectorAll('details.fold').forEach((fold) => { fold.open = true; })")
    yield opened
    assert said == [] and opened.evaluate("document.documentElement.scrollWidth") <= width
    opened.close()


def test_answers_stand_side_by_side(page: Any, run: probes.Run) -> None:
    for i, prompt in enumerate(shown_prompts(run, "moved")):
        row = page.locator(f"#m0-prompt-{i}")
        sides = [row.locator(f"[data-says={name}]") for name in ("base", "tuned")]
        places = [side.bounding_box() for side in sides]
        assert places[0]["y"] == places[1]["y"] and places[0]["x"] + places[0]["width"] <= places[1]["x"]
        assert prompt.answers
        for side, said in zip(sides, prompt.answers, strict=True):
            marks = side.locator("mark").all_text_contents()
            assert marks == ([said.differs] if said.differs else []) and said.end in side.inner_text()
        assert row.locator(".begins").count() == bool(prompt.target)
        if prompt.begins is not None:
            assert row.locator(".begins").text_content() == prompt.tokens[prompt.begins].text


def test_a_token_tells_what_both_models_find_likeliest(page: Any, run: probes.Run) -> None:
    prompt = shown_prompts(run, "moved")[1]
    tokens = page.locator("#m0-prompt-1 [role=option]")

    def told() -> list[list[str]]:
        page.wait_for_selector("#m0-prompt-1 .at-token table")
        sides = page.locator("#m0-prompt-1 .at-token table")
        return [sides.nth(i).locator("th").all_text_contents() for i in (0, 1)]

    tokens.nth(2).click()
    assert told() == [[token for token, _ in side] for side in prompt.likely[2]]
    share = page.locator("#m0-prompt-1 .at-token td").first.inner_text()
    assert float(share.removesuffix(" %")) == pytest.approx(100 * prompt.likely[2][0][0][1], rel=1e-2)
    page.keyboard.press("ArrowRight")
    assert [tokens.nth(i).get_attribute("aria-selected") for i in (2, 3)] == [None, "true"]
    assert told() == [[token for token, _ in side] for side in prompt.likely[3]]
    assert page.locator("#m0-prompt-1 [role=option][tabindex='0']").count() == 1  # one stop of the tab key
    box, row = (page.locator(each).bounding_box() for each in (".at-token", "#m0-prompt-1"))
    assert row["x"] <= box["x"] and box["x"] + box["width"] <= row["x"] + row["width"]
    page.keyboard.press("Escape")
    assert page.locator(".at-token").count() == 0


def test_a_cell_leads_to_prompts_and_they_lead_back(page: Any, run: probes.Run) -> None:
    drawn(page, MAP)
    figure = page.locator(f"figure:has([id={MAP!r}])")
    x, y, width, height = page.locator(f"[id={MAP!r}] .nsewdrag").evaluate(
        "(all) => { const box = all.getBoundingClientRect(); return [box.x, box.y, box.width, box.height]; }"
    )
    parts = figure.locator("select[name=part] option").evaluate_all("all => all.map((one) => one.value)")
    layers = figure.locator("select[name=layer] option").evaluate_all("all => all.map((one) => one.value)")
    column, line = parts.index("mlp"), layers.index("1")
    page.mouse.click(x + width * (column + 0.5) / len(parts), y + height * (line + 0.5) / len(layers))
    page.wait_for_selector(".behind[open]")
    assert [figure.locator(f"select[name={name}]").input_value() for name in ("layer", "part")] == ["1", "mlp"]
    found = figure.locator(".behind li a").all_text_contents()
    where = [("layer", "==", 1), ("component", "==", "mlp"), ("head", "==", -1)]
    changes = run.df("changes", where=where).groupby("prompt_id").relative_change.mean()
    assert found == changes.nlargest(5).index.tolist()
    figure.locator("select[name=part]").select_option("attn")  # as the keyboard does
    assert figure.locator(".behind li a").count() == 5
    link = figure.locator(".behind li a").first
    name, target = link.inner_text(), link.get_attribute("href")
    link.click()
    row = page.locator(target)
    assert row.locator("th code").inner_text() == name and "chosen" in row.get_attribute("class")
    assert _comes_into_view(page, row)
    row.locator("a.back").click()
    assert _comes_into_view(page, page.locator(f"[id={MAP!r}]"))


def _comes_into_view(page: Any, place: Any) -> bool:
    """The page's own policy forbids what a browser would need to wait for this by itself."""
    for _ in range(40):
        box = place.bounding_box()
        if 0 <= box["y"] < 900 or box["y"] < 0 < box["y"] + box["height"]:
            return True
        page.wait_for_timeout(50)
    return False
