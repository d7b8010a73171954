"The site, where its packages are installed: it is built, each link leads somewhere, nothing comes from elsewhere, and a browser shows it."
import functools
import http.server
import json
import re
import shutil
import subprocess
import sys
import threading
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest
from chromium import CHROMIUM, FLAGS, needs_chromium

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(not (find_spec("material") and find_spec("mkdocstrings") and shutil.which("npm")),
                                reason="the packages of the site are not installed: make site")


class Page(HTMLParser):
    "The names, links and loaded files of a page."
    def __init__(self, text):
        super().__init__()
        self.names, self.links, self.loaded = set(), set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.names |= {found[name] for name in ("id", "name") if found.get(name)}
        if tag == "a" and found.get("href"): self.links.add(found["href"])
        if tag in ("script", "img", "iframe") and found.get("src"): self.loaded.add(found["src"])
        if tag == "link" and found.get("rel") in ("stylesheet", "icon"): self.loaded.add(found["href"])


@pytest.fixture(scope="module")
def site():
    done = subprocess.run([sys.executable, ROOT/"tools"/"site.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return ROOT/"_site"


def test_every_link_leads_somewhere_and_nothing_is_loaded_from_elsewhere(site):
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")
             if path.is_file() and path.name != "404.html"}
    broken, elsewhere = [], []
    for path, page in pages.items():
        here = f"https://site/{path.relative_to(site).as_posix()}"
        elsewhere += [(here, link) for link in page.loaded if re.match(r"(https?:)?//", link)]
        for link in page.links | page.loaded:
            place = urlsplit(urljoin(here, link))
            if place.netloc != "site" or place.scheme != "https": continue
            file = site/unquote(place.path).lstrip("/")
            if file.is_dir(): file /= "index.html"
            if not file.exists() or place.fragment and file in pages and unquote(place.fragment) not in pages[file].names:
                broken.append((here, link))
    assert len(pages) > 150 and not broken and not elsewhere, (broken[:20], elsewhere[:20])


def test_each_chapter_is_there_and_can_be_opened_in_colab(site):
    chapters = [path for path in (ROOT/"nbs").glob("*.ipynb") if path.name[0].isdigit()]
    for path in chapters:
        text = (site/"nbs"/path.stem/"index.html").read_text(encoding="utf-8")
        assert f"/colab/{path.name}" in text and (path.stem.startswith("99") or "#| export" not in text)
        cells = json.loads((site/"colab"/path.name).read_text(encoding="utf-8"))["cells"]
        assert "".join(cells[1]["source"]).startswith("%pip install") and not any(cell.get("outputs") for cell in cells)
        assert "%pip" not in path.read_text(encoding="utf-8")


@needs_chromium
@pytest.mark.parametrize("width,scheme", [(1280, "light"), (390, "dark")])
def test_a_browser_shows_it(site, width, scheme):
    playwright = pytest.importorskip("playwright.sync_api")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=site)
    handler.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, playwright.sync_playwright() as p:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page, wrong = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme), []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: wrong.append(request.url) if not re.match(r"data:|http://127\.0\.0\.1", request.url) else None)
        at = f"http://127.0.0.1:{server.server_port}"
        for place in ("", "nbs/41_losses.triplet/", "reference/losses.triplet/", "docs/results/embedded/"):
            page.goto(f"{at}/{place}")
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), place
            assert page.locator(".katex-error").count() == 0
        page.goto(f"{at}/nbs/41_losses.triplet/")
        assert page.locator(".katex").count() > 10
        page.goto(f"{at}/?q=batch-hard")
        page.wait_for_selector(".md-search-result__item", state="attached", timeout=60_000)
        browser.close()
        server.shutdown()
    assert not wrong, wrong
