"""Rows of the tables of bad and unusual input: what somebody gives, and what must come of it.

    python tests/cases.py      # lists all rows, with the messages that they give now, in docs/refusals.md
"""
import importlib
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from reid_study.core import InputError


@dataclass(frozen=True)
class Case:
    "A row: it is either refused, or gives what it should."
    given: str                          # in words, as "a picture of 16 bits"
    call: Callable                      # is called with an empty folder, a Path
    refused: str | tuple = ()           # words that the InputError must have: the file or argument, and the remedy
    gives: Callable | None = None       # of what the call returns, whether it is right
    means: str = ""                     # what comes of it, in words, as "is read as 8 bits"

    def __str__(self): return self.given


PAGE = Path(__file__).resolve().parents[1]/"docs"/"refusals.md"

def check(case, folder):
    "Assert that what must come of a case does come of it, and that the page lists it."
    assert bool(case.refused) != bool(case.gives), "a case is refused or gives something"
    assert f"\n| {cell(case.given)} |" in PAGE.read_text(encoding="utf-8"), "run python tests/cases.py"
    if case.gives: assert case.gives(case.call(folder)), case.means
    else:
        with pytest.raises(InputError) as caught: case.call(folder)
        words = (case.refused,) if isinstance(case.refused, str) else case.refused
        assert all(word in str(caught.value) for word in words), f"{words} are not all in: {caught.value}"


LISTED = {}      # test module -> its rows, for the page

def table(cases):
    "A decorator for the test of a table: `@table(CASES) def test_images(case, tmp_path): check(case, tmp_path)`."
    assert len({case.given for case in cases}) == len(cases), "two rows have one name"
    def decorate(test):
        LISTED.setdefault(test.__module__, []).extend(cases)
        return pytest.mark.parametrize("case", cases, ids=str)(test)
    return decorate


def cell(text):
    "Text for a table in Markdown: on one line, with signs for what cannot be printed."
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(str(text).split())).replace("|", "\\|")


FREE_PORT = re.compile(r"(?<=port )\d{5}|(?<=127\.0\.0\.1', )\d{5}")      # another one each time


def outcome(case):
    "What comes of a case, in words: the message, or what it gives."
    if case.gives: return case.means[:1].upper() + case.means[1:]
    with tempfile.TemporaryDirectory() as folder:
        try: case.call(Path(folder))
        except InputError as e: return f"refused: *{FREE_PORT.sub('…', str(e).replace(folder, '…'))}*"
    raise AssertionError(f"{case} is not refused")


TABLES = {"test_bad_losses": "Losses, miners and distances", "test_bad_images": "Pictures", "test_bad_folders": "Folders and archives",
          "test_bad_learner": "Training", "test_bad_retrieval": "Retrieval and statistics", "test_bad_embedder": "Exported embedders",
          "test_bad_study": "Study files and settings", "test_bad_commands": "The command line", "test_bad_files": "Files and processes"}

INTRODUCTION = """# What it refuses, and what it makes of the unusual

An input that cannot be used gets an error that names it and says what to do; one that can be understood is understood. Nothing
becomes a wrong number without a word. Each row below is a test; the messages are those that the test gets."""


def write_page():
    "Write the page from the tables."
    lines = [INTRODUCTION]
    for module, title in TABLES.items():
        importlib.import_module(module)
        lines += [f"\n## {title}\n", "| Given | What comes of it |", "|:--|:--|"]
        lines += [f"| {cell(case.given)} | {cell(outcome(case))} |" for case in LISTED[module]]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__": sys.exit(importlib.import_module("cases").write_page())     # as the tests import it
