"""The study from outside: processes that are killed, the command line, the templates with smoke parameters."""
import importlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from reid_study.cli import main
from reid_study.core import InputError
from reid_study.data.datasets import read_dataset
from reid_study.data.people import few_people
from reid_study.study.config import is_test, make_config
from reid_study.study.endpoints import failed
from reid_study.study.record import partial_folder, read_run, run_folder
from reid_study.study.results import read_results
from reid_study.study.run import make_run, make_runs, open_data
from reid_study.study.spec import arm_configs, read_study
from reid_study.study.tuning import best_settings, read_tuning, tune
from reid_study.study.worker import PRELOAD
from reid_study.study.jobs import tunings
from reid_study.study.workflow import run_study

SMALL = dict(validation=4, epochs=4, p=4, k=4, height=32, width=16)
ENV = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    few_people(folder/"people")
    return folder


def make_one(config, data, runs):
    torch.set_num_threads(1)      # OpenMP's threads do not outlive a fork
    make_run(config, data, runs, "cpu")


def start(config, data, runs):
    "A process that makes a run, forked from this one, which imports everything once."
    for module in PRELOAD: importlib.import_module(module)
    process = multiprocessing.get_context("fork").Process(target=make_one, args=(config, data, runs))
    process.start()
    return process


def ended(process):
    "The exit code of a process that ends within five minutes."
    process.join(300)
    return process.exitcode


def outcome(folder):
    run = read_run(folder)
    return run.history.drop(columns="seconds"), run.metrics["mAP"], run.metrics["cmc"], run.tables["per_query"]


def same(a, b): return a[0].equals(b[0]) and a[1:3] == b[1:3] and a[3].equals(b[3])


def test_a_killed_run_ends_with_the_same_numbers(data, tmp_path):
    config = make_config("people", "identity+triplet", **SMALL | {"epochs": 8})
    undisturbed = start(config, data, tmp_path/"whole")
    assert ended(undisturbed) == 0

    process, history = start(config, data, tmp_path/"cut"), partial_folder(config, tmp_path/"cut")/"history.csv"
    while not (history.exists() and len(pd.read_csv(history)) >= 3):
        assert process.is_alive()
        time.sleep(0.01)
    process.kill()
    assert ended(process) == -signal.SIGKILL
    assert not run_folder(config, tmp_path/"cut").exists()
    with pytest.raises(InputError, match="no run"): read_run(run_folder(config, tmp_path/"cut"))

    resumed = start(config, data, tmp_path/"cut")
    assert ended(resumed) == 0
    assert same(outcome(run_folder(config, tmp_path/"whole")), outcome(run_folder(config, tmp_path/"cut")))


def test_two_processes_that_want_one_run_make_it_once(data, tmp_path):
    config = make_config("people", "identity", **SMALL)
    both = [start(config, data, tmp_path) for _ in range(2)]
    assert [ended(p) for p in both] == [0, 0]
    assert len(read_run(run_folder(config, tmp_path)).history) == SMALL["epochs"]
    assert len(list((tmp_path/"run").glob("[!.]*"))) == 1


def test_the_command_line_from_data_to_report(data, tmp_path, monkeypatch, capsys):
    (tmp_path := tmp_path/"a folder of it's own").mkdir()      # which a shell would take apart
    def call(*argv):
        code, said = main([*argv]), capsys.readouterr()
        return code, said.out, said.err

    monkeypatch.chdir(tmp_path)
    code, out, err = call("data", "people", "--data", str(data))
    assert code == 0 and "14 identities" in out, err
    small = [f"{k}={v}" for k, v in SMALL.items()]
    code, out, err = call("run", "identity", "--data", str(data), "--set", *small)
    assert code == 0 and "mAP" in out, err
    (tmp_path/"two.yaml").write_text(yaml.safe_dump({"title": "Two recipes", "dataset": "people", "protocol": SMALL, "arms": {
        "main": {"recipes": ["identity", "identity+triplet"], "seeds": 2}}}))
    code, out, err = call("study", "two.yaml", "--data", str(data), "--check")
    assert code == 0 and "4 runs" in out and not (tmp_path/"reports").exists(), err
    command = [Path(sys.executable).with_name("reid-study"), "study", "two.yaml", "--data", str(data), "--results", "results"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENV, timeout=900)
    assert done.returncode == 0 and "4 of 4 runs" in done.stderr, done.stderr
    page = (tmp_path/"reports"/"two"/"index.html").read_text()
    assert "identity+triplet" in page and "data:image/png;base64" in page
    runs = [read_run(f) for f in (tmp_path/"runs"/"run").glob("[!.]*")]
    assert len(runs) == 4 and (tmp_path/"runs"/"logs"/"two"/"recipe-main-identity.ipynb").exists()
    assert sorted(run.id for run in read_results(tmp_path/"results").table.run) == sorted(r.id for r in runs)
    assert "identity+triplet" in (tmp_path/"reports"/"two"/"recipe-main-identity_triplet.html").read_text()

    (tmp_path/"two.yaml").write_text((tmp_path/"two.yaml").read_text().replace("epochs", "epocs"))
    code, out, err = call("study", "two.yaml", "--data", str(data))
    assert code == 2 and "two.yaml" in err and "epocs" in err and err.count("\n") == 1


@pytest.mark.parametrize("argv, words", [
    (("run", "identity", "--set", "p=100", "validation=4"), "p=100"), (("run", "nonsense"), "nonsense")])
def test_what_cannot_be_run_is_said(argv, words, data, capsys):
    assert main([*argv, "--data", str(data)]) == 2 and words in capsys.readouterr().err


def test_bad_images_are_named(data, tmp_path):
    import shutil
    broken = tmp_path/"data"
    shutil.copytree(data/"people", broken/"people")
    victim = sorted((broken/"people"/"bounding_box_train").iterdir())[3]
    victim.write_bytes(b"")
    config = make_config("people", "identity", **SMALL)
    with pytest.raises(InputError, match=victim.name): open_data(config, broken)
    victim.write_bytes(b"not an image")
    with pytest.raises(InputError, match="not as they were drawn"): open_data(config, broken)
    opened = {"people": (read_dataset("people", broken), "0"*12)}
    with pytest.raises(InputError, match=victim.name): open_data(config, broken, opened)
    assert not list((broken/"cache").glob("*"))
    victim.unlink()
    with pytest.raises(InputError, match="half unpacked"): open_data(config, broken)


def test_a_training_that_diverges_is_a_failed_run_of_its_study(data, tmp_path):
    (tmp_path/"lost.yaml").write_text(yaml.safe_dump({"title": "One diverges", "dataset": "people", "protocol": SMALL, "arms": {
        "main": {"recipes": ["triplet"], "seeds": 1, "each": [{"lr": 1e30}, {"lr": .01}]}}}))
    run_study(tmp_path/"lost.yaml", data, tmp_path/"runs", tmp_path/"out", device="cpu")
    runs = [row.run for row in read_results(tmp_path/"runs"/"results"/"lost").table.itertuples()]
    assert failed(runs[0]) and [len(run.history) for run in runs] == [0, SMALL["epochs"]]
    assert "not finite in epoch 1" in (tmp_path/"out"/"lost"/"recipe-main-triplet.html").read_text()


def test_a_failing_run_is_reported_and_others_are_kept(data, tmp_path):
    (tmp_path/"bad.yaml").write_text(yaml.safe_dump({"title": "One is broken", "dataset": "people", "protocol": SMALL, "arms": {
        "main": {"recipes": ["triplet"], "seeds": 1}, "other": {"recipes": ["identity"], "seeds": 1}}}))
    (_, _, config), = arm_configs(read_study(tmp_path/"bad.yaml"), "main", "triplet", None)
    (part := partial_folder(config, tmp_path/"runs")).mkdir(parents=True)
    (part/"images.json").write_text(json.dumps({"data": "0"*12}))      # begun with other images
    with pytest.raises(RuntimeError, match="triplet seed 0.*other images.*ipynb"):
        run_study(tmp_path/"bad.yaml", data, tmp_path/"runs", tmp_path/"out", device="cpu")
    kept, = (tmp_path/"runs"/"run").glob("[!.]*")
    pages = [page.name for page in (tmp_path/"out").rglob("*.html")]
    assert read_run(kept).config["recipe"] == "identity" and pages == ["recipe-other-identity.html"]
    told = [json.loads(line) for line in (tmp_path/"runs"/".jobs"/"bad"/"events.jsonl").read_text().splitlines()]
    failed = {e["job"] for e in told if e["event"] == "failed"}
    assert len(failed) == 1 and [e["event"] for e in told if e["job"] in failed] == ["started", "failed"]*2      # tried again


@pytest.mark.parametrize("name", ["market1501-gpu", "market1501-gpu-tuned", "market1501-gpu-256", "market1501-gpu-long"])
def test_the_gpu_studies_run_small_on_a_cpu(name, data, tmp_path):
    content = yaml.safe_load((Path(__file__).parents[1]/"studies"/f"{name}.yaml").read_text())
    small = SMALL | {"epochs": 1, "steps": 1, "height": 64, "width": 32, "precision": "float32"}
    content |= {"dataset": "people", "protocol": content["protocol"] | small, "questions": []}
    if content.get("tuning"): content["tuning"] |= {"trials": 1, "epochs": 1}
    for arm in content["arms"].values():
        arm |= {"recipes": ["identity+triplet"], "seeds": 1, "changes": arm.get("changes", {}) | {"epochs": 1}}
    (tmp_path/"small.yaml").write_text(yaml.safe_dump(content))
    study = read_study(tmp_path/"small.yaml")
    tuned = {recipe: best_settings(read_tuning(tune(config, data, tmp_path, "cpu"))) for recipe, config in tunings(study).items()}
    plan = []
    for arm, a in study.arms.items():
        plan += arm_configs(study, arm, "identity+triplet", tuned["identity+triplet"] if a.settings == "tuned" else None)
    tested = {run.config["backbone"] for run in make_runs(plan, data, tmp_path, "cpu") if is_test(run.config)}
    assert tested == {"resnet50", *(arm.get("changes", {}).get("backbone", "resnet50") for arm in content["arms"].values())}
