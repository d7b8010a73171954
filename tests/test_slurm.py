"""A study on SLURM. Runs where a cluster answers; `tools/slurm.sh start` makes one of this machine (Debian, root)."""
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from reid_study.data.people import few_people
from reid_study.study.record import read_run


def answers(): return shutil.which("sinfo") and not subprocess.run(["sinfo"], capture_output=True, timeout=30).returncode


@pytest.mark.skipif(not find_spec("snakemake_executor_plugin_slurm"), reason="the extra `cluster` is not installed")
@pytest.mark.skipif(not answers(), reason="no SLURM cluster answers; tools/slurm.sh start makes one")
def test_a_study_on_slurm(tmp_path):
    few_people(tmp_path/"data"/"people")
    (tmp_path/"cluster.yaml").write_text(yaml.safe_dump({
        "title": "On a cluster", "dataset": "people", "protocol": dict(epochs=2, p=4, k=2, height=32, width=16, validation=4),
        "tuning": {"trials": 2, "epochs": 1, "seed": 9},
        "arms": {"main": {"recipes": ["identity", "triplet"], "settings": "tuned", "score": "test", "seeds": 1}}}))
    command = [Path(sys.executable).with_name("reid-study"), "study", "cluster.yaml", "--profile", "slurm", "--device", "cpu"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1200, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert len([read_run(f) for f in (tmp_path/"runs"/"test").glob("[!.]*")]) == 2 and (tmp_path/"reports"/"cluster"/"index.html").exists()
    command = ["sacct", "--noheader", "--parsable2", "--allocations", "--format", "comment,state,elapsed,workdir"]
    jobs = subprocess.run(command, capture_output=True, text=True).stdout
    mine = [line.split("|") for line in jobs.splitlines() if str(tmp_path) in line]
    told = "\n".join(f"{state:10} {elapsed}  {comment}" for comment, state, elapsed, _ in mine)
    print(told)
    if file := os.environ.get("SLURM_LOG"): Path(file).write_text(told + "\n")
    # the data, two tunings, two recipes, the tables, a page
    assert len(mine) >= 7 and all(state == "COMPLETED" for _, state, *_ in mine), mine
