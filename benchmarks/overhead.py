"""What does a run cost beside its training? From the log of a study that has just ended.

    python benchmarks/overhead.py embedded-all --out results/benchmarks/overhead.json

A run's own overhead is the time of its job, and of the job that searches the test split with it if there is one, less that of the training
steps: checking the images, building network and loaders, validation, scoring, pictures, writing. The engine's is the time between jobs: what
the places at the machine stood empty.
"""
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from fastcore.script import call_parse

from reid_study.core import write_json
from reid_study.study.run import read_run, run_id, training_config


@call_parse
def main(study: str,           # Name of the study
         runs: str = "runs",   # Folder of its runs
         out: str = None):     # Write the figures to this JSON file
    "Seconds of a run's job beside its training, and of the engine, a run."
    log = Path(runs)/".jobs"/study/"events.jsonl"
    events = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    took = {kind: {e["job"]: e["time"] for e in events if e["event"] == kind} for kind in ("started", "finished")}
    folders = {job: folder for job in took["finished"] for stage in ("run", "confirm", "test") if (folder := Path(runs)/stage/job).exists()}
    busy = {job: took["finished"][job] - took["started"][job] for job in folders}
    beside, training = defaultdict(float), {}
    for job, folder in folders.items():
        run = read_run(folder)
        tests = run.config["split"] == "test"
        beside[run_id(training_config(run.config)) if tests else job] += busy[job]
        if not tests: training[job] = run
    if not training: raise SystemExit(f"no run of the study {study} was trained the last time that it ran; remove its runs and run it again")
    beside = np.array([seconds - training[name].metrics["train_seconds"] for name, seconds in beside.items() if name in training])
    first, last = min(took["started"][job] for job in folders), max(took["finished"][job] for job in folders)
    places = next(iter(training.values())).env["side_by_side"]
    empty = places*(last - first) - sum(busy.values())
    result = {"study": study, "runs": len(training), "tests": len(folders) - len(training), "side_by_side": places,
              "training": float(np.median([run.metrics["train_seconds"] for run in training.values()])),
              "job": float(np.median(beside)), "job_most": float(beside.max()), "engine": float(empty/len(training)), "minutes": (last - first)/60}
    print(json.dumps(result, indent=1))
    if out: write_json(out, result)
