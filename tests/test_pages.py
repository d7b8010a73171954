"""README.md and the pages under docs/ are what their notebooks make."""
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_pages_are_in_step():
    done = subprocess.run([sys.executable, ROOT/"tools"/"pages.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_no_sentence_shows_the_name_of_what_it_should_hold():
    for page in (ROOT/"README.md", *sorted((ROOT/"docs"/"results").glob("*.md"))):
        prose = re.sub(r"```.*?```|`[^`]*`", "", page.read_text("utf-8"), flags=re.DOTALL)
        assert not re.findall(r"\{[a-z_.]+\}", prose), page.name
