"""README.md and the pages under docs/ are what their notebooks make."""
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_pages_are_in_step():
    done = subprocess.run([sys.executable, ROOT/"tools"/"pages.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
