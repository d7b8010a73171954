"""What holds for the repository as a whole: clean notebooks, a library in step, nothing that must not be committed."""
import filecmp
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from reid_study.training.recipes import RECIPES
from reid_study.study.run import code_now, code_of, score_code, score_code_now

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT/"nbs").rglob("*.ipynb"))
NOTEBOOKS = [n for n in NOTEBOOKS if ".ipynb_checkpoints" not in n.parts]


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory):
    "A copy of the project in which the notebooks were cleaned and the library was exported anew."
    copy = tmp_path_factory.mktemp("copy")/"reid_study"
    copy.mkdir()
    for name in ("nbs", "reid_study"): shutil.copytree(ROOT/name, copy/name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    for name in ("settings.ini", "setup.py", "README.md"): shutil.copy(ROOT/name, copy)
    for module in (copy/"reid_study").rglob("*.py"):
        if module.name != "__init__.py": module.unlink()      # so that a module without a notebook is found
    for tool in ("nbdev_clean", "nbdev_export"):
        subprocess.run([Path(sys.executable).parent/tool], cwd=copy, check=True, capture_output=True)
    return copy


def test_notebooks_are_clean(rebuilt):
    dirty = [str(n.relative_to(ROOT)) for n in NOTEBOOKS if n.read_bytes() != (rebuilt/n.relative_to(ROOT)).read_bytes()]
    assert not dirty, f"run nbdev_clean: {dirty}"


def test_library_is_in_step(rebuilt):
    modules = {p.relative_to(rebuilt) for p in (rebuilt/"reid_study").rglob("*.py")}
    assert modules == {p.relative_to(ROOT) for p in (ROOT/"reid_study").rglob("*.py")}
    stale = [str(m) for m in sorted(modules) if not filecmp.cmp(ROOT/m, rebuilt/m, shallow=False)]
    assert not stale, f"run nbdev_export: {stale}"


@pytest.mark.parametrize("path", [n for n in NOTEBOOKS if n.parent.name == "study"], ids=lambda p: p.stem)
def test_a_study_notebook_has_one_parameters_cell(path):
    cells = json.loads(path.read_text())["cells"]
    tagged = [c for c in cells if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1 and tagged[0]["cell_type"] == "code"
    assert not any(c.get("outputs") for c in cells), "templates are committed without outputs"


@pytest.mark.parametrize("path", [n for n in NOTEBOOKS if n.parent.name != "study"], ids=lambda p: p.stem)
def test_a_chapter_has_no_error_and_no_private_path(path):
    text = path.read_text()
    outputs = [o for c in json.loads(text)["cells"] for o in c.get("outputs", [])]
    assert not any(o["output_type"] == "error" for o in outputs)
    printed = json.dumps(outputs)
    assert not any(place in printed for place in ("site-packages", "/home/", "/root/", "/tmp/tmp", str(ROOT))), "an output names a place on somebody's machine"
    assert not any(o.get("name") == "stderr" for o in outputs), "make the chapter again without warnings and progress bars: make book"


def committed():
    out = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if out.returncode: pytest.skip("not a git checkout")
    return [ROOT/p for p in out.stdout.split("\0") if p and (ROOT/p).exists()]


def test_no_committed_file_is_over_1_mb():
    large = {str(p.relative_to(ROOT)): p.stat().st_size for p in committed() if p.stat().st_size > 2**20}
    assert not large


def test_no_photographs_are_committed():
    images = [p for p in committed() if p.suffix.lower() in (".jpg", ".jpeg", ".png", ".gif", ".webp", ".npy", ".zip", ".tar", ".mat")]
    assert all(p.is_relative_to(ROOT/"docs") for p in images), images
    assert not [p for p in committed() if p.is_relative_to(ROOT/"data") and p.name != "README.md"]


def test_pages_are_in_step():
    "README.md and the pages under docs/ are what their notebooks make."
    done = subprocess.run([sys.executable, ROOT/"tools"/"pages.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_learning_rates_are_those_that_the_search_chose():
    "Each recipe's rate is the one with the highest mAP in the committed table."
    import pandas as pd
    table = pd.read_csv(ROOT/"results"/"market1501_learning_rates.csv")
    assert set(table.recipe) == set(RECIPES)
    assert set(table.groupby("recipe").lr.nunique()) == {table.lr.nunique()}, "every recipe was tried at every rate"
    best = table.loc[table.groupby("recipe").mAP.idxmax()].set_index("recipe").lr
    assert best.to_dict() == {name: r.lr for name, r in RECIPES.items()}


def test_published_runs_are_of_the_code_of_today():
    "Else they would be read with a code that did not make them; tools/same_code.py shows that a change changes no number."
    now = {recipe: code_of(recipe) for recipe in RECIPES}
    raw = {value for recipe in RECIPES for value in code_now(recipe).values()} | {score_code_now()}
    assert set(json.loads((ROOT/"results"/"same_code.json").read_text())) <= raw
    for file in sorted((ROOT/"results").glob("*/*/*/config.json")):
        config = json.loads(file.read_text())
        first = config.get("first", config)
        assert {name: first[name] for name in ("code", "loss_code")} == now[first["recipe"]], file
        if "search" not in config: assert config["score_code"] == score_code(), file
