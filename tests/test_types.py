"""Type hints on everything that is public, and a checker that accepts them."""
import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = [m for m in sorted((ROOT/"reid_study").rglob("*.py")) if m.name not in ("__init__.py", "_modidx.py")]


def test_mypy_finds_nothing(tmp_path):
    command = [sys.executable, "-m", "mypy", "--config-file", ROOT/"tests"/"mypy.ini", "--cache-dir", tmp_path, *MODULES]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert not done.returncode, done.stdout + done.stderr


def public(body, prefix=""):
    "(name, function) of the public functions and methods of a module."
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"): yield from public(node.body, f"{node.name}.")
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef): continue
        if not node.name.startswith("_") or node.name in ("__init__", "__call__"): yield prefix + node.name, node


def lacking(function):
    "What of a function has no hint: arguments, and return."
    a = function.args
    arguments = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
    without = [x.arg for x in arguments if x.annotation is None and x.arg not in ("self", "cls")]
    return without + ["return"]*(function.returns is None)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(ROOT/"reid_study").with_suffix("").as_posix())
def test_public_functions_say_what_they_take_and_return(path):
    assert not {name: what for name, f in public(ast.parse(path.read_text()).body) if (what := lacking(f))}
