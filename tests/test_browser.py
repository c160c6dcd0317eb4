"""The page in a real browser: headless Chromium, driven by Playwright, without any download; skipped where either is missing."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import made_results
import pytest

from rapbench import results
from rapbench.report.html import page

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
QUIET += ("--disable-component-update", "--disable-sync")
PHONE, DESK = 390, 1280
SCHEMES = ("light", "dark")

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
playwright = pytest.importorskip("playwright.sync_api", reason="the browser test needs the package playwright")
if CHROMIUM is None:
    pytest.skip("the browser test needs Chromium: apt-get install chromium", allow_module_level=True)

# Gives the text nodes whose contrast with what lies behind them is below WCAG 2.2's 4.5 (3 for large text): [ratio, text].
LOW_CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (text) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = text; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255]; };
  const over = (top, under) => top.slice(0, 3).map((part, i) => part * top[3] + under[i] * (1 - top[3])).concat(1);
  const linear = (part) => (part /= 255) <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  const light = (colour) => { const [r, g, b] = colour.map(linear);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = (element) => { if (!element) return rgba("white");
    const style = getComputedStyle(element), own = rgba(style.backgroundColor);
    const base = own[3] === 1 ? own : over(own, behind(element.parentElement));
    return element.classList.contains("bar") ? over(rgba(getComputedStyle(element).getPropertyValue("--bar")), base) : base; };
  const painted = (text) => { // of a text in a figure: the last opaque shape that lies under its middle
    const box = text.getBBox(), svg = text.ownerSVGElement, point = svg.createSVGPoint();
    point.x = box.x + box.width / 2; point.y = box.y + box.height / 2;
    const at = text.transform.baseVal.consolidate() ? point.matrixTransform(text.transform.baseVal.consolidate().matrix) : point;
    const shapes = [...svg.querySelectorAll("path")].filter((path) => getComputedStyle(path).fill !== "none" && path.isPointInFill(at));
    return shapes.reduce((under, path) => over(rgba(getComputedStyle(path).fill), under), behind(svg.parentElement)); };
  const low = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const element = walk.currentNode.parentElement, text = walk.currentNode.textContent.trim();
    if (!text || element.closest("script, style, desc, .unseen, [hidden]") || !element.getClientRects().length) continue;
    const inside = element instanceof SVGElement, style = getComputedStyle(element);
    const back = inside ? painted(element) : behind(element);
    const ink = light(over(rgba(inside ? style.fill : style.color), back)), ground = light(back);
    const ratio = (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05), size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    if (ratio < (large ? 3 : 4.5)) low.push([ratio, text]);
  }
  return low;
}"""
FAINT_LINES = """() => [...Array(8).keys()].filter((number) => {
  const probe = document.querySelector("section").appendChild(document.createElement("i"));
  probe.style.color = `var(--s${number})`;
  const light = (text) => { const [r, g, b] = text.match(/[0-9.]+/g).slice(0, 3).map((part) => (part /= 255) <= 0.04045
    ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const [one, other] = [light(getComputedStyle(probe).color), light(getComputedStyle(probe.parentElement).backgroundColor)];
  return (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05) < 3;
})"""
# Gives what sticks out of the window, but for what scrolls by itself.
OUTSIDE = """() => [...document.querySelectorAll("body *")].filter((element) => !element.closest(".scroll, nav, pre, .unseen, .skip, svg *")
  && element.getBoundingClientRect().right > innerWidth + 0.5).map((element) => element.outerHTML.slice(0, 80))"""
SORTED_IN = """(head) => { const started = performance.now(); head.querySelector("button").click();
  document.body.offsetHeight; return performance.now() - started; }"""


@dataclass
class Opened:
    """A page in the browser, and what it said and asked for."""

    page: Page
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def column(self, table: str, head: str) -> list[str]:
        """Give the texts of a column of a table, from the top, without rows that are filtered out."""
        place = self.heads(table).index(head)
        rows = self.page.locator(f"{at(table)} tbody tr:visible").all()
        return [row.locator("th, td").nth(place).inner_text() for row in rows]

    def loaded_in(self) -> float:
        """Load the page anew; give how long that took, in milliseconds."""
        self.page.reload()
        took: float = self.page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
        return took

    def heads(self, table: str) -> list[str]:
        return [text.strip() for text in self.page.locator(f"{at(table)} thead th").all_inner_texts()]


def at(table: str) -> str:
    return f'.scroll[aria-label="{table}"]'


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of 500 cells, and a small one with a gap in a column."""
    root = tmp_path_factory.mktemp("pages")
    small = [made_results.RECORD, replace(made_results.RECORD, defense="strip", far=0.25, warnings=("few texts",))]
    small += [
        replace(made_results.RECORD, defense="onion", far=0.1),
        replace(made_results.RECORD, attack="clean", far=None, auroc=None, intervals={}),
    ]
    small += [replace(one, protocol="strict") for one in small]
    small += [
        replace(made_results.RECORD, attack="ep", status="interrupted", reason="<script>window.hacked = 1</script>", far=None, cost=None)
    ]
    results.write(small, root / "small")
    for drawn in (made_results.curves(), made_results.histograms(), made_results.examples()):
        results.write([own for own in drawn if (own.dataset, own.attack) == ("imdb", "badnet-rw")], root / "small")
    pages = {"small": page(root / "small", "paper"), "large": page(made_results.write(root / "large"), "paper")}
    for name, text in pages.items():
        (root / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: root / f"{name}.html" for name in pages}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield started
        started.close()


@pytest.fixture
def opened(browser: Browser, files: dict[str, Path]) -> Iterator[Callable[..., Opened]]:
    """Give what opens one of the pages at a width, in light or dark."""
    contexts = []

    def open_page(name: str = "small", width: int = DESK, scheme: Any = "light") -> Opened:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        made = Opened(context.new_page())
        made.page.on("console", lambda message: made.said.append(message.text))
        made.page.on("pageerror", lambda error: made.said.append(str(error)))
        made.page.on("request", lambda request: made.asked.append(request.url))
        made.page.goto(files[name].as_uri())
        return made

    yield open_page
    for context in contexts:
        context.close()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["small", "large"])
def test_the_page_asks_for_nothing_and_complains_about_nothing(name: str, scheme: str, opened, files) -> None:
    made = opened(name, scheme=scheme)
    assert (made.asked, made.said) == ([files[name].as_uri()], [])


def test_what_a_result_smuggles_in_does_not_run_and_nothing_can_be_fetched(opened) -> None:
    made = opened()
    blocked = made.page.evaluate("""() => new Promise((done) => {
      addEventListener("securitypolicyviolation", (event) => done(event.effectiveDirective));
      document.body.append(Object.assign(new Image(), { src: "http://127.0.0.1:9/x.png" }));
      setTimeout(() => done("fetched"), 5000);
    })""")
    assert blocked == "img-src"
    assert made.page.evaluate("window.hacked") is None
    made.page.evaluate("""document.body.append(Object.assign(document.createElement("script"), { textContent: "window.hacked = 2" }))""")
    assert made.page.evaluate("window.hacked") is None


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_text_and_line_can_be_told_from_what_is_behind_it(scheme: str, opened) -> None:
    made = opened(scheme=scheme)
    made.page.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
    assert made.page.evaluate(LOW_CONTRAST) == []
    assert made.page.evaluate(FAINT_LINES) == []


def test_low_contrast_would_be_noticed(opened) -> None:
    made = opened()
    made.page.add_style_tag(content="h1 { color: #aaa } svg text { fill: #ddd !important }")
    low = made.page.evaluate(LOW_CONTRAST)
    assert any(text.startswith("Which defense stops") for _, text in low)
    assert any(text == "suspicion" for _, text in low)


def test_the_dark_page_is_dark_and_the_printed_one_is_not(opened) -> None:
    shade = "parseInt(getComputedStyle(document.body).backgroundColor.match(/[0-9]+/)[0])"
    made = opened(scheme="dark")
    assert made.page.evaluate(shade) < 50
    made.page.emulate_media(media="print")
    assert made.page.evaluate(shade) == 255
    made.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert made.page.locator("details:not([open])").count() == 0
    assert not made.page.locator("nav").is_visible()


@pytest.mark.parametrize("width", [320, PHONE, DESK])
@pytest.mark.parametrize("name", ["small", "large"])
def test_the_page_does_not_scroll_sideways(name: str, width: int, opened) -> None:
    made = opened(name, width)
    made.page.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
    assert made.page.evaluate("document.documentElement.scrollWidth") <= width
    assert made.page.evaluate(OUTSIDE) == []


def test_a_click_on_a_head_sorts_by_number_and_a_second_one_turns_the_order(opened) -> None:
    made = opened()
    head = made.page.locator(f"{at('Protocol paper')} thead th", has_text="FAR").filter(has_not_text="FRR")
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert [text.split()[0] for text in made.column("Protocol paper", "FAR")] == ["3.00", "10.00", "25.00", "--"]
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert [text.split()[0] for text in made.column("Protocol paper", "FAR")] == ["25.00", "10.00", "3.00", "--"]  # a gap is last


def test_the_keyboard_sorts_too_and_one_column_at_a_time(opened) -> None:
    made = opened()
    table = made.page.locator(f"{at('Protocol paper')} table")
    for head in ("defense", "attack"):
        table.locator("thead button", has_text=head).focus()
        made.page.keyboard.press("Enter")
    assert made.column("Protocol paper", "attack") == ["badnet-rw"] * 3 + ["clean"]
    assert made.column("Protocol paper", "defense")[:3] == ["onion", "rap", "strip"]  # sorting keeps the order of what is alike
    assert table.locator("th[aria-sort]").all_inner_texts() == ["attack"]
    made.page.keyboard.press("Space")
    assert made.column("Protocol paper", "attack")[0] == "clean"


def test_a_table_filters_by_words_and_says_how_many_rows_are_left(opened) -> None:
    made = opened()
    made.page.get_by_label("Filter the table Protocol paper").fill("IMDB strip")
    assert made.column("Protocol paper", "defense") == ["strip"]
    told = made.page.locator(".filter", has=made.page.get_by_label("Filter the table Protocol paper")).locator("output")
    assert told.inner_text() == "1 of 4 rows"
    assert len(made.column("Protocol strict", "defense")) == 4  # the other tables stay
    made.page.get_by_label("Filter the table Protocol paper").fill("")
    assert told.inner_text() == "4 rows"


def test_the_page_has_names_for_what_it_holds(opened) -> None:
    made = opened()
    unnamed = """() => [...document.querySelectorAll("input, button, svg[role=img], .scroll, section, table")].filter((one) => {
      const labels = [...(one.labels ?? [])].map((label) => label.textContent).join("");
      const by = document.getElementById(one.getAttribute("aria-labelledby"))?.textContent ?? "";
      const described = one.tagName !== "svg" || document.getElementById(one.getAttribute("aria-describedby"))?.textContent;
      return !described || !(labels || by || one.getAttribute("aria-label") || one.caption?.textContent || one.textContent).trim();
    }).length"""
    assert made.page.evaluate(unnamed) == 0
    levels = made.page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map((head) => +head.tagName[1])")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert made.page.locator(".scroll:not([tabindex='0'])").count() == 0  # who has no mouse can scroll it


def test_the_first_key_leads_past_the_head_and_focus_can_be_seen(opened) -> None:
    made = opened()
    made.page.keyboard.press("Tab")
    focused = "[document.activeElement.textContent, getComputedStyle(document.activeElement).outlineStyle]"
    assert made.page.evaluate(focused) == ["Skip to the summary", "solid"]
    made.page.keyboard.press("Enter")
    assert made.page.evaluate("location.hash") == "#summary"
    made.page.locator("thead button").first.focus()
    made.page.keyboard.press("Tab")  # a key moved the focus: it is to be seen
    assert made.page.evaluate(focused)[1] == "solid"


def test_every_link_of_the_page_leads_somewhere_on_it(opened) -> None:
    lost = "[...document.querySelectorAll('a')].filter((one) => !document.querySelector(one.getAttribute('href'))).length"
    assert opened().page.evaluate(lost) == 0


def test_a_page_of_500_cells_opens_and_sorts_in_under_a_second(opened) -> None:
    made = opened("large")
    took = min(made.loaded_in() for _ in range(5))  # the least of a few: what else the machine does is not the page's
    heads = made.page.locator(f"{at('Protocol paper')} thead th").all()
    sorts = [min(head.evaluate(SORTED_IN) for _ in range(3)) for head in heads]
    print(f"open {took:.0f} ms, slowest sort {max(sorts):.0f} ms")
    assert len(made.page.locator(f"{at('Protocol paper')} tbody tr").all()) == 240
    assert min(sorts) < max(sorts) < 1000
    assert took < 1000
