"""Files, folders, locks and processes that are not what they should be: what is refused, and what nothing is lost by."""
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from cases import Case, check, table
from fuzz import READERS, fuzz, make_results, make_run_folder, sealed

from reid_study.core import InputError, atomic, digest, private_folder, read_json, scratch_name, write_json
from reid_study.data.people import few_people, make_people, read_people
from reid_study.networks.weights import read_weights
from reid_study.report.tables import find_runs
from reid_study.study.config import make_config
from reid_study.study.record import one_at_a_time, partial_folder, read_run, run_folder, write_table
from reid_study.study.results import read_results, write_results
from reid_study.study.run import begin, images_of, make_run
from reid_study.study.tuning import tune, tuning_config
from reid_study.study.worker import gpu, is_done, read_jobs
from reid_study.training.callbacks import read_checkpoint


# ---- what stands at a path

def pipe(folder):
    os.mkfifo(folder/"x")
    return folder/"x"


def unix_socket(folder):
    with socket.socket(socket.AF_UNIX) as s: s.bind(str(folder/"x"))
    return folder/"x"


def link(folder, target):
    (folder/"x").symlink_to(target)
    return folder/"x"


def put(path, content="old"):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def write(path, text="new"):
    with atomic(path) as t: t.write_text(text)
    return Path(path)


def written_through(folder, target):
    path = link(folder, target)
    write(path)
    return path, folder/target


def write_folder(path):
    with atomic(path) as t: t.mkdir()


def fails_with(number, path):
    with atomic(path) as t:
        t.write_text("half")
        raise OSError(number, os.strerror(number))


def untouched_after(call, path):
    "The content of a file after a call that is refused, and the other names beside it."
    with pytest.raises(InputError): call()
    return path.read_text(), [p.name for p in path.parent.iterdir() if p != path]


def read_only(folder):
    put(folder/"x").chmod(0o444)
    with pytest.MonkeyPatch.context() as m:      # root may write anything
        m.setattr(os, "access", lambda path, mode: mode != os.W_OK)
        write(folder/"x")


PLACES = [
    Case("a named pipe to write to", lambda f: write(pipe(f)), refused=("/x is a named pipe", "another place")),
    Case("a socket to write to", lambda f: write(unix_socket(f)), refused=("/x is a socket", "another place")),
    Case("a device to write to", lambda f: write("/dev/null"), refused=("/dev/null is a device", "another place")),
    Case("a link to a device to write to", lambda f: write(link(f, "/dev/null")), refused=("/x is a device", "another place")),
    Case("a folder to write a file to", write, refused=("is there already, a folder", "another place")),
    Case("a file to write a folder to", lambda f: write_folder(put(f/"x")), refused=("is there already", "another place")),
    Case("a link that leads to itself to write to", lambda f: write(link(f, "x")),
         refused=("/x cannot be written", "Too many levels")),
    Case("a file in the place of a folder on the way", lambda f: write(put(f/"a")/"x"),
         refused=("Not a directory", "another place")),
    Case("a file name of 300 characters to write", lambda f: write(f/("x"*300)), refused=("File name too long", "another place")),
    Case("a file name with a null character to write", lambda f: write(f/"a\0b"), refused=("a\\0b", "another place")),
    Case("a folder that the kernel keeps for itself", lambda f: write("/proc/x"), refused=("/proc/x", "another place")),
    Case("a file that may only be read to write to", read_only, refused=("/x may not be changed", "another place")),
    Case("a link to a file to write to", lambda f: written_through(f, put(f/"y").name),
         gives=lambda v: v[0].is_symlink() and v[1].read_text() == "new", means="the file is written, and the link stays"),
    Case("a link to a file that is not there yet", lambda f: written_through(f, "new/y"),
         gives=lambda v: v[0].is_symlink() and v[1].read_text() == "new", means="the file is made, and the link stays"),
    Case("a file with permissions of its own to write to", lambda f: (put(f/"x").chmod(0o640), write(f/"x"))[1],
         gives=lambda path: path.stat().st_mode & 0o777 == 0o640, means="they are kept"),
    Case("a file name of 250 characters to write", lambda f: write(f/("x"*250)), gives=Path.is_file, means="is written"),
    *(Case(f"a write that fails because of: {os.strerror(n)}", lambda f, n=n: fails_with(n, f/"x"),
           refused=("/x cannot be written", os.strerror(n)))
      for n in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)),
    Case("a full disk while a file is replaced", lambda f: untouched_after(lambda: fails_with(errno.ENOSPC, put(f/"x")), f/"x"),
         gives=lambda v: v == ("old", []), means="the old file stays, and nothing is left beside it"),
    Case("a named pipe to lock", lambda f: one_at_a_time(put(f/"a")/"x"), refused=("Not a directory", "another place")),
    Case("a table for a named pipe", lambda f: write_table(pd.DataFrame({"a": [1]}), pipe(f)),
         refused=("named pipe", "another place")),
    Case("people to draw in the place of a named pipe", lambda f: make_people(pipe(f), n_train=2, n_test=2, progress=False),
         refused=("/x is there already", "another place")),
]


@table(PLACES)
def test_places_to_write(case, tmp_path): check(case, tmp_path)


# ---- reading

BAD_JSON = {"text that is cut off": '{"a": 1', "a number that is NaN": '{"a": NaN}', "a number that is infinite": "[-Infinity]",
            "a number beyond the largest": "[1e999]", "100,000 brackets": "["*100_000, "an integer of 5,000 digits": "1"*5000,
            "bytes that are not UTF-8": b'"\xff"', "nothing": ""}


def large(folder):
    path = put(folder/"x.json", "[]")
    os.truncate(path, 10**12)      # takes no space
    return path


def read(path): return read_json(path, "write it again")

TRIALS = "trial,lr,mAP,rank1,seconds,diverged\n0,0.003,0.5,0.5,9,False\n"


READING = [
    *(Case(f"JSON that holds {words}", lambda f, text=text: read(put(f/"x.json", text)),
           refused=("x.json is not valid JSON", "write it again"))
      for words, text in BAD_JSON.items()),
    Case("JSON from a named pipe", lambda f: read(pipe(f)), refused=("/x is a named pipe", "write it again")),
    Case("JSON from a device that never ends", lambda f: read("/dev/zero"), refused=("/dev/zero is a device", "write it again")),
    Case("JSON from a link to such a device", lambda f: read(link(f, "/dev/zero")), refused=("is a device", "write it again")),
    Case("JSON from a folder", read, refused=("is a folder", "write it again")),
    Case("JSON of a terabyte", lambda f: read(large(f)), refused=("x.json has 1,000,000,000,000 bytes", "write it again")),
    Case("JSON that is not there", lambda f: read(f/"x.json"), refused=("x.json is missing", "write it again")),
    Case("JSON behind a link", lambda f: read(link(f, put(f/"y", '{"a": "ä"}'))), gives=lambda v: v == {"a": "ä"}, means="is read"),
    Case("NaN to write as JSON", lambda f: write_json(f/"x.json", {"a": float("nan")}),
         refused=("x.json is not written", "not finite")),
    Case("a checkpoint that is a named pipe", lambda f: read_checkpoint(pipe(f), {}), refused=("named pipe", "start afresh")),
    Case("a checkpoint without a stamp", lambda f: read_checkpoint(saved(f, {"epoch": 1}), {}),
         refused=("its stamp is missing", "start afresh")),
    Case("a checkpoint whose stamp is a list", lambda f: read_checkpoint(saved(f, {"stamp": [1]}), {}),
         refused=("its stamp", "start afresh")),
    Case("a checkpoint that is a tensor", lambda f: read_checkpoint(saved(f, torch.zeros(2)), {}),
         refused=("no checkpoint of", "start afresh")),
    Case("a checkpoint that is text", lambda f: read_checkpoint(put(f/"x"), {}),
         refused=("no readable checkpoint", "start afresh")),
    Case("weights that are a named pipe", lambda f: read_weights(pipe(f)), refused=("/x is a named pipe", "give the file")),
    Case("an interrupted tuning whose trials are a named pipe", lambda f: resumed(f, None),
         refused=("trials.csv is a named pipe", "begin the tuning again")),
    *(Case(f"an interrupted tuning whose trials are {words}", lambda f, text=text: resumed(f, text),
           refused=("trials.csv", "remove it to begin the tuning again"))
      for words, text in {"bytes that are no text": b"\xff\xfe\0", "nothing": "", "those of another recipe": "trial,mAP\n0,0.5\n",
                          "without a score": TRIALS.replace("0.5,", ","), "more than there are": TRIALS + TRIALS[TRIALS.index("0,"):]*8,
                          }.items()),
    Case("a job file that is cut off", lambda f: (put(f/"a.json", "{"), read_jobs(f)),
         refused=("a.json is not valid JSON", "start the study")),
    Case("people whose people.json is null", lambda f: read_people(put(f/"people.json", "null").parent),
         refused=("people.json", "drawn again")),
    Case("people without counts", lambda f: people(f, {"settings": None}), refused=("people.json is damaged", "drawn again")),
    Case("people of a count that is text", lambda f: people(f, {"counts": dict.fromkeys(
        ("bounding_box_train", "query", "bounding_box_test"), "many")}),
               refused=("people.json: bounding_box_train='many'", "drawn again")),
]


def resumed(folder, trials):
    "A tuning that goes on from these trials, a named pipe for None."
    place = partial_folder(config := tuning_config("people", "identity", 2), folder)
    place.mkdir(parents=True)
    if trials is None: os.mkfifo(place/"trials.csv")
    else: put(place/"trials.csv", trials)
    return tune(config, drawn(), folder, "cpu")


DRAWN = tempfile.TemporaryDirectory()


@cache
def drawn(seed=0):
    "A folder of datasets with a few people, which are drawn once."
    folder = Path(DRAWN.name)/f"data{seed}"
    few_people(folder/"people", n_train=6, n_test=2, seed=seed)
    return folder


def saved(folder, value):
    torch.save(value, folder/"checkpoint.pt")
    return folder/"checkpoint.pt"


def people(folder, change):
    settings = dict(seed=0, n_train=2, n_test=2, n_distractors=0, n_junk=0, difficulty=.5, version=1)
    put(folder/"people.json", json.dumps({"settings": settings, "counts": {}} | change))
    return read_people(folder)


@table(READING)
def test_reading(case, tmp_path): check(case, tmp_path)


# ---- run folders, with the right checksums, as somebody who edits them would leave them

HUGE = 10**400

def edited(folder, file, change):
    "A finished run whose `file` is changed, sealed again and read in all of its parts."
    run = make_run_folder(folder)
    change(run/file)
    return READERS["run"][1](sealed(run))


def as_json(value): return lambda path: path.write_text(json.dumps(value))
def with_field(**fields): return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | fields))
def without(name): return lambda path: path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != name}))
def columns(**change): return lambda path: pd.read_parquet(path).assign(**change).to_parquet(path)
def less(name): return lambda path: pd.read_parquet(path).drop(columns=name).to_parquet(path)
def rows(change): return lambda path: change(pd.read_csv(path)).to_csv(path, index=False)


EDITS = [
    ("configuration that is null", "config.json", as_json(None), "must be a mapping"),
    ("configuration that is a list", "config.json", as_json([1]), "must be a mapping"),
    ("configuration that is a number", "config.json", as_json(7), "must be a mapping"),
    ("configuration without a recipe", "config.json", without("recipe"), "recipe: the key is missing"),
    ("configuration with a seed of 400 digits", "config.json", with_field(seed=HUGE), "seed"),
    ("configuration with another seed", "config.json", with_field(seed=7), "another configuration"),
    ("configuration with settings that are a list", "config.json", with_field(settings=[]), "settings"),
    ("configuration with a rate of 400 digits", "config.json", with_field(lr=HUGE), "lr"),
    ("metrics that are null", "metrics.json", as_json(None), "must be a mapping"),
    ("metrics without mAP", "metrics.json", without("mAP"), "mAP: the key is missing"),
    ("metrics with a mAP of 2", "metrics.json", with_field(mAP=2), "mAP=2"),
    ("metrics with a mAP that is text", "metrics.json", with_field(mAP="0.5"), "mAP='0.5'"),
    ("metrics with a mAP that is null", "metrics.json", with_field(mAP=None), "mAP=None"),
    ("metrics with 10^400 queries", "metrics.json", with_field(queries=HUGE), "queries"),
    ("metrics with a CMC that falls", "metrics.json", with_field(cmc=[.5, .4]), "cmc must not fall"),
    ("metrics with a CMC of mappings", "metrics.json", with_field(cmc=[{}]), "cmc 1"),
    ("metrics with retrievals that are text", "metrics.json", with_field(retrievals="all"), "retrievals"),
    ("environment that is a list", "env.json", as_json([]), "must be a mapping"),
    ("environment without the images", "env.json", without("data"), "data: the key is missing"),
    ("history without losses", "history.csv", rows(lambda t: t.drop(columns="loss")), "the column loss is missing"),
    ("history of text", "history.csv", rows(lambda t: t.assign(loss="low")), "loss does not hold numbers"),
    ("history that is empty", "history.csv", lambda path: path.write_text(""), "is damaged"),
    ("history that is not text", "history.csv", lambda path: path.write_bytes(b"\xff\xfe\x00"), "is damaged"),
    ("table of queries without AP", "per_query.parquet", less("AP"), "the column AP is missing"),
    ("table of queries whose AP is text", "per_query.parquet", columns(AP="high"), "AP does not hold numbers"),
    ("table of queries that is cut off", "per_query.parquet", lambda path: path.write_bytes(path.read_bytes()[:-9]), "is damaged"),
    ("table of queries that is text", "per_query.parquet", lambda path: path.write_text("PAR1"), "is damaged"),
    ("table of distances without positives", "pairs.parquet", less("positive"), "the column positive is missing"),
    ("metrics with as many dropped queries as queries", "metrics.json", with_field(dropped=4), "dropped=4 must be below"),
    ("metrics with a dropped query that is not", "metrics.json", with_field(dropped=1), "0 of them dropped"),
    ("metrics with other queries", "metrics.json", with_field(queries=5), "it has 4 queries"),
    ("metrics with a mAP that is not the mean of the queries", "metrics.json", with_field(mAP=.50001), "mAP=0.500010"),
    ("metrics with a geometry that is a list", "metrics.json", with_field(geometry=[1]), "geometry"),
    ("metrics with a geometry of words", "metrics.json", with_field(geometry={"distance_ratio": "high"}), "geometry: distance_ratio"),
    ("metrics with a share of the gradient of 2", "metrics.json", with_field(gradient_share={"triplet": 2}), "gradient_share: triplet"),
    *((f"table of queries with {words}", "per_query.parquet", columns(**change), "a query has no person")
      for words, change in {"an AP of 1.5": {"AP": 1.5}, "a negative AP": {"AP": -.5}, "an AP that is NaN": {"AP": np.nan},
                            "a person that is NaN": {"pid": np.nan}, "a negative distance": {"d_ap": -1.}}.items()),
    ("table of distances whose counts are NaN", "pairs.parquet", columns(positive=np.nan), "at least 0"),
    ("table of distances whose counts are negative", "pairs.parquet", columns(negative=-1), "at least 0"),
    ("history with a loss that is NaN", "history.csv", rows(lambda t: t.assign(loss=[.5, np.nan])), "epoch 2 lacks one of"),
    ("history of another number of epochs", "history.csv", rows(lambda t: t[:1]), "the epochs 1 to 2"),
    ("history with an epoch twice", "history.csv", rows(lambda t: t.assign(epoch=1)), "the epochs 1 to 2"),
    ("history with a mAP of 2", "history.csv", rows(lambda t: t.assign(mAP=2)), "epoch 1 lacks"),
    ("view without coordinates", "view.parquet", less("x"), "the column x is missing"),
    ("ranking without matches", "ranking.parquet", less("match"), "the column match is missing"),
]


def edit_case(words, file, change, why):
    where = ("run again",) if "configuration" in why else (file, "to make it again")
    return Case(f"a run with a {words}", lambda folder: edited(folder, file, change), refused=(why, *where))


@table([edit_case(*edit) for edit in EDITS])
def test_edited_runs(case, tmp_path): check(case, tmp_path)


def piped(folder, name):
    run = make_run_folder(folder)
    (run/name).unlink()
    os.mkfifo(run/name)
    return read_run(run)


TINY_CHANGES = dict(validation=4, epochs=1, steps=2, p=4, k=2, height=32, width=16)
TINY = make_config("people", "identity", **TINY_CHANGES)

RUNS = [
    *(Case(f"a run whose {name} is a named pipe", lambda f, name=name: piped(f, name),
           refused=(f"{name} is a named pipe", "to make it again"))
      for name in ("SHA256SUMS", "config.json", "history.csv", "per_query.parquet")),
    Case("a run that is not there", lambda f: read_run(f/"run"/"x"), refused=("no run at", "reid-study run")),
    Case("a run in a folder of another name", lambda f: read_run(make_run_folder(f).rename(f/"run"/("0"*12))),
         refused=("another configuration", "run again")),
    Case("a folder of files that are no runs", lambda f: find_runs(put(f/"a.txt").parent), refused=("no runs in", "give a folder")),
    Case("a finished run, asked for with other images", lambda f: made_again(f, "run"),
         refused=("/run/", "was made from other images", "/data1 (", "another folder for runs")),
    Case("a finished tuning, asked for with other images", lambda f: made_again(f, "tune"),
         refused=("/tune/", "was made from other images", "/data1 (", "another folder for runs")),
    Case("an interrupted run that goes on with other images", lambda f: made_again(f, "run", interrupted=True),
         refused=("/run/.", "was made from other images", "/data1 (", "another folder for runs")),
    Case("an interrupted tuning that goes on with other images", lambda f: made_again(f, "tune", interrupted=True),
         refused=("/tune/.", "was made from other images", "/data1 (", "another folder for runs")),
    Case("a finished run, asked for without its images", lambda f: make_run(json.loads((make_run_folder(f)/"config.json").read_text()),
         "/dev/null", f), refused=("/dev/null",)),
    Case("a run from the year 2040", lambda f: dated(make_run_folder(f), 2**31 + 10**8),
         gives=lambda v: v.metrics["mAP"] == .5, means="is read"),
    Case("a run from 1970", lambda f: dated(make_run_folder(f), 0), gives=lambda v: v.metrics["mAP"] == .5, means="is read"),
    Case("a mark of a finished job from the year 2040", lambda f: marked(f, 2**31 + 10**8, {"a": 1}), gives=bool, means="counts"),
    Case("a mark of another job from the year 2040", lambda f: not marked(f, 2**31 + 10**8, {"a": 2}),
         gives=bool, means="the job is done again"),
]


def made_again(folder, stage, interrupted=False):
    "Ask for what was made, or begun, from the images of one folder with those of another."
    tuning, one, other = stage == "tune", images_of(TINY, drawn()), folder/"data1"
    other.symlink_to(drawn(1))
    config = tuning_config("people", "identity", 1, **TINY_CHANGES) if tuning else TINY
    if interrupted: begin(partial_folder(config, folder), one, drawn())
    else:
        run_folder(config, folder).mkdir(parents=True)
        write_json(run_folder(config, folder)/"env.json", one)
    return tune(config, other, folder, "cpu") if tuning else make_run(config, other, folder, "cpu")


def dated(folder, when):
    for path in (*folder.iterdir(), folder): os.utime(path, (when, when))
    return read_run(folder)


def marked(folder, when, job):
    os.utime(put(folder/"a.done", digest({"a": 1})), (when, when))
    return is_done(folder/"a.json", job)


@table(RUNS)
def test_runs(case, tmp_path): check(case, tmp_path)


# ---- results

OTHERS = [
    Case("results to write to a folder with other files", lambda f: (put(f/"letter.txt"), rewritten(f, f)),
         refused=("letter.txt", "another folder")),
    Case("results to write in the place of a file", lambda f: rewritten(f, put(f/"x")),
         refused=("/x is no folder", "another folder")),
    Case("results to write in the place of a named pipe", lambda f: rewritten(f, pipe(f)),
         refused=("/x is no folder", "another folder")),
    Case("results to write below a file", lambda f: rewritten(f, put(f/"x")/"y"), refused=("Not a directory", "another place")),
    Case("results to write to a link to other results", lambda f: (make_results(f/"a"), rewritten(f, link(f, "a/results")))[1],
         gives=lambda v: v.is_symlink() and len(read_results(v).table) == 4, means="they are replaced there, and the link stays"),
    Case("results whose study.json is a named pipe", lambda f: replaced(f, "study.json"),
         refused=("study.json is a named pipe", "make it with")),
    Case("results of which a table is a named pipe", lambda f: replaced(f, "runs.parquet"),
         refused=("runs.parquet is a named pipe", "again")),
    Case("results of which a table is a link to a device", lambda f: replaced(f, "runs.parquet", "/dev/zero"),
         refused=("is a device", "again")),
]


def rewritten(folder, place):
    return write_results(read_results(make_results(folder.with_name(f"{folder.name}-source"))), place)


def replaced(folder, name, target=None):
    file = make_results(folder)/name
    file.unlink()
    if target: file.symlink_to(target)
    else: os.mkfifo(file)
    return read_results(file.parent)


@table(OTHERS)
def test_results(case, tmp_path): check(case, tmp_path)


@pytest.mark.parametrize("reader", READERS)
def test_random_damage_is_refused_by_name(reader, tmp_path):
    counts = fuzz(reader, tmp_path, seconds=1, seed=int.from_bytes(os.urandom(3), "big"))
    assert counts["refused"]


# ---- locks

def lock_folder(folder, mode=0o700, **variables):
    (folder/"reid_study").mkdir(mode=mode)
    (folder/"reid_study").chmod(mode)
    with pytest.MonkeyPatch.context() as m:
        for name in ("XDG_RUNTIME_DIR", "XDG_CACHE_HOME"): m.setenv(name, str(variables.get(name, folder)))
        return private_folder()


def lock_of_another(folder):
    with pytest.MonkeyPatch.context() as m:
        m.setattr(os, "getuid", lambda: 12345)
        return lock_folder(folder)


def linked_lock(folder):
    (folder/"one-0.lock").symlink_to(put(folder/"victim", "mine"))
    try: gpu(1, ["one"], folder).__enter__()
    finally: assert (folder/"victim").read_text() == "mine"


def linked_locks(folder):
    (folder/"elsewhere").mkdir(mode=0o700)
    (folder/"reid_study").symlink_to("elsewhere")
    with pytest.MonkeyPatch.context() as m:
        m.setenv("XDG_RUNTIME_DIR", str(folder))
        return private_folder()


LOCKS = [
    Case("a link in the place of the lock of a GPU", linked_lock, refused=("one-0.lock cannot be used as a lock", "remove it")),
    Case("a folder for locks that others may enter", lambda f: lock_folder(f, 0o755),
         refused=("/reid_study is not", "chmod 700", "XDG_CACHE_HOME")),
    Case("a folder for locks that is somebody else's", lock_of_another, refused=("/reid_study is not", "XDG_CACHE_HOME")),
    Case("a link in the place of the folder for locks", linked_locks, refused=("/reid_study is not", "XDG_CACHE_HOME")),
    Case("a runtime folder that is not there", lambda f: lock_folder(f, XDG_RUNTIME_DIR=f/"nothing"),
         gives=lambda v: v.name == "reid_study", means="locks lie in the cache folder"),
    Case("a runtime folder whose name is relative", lambda f: lock_folder(f, XDG_RUNTIME_DIR="here"),
         gives=lambda v: v.is_absolute(), means="locks lie in the cache folder"),
]


@table(LOCKS)
def test_locks(case, tmp_path): check(case, tmp_path)


# ---- processes

def python(code, *arguments): return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stderr=subprocess.DEVNULL)


def until(test, seconds=20):
    end = time.monotonic() + seconds
    while not (found := test()):
        assert time.monotonic() < end, "it did not come to pass in time"
        time.sleep(.02)
    return found


def children(pid): return [int(p) for p in (Path("/proc")/str(pid)/"task"/str(pid)/"children").read_text().split()]


def ended(pid):
    try: return (Path("/proc")/str(pid)/"stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError: return True


WRITER = """
import sys, time
from reid_study.core import atomic
with atomic(sys.argv[1]) as t:
    t.mkdir()
    time.sleep(60)
"""


def test_the_next_writer_removes_what_a_killed_one_has_left_and_nothing_else(tmp_path):
    victim, living = python(WRITER, tmp_path/"a"), python(WRITER, tmp_path/"b")
    until(lambda: len(list(tmp_path.iterdir())) == 2)
    elsewhere = tmp_path/scratch_name("c")
    elsewhere = elsewhere.with_name(elsewhere.name.replace(elsewhere.name.split(".")[2].split("-")[0], "0"*8))     # of another machine
    elsewhere.write_text("")
    victim.send_signal(signal.SIGKILL); victim.wait()
    write(tmp_path/"d")
    assert {p.name.split(".")[1] for p in tmp_path.iterdir() if p.name != "d"} == {"b", "c"}
    living.kill(); living.wait()
    write(tmp_path/"d")
    assert sorted(tmp_path.iterdir()) == sorted([elsewhere, tmp_path/"d"])


@pytest.mark.skipif(not Path("/proc").exists(), reason="finds processes in /proc")
def test_drawing_workers_end_with_their_parent_and_the_drawing_begins_anew(tmp_path):
    code = """
import sys
from reid_study.data.people import make_people
make_people(sys.argv[1], n_train=700, n_test=700, workers=2, progress=False)"""
    parent = python(code, tmp_path/"people")
    workers = until(lambda: len(found := children(parent.pid)) == 2 and list(tmp_path.glob(".people.*/*/*.jpg")) and found, 60)
    parent.send_signal(signal.SIGKILL); parent.wait()
    until(lambda: all(map(ended, workers)))
    assert not (tmp_path/"people").exists()
    make_people(tmp_path/"people", n_train=2, n_test=2, n_distractors=0, n_junk=0, workers=1, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["people"]


def test_processes_that_write_at_once_leave_one_whole_folder(tmp_path):
    code = """
import sys
from reid_study.data.people import make_people
make_people(sys.argv[1], n_train=4, n_test=2, n_distractors=1, n_junk=1, workers=1, progress=False)"""
    both = [python(code, tmp_path/"people") for _ in range(2)]
    assert [p.wait(120) for p in both] == [0, 0]
    assert [p.name for p in tmp_path.iterdir()] == ["people"] and read_people(tmp_path/"people").pid.nunique()


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path):
    code = """
import resource, sys
from reid_study.core import InputError, atomic
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    with atomic(sys.argv[1]) as t: t.write_bytes(b"x"*2000)
except InputError as e: sys.exit("/x cannot be written (File too large); free" not in str(e))
"""
    assert python(code, tmp_path/"x").wait(60) == 0 and not list(tmp_path.iterdir())
