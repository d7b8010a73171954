"""Pictures of a page's first screen, on a desk and on a phone, in the light and in the dark, to docs/pictures/.

    pip install playwright
    python tools/screens.py reports/embedded/index.html

Chromium must be installed."""
import sys
from pathlib import Path

from fastcore.script import call_parse
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT/"tests"))
from chromium import CHROMIUM, FLAGS

PICTURES = ROOT/"docs"/"pictures"
WINDOWS = {"desk": (1280, 900), "phone": (390, 844)}


@call_parse
def main(page: str):     # HTML file
    "Write screen-WINDOW-SCHEME.png for each window and scheme."
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        for name, (width, height) in WINDOWS.items():
            for scheme in ("light", "dark"):
                window = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
                window.goto(Path(page).resolve().as_uri())
                window.screenshot(path=PICTURES/f"screen-{name}-{scheme}.png")
                window.close()
        browser.close()
