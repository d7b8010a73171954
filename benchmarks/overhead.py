"""What does a study cost beside its training? From the log of a study that has just ended.

    make study && python benchmarks/overhead.py embedded --out results/benchmarks/overhead.json

A job is all runs of one recipe in one arm. Its overhead is its time less that of the training steps: starting the notebook,
opening the data, building networks and loaders, validation, scoring, pictures, writing. The engine's is the time that places at
the machine stood empty between the first job and the last. Both are divided by the number of runs.
"""
import json
from pathlib import Path

from fastcore.script import call_parse

from reid_study.core import write_json
from reid_study.study.results import read_results


@call_parse
def main(study: str,            # Name of the study
         runs: str = "runs",    # Folder of its runs
         results: str = None,   # Folder of its tables (default: RUNS/results/STUDY)
         out: str = None):      # Write the figures to this JSON file
    "Seconds a run that a study spends beside training."
    log = Path(runs)/".jobs"/study/"events.jsonl"
    if not log.exists(): raise SystemExit(f"{log} is missing: run the study first, with its runs removed")
    events = [json.loads(line) for line in log.read_text().splitlines()]
    took = {kind: {e["job"]: e["time"] for e in events if e["event"] == kind} for kind in ("started", "finished")}
    table = read_results(results or Path(runs)/"results"/study).table
    made = {run.id: run for row in table.itertuples() if f"recipe-{row.arm}-{row.recipe}" in took["finished"] for run in [row.run]}
    if not made: raise SystemExit(f"no run of the study {study} was made the last time that it ran; remove its runs and run it again")
    training = sum(run.metrics["train_seconds"] for run in made.values())
    busy = {job: end - took["started"][job] for job, end in took["finished"].items()}
    recipes, others = (sum(s for job, s in busy.items() if job.startswith("recipe-") == kind) for kind in (True, False))
    places = max(run.env["side_by_side"] for run in made.values())
    wall = max(took["finished"].values()) - min(took["started"].values())
    empty = places*wall - sum(busy.values())
    seconds = {"training": training, "job": recipes - training, "pages_and_tables": others, "engine": empty}
    found = {"study": study, "runs": len(made), "jobs": len(busy), "side_by_side": places, "minutes": wall/60}
    found |= {f"{what}_seconds_a_run": total/len(made) for what, total in seconds.items()}
    print(json.dumps(found, indent=1))
    if out: write_json(out, found)
