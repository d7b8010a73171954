"""A study's pages in Chromium, wide and on a phone, in the light and in the dark: nothing overflows, and all text is legible.

Left out without Chromium, or without the packages that drive it (`pip install playwright axe-playwright-python`)."""
import pytest
from chromium import CHROMIUM, FLAGS, needs_chromium

from reid_study.report.pages import write_page
from reid_study.report.synthesis import ranked
from reid_study.study.results import read_results
from reid_study.study.simulated import simulated_study
from reid_study.study.jobs import pages

playwright = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")
pytestmark = needs_chromium
PAGES = "index", "q4", "q9"

# What is wrong with a page, a list of texts: its width, text under 9 pixels, and text in pictures whose contrast is under 4.5.
WRONG = """() => {
  const wrong = [], rgb = colour => colour.match(/[\\d.]+/g).map(Number)
  const luminance = ([r, g, b]) => [r, g, b].map(v => v/255).map(v => v <= .04045 ? v/12.92 : ((v + .055)/1.055)**2.4)
    .reduce((sum, v, i) => sum + v*[.2126, .7152, .0722][i], 0)
  const contrast = (a, b) => { const [low, high] = [a, b].map(luminance).sort((x, y) => x - y); return (high + .05)/(low + .05) }
  const paper = rgb(getComputedStyle(document.body).backgroundColor)
  const width = document.documentElement.scrollWidth
  if (width > innerWidth) wrong.push(`the page is ${width} pixels wide in a window of ${innerWidth}`)
  for (const e of document.querySelectorAll("body *")) {
    const text = [...e.childNodes].filter(n => n.nodeType == 3).map(n => n.textContent.trim()).join(" ").trim()
    if (!text || !e.checkVisibility() || e.localName == "style") continue
    const ctm = e.getScreenCTM?.(), size = parseFloat(getComputedStyle(e).fontSize)*(ctm ? Math.hypot(ctm.a, ctm.b) : 1)
    if (size < 9) wrong.push(`"${text}" has ${size.toFixed(1)} pixels`)
    if (!ctm) continue
    const box = e.getBoundingClientRect(), x = box.x + box.width/2, y = box.y + box.height/2
    let below = paper
    for (const p of e.ownerSVGElement.querySelectorAll("path, use")) {
      if (p.compareDocumentPosition(e) & 2) break
      const b = p.getBoundingClientRect(), { fill, fillOpacity, opacity } = getComputedStyle(p)
      if (fill == "none" || fillOpacity*opacity < .9 || p.closest("defs")) continue
      if (b.left <= x && x <= b.right && b.top <= y && y <= b.bottom) below = rgb(fill)
    }
    const found = contrast(rgb(getComputedStyle(e).fill), below)
    if (found < 4.5) wrong.push(`"${text}" has a contrast of ${found.toFixed(2)}`)
  }
  return wrong
}"""


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return simulated_study(tmp_path_factory.mktemp("study")/"tables", seeds=5)


@pytest.fixture(scope="module")
def folder(study, tmp_path_factory):
    out = tmp_path_factory.mktemp("pages")
    made = pages(read_results(study), study, out)
    for page in PAGES: write_page(*made[page], out/f"{page}.html")
    return out


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module", params=["light", "dark"])
def scheme(request): return request.param


@pytest.fixture(scope="module", params=[1280, 390])
def window(request, browser, scheme):
    with browser.new_context(viewport=dict(width=request.param, height=844), color_scheme=scheme, bypass_csp=True) as context:
        yield context.new_page()


@pytest.mark.parametrize("page", PAGES)
def test_everything_is_legible(window, folder, page):
    window.goto(f"file://{folder/page}.html")
    assert window.evaluate(WRONG) == []
    found = axe.Axe().run(window, options={"runOnly": ["wcag2a", "wcag2aa"]})
    assert found.violations_count == 0, found.generate_report()[:3000]


def test_the_check_finds_what_is_wrong(window):
    faint = '<svg width="9999"><text y="20" fill="#777" font-size="8">faint</text></svg>'
    window.set_content(f'<body style="background:#777777">{faint}</body>')
    width, size, contrast = window.evaluate(WRONG)
    assert "wide" in width and "8.0 pixels" in size and "1.00" in contrast


def test_the_first_screen_answers_which_loss_to_use(window, folder, study):
    window.goto(f"file://{folder}/index.html")
    best = ranked(read_results(study)).recipe[0]
    height = window.viewport_size["height"]
    assert window.get_by_text(best, exact=True).first.bounding_box()["y"] < height
    assert window.locator("svg:visible").first.bounding_box()["y"] < height
    assert window.locator("figure:visible").count() > window.locator(".narrow:visible").count()


def test_a_table_scrolls_under_its_first_column(window, folder):
    window.goto(f"file://{folder}/index.html")
    box = window.locator(".wide:has(table)").first
    box.evaluate("e => { e.scrollLeft = 9999 }")
    cell = box.locator("tbody td").first.bounding_box()
    assert abs(cell["x"] - box.bounding_box()["x"]) <= 1


def test_the_dark_page_is_dark(window, folder, scheme):
    window.goto(f"file://{folder}/index.html")
    colour = window.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (colour == "rgb(255, 255, 255)") == (scheme == "light")
