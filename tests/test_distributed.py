"""What the chapter on several GPUs cannot show from inside a notebook: a run by the command that a person types."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

from reid_study.data.people import few_people
from reid_study.study.config import make_config
from reid_study.study.record import read_run

ROOT = Path(__file__).resolve().parents[1]


def launch(*arguments):
    "`torchrun --nproc-per-node 2 -m reid_study.cli run` on this machine's CPUs."
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "reid_study.cli", "run", *map(str, arguments)]
    environment = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=600)


def test_torchrun_makes_an_ordinary_run(tmp_path):
    pytest.importorskip("accelerate")
    few_people(tmp_path/"data"/"people", n_train=6, n_test=2, n_distractors=0, n_junk=0)
    settings = {"validation": 2, "epochs": 1, "p": 4, "k": 2, "height": 32, "width": 16}
    changes = [f"{name}={value}" for name, value in settings.items()]
    done = launch("identity+triplet", "--set", *changes, "--data", tmp_path/"data", "--runs", tmp_path/"runs")
    assert done.returncode == 0, done.stderr[-3000:]
    folder, = (p for p in (tmp_path/"runs"/"run").iterdir() if not p.name.startswith("."))
    assert done.stdout.count(str(folder)) == 1 and "mAP" in done.stdout            # rank 0 alone prints
    run = read_run(folder)
    assert run.config["ranks"] == 2 and run.config.items() > make_config("people", "identity+triplet", **settings).items()
    assert len(run.history) == 1 and (folder/"model.safetensors").exists() and not (folder/"checkpoint.pt").exists()


def test_one_process_is_told_what_to_do():
    command = [sys.executable, "-m", "reid_study.cli", "run", "identity", "--shard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2 and "torchrun --nproc-per-node 2" in done.stderr and "Traceback" not in done.stderr
