"""How much harder is matching across cameras? Retrieval from each camera to each camera, with a finished run's network.

    python benchmarks/cameras.py runs/ID --out cameras.json

The gallery is that of one camera at a time, so the two kinds of matching have galleries of like size. Within a
camera the query and gallery images of an identity come from one walk, as in Market-1501.
"""
import json
from pathlib import Path

import numpy as np
import torch
from fastcore.script import call_parse
from safetensors.torch import load_file

from reid_study.data.loaders import ImageLoader
from reid_study.evaluation.retrieval import evaluate_retrieval
from reid_study.networks.embedder import embed_all, make_embedder
from reid_study.runs import open_data, read_run


@call_parse
def main(run: str,             # Folder of a finished run, with its model
         data: str = "data",   # Folder that holds the datasets
         out: str = None):     # Write the figures to this JSON file
    "mAP from camera to camera on the validation identities of a run."
    run = read_run(run)
    torch.set_num_threads(run.config["threads"])
    table, images = open_data(run.config, data)
    network = make_embedder(run.config["backbone"], run.config["dim"])
    weights = load_file(run.folder/"model.safetensors")
    network.load_state_dict({k: v for k, v in weights.items() if not k.startswith(("heads.", "objective."))})
    held = np.flatnonzero(table.split != "train")
    e = embed_all(network, ImageLoader(images, table.image.to_numpy()[held], table.iloc[held], np.array_split(np.arange(len(held)), 10)))
    split, pid, cam = (table.iloc[held][c].to_numpy() for c in ("split", "pid", "camid"))
    cameras = np.unique(cam)
    mAP = np.array([[evaluate_retrieval(e[q], e[g], pid[q], pid[g]).mAP for b in cameras for g in [(split == "gallery") & (cam == b)]]
                    for a in cameras for q in [(split == "query") & (cam == a)]])
    within, across = mAP.diagonal().mean(), mAP[~np.eye(len(cameras), dtype=bool)].mean()
    print(np.round(mAP, 3))
    print(f"mAP within a camera {within:.3f}, across cameras {across:.3f} ({run.config['recipe']}, seed {run.config['seed']}, {run.id})")
    if out: Path(out).write_text(json.dumps({"run": run.id} | {k: run.config[k] for k in ("recipe", "seed", "dataset", "height", "width", "epochs", "steps")}
                                            | {"identities": len(np.unique(pid[split == "query"])), "within": within, "across": across, "mAP": mAP.tolist()}, indent=1) + "\n")
