"""What holds for the repository as a whole: clean notebooks, a library in step, a tidy package, nothing that must not be committed."""
import ast
import filecmp
import importlib
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from reid_study.study.results import read_results
from reid_study.study.spec import arm_configs, read_study
from reid_study.study.config import run_id
from reid_study.study.tuning import best_settings
from reid_study.study.jobs import tunings
from reid_study.training.recipes import RECIPES

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = [n for n in sorted((ROOT/"nbs").rglob("*.ipynb")) if ".ipynb_checkpoints" not in n.parts]
CHAPTERS = [n for n in NOTEBOOKS if n.parent.name != "study"]
MODULES = [m for m in sorted((ROOT/"reid_study").rglob("*.py")) if m.name not in ("__init__.py", "__main__.py", "_modidx.py")]


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory):
    "A copy of the project in which the notebooks were cleaned and the library was exported anew."
    copy = tmp_path_factory.mktemp("copy")/"reid_study"
    copy.mkdir()
    caches = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for name in ("nbs", "reid_study"): shutil.copytree(ROOT/name, copy/name, ignore=caches)
    for name in ("settings.ini", "setup.py", "README.md"): shutil.copy(ROOT/name, copy)
    for module in (copy/"reid_study").rglob("*.py"):
        if module.name not in ("__init__.py", "__main__.py"): module.unlink()      # so that a module without a notebook is found
    for tool in ("nbdev_clean", "nbdev_export"):
        subprocess.run([Path(sys.executable).parent/tool], cwd=copy, check=True, capture_output=True)
    return copy


# ---- notebooks and library

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
    assert "../" not in "".join(tagged[0]["source"]), "a template depends on no working directory: see in_project"
    assert f"papermill nbs/study/{path.name}" in "".join(cells[0]["source"]), "its first cell says how it is run"
    assert not any(c.get("outputs") for c in cells), "templates are committed without outputs"


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_a_chapter_has_no_error_and_no_private_path(path):
    text = path.read_text()
    outputs = [o for c in json.loads(text)["cells"] for o in c.get("outputs", [])]
    assert not any(o["output_type"] == "error" for o in outputs)
    printed = json.dumps(outputs)
    places = "site-packages", "/home/", "/root/", "/tmp/tmp", str(ROOT)
    assert not any(place in printed for place in places), "an output names a place on somebody's machine"
    assert not any(o.get("name") == "stderr" for o in outputs), "make the chapter again without warnings and progress bars: make book"


def test_chapter_numbers_are_unique():
    numbers = Counter(m[1] for n in CHAPTERS if (m := re.match(r"(\d+[a-z]?)_", n.name)))
    assert not [number for number, times in numbers.items() if times > 1]


SCRIPTS = [f for name in ("tests", "tools", "benchmarks") for f in sorted((ROOT/name).glob("*.py"))]

@pytest.mark.parametrize("path", [*NOTEBOOKS, *SCRIPTS], ids=lambda p: p.stem)
def test_lines_of_code_are_short(path):
    cells = json.loads(path.read_text())["cells"] if path in NOTEBOOKS else [{"cell_type": "code", "source": path.read_text()}]
    lines = [line for c in cells if c["cell_type"] == "code" for line in "".join(c["source"]).splitlines()]
    assert not [line for line in lines if len(line) > 140]


def exported(path):
    "The sources of a chapter's exported cells."
    cells = ["".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    return [s for s in cells if re.search(r"^#\|\s*export", s, re.M)]


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_a_chapter_that_exports_code_asserts_something(path):
    cells = ["".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    if exported(path): assert any(re.search(r"\b(assert|test_\w+\(|refuses\(|check_\w+\()", s) for s in cells if s not in exported(path))


def test_every_chapter_is_listed():
    page = (ROOT/"docs"/"chapters.md").read_text("utf-8")
    missing = [n.name for n in CHAPTERS if n.parent == ROOT/"nbs" and f"(../nbs/{n.name})" not in page]
    assert missing == ["benchmarks.ipynb", "index.ipynb"]     # these are pages, not chapters


# ---- the package

ORDER = ("core", "testing", "distances", "data", "networks", "losses", "evaluation", "training", "study", "report", "inference",
         "cli")     # each imports only from those before it


def imports(module):
    "The (module, names) that a module imports from this library, in functions too."
    here = ["reid_study", *module.relative_to(ROOT/"reid_study").with_suffix("").parts]
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("reid_study")):
            name = ".".join([*here[:len(here) - node.level], *([node.module] if node.module else [])]) if node.level else node.module
            yield name, [alias.name for alias in node.names]
        if isinstance(node, ast.Import): yield from ((alias.name, []) for alias in node.names if alias.name.startswith("reid_study"))


def test_packages_import_in_one_direction():
    wrong = []
    for module in MODULES:
        own = module.relative_to(ROOT/"reid_study").with_suffix("").parts[0]
        for name, _ in imports(module):
            other = (name.split(".") + [""])[1]
            if other and ORDER.index(other) > ORDER.index(own): wrong.append(f"{module.relative_to(ROOT)} imports {name}")
    assert not wrong, wrong


def test_nothing_imports_private_names():
    wrong = [f"{m.relative_to(ROOT)}: {name}.{n}" for m in MODULES for name, names in imports(m) for n in names if n.startswith("_")]
    assert not wrong, wrong


def test_a_public_name_means_one_thing():
    "Functions and classes have names of their own, but for what the command line and its workers are called with."
    found = {}
    for module in MODULES:
        for node in ast.parse(module.read_text()).body:
            method = "patch" in map(ast.unparse, getattr(node, "decorator_list", ()))
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_") and not method:
                found.setdefault(node.name, []).append(module.stem)
    assert not {name: modules for name, modules in found.items() if len(modules) > 1 and name not in ("main", "serve")}


def test_every_name_is_defined_and_every_import_is_used():
    from pyflakes import checker, messages
    wrong = []
    for module in MODULES:
        found = checker.Checker(ast.parse(module.read_text()), str(module.relative_to(ROOT))).messages
        wrong += [str(m) for m in found if isinstance(m, (messages.UndefinedName, messages.UnusedImport, messages.RedefinedWhileUnused))]
    assert not wrong, wrong


PACKAGES = sorted({m.parent.name for m in MODULES if m.parent.name != "reid_study"})
IN_THEIR_MODULES = {"KINDS", "LARGEST", "geometry", "hypotheses", "replication", "synthesis", "vit"}     # shared, or the name of a module

@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_can_be_had_from_its_package(package):
    top = importlib.import_module(f"reid_study.{package}")
    modules = {m.stem: importlib.import_module(f"reid_study.{package}.{m.stem}") for m in MODULES if m.parent.name == package}
    times = Counter(name for module in modules.values() for name in module.__all__)
    shared = {name for name, n in times.items() if n > 1 or name in modules}
    names = [(name, module) for module in modules.values() for name in module.__all__ if name not in shared]
    assert shared <= IN_THEIR_MODULES
    assert not [name for name, module in names if getattr(top, name) is not getattr(module, name)]
    assert {name for name, _ in names} == {*top.__all__} and {*top.__all__, *modules} <= {*dir(top)}


def test_the_library_lists_its_packages():
    import reid_study
    assert {*PACKAGES, "core", "distances"} <= {*dir(reid_study)} and reid_study.losses is sys.modules["reid_study.losses"]


def test_the_top_of_the_package():
    assert {m.stem for m in MODULES if m.parent.name == "reid_study"} == {"core", "distances", "testing", "cli"}


# ---- what is committed

def committed():
    out = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if out.returncode: pytest.skip("not a git checkout")
    return [ROOT/p for p in out.stdout.split("\0") if p and (ROOT/p).exists()]


def test_no_committed_file_is_over_1_mb():
    large = {str(p.relative_to(ROOT)): p.stat().st_size for p in committed() if p.stat().st_size > 2**20}
    assert not large


def test_results_and_readme_are_small():
    results = [p for p in committed() if p.is_relative_to(ROOT/"results")]
    assert len(results) <= 150 and sum(p.stat().st_size for p in results) <= 20*2**20
    assert (ROOT/"README.md").stat().st_size <= 10*2**10


def test_no_photographs_are_committed():
    images = [p for p in committed() if p.suffix.lower() in (".jpg", ".jpeg", ".png", ".gif", ".webp", ".npy", ".zip", ".tar", ".mat")]
    assert all(p.is_relative_to(ROOT/"docs") for p in images), images
    assert not [p for p in committed() if p.is_relative_to(ROOT/"data") and p.name != "README.md"]


# ---- what is published

def test_learning_rates_are_those_that_the_search_chose():
    "The rate of each recipe in the committed table is the one with the highest mAP."
    import pandas as pd
    table = pd.read_csv(ROOT/"results"/"market1501_learning_rates.csv")
    assert set(table.groupby("recipe").lr.nunique()) == {table.lr.nunique()}, "every recipe was tried at every rate"
    best = table.loc[table.groupby("recipe").mAP.idxmax()].set_index("recipe").lr
    assert best.to_dict() == {name: RECIPES[name].lr for name in best.index}


EARLIER = "market1501-cpu", "market1501-gpu"      # of an earlier search or earlier defaults, as their pages say


@pytest.mark.parametrize("folder", [p.parent for p in sorted((ROOT/"results").glob("*/study.json")) if p.parent.name not in EARLIER],
                         ids=lambda p: p.name)
def test_published_runs_are_those_that_the_study_file_asks_for(folder):
    """Else they would be reported as the results of a study that would now make others. A study that is not complete counts the runs
    that it lacks, which are the last seeds of the recipes that it has."""
    study, results = read_study(ROOT/"studies"/f"{folder.name}.yaml"), read_results(folder)
    tuned = {recipe: run_id(config) for recipe, config in tunings(study).items() if recipe in set(results.table.recipe)}
    assert tuned == {recipe: t.id for recipe, t in results.tuning.items()}
    asked = set()
    for arm, a in study.arms.items():
        for recipe in a.names:
            best = best_settings(results.tuning[recipe]) if a.settings == "tuned" and recipe in results.tuning else None
            asked |= {(arm, recipe, seed, frozenset(change.items()), run_id(config))
                      for seed, change, config in arm_configs(study, arm, recipe, best)}
    found = {(row.arm, row.recipe, row.seed, frozenset(row.change.items()), row.run.id) for row in results.table.itertuples()}
    assert found <= asked
    missing = Counter((arm, recipe) for arm, recipe, *_ in asked - found)
    assert missing == {(arm, recipe): n for arm, recipes in results.missing.items() for recipe, n in recipes.items()}
    for arm, recipe in {(arm, recipe) for arm, recipe, *_ in found}:
        seeds = {seed for a, r, seed, *_ in found if (a, r) == (arm, recipe)}
        assert seeds == set(range(study.first_seed, study.first_seed + len(seeds)))
