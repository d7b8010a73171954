"""What does a run cost beside its training? From the log of a study that has just ended.

    python benchmarks/overhead.py embedded --out results/benchmarks/overhead.json

A job's own overhead is its time less that of the training steps: checking the images, building network and loaders, validation,
scoring, pictures, writing. The engine's is the time between jobs: what the places at the machine stood empty.
"""
import json
from pathlib import Path

import numpy as np
from fastcore.script import call_parse

from reid_study.core import write_json


@call_parse
def main(study: str,           # Name of the study
         runs: str = "runs",   # Folder of its runs
         out: str = None):     # Write the figures to this JSON file
    "Seconds of a run's job beside its training, and of the engine, a run."
    events = [json.loads(line) for line in (Path(runs)/".jobs"/study/"events.jsonl").read_text().splitlines()]
    began = {e["job"]: e["time"] for e in events if e["event"] == "started"}
    ended = {e["job"]: e["time"] for e in events if e["event"] == "finished"}
    metrics = {job: json.loads(f.read_text()) for job in ended if (f := Path(runs)/"run"/job/"metrics.json").exists()}
    if not metrics: raise SystemExit(f"no run of the study {study} was made the last time that it ran; remove runs/run and run it again")
    beside = np.array([ended[job] - began[job] - m["train_seconds"] for job, m in metrics.items()])
    first, last = min(began[job] for job in metrics), max(ended[job] for job in metrics)
    places = json.loads((Path(runs)/"run"/next(iter(metrics))/"env.json").read_text())["side_by_side"]
    empty = places*(last - first) - sum(ended[job] - began[job] for job in metrics)
    result = {"study": study, "runs": len(metrics), "side_by_side": places, "training": float(np.median([m["train_seconds"] for m in metrics.values()])),
              "job": float(np.median(beside)), "job_most": float(beside.max()), "engine": float(empty/len(metrics)), "minutes": (last - first)/60}
    print(json.dumps(result, indent=1))
    if out: write_json(out, result)
