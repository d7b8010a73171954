"""Type hints that a checker accepts: of distances, losses, evaluation and core."""
import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HINTED = [ROOT/"reid_study"/"core.py", ROOT/"reid_study"/"distances.py",
          *(m for name in ("losses", "evaluation") for m in sorted((ROOT/"reid_study"/name).glob("*.py")) if m.name != "__init__.py")]


def test_mypy_finds_nothing(tmp_path):
    command = [sys.executable, "-m", "mypy", "--config-file", ROOT/"tests"/"mypy.ini", "--cache-dir", tmp_path, *HINTED]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert not done.returncode, done.stdout + done.stderr


def public(body, prefix=""):
    "(name, function) of the public functions and methods of a module."
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"): yield from public(node.body, f"{node.name}.")
        if isinstance(node, ast.FunctionDef) and (not node.name.startswith("_") or node.name in ("__init__", "__call__")):
            yield prefix + node.name, node


@pytest.mark.parametrize("path", [m for m in HINTED if m.stem not in ("pictures",)], ids=lambda p: p.stem)
def test_public_functions_say_what_they_return(path):
    without = {name for name, f in public(ast.parse(path.read_text()).body) if f.returns is None}
    assert not without
