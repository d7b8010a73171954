"""Show that the code of this checkout makes the numbers of an earlier commit, so that published runs need not be made again.

    python tools/same_code.py BASE

Every change of code that a training or its scores depend on has a fingerprint of its own, and runs are named by it. A change that makes
things faster or refuses what was never meant has no business in the numbers. Here the runs of one seed of a published study, one for every recipe,
and again with the recipe's own sampler or with people held out, are decoded, trained and scored by both codes on this machine (processors
round differently; a GPU is not asked). If every number of them but times is the same to the last bit, results/same_code.json says that the
fingerprints of this code stand for those of BASE. One difference, and nothing is written.
"""
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
from fastcore.script import call_parse
from tqdm import tqdm

from reid_study.core import read_json, write_json
from reid_study.training.recipes import CORE, RECIPES
from reid_study.study.run import code_of, dataset_root, make_run, place, read_dataset, read_run, score_code, training_config

ROOT = Path(__file__).resolve().parents[1]
TIMES = ("seconds", "images_per_second")       # the end of the names of what may differ


def fingerprints(recipes): return {recipe: code_of(recipe) | {"score_code": score_code()} for recipe in sorted(recipes)}


def configurations(results, seed):
    "Those of a published study's runs with a seed; the same with the recipes' own samplers; and some with identities held out and few of the others."
    published = [config for folder in sorted(Path(results).glob("test/*")) if (config := read_json(folder/"config.json", "get it from the repository again"))["seed"] == seed]
    own = [config | {"sampler": native} for config in published if (native := RECIPES[config["recipe"]].native) != config["sampler"]]
    held_out = [config | {"split": "validation", "validation": 80, "classes": 60, "per_class": 6} for config in published if config["recipe"] in CORE]
    return published + own + held_out


def make(config, data, runs):
    "Train and score a configuration."
    if config["split"] == "test": make_run(training_config(config), data, runs, device="cpu")
    make_run(config, data, runs, device="cpu")


def make_all(code, configs, data, runs):
    "Make runs by the code in a folder, in processes of its own; what code_of and score_code say there."
    command = [sys.executable, "-W", "ignore", str(Path(__file__).resolve()), "-", "--made", json.dumps([configs, data, runs])]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def differences(config, runs, others):
    "The names of what differs between two runs of a configuration."
    one, other = (read_run(place(config, folder)) for folder in (runs, others))
    lasting = [{k: v for k, v in run.metrics.items() if not k.endswith(TIMES)} for run in (one, other)]
    differ = [name for name in lasting[0].keys() | lasting[1].keys() if lasting[0].get(name) != lasting[1].get(name)]
    tables = sorted({file.name for run in (one, other) for file in run.folder.glob("*.parquet")})
    differ += [name for name in tables if not pd.read_parquet(one.folder/name).equals(pd.read_parquet(other.folder/name))]
    return differ + ["history.csv"]*(not one.history.drop(columns="seconds").equals(other.history.drop(columns="seconds")))


@call_parse
def main(
    base: str,                                           # commit whose numbers are to be made
    results: str = str(ROOT/"results"/"embedded-all"),   # a study with a run of every recipe
    seed: int = 0,                                       # which of its seeds
    data: str = str(ROOT/"data"),                        # where datasets live
    made: str = None,                                    # for itself: what to make
):
    "Make runs by both codes; write results/same_code.json if they are the same."
    if made:
        configs, data, runs = json.loads(made)
        with ProcessPoolExecutor(num_cpus(), get_context("spawn")) as pool:
            list(tqdm(pool.map(make, configs, [data]*len(configs), [runs]*len(configs)), total=len(configs), unit="run"))
        return print("\n" + json.dumps(fingerprints({config["recipe"] for config in configs})))
    configs = configurations(results, seed)
    if missing := RECIPES.keys() - {config["recipe"] for config in configs}: sys.exit(f"{results} has no run of {min(missing)} with seed {seed}: code that all recipes share is shown to be the same by all of them")
    with tempfile.TemporaryDirectory() as tmp:
        for code, dataset in product(("then", "now"), {config["dataset"] for config in configs}):      # each decodes for itself; drawn once, not by every process
            root = dataset_root(dataset, data)
            if not root.exists(): read_dataset(dataset, data)
            Path(f"{tmp}/{code}-data").mkdir(exist_ok=True)
            dataset_root(dataset, f"{tmp}/{code}-data").symlink_to(root.resolve())
        subprocess.run(["git", "worktree", "add", "--detach", f"{tmp}/base", base], cwd=ROOT, check=True, capture_output=True)
        try: then = make_all(f"{tmp}/base", configs, f"{tmp}/then-data", f"{tmp}/then")
        finally: subprocess.run(["git", "worktree", "remove", "--force", f"{tmp}/base"], cwd=ROOT, check=True)
        make_all(ROOT, configs, f"{tmp}/now-data", f"{tmp}/now")
        found = {f"{config['recipe']}, sampler {config['sampler']}, split {config['split']}": differences(config, f"{tmp}/then", f"{tmp}/now") for config in configs}
    for name, differ in found.items():
        if differ: print(f"{name}: {', '.join(differ)} not as at {base}", file=sys.stderr)
    if any(found.values()): sys.exit("the numbers are not those of the earlier code: nothing is written")
    from reid_study.study.run import code_now, score_code_now      # here, since BASE, which runs this file too, may not have them
    same = {now: then[recipe][name] for recipe in then for name, now in (code_now(recipe) | {"score_code": score_code_now()}).items() if now != then[recipe][name]}
    write_json(ROOT/"results"/"same_code.json", same)
    print(f"{len(configs)} runs made by both, all the same to the last bit")
