"""Rows of the tables of bad and unusual input: what somebody gives, and what must come of it. docs/refusals.md lists them."""
from collections.abc import Callable
from dataclasses import dataclass

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


def check(case, folder):
    "Assert that what must come of a case does come of it."
    assert bool(case.refused) != bool(case.gives), "a case is refused or gives something"
    if case.gives: assert case.gives(case.call(folder)), case.means
    else:
        with pytest.raises(InputError) as caught: case.call(folder)
        words = (case.refused,) if isinstance(case.refused, str) else case.refused
        assert all(word in str(caught.value) for word in words), f"{words} are not all in: {caught.value}"


def table(cases):
    "A decorator for the test of a table: `@table(CASES) def test_images(case, tmp_path): check(case, tmp_path)`."
    assert len({case.given for case in cases}) == len(cases), "two rows have one name"
    return pytest.mark.parametrize("case", cases, ids=str)
