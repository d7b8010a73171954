"""What a study costs as its recipes, seeds and images grow: small studies in turn, and a law fitted to them.

    python benchmarks/study_cost.py --out results/benchmarks/study_cost.json

Each study is one command in a fresh process, with runs and pages of its own, and makes one job at a time. Steps are the same in each
run, so images cost what decoding, embedding and ranking them takes. Measure on a machine that does nothing else.
"""
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import yaml
from fastcore.script import call_parse
from scipy.optimize import nnls

from reid_study.data.market1501 import read_market
from reid_study.data.people import make_people

RECIPES = ["triplet", "identity", "contrastive", "supcon"]
TERMS = ("study", "recipe", "run", "run and 1,000 images")      # what the law multiplies


def make_study(folder, people, recipes, seeds, steps):
    "Make a study in an empty folder, and return the seconds that it took."
    protocol = dict(backbone="tiny", height=32, width=16, epochs=1, steps=steps, validate_every=1, validation=4)
    arm = dict(recipes=RECIPES[:recipes], seeds=seeds, score="test")
    (folder/"cost.yaml").write_text(yaml.safe_dump(dict(title="Cost", dataset=str(people), protocol=protocol, arms=dict(main=arm))))
    command = [sys.executable, "-m", "reid_study", "study", "cost.yaml", "--jobs", "1", "--device", "cpu"]
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if done.returncode: raise SystemExit(done.stderr)
    return time.perf_counter() - start


def amounts(row): return [1, row["recipes"], row["runs"], row["runs"]*row["images"]/1000]


def law(rows):
    "Seconds for each of `TERMS`, at least 0, by least squares, and the largest error."
    found, _ = nnls([amounts(row) for row in rows], [row["seconds"] for row in rows])
    errors = [abs(sum(a*b for a, b in zip(found, amounts(row))) - row["seconds"]) for row in rows]
    return dict(zip(TERMS, map(float, found)), largest_error=max(errors))


@call_parse
def main(
    out: str = None,         # write the figures here as JSON
    steps: int = 20,         # steps of a run
    recipes: str = "1,2,4",  # recipes, with two seeds and the fewest images
    seeds: str = "1,4,8",    # seeds, of one recipe, with the fewest images
    people: str = "30,120,480",  # people to train on and to test on, each, about 15 images of one; with one recipe and two seeds
):
    "Measure, print, and write JSON."
    sizes = [[int(n) for n in text.split(",")] for text in (recipes, seeds, people)]
    cells = [(r, 2, sizes[2][0]) for r in sizes[0]] + [(1, s, sizes[2][0]) for s in sizes[1]] + [(1, 2, n) for n in sizes[2][1:]]
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for i, (r, s, n) in enumerate(cells):
            drawn = Path(place)/f"people-{n}"
            if not drawn.exists(): make_people(drawn, n_train=n, n_test=n, n_distractors=2, n_junk=2, progress=False)
            folder = Path(place)/str(i)
            folder.mkdir()
            rows.append(dict(recipes=r, seeds=s, runs=r*s, images=len(read_market(drawn)), seconds=make_study(folder, drawn, r, s, steps)))
            print(json.dumps(rows[-1]), flush=True)
    found = dict(setting=dict(steps=steps, backbone="tiny", torch=torch.__version__), table=rows, law=law(rows))
    print(json.dumps(found["law"], indent=1))
    if out: Path(out).write_text(json.dumps(found, indent=1) + "\n")
