"""Photograph the pages of a study's published results with headless Chromium: one picture a page under docs/pages/."""
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from fastcore.script import call_parse
from PIL import Image

from reid_study.study.workflow import write_pages

ROOT = Path(__file__).resolve().parents[1]
WIDE, HIGH = 1080, 16_000


def photograph(page, path, chromium):
    "The whole of an HTML page, without the empty rest below it, in 256 colours."
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder)/"page.png"
        subprocess.run([chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={WIDE},{HIGH}",
                        f"--screenshot={shot}", page.resolve().as_uri()], check=True, capture_output=True, timeout=300)
        image = Image.open(shot).convert("RGB")
    pixels = np.asarray(image)
    used = (pixels != pixels[-1, 0]).any((1, 2)).nonzero()[0].max()
    if used > HIGH - 100: raise SystemExit(f"{page.name} is longer than {HIGH:,} pixels, and its picture would be cut: shorten the page, or raise HIGH")
    image = image.crop((0, 0, WIDE, min(used + 40, HIGH)))
    image.quantize(256).save(path, optimize=True)


@call_parse
def main(study: str = "embedded"):  # A study with published results
    "Photograph the overview and each question's page of results/STUDY."
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium: raise SystemExit("Chromium is not installed; on Debian: apt-get install chromium")
    out = ROOT/"docs"/"pages"
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        pages = write_pages(ROOT/"results"/study, folder, ROOT/"data")
        for page in sorted([pages/"index.html", *pages.glob("q[1-9].html")]): photograph(page, out/f"{study}_{page.stem}.png", chromium)
