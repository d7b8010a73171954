"Where Chromium is, and the flags that pages are tested and photographed with."
import shutil

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ("--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update "
         "--disable-sync").split()
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
