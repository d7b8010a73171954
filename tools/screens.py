"""Pictures of a page's first screen, on a desk and on a phone, in the light and in the dark, to docs/pictures/.

    pip install playwright
    python tools/screens.py reports/embedded/index.html

Chromium must be installed."""
import shutil
from pathlib import Path

from fastcore.script import call_parse
from playwright.sync_api import sync_playwright

PICTURES = Path(__file__).resolve().parents[1]/"docs"/"pictures"
WINDOWS = {"desk": (1280, 900), "phone": (390, 844)}
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking".split()


@call_parse
def main(page: str):     # HTML file
    "Write screen-WINDOW-SCHEME.png for each window and scheme."
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        for name, (width, height) in WINDOWS.items():
            for scheme in ("light", "dark"):
                window = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
                window.goto(Path(page).resolve().as_uri())
                window.screenshot(path=PICTURES/f"screen-{name}-{scheme}.png")
                window.close()
        browser.close()
