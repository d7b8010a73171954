"""The wheel: small, complete, and enough to train a recipe and to start a study where there is no clone."""
import json
import os
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

from reid_study.data.people import make_people

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ("nbs/study", "reid_study", "studies", "workflow", "results/embedded", "results/benchmarks")

STUDY = """title: One recipe
dataset: people
protocol: {backbone: tiny, weights: WEIGHTS/tiny.safetensors, height: 32, width: 16, validation: 4, p: 4, k: 2, epochs: 1, steps: 1}
arms: {main: {recipes: [triplet], seeds: 1}}
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    "A wheel, built from a copy of the files that it is made of."
    folder = tmp_path_factory.mktemp("source")
    for name in SOURCE: shutil.copytree(ROOT/name, folder/name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for name in ("settings.ini", "setup.py", "README.md", "LICENSE"): shutil.copy(ROOT/name, folder)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder/"dist", folder]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return next((folder/"dist").glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    "A folder with what the wheel installs, as `pip install --no-deps --target` makes it of a package that has no scripts."
    folder = tmp_path_factory.mktemp("installed")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    "A folder with a few drawn people and nothing else."
    folder = tmp_path_factory.mktemp("empty")
    make_people(folder/"data"/"people", n_train=16, n_test=4, n_distractors=2, n_junk=2, progress=False)
    return folder


def reid_study(installed, cwd, *argv):
    "What `python -m reid_study` prints in a folder where there is no clone."
    environment = os.environ | {"PYTHONPATH": str(installed), "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", "reid_study", *argv], cwd=cwd, env=environment, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return done.stdout


def test_the_wheel_is_small(wheel): assert wheel.stat().st_size < 3e6


def test_the_wheel_has_what_a_study_needs(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(file.relative_to(ROOT)) for file in (ROOT/"reid_study").rglob("*.py")}
    project = [file for name in ("nbs/study", "workflow", "studies", "results/embedded") for file in (ROOT/name).rglob("*")]
    kept = [file for file in project if file.is_file() and ".ipynb_checkpoints" not in str(file)]
    wanted = {f"reid_study/project/{file.relative_to(ROOT)}" for file in kept}
    assert modules | wanted | {"reid_study/py.typed", "reid_study/losses/__init__.pyi"} <= names
    assert not [name for name in names if not name.startswith(("reid_study/", "reid_study-"))]


def test_a_wheel_needs_few_packages(wheel):
    "Each extra of settings.ini is there; without extras, nothing that trains, draws or runs studies is asked for."
    metadata = zipfile.ZipFile(wheel).read(next(n for n in zipfile.ZipFile(wheel).namelist() if n.endswith("METADATA"))).decode()
    needs = [line.removeprefix("Requires-Dist: ") for line in metadata.splitlines() if line.startswith("Requires-Dist: ")]
    assert len([need for need in needs if "extra ==" not in need]) <= 8
    (settings := ConfigParser(delimiters=["="])).read(ROOT/"settings.ini")
    extras = {name.removesuffix("_requirements") for name in settings["DEFAULT"] if name.endswith("_requirements")}
    assert extras == {line.removeprefix("Provides-Extra: ") for line in metadata.splitlines() if line.startswith("Provides-Extra: ")}


def test_training_and_export_need_no_package_of_studies():
    code = """import sys
for name in ("execnb", "ipykernel", "nbconvert", "optuna", "papermill", "seaborn", "snakemake"): sys.modules[name] = None
import reid_study.inference.card, reid_study.inference.evaluate, reid_study.inference.export, reid_study.training.learner"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_recipe_is_trained_without_the_clone(installed, empty):
    changes = "backbone=tiny height=32 width=16 validation=4 p=4 k=2 epochs=1 steps=1".split()
    assert "mAP" in reid_study(installed, empty, "run", "triplet", "--device", "cpu", "--set", *changes)
    env, = (json.loads(file.read_text()) for file in (empty/"runs"/"run").glob("*/env.json"))
    assert env["commit"] is None


def test_a_study_is_made_without_the_clone(installed, empty):
    "With the templates, the workflow, the weights and the study files that come with the library."
    project = installed/"reid_study"/"project"
    (empty/"own.yaml").write_text(STUDY.replace("WEIGHTS", str(project/"studies"/"weights")))
    assert "index.html" in reid_study(installed, empty, "study", "own.yaml", "--jobs", "1", "--device", "cpu")
    assert (empty/"reports"/"own"/"index.html").stat().st_size > 10_000
    job = json.loads((empty/"runs"/".jobs"/"own"/"page-index.json").read_text())
    assert Path(job["template"]).is_relative_to(project)


def test_a_study_that_comes_with_the_library_is_found_by_its_name(installed, empty):
    done = subprocess.run([sys.executable, "-m", "reid_study", "study", "studies/losses.yaml", "--check"], cwd=empty, capture_output=True,
                          env=os.environ | {"PYTHONPATH": str(installed)}, text=True)
    assert "study losses, arm contrastive" in done.stderr      # its people are more than those of this folder
