"""Show that the code of today makes the numbers of the published runs, so that they need not be made again.

    python tools/same_code.py

Every change of code that a training or its scores depend on has a fingerprint of its own, and runs are named by it. A change that makes
things faster or refuses what was never meant has no business in the numbers: here one published run of every recipe is trained and scored
again, and if every number of it but times is the same to the last bit, results/same_code.json says that the new fingerprints stand for
the old ones. One difference, and nothing is written. Processors round differently: run it on the kind of machine that made the runs.
"""
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
from fastcore.script import call_parse
from tqdm import tqdm

from reid_study.core import cores, read_json, write_json
from reid_study.runs import code_now, make_run, read_dataset, read_run, score_code_now, training_config

ROOT = Path(__file__).parents[1]
TIMES = ("seconds", "images_per_second")       # the end of the names of what may differ


def differences(folder, data):
    "Make the published run in `folder` again; the names of what differs."
    published = read_run(folder)
    with tempfile.TemporaryDirectory() as runs:
        make_run(training_config(published.config), data, runs, device="cpu")
        again = read_run(make_run(published.config, data, runs, device="cpu"))
        lasting = [{k: v for k, v in run.metrics.items() if not k.endswith(TIMES)} for run in (published, again)]
        differ = [name for name in lasting[0] if lasting[0][name] != lasting[1].get(name)]
        for file in sorted(folder.glob("*.parquet")):
            if not pd.read_parquet(file).equals(pd.read_parquet(again.folder/file.name)): differ.append(file.name)
        if not published.history.drop(columns="seconds").equals(again.history.drop(columns="seconds")): differ.append("history.csv")
    return differ


@call_parse
def main(
    results: str = str(ROOT/"results"/"embedded-all"),   # a study with a run of every recipe
    seed: int = 0,                                       # which of its seeds
    data: str = str(ROOT/"data"),                        # where datasets live
    jobs: int = cores(),                                 # how many at a time
):
    "Make runs again; write results/same_code.json if they are the same."
    folders = [folder for folder in sorted(Path(results).glob("test/*")) if read_json(folder/"config.json", "get it from the repository again")["seed"] == seed]
    configs = [read_run(folder).config for folder in folders]
    for dataset in {config["dataset"] for config in configs}: read_dataset(dataset, data)      # drawn once, not by every process
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        found = list(tqdm(pool.map(differences, folders, [data]*len(folders)), total=len(folders), unit="run"))
    for config, differ in zip(configs, found):
        if differ: print(f"{config['recipe']}: {', '.join(differ)} not as published", file=sys.stderr)
    if any(found): sys.exit("the numbers are not those of the published runs: nothing is written")
    same = {now: then for config in configs for now, then in
            [(value, config[name]) for name, value in code_now(config["recipe"]).items()] + [(score_code_now(), config["score_code"])] if now != then}
    write_json(ROOT/"results"/"same_code.json", same)
    print(f"{len(configs)} runs made again, all the same to the last bit; {len(same)} fingerprints stand for published ones")
