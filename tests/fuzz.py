"""Damage folders at random and read them: `python tests/fuzz.py run|results --seconds 60`. Whatever a reader raises must be an InputError.

A reader of another folder is a row of READERS: how a sound folder is made, how it is read, and how its checksums are made to fit again.
"""
import argparse
import hashlib
import io
import json
import random
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd

from reid_study.core import InputError, digest, read_json, write_json
from reid_study.study.config import make_config
from reid_study.study.record import Run, read_run, run_folder
from reid_study.study.results import Results, Tuning, read_results, write_results
from reid_study.study.tuning import read_tuning

METRICS = {"mAP": .5, "mINP": .2, "cmc": [.5, 1.0], "queries": 4, "dropped": 0, "train_seconds": 6.0, "parameters": 100, "chance": .1,
           "retrievals": {"euclidean": {"mAP": .5}}, "attributes": {"up": {"accuracy": .5}}}
ENV = {"data": "0"*12, "side_by_side": 1}
TABLES = {
    "history": pd.DataFrame({"epoch": [1, 2], "lr": .001, "loss": [.5, .4], "seconds": 3.0}),
    "per_query": pd.DataFrame({"pid": [7, 7, 9, 9], "valid": True, "AP": np.float32([.4, .4, .6, .6]), "d_ap": np.float32(.5),
                               "d_an": np.float32(1)}),
    "identities": pd.DataFrame({"pid": [7, 9], "queries": [2, 2], "AP": np.float32([.4, .6]), "d_ap": np.float32(.5),
                                "d_an": np.float32(1)}),
    "pairs": pd.DataFrame({"distance": [.5, 1.5], "positive": [3, 1], "negative": [1, 9]}),
    "view": pd.DataFrame({"x": np.float32([0, 1]), "y": np.float32([0, 1]), "pid": [7, 9], "camid": [1, 2]}),
    "ranking": pd.DataFrame({"query_path": ["q.jpg"], "query_pid": [7], "query_camid": [1], "rank": [1], "path": ["g.jpg"], "pid": [7],
                             "camid": [2], "match": [True]})}


# ---- sound folders

def make_run_folder(root, config=None, metrics=METRICS, tables=TABLES, env=ENV, weights=b""):
    "The folder, under `root`, of a finished run that no training made. `weights`: the content of its file of weights."
    config = config or make_config("people", "identity", epochs=2)
    (run := run_folder(config, root)).mkdir(parents=True)
    for name, value in {"config": config, "metrics": metrics, "env": env}.items(): write_json(run/f"{name}.json", value)
    for name, rows in tables.items():
        if name == "history": rows.to_csv(run/"history.csv", index=False)
        elif name != "identities": rows.to_parquet(run/f"{name}.parquet", index=False)
    (run/"model.safetensors").write_bytes(weights)
    return sealed(run)


def sealed(folder):
    "A folder of a run whose checksums are made to fit."
    files = sorted(p for p in folder.iterdir() if p.name != "SHA256SUMS")
    (folder/"SHA256SUMS").write_text("".join(f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}\n" for p in files))
    return folder


def read_whole_run(folder):
    "A run with all of its tables."
    run = read_run(folder)
    return run, [getattr(run, name) for name in ("history", "identities", "pairs", "view", "ranking")]


def make_tuning_folder(folder):
    config = {"search": {"lr": [.0003, .03]}, "trials": 2, "first": make_config("people", "identity", 100)}
    trials = pd.DataFrame({"trial": [0, 1], "lr": [.003, .01], "mAP": [.2, .4], "rank1": .5, "seconds": 9.0, "diverged": False})
    (made := Path(folder)/"tune"/digest(config)).mkdir(parents=True)
    tuning = Tuning(config, trials, {"data": "0"*12})
    for name in ("config", "metrics", "env"): write_json(made/f"{name}.json", getattr(tuning, name))
    trials.to_csv(made/"trials.csv", index=False)
    return sealed(made)


def make_results(folder):
    "The results of a small study with a tuning, under `folder`; their folder."
    tables = {name: rows for name, rows in TABLES.items() if name != "per_query"}
    runs = [Run(make_config("people", recipe, seed, epochs=2), METRICS, {"data": "0"*12}, tables) for recipe in ("identity", "triplet")
            for seed in (0, 1)]
    cells = pd.DataFrame([{"arm": "main", "recipe": r.config["recipe"], "seed": r.config["seed"], "change": {}, "run": r} for r in runs])
    trials = pd.DataFrame({"trial": [0, 1], "lr": [.003, .01], "mAP": [.2, .4], "rank1": .5, "seconds": 9.0, "diverged": False})
    tuning = Tuning({"search": {"lr": [.0003, .03]}, "trials": 2, "first": make_config("people", "identity", 100)}, trials)
    about = {"study": "example", "title": "An example", "dataset": "people", "questions": []}
    return write_results(Results(about, cells, {"identity": tuning}), Path(folder)/"results")


def sealed_results(folder):
    "A folder of results whose checksums are made to fit, if study.json can still be read."
    try: study = read_json(folder/"study.json", "")
    except InputError: return folder
    if isinstance(study, dict) and isinstance(study.get("files"), dict):
        sums = {name: hashlib.sha256((folder/name).read_bytes()).hexdigest() if (folder/name).is_file() else value
                for name, value in study["files"].items()}
        (folder/"study.json").write_text(json.dumps(study | {"files": sums}))
    return folder


READERS = {"run": (make_run_folder, read_whole_run, sealed), "tuning": (make_tuning_folder, read_tuning, sealed),
           "results": (make_results, read_results, sealed_results)}


# ---- damage

VALUES = [None, True, 0, -1, 2, .5, 10**400, -10**400, 2**63, 1e308, "", "nan", "ä\0", [], {},
          [None], {"": None}, [[[[]]]], [.5, .4], "x"*999]


def bytes_changed(rng, content):
    "Bytes flipped, cut off or doubled."
    content = bytearray(content)
    kind = rng.random()
    if content and kind < .6:
        for _ in range(rng.choice([1, 1, 2, 8])): content[rng.randrange(len(content))] = rng.randrange(256)
    elif kind < .8: del content[rng.randrange(len(content) + 1):]
    else:
        at = rng.randrange(len(content) + 1)
        content[at:at] = content[:rng.randrange(len(content) + 1)]
    return bytes(content)


def value_changed(rng, value):
    "A JSON value of which something is another value, or is gone."
    if not value or not isinstance(value, (dict, list)) or rng.random() < .1: return rng.choice(VALUES)
    value = value.copy()
    key = rng.choice([*value] if isinstance(value, dict) else range(len(value)))
    if rng.random() < .2: del value[key]
    else: value[key] = value_changed(rng, value[key])
    return value


def json_changed(rng, content):
    text = json.dumps(value_changed(rng, json.loads(content)))
    if rng.random() < .1: text = text.replace("0.5", rng.choice(["NaN", "1e999", "["*5000, "1"*5000, "-0.5"]), 1)
    return text.encode()


def column_changed(rng, table):
    "A table with another column, without one, or with other rows."
    kind, name = rng.random(), rng.choice([*table])
    if kind < .2: return table.drop(columns=name)
    if kind < .35: return table.iloc[[rng.randrange(len(table)) for _ in range(rng.randrange(4))]]
    column = table[name].astype(object).copy()
    cell = column.iloc[at := rng.randrange(len(column))]
    changed = json_changed(rng, cell).decode() if isinstance(cell, str) and cell[:1] in ("{", "[") else rng.choice(VALUES)
    if kind < .8: column.iloc[at] = changed
    else: column = pd.Series([changed]*len(column), table.index, object)
    return table.assign(**{name: column})


def table_changed(rng, content, name):
    table = pd.read_csv(io.BytesIO(content)) if name.endswith(".csv") else pd.read_parquet(io.BytesIO(content))
    changed = column_changed(rng, table)
    try: return changed.to_csv(index=False).encode() if name.endswith(".csv") else changed.to_parquet()
    except Exception: return bytes_changed(rng, content)      # what Parquet cannot hold


def damaged(rng, name, content):
    "The content of a file after some damage that suits its kind."
    if rng.random() < .5 or not content: return bytes_changed(rng, content)
    if name.endswith(".json"): return json_changed(rng, content)
    return table_changed(rng, content, name) if name.endswith((".csv", ".parquet")) else bytes_changed(rng, content)


def fuzz(reader, folder, seconds, seed=0):
    """Damage one or two files of a sound folder and read it, again and again. Returns how often it was read, and refused; what is raised
    besides `InputError` is raised, with the seed that repeats it."""
    make, read, seal = READERS[reader]
    path, counts, end = make(Path(folder)), Counter(), time.monotonic() + seconds
    read(path)
    sound = {p.name: p.read_bytes() for p in path.iterdir()}
    while time.monotonic() < end:
        rng = random.Random(seed)
        names = rng.sample(sorted(sound), rng.choice([1, 1, 2]))
        for name in names: (path/name).write_bytes(damaged(rng, name, sound[name]))
        if rng.random() < .9 and "SHA256SUMS" not in names: seal(path)
        try:
            read(path)
            counts["read"] += 1
        except InputError as e:
            counts["refused"] += 1
            assert "\n" not in str(e), f"seed {seed}: {names}: more than one line: {e}"
        except Exception as e: raise AssertionError(f"seed {seed}: {names}: {type(e).__name__}: {e}") from e
        for name, content in sound.items(): (path/name).write_bytes(content)
        seed += 1
    return counts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reader", choices=READERS)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0, help="of the first damage; the next ones count on")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        print(*(f"{count} {what}" for what, count in fuzz(given.reader, folder, given.seconds, given.seed).items()), sep=", ")
