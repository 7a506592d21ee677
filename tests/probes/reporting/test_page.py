"""The report in a real browser: it draws, its controls work, and nothing that a prompt says is carried out."""

import csv
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import probes
from tests.pages import drawn, unfold
from tests.pairs import PROMPTS, build_pair, write_prompts, write_suite
from tests.runs import NO_REPORT

HOSTILE = ["<script>window.harmed = 1</script>", '"><img src=x onerror="window.harmed = 1">', "=1+1", "w" * 45]


#: Texts of a page in a browser whose contrast with what lies behind them is below 4.5.
FAINT = """() => {
  const pen = document.createElement("canvas").getContext("2d", { willReadFrequently: true }), known = {};
  const colour = (text) => known[text] ??= (() => {
    pen.clearRect(0, 0, 1, 1); pen.fillStyle = text; pen.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = pen.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  })();
  const over = (top, below) => below.map((value, i) => top[i] * top[3] + value * (1 - top[3]));
  const light = (c) => c.map((v) => v / 255).map((v) => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const behind = (at) => !at ? [255, 255, 255]
    : over(colour(getComputedStyle(at).backgroundColor), behind(at.parentElement));
  const faint = new Set();
  for (const at of document.querySelectorAll("body *:not(svg *, script, option)")) {
    if (!at.checkVisibility() || ![...at.childNodes].some((one) => one.nodeType === 3 && one.data.trim())) continue;
    const ground = behind(at), ink = over(colour(getComputedStyle(at).color), ground);
    const [low, high] = [ground, ink].map(light).sort((a, b) => a - b);
    if ((high + .05) / (low + .05) < 4.5) faint.add(`${at.tagName}.${at.className} ${at.textContent.slice(0, 20)}`);
  }
  return [...faint];
}"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    suite = write_suite(folder, *build_pair(folder), bootstrap=20)
    hostile = [{"id": f"h{i}", "text": text, "domain": text, "target": " two"} for i, text in enumerate(HOSTILE)]
    write_prompts(folder / "prompts.jsonl", [*PROMPTS, *hostile])
    run = probes.run(suite, out=folder / "run", stages=NO_REPORT)
    probes.attention(run, prompts=4, draws=2)
    probes.neurons(run, prompts=8)
    return probes.report(run)


class Opened:
    """The page, opened from disk, at 1280 pixels; it must not have complained, nor asked for anything."""

    def __init__(self, browser: Any, report: Path) -> None:
        self.report, self.page = report, browser.new_page(viewport={"width": 1280, "height": 900})
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda told: self.said.append(told.text) if told.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(report.as_uri())

    def require_quiet(self) -> None:
        assert self.said == []
        assert [url for url in self.asked if not url.startswith(("blob:", "data:"))] == [self.report.as_uri()]


@pytest.fixture
def page(browser: Any, report: Path) -> Iterator[Any]:
    """The page as it is when it has just been opened."""
    opened = Opened(browser, report)
    yield opened.page
    opened.require_quiet()
    opened.page.close()


@pytest.fixture(scope="module")
def used(browser: Any, report: Path) -> Iterator[Opened]:
    opened = Opened(browser, report)
    unfold(opened.page)
    yield opened
    opened.page.close()


@pytest.fixture
def shared(used: Opened) -> Iterator[Any]:
    """A page with its folds open, on which other tests may have drawn and chosen: nothing may depend on it."""
    yield used.page
    used.require_quiet()


def test_every_figure_is_drawn_when_it_comes_into_view(page: Any) -> None:
    places = page.locator(".plot").evaluate_all("all => all.map((one) => one.id)")
    assert len(places) >= 15 and page.locator(".plot:has(.main-svg)").count() < len(places) / 2
    assert all(drawn(page, name).locator(".main-svg").count() for name in places)


def test_a_reader_of_the_verdict_does_not_wait_for_what_draws(page: Any) -> None:
    assert page.locator("#m0-verdict .headline").first.is_visible() and page.evaluate("typeof Plotly") == "undefined"
    drawn(page, "m0-flips")
    assert page.evaluate("typeof Plotly") == "object"


def test_the_verdict_stands_beside_its_chart_and_a_claim_leads_to_its_figure(page: Any) -> None:
    rows = page.locator("#m0-verdict .before-after .row")
    domains = {row["domain"] for row in PROMPTS if "target" in row}
    assert rows.count() == len(domains | set(HOSTILE)) and rows.locator(".track .dot").count() == 2 * rows.count()
    assert HOSTILE[0] in page.locator("#m0-verdict .before-after").inner_text()
    sentences, chart = (page.locator(f"#m0-verdict .in-short > {part}").bounding_box() for part in ("div", "figure"))
    assert sentences["x"] + sentences["width"] <= chart["x"]
    assert page.locator("#m0-verdict details.more dl").is_hidden()
    page.locator("#m0-verdict .headline a[href='#m0-norm']").click()
    page.wait_for_selector("#m0-norm .main-svg")
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    above, below = (page.locator(f"#m0-verdict .in-short > {part}").bounding_box() for part in ("div", "figure"))
    assert above["y"] + above["height"] <= below["y"]


def test_on_a_phone_sections_open_one_by_one(browser: Any, report: Path) -> None:
    phone = browser.new_page(viewport={"width": 390, "height": 844})
    phone.goto(report.as_uri())
    closed = phone.evaluate("document.documentElement.scrollHeight")
    assert phone.locator("details.fold[open]").count() == 0 and phone.locator("#m0-verdict").is_visible()
    phone.locator("nav a[href='#m0-causes']").first.click()
    phone.wait_for_selector("#m0-causes details[open]")
    assert phone.locator("details.fold[open]").count() == 1
    unfold(phone)
    assert phone.evaluate("document.documentElement.scrollHeight") > 2 * closed
    phone.close()


def test_what_prompts_say_is_text(shared: Any) -> None:
    assert shared.evaluate("window.harmed") is None
    shown = shared.locator("body").inner_text()
    assert all(text in shown for text in HOSTILE) and not shared.locator("main img, main script").count()


def test_choices_switch_the_figures(shared: Any) -> None:
    panel = shared.locator(".panel", has_text="SSA beside its null").first
    drawn(shared, panel.locator(".plot").first.get_attribute("id"))
    before = panel.locator(".plot").first.inner_text()
    panel.locator("select[data-switch]").select_option(index=2)
    assert panel.locator(".plot").first.inner_text() != before
    form = shared.locator("form[data-link]")
    form.locator("select[name=x]").select_option("kappa_left")
    drawn(shared, "m0-scatter")
    assert "κ" in shared.locator("#m0-scatter .xtitle").text_content()


def test_a_prompt_leads_to_its_map_and_prompts_can_be_looked_for(shared: Any) -> None:
    table, form = shared.locator("#m0-prompt-table"), shared.locator("form[data-prompts]")
    rows = table.locator("tbody tr")
    last = rows.last
    before = drawn(shared, "m0-prompt-relative_change").inner_text()
    last.locator("button[data-map]").click()
    chosen = shared.locator("#m0-prompt-maps select option:checked").inner_text()
    assert chosen == last.locator("th code").inner_text()
    assert shared.locator("#m0-prompt-relative_change").inner_text() != before
    form.locator("input[name=text]").fill(HOSTILE[2])
    assert table.locator("tbody tr:visible").count() == 1 and form.locator("output").inner_text().startswith("1 of ")
    form.locator("input[name=text]").fill("")
    form.locator("select[name=colour]").select_option("dla")
    colours = table.locator(".text span").evaluate_all("all => all.map((one) => getComputedStyle(one).backgroundColor)")
    tinted = {colour[:16] for colour in colours if not colour.endswith("/ 0)")}
    assert len(tinted) == 2  # towards the target, and away from it


def test_a_head_and_a_prompt_are_chosen_for_patterns_in_both_models(shared: Any) -> None:
    panel = shared.locator(".panel", has=shared.locator("[id='m0-pattern-base']"))
    seen = {tuple(_pattern(shared))}
    for which in (0, 1):  # the head, and then the prompt
        panel.locator("select[data-switch]").nth(which).select_option(index=1)
        seen.add(tuple(_pattern(shared)))
    assert len(seen) == 3
    figures = {side: shared.evaluate(f"shownPlot('m0-pattern-{side}').data[0].z.at(-1)") for side in ("base", "tuned")}
    moved = shared.evaluate("shownPlot('m0-pattern-difference').data[0].z.at(-1)")
    assert moved == pytest.approx([t - b for b, t in zip(figures["base"], figures["tuned"], strict=True)], abs=2e-3)


def _pattern(page: Any) -> list[str]:
    """The tokens beside a drawn pattern, and its weights."""
    labels = drawn(page, "m0-pattern-base").locator(".ytick text").all_inner_texts()
    return [*labels, str(page.evaluate("document.getElementById('m0-pattern-base').data[0].z"))]


def test_a_neuron_is_chosen_for_the_tokens_that_open_it(shared: Any) -> None:
    tokens = shared.locator("#m0-neuron-tokens")
    assert tokens.locator("table:visible").count() == 2
    before = tokens.inner_text()
    name = shared.locator("select[data-among='m0-neuron-tokens']").select_option(index=3)
    assert name == ["3"] and tokens.inner_text() != before
    assert tokens.locator("table:visible mark").count() >= 2
    tokens.locator("table:visible a").first.click()
    row = shared.locator("tr:target")
    assert row.is_visible() and row.locator("xpath=ancestor::table[@id='m0-prompt-table']").count() == 1


def test_numbers_and_pictures_can_be_saved(shared: Any, report: Path, tmp_path: Path) -> None:
    assert (
        shared.locator("[data-save=png]").count()
        == shared.locator("[data-save=csv]").count()
        == shared.locator(".plot").count()
    )
    with shared.expect_download() as told:
        shared.locator("[data-save=csv][data-of=m0-norm]").click()
    told.value.save_as(tmp_path / "norm.csv")
    with open(tmp_path / "norm.csv", encoding="utf-8", newline="") as file:
        found = {(row["y"], row["x"]): row["value"] for row in csv.DictReader(file)}
    weights = probes.load(report.parent).df("weights", where=[("head", "==", -1)]).set_index(["layer", "module"])
    assert float(found["1", "gate"]) == pytest.approx(float(weights.relative_norm[1, "gate"]), rel=1e-4)
    with shared.expect_download() as told:
        shared.locator("[data-save=csv][data-of=m0-flips]").click()
    told.value.save_as(tmp_path / "flips.csv")
    text = (tmp_path / "flips.csv").read_text(encoding="utf-8")
    assert '"\'=1+1"' in text and not re.search(r'(^|,)"?=', text, re.MULTILINE)
    with shared.expect_download() as told:
        shared.locator("[data-save=png][data-of=m0-flips]").click()
    told.value.save_as(tmp_path / "flips.png")
    assert (tmp_path / "flips.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_light_and_dark(shared: Any) -> None:
    def colours() -> list[str]:
        return shared.evaluate(
            "[getComputedStyle(document.body).color, document.querySelector('#m0-flips .xtick text').style.fill]"
        )

    drawn(shared, "m0-flips")
    light = colours()
    shared.locator("#theme").focus()
    shared.keyboard.press("Enter")
    dark = colours()
    assert light[0] == light[1] and dark[0] == dark[1] != light[0]


def test_text_is_readable_in_light_and_dark(shared: Any) -> None:
    """A contrast of 4.5 (WCAG AA) of every text against what lies behind it, tinted tokens and folds among them."""
    kept = shared.evaluate("document.documentElement.style.colorScheme")
    for scheme in ("light", "dark"):
        shared.evaluate("scheme => { document.documentElement.style.colorScheme = scheme; }", scheme)
        assert shared.evaluate(FAINT) == [], scheme
        drawn(shared, "m0-pattern-difference")
        shared.evaluate("draw('m0-pattern-difference')")
        middle = shared.evaluate("document.getElementById('m0-pattern-difference').data[0].colorscale[2][1]")
        assert (int(middle[1:3], 16) < 64) == (scheme == "dark")  # about 0 is as the page is
    shared.evaluate("scheme => { document.documentElement.style.colorScheme = scheme; }", kept)


def test_a_narrow_screen_scrolls_only_down(shared: Any, fits: Callable[[Any, int], bool]) -> None:
    assert fits(shared, 390)


@pytest.mark.parametrize(("width", "most"), [(1280, 6000), (390, 9000)])
def test_what_is_shown_first_is_short(browser: Any, report: Path, width: int, most: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 844})
    page.goto(report.as_uri())
    assert page.evaluate("document.documentElement.scrollHeight") <= most
    unfold(page)
    tall = page.locator(".scroll:not(:has(> .examples))").evaluate_all("all => all.map((one) => one.clientHeight)")
    assert tall and max(tall) <= 26 * 16 + 1
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.close()


def test_the_keyboard_reaches_the_controls(page: Any) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Tab")
    reached = {page.evaluate("document.activeElement.id")}
    fold = page.locator("[id='m0-causes'] details.fold > summary").first
    fold.focus()
    page.keyboard.press("Enter")
    assert fold.evaluate("summary => summary.parentElement.open")
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                "document.activeElement.id || document.activeElement.dataset.save || document.activeElement.tagName"
            )
        )
    assert {"theme", "png", "csv", "SELECT", "A"} <= reached
