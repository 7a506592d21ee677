"""The page in a browser: both answers, KL, one token, the mix; in the dark and on a phone."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from probes.viewing.page import style, widget_script
from probes.viewing.session import Session

PROMPT = "Question: In what organ does galoria begin?\nAnswer:"
HOSTILE = "<img src=x onerror=document.title='broken'> begins in"


@pytest.fixture
def opened(browser: Any, served: str) -> Iterator[Callable[..., Any]]:
    """Opens the page in a context of these settings; at the end no script has failed, and no policy was broken."""
    contexts, errors = [], list[str]()

    def open_page(**settings: Any) -> Any:
        context = browser.new_context(**settings)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
        page.goto(served)
        page.locator(".slider output").first.wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []


def _asked(page: Any, prompt: str) -> None:
    page.locator("textarea").fill(prompt)
    page.locator("input[type=number]").fill("6")
    page.get_by_role("button", name="Ask both models").click()
    page.locator(".said", has_text="Read in").wait_for()


def _answer(page: Any, model: str) -> str:
    return str(page.locator(f'.answer[data-model="{model}"] .text').inner_text()).strip()


def test_a_prompt_is_answered_and_the_mix_follows(opened: Callable[..., Any], session: Session) -> None:
    page = opened()
    assert "token" not in page.url  # nor where one could read it off the screen
    _asked(page, PROMPT)
    told = session.handle({"do": "answer", "run": 0, "tuned": "medical", "prompt": PROMPT, "tokens": 6})
    for model in ("base", "tuned"):
        assert _answer(page, model) == told["answers"][model]["text"].strip()
        assert page.locator(f'.answer[data-model="{model}"] mark').count() == 1
    values = page.locator('.strip[data-model="tuned"] small').all_inner_texts()
    assert len(values) == len(told["kl"]["tuned"]) and float(values[told["n_text"] - 1]) == pytest.approx(
        told["kl"]["tuned"][told["n_text"] - 1], rel=0.05
    )

    assert page.locator('[data-model="mixed"]').count() == 0
    page.locator('[data-component="mlp 2"] input').fill("1")
    mix = page.locator('.strip[data-model="mixed"]')
    mix.wait_for()
    before = mix.locator("small").all_inner_texts()
    page.locator('[data-component="attn 5"] input').fill("1.5")
    page.wait_for_function(
        "before => JSON.stringify([...document.querySelectorAll('.strip[data-model=mixed] small')]"
        ".map(one => one.innerText)) !== JSON.stringify(before)",
        arg=before,
    )
    page.get_by_role("button", name="all 1: tuned").click()
    page.locator('.answer[data-model="mixed"] mark').wait_for()
    page.locator(".said", has_text="Read in").wait_for()
    assert _answer(page, "mixed") == _answer(page, "tuned") != _answer(page, "base")

    page.locator('.strip[data-model="tuned"] .token').nth(3).click()
    page.get_by_role("heading", name="(token 3)").wait_for()
    assert page.locator(".tables .table").count() == 4  # likeliest, lens, and what the tuned model and the mix change


def test_texts_stay_texts_and_mistakes_are_told(opened: Callable[..., Any]) -> None:
    page = opened()
    _asked(page, HOSTILE)
    assert page.title() == "Both models, live" and page.locator(".pane img").count() == 0
    page.locator("textarea").fill(" ")
    page.get_by_role("button", name="Ask both models").click()
    page.locator(".said.wrong", has_text="the prompt is empty").wait_for()
    page.get_by_role("tab", name="math").click()
    page.get_by_role("button", name="Report of").click()
    page.frame_locator("iframe").locator("#here", has_text="drawn by its script").wait_for()


def test_two_models_stand_side_by_side(opened: Callable[..., Any]) -> None:
    page = opened(viewport={"width": 1400, "height": 900})
    page.get_by_role("button", name="Another model").click()
    page.locator(".pane").nth(1).locator(".slider output").first.wait_for()
    page.locator("textarea").fill(PROMPT)
    page.get_by_role("button", name="Ask both models").click()
    for place in (0, 1):
        page.locator(".pane").nth(place).locator('.answer[data-model="tuned"] .text').wait_for()
    left, right = (page.locator(".pane").nth(place) for place in (0, 1))
    assert left.bounding_box()["y"] == right.bounding_box()["y"]
    assert [one.locator("[aria-selected=true]").inner_text() for one in (left, right)] == ["medical", "math"]


def test_it_is_dark_and_fits_a_phone(opened: Callable[..., Any], fits: Callable[[Any, int], bool]) -> None:
    page = opened(color_scheme="dark", viewport={"width": 390, "height": 800})
    _asked(page, PROMPT)
    page.locator('[data-component="mlp 2"] input').fill("1")
    page.locator('.strip[data-model="mixed"]').wait_for()
    assert fits(page, 390)
    looks = "getComputedStyle(document.querySelector('main'))"
    shades = [
        [int(part) for part in page.evaluate(f"{looks}.{name}")[4:-1].split(",")]
        for name in ("backgroundColor", "color")
    ]
    assert max(shades[0]) < 60 and min(shades[1]) > 200


def test_without_the_token_nothing_is_shown(browser: Any, served: str) -> None:
    page = browser.new_page()
    page.goto(served.partition("#")[0])
    page.locator(".said.wrong", has_text="no valid token").wait_for()
    assert page.locator("textarea").count() == 0
    page.close()


#: What a notebook does with the widget's module.
NOTEBOOK = """async script => {
  const module = await import(URL.createObjectURL(new Blob([script], { type: "text/javascript" })));
  const heard = [];
  const model = {
    on: (name, hear) => heard.push(hear),
    off: () => {},
    send: async ({ id, request }) => {
      const reply = await window.handle(request);
      heard.forEach((hear) => hear({ id, reply }));
    },
  };
  module.default.render({ model, el: document.body.appendChild(document.createElement("div")) });
}"""


def test_the_widget_is_the_same_page(browser: Any, session: Session) -> None:
    page = browser.new_page()
    page.expose_function("handle", session.handle)
    page.add_style_tag(content=style())
    page.evaluate(NOTEBOOK, widget_script())
    page.locator(".slider output").first.wait_for()
    _asked(page, PROMPT)
    told = session.handle({"do": "answer", "run": 0, "tuned": "medical", "prompt": PROMPT, "tokens": 6})
    assert _answer(page, "tuned") == told["answers"]["tuned"]["text"].strip()
    assert page.get_by_role("button", name="Report of").count() == 0
    page.close()
