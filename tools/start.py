"""The weights that the studies of drawn people start from: a network that has learned what other drawn people wear, not who they are.

    python tools/start.py --out studies/weights/tiny.safetensors      # about 12 minutes on 2 cores

It stands for the ImageNet weights of real people: 720 people whom no study trains on or is scored on, their 12 attributes, no identities.
"""
from pathlib import Path

import torch
from fastcore.script import call_parse
from safetensors.torch import load_file, save_file

from reid_study.data.people import make_people
from reid_study.study.config import make_config
from reid_study.study.run import make_run

PEOPLE = dict(seed=1001, n_train=720, n_test=24, n_distractors=0, n_junk=0)      # the studies' people have seed 0
TRAINING = dict(backbone="tiny", height=32, width=16, epochs=60, steps=100, lr=.01, erase=0, validate_every=60, split_seed=1)


@call_parse
def main(
    out: str = "studies/weights/tiny.safetensors",   # the file to write
    work: str = "runs/start",                        # folder for the people and the training
):
    "Draw the people, train identity+attributes on their attributes alone, and keep the backbone."
    torch.set_num_threads(1)
    make_people(Path(work)/"people", **PEOPLE)
    config = make_config("people", "identity+attributes", 0, {"identity.weight": 0.0}, **TRAINING)
    weights = load_file(make_run(config, work, Path(work)/"runs", "cpu")/"model.safetensors")
    backbone = {name.removeprefix("backbone."): w for name, w in weights.items() if name.startswith("backbone.")}
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    save_file(backbone, out)
    print(f"{out}: {len(backbone)} tensors")
