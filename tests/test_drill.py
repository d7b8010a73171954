"""The fault drill: a small study is killed at random moments, in every kind of process, and must end with the numbers of one that
was left alone. DRILL_KILLS says how often (default 5). Then a full disk, a damaged file, and the same pages from the same tables."""
import itertools
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from reid_study.data.people import few_people
from reid_study.study.config import training_config
from reid_study.study.record import read_run, run_folder
from reid_study.study.results import Results, read_results, write_results
from reid_study.study.tuning import read_tuning

ENV = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
REID = Path(sys.executable).with_name("reid-study")
KILLS = int(os.environ.get("DRILL_KILLS", 5))
TIMES = ("seconds", "images_per_second", "train_seconds", "embedding_seconds", "evaluation_seconds")

STUDY = """
title: A drill
dataset: people
protocol: {epochs: 4, validation: 4, p: 4, k: 2, height: 32, width: 16, steps: 10}
tuning: {trials: 2, epochs: 2, seed: 100}
arms:
  main: {recipes: [identity, identity+attributes], settings: tuned, score: test, seeds: 2}
  default: {recipes: [identity, identity+attributes, triplet], seeds: 1}
questions: [q1]
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drill")
    few_people(folder/"data"/"people")
    (folder/"drill.yaml").write_text(STUDY)
    return folder


def command(place, name):
    folders = ["--data", place/"data", "--runs", place/name/"runs", "--out", place/name/"pages"]
    return [REID, "study", place/"drill.yaml", *folders, "--jobs", "2", "--device", "cpu"]


def finish(place, name, **options):
    "Run the study to its end; what it printed."
    done = subprocess.run(command(place, name), capture_output=True, text=True, env=ENV, timeout=900, **options)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout + done.stderr


def without_times(value): return {k: v for k, v in value.items() if k not in TIMES} if isinstance(value, dict) else value


def outcome(place, name):
    "Everything that the study found, but for times: run -> (metrics, history, tables); and its pages that show no times."
    found = {}
    for folder in sorted((place/name/"runs").glob("*/[0-9a-f]*")):
        if folder.parent.name.startswith(".") or not (folder/"config.json").exists(): continue
        run = read_tuning(folder) if folder.parent.name == "tune" else read_run(folder)
        assert {f.name for f in folder.glob(".*")} <= {".snakemake_timestamp"}      # a kill leaves nothing in what is finished
        tables = {f.name: pd.read_parquet(f).to_json() for f in sorted(folder.glob("*.parquet"))}
        for csv in sorted(folder.glob("*.csv")): tables[csv.name] = pd.read_csv(csv).drop(columns="seconds").to_json()
        found[f"{folder.parent.name}/{folder.name}"] = without_times(run.metrics), tables
    pages = sorted((place/name/"pages"/"drill").glob("*.html"))
    return found, {page.name: page.read_text() for page in pages if not re.match("recipe|arm_|index", page.name)}


@pytest.fixture(scope="module")
def undisturbed(place):
    finish(place, "whole")
    return outcome(place, "whole")


def events(place, name):
    try: lines = (place/name/"runs"/".jobs"/"drill"/"events.jsonl").read_text().splitlines()
    except FileNotFoundError: return []       # an engine that starts begins it anew
    return [json.loads(line) for line in lines if line.endswith("}")]


def children(pid):
    "Processes of the engine by what they are: its Snakemake and its fork server."
    found = {}
    for p in Path("/proc").glob("[0-9]*"):
        try: parent, line = int((p/"stat").read_text().rsplit(")", 1)[1].split()[1]), (p/"cmdline").read_text()
        except (OSError, ValueError): continue
        if parent == pid: found["snakemake" if "snakemake" in line else "server" if "serve" in line else line] = int(p.name)
    return found


def victims(engine, place, name):
    "What could be killed now: kind -> process."
    last = {e["job"]: e for e in events(place, name)}
    jobs = [e["pid"] for e in last.values() if e["event"] == "started" and Path(f"/proc/{e['pid']}").exists()]
    return {"engine": engine.pid} | children(engine.pid) | ({"job": random.choice(jobs)} if jobs else {})


def wait_for_end(pid, seconds=20):
    "Wait until a process has ended, which nobody may be left to reap."
    end = time.time() + seconds
    while (stat := Path(f"/proc/{pid}/stat")).exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z":
        assert time.time() < end, f"{Path(f'/proc/{pid}/cmdline').read_text()} lives on"
        time.sleep(0.05)


@pytest.mark.skipif(not Path("/proc").exists(), reason="finds processes in /proc")
def test_kills_change_no_number(place, undisturbed):
    random.seed(0)
    log, kinds = [], (["job", "engine", "snakemake", "server", "job"]*KILLS)[:KILLS]
    random.shuffle(kinds)
    started, engine = time.time(), None
    while kinds:
        assert time.time() - started < 1800, f"only {len(log)} kills in 30 minutes: {log}"
        if engine is None or engine.poll() is not None:
            engine = subprocess.Popen(command(place, "cut"), env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if kinds[0] == "job":
            while engine.poll() is None and "job" not in victims(engine, place, "cut"): time.sleep(0.05)
            time.sleep(random.uniform(0, 2))
        else: time.sleep(random.uniform(1, 8))
        if (pid := victims(engine, place, "cut").get(kinds[0])) is None or engine.poll() is not None:
            if engine.poll() is not None and len(log) < KILLS:     # it ended before enough was killed: take something away and go on
                for stage in ("test", "train"):
                    for folder in list((place/"cut"/"runs"/stage).glob("[0-9a-f]*"))[:2]: shutil.rmtree(folder)
            kinds.append(kinds.pop(0))                                           # there is none now: another kind first
            if set(kinds) == {"server"}: engine.kill(); engine.wait()            # an engine has one server, and the next engine another
            continue
        others = victims(engine, place, "cut")
        try: os.kill(pid, signal.SIGKILL)
        except ProcessLookupError: continue
        if kinds[0] == "engine":
            engine.wait()
            for other in others.values(): wait_for_end(other)
        log.append(f"{time.time() - started:6.1f} s  killed {kinds.pop(0)}")
    engine.kill(); engine.wait()
    told = "\n".join(log)
    print(told)
    assert len(log) == KILLS
    for _ in range(3):      # jobs that were killed twice have failed; the same command goes on
        done = subprocess.run(command(place, "cut"), env=ENV, capture_output=True, text=True, timeout=900)
        if done.returncode == 0: break
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    runs, pages = outcome(place, "cut")
    assert runs.keys() == undisturbed[0].keys()
    for name in runs: assert runs[name] == undisturbed[0][name], name
    assert pages == undisturbed[1]
    if file := os.environ.get("DRILL_LOG"):
        end = f"the study has ended: {len(runs)} tunings, trainings and tests and {len(pages)} pages equal those of the study left alone"
        Path(file).write_text(f"{told}\n{time.time() - started:6.1f} s  {end}\n")


def test_a_full_disk_is_named_and_nothing_is_lost(place, undisturbed):
    shutil.copytree(place/"whole", place/"full")
    shutil.rmtree(place/"full"/"runs"/"run")
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))       # no file may grow beyond: checkpoints do
    done = subprocess.run(command(place, "full"), capture_output=True, text=True, env=ENV, timeout=900, preexec_fn=limit)
    assert done.returncode == 2 and "failed; the same command resumes" in done.stderr and "identity" in done.stderr, done.stderr[-2000:]
    assert "Traceback" not in done.stderr and "is the disk full?" in done.stderr and ".partial" in done.stderr, done.stderr[-2000:]
    assert not list((place/"full"/"runs"/"run").glob("[0-9a-f]*"))
    finish(place, "full")
    assert outcome(place, "full") == undisturbed


def test_damage_is_named_and_made_again(place, undisturbed):
    shutil.copytree(place/"whole", place/"damaged")
    runs = place/"damaged"/"runs"
    tested = sorted((runs/"test").glob("[0-9a-f]*"))[0]
    weights = run_folder(training_config(read_run(tested).config), runs)/"model.safetensors"
    metrics = next(m for m in sorted((runs/"test").glob("*/metrics.json")) if m.parent != tested)
    table = sorted((runs/"run").glob("*/per_query.parquet"))[0]
    metrics.write_text(metrics.read_text().replace('"mAP": 0.', '"mAP": 0.9', 1))      # still JSON, another number
    table.write_bytes(table.read_bytes()[:-10])
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))                        # of a training that is to be tested again
    shutil.rmtree(tested)
    said = finish(place, "damaged")
    assert all(f"{file.parent.name}/{file.name}" in said for file in (metrics, table, weights)) and "put aside" in said
    assert len(list((runs/".damaged").iterdir())) == 3
    assert outcome(place, "damaged") == undisturbed


def test_dates_decide_nothing(place, undisturbed):
    "Files are of 1970 and of the year 2040 in turns, and then the other way round."
    page, years = place/"whole"/"pages"/"drill"/"index.html", (0, 2**31 + 10**8)
    def date(*years):
        for path, when in zip(sorted((place/"whole").rglob("*")), itertools.cycle(years)): os.utime(path, (when, when))
    date(*years)
    before = page.stat().st_mtime
    finish(place, "whole")
    assert not events(place, "whole") and page.stat().st_mtime == before         # everything is there, and nothing is done again
    date(*reversed(years))
    text = page.read_text()
    page.unlink()
    finish(place, "whole")
    assert {e["job"] for e in events(place, "whole")} == {"page-index"} and page.read_text() == text


def test_the_same_tables_give_the_same_pages(place, undisturbed):
    call = lambda *argv: subprocess.run([REID, *argv], capture_output=True, text=True, env=ENV, timeout=900)
    said = call(*command(place, "whole")[1:], "--results", place/"results")
    assert said.returncode == 0, said.stderr
    assert not list((place/"results").rglob("*.safetensors"))
    said = call("report", place/"results", "--out", place/"again", "--data", place/"data")
    assert said.returncode == 0, said.stderr
    pages = {page.name: page.read_text() for page in (place/"again").glob("*.html")}
    assert {"index.html", "q1.html", "recipes.html"} <= pages.keys()
    for name, text in pages.items(): assert text == (place/"whole"/"pages"/"drill"/name).read_text(), name

    # published results count as finished: another folder of runs trains nothing
    adopting = ["study", place/"drill.yaml", "--data", place/"data", "--runs", place/"adopted", "--out", place/"adopted-pages",
                "--results", place/"results", "--device", "cpu"]
    again = call(*adopting)
    assert again.returncode == 0, again.stderr
    assert not list((place/"adopted").glob("train/[0-9a-f]*")) and (place/"adopted-pages"/"drill"/"index.html").exists()
    # results of another version are refused before anything trains
    old = read_results(place/"results")
    runs = [replace(run, config=run.config | {"numerics": 0}) for run in old.table.run]
    write_results(Results(old.study, old.table.assign(run=runs), old.tuning), place/"results")
    refused = call(*adopting)
    assert refused.returncode == 2 and "another version" in refused.stderr and "numerics 0" in refused.stderr
