"""How much harder is matching across cameras? Retrieval from each camera to each camera, with a trained network.

    python benchmarks/cameras.py runs/test/ID --out results/benchmarks/cameras.json

The gallery is that of one camera at a time, so the two kinds of matching have galleries of like size. Within a
camera the query and gallery images of an identity come from one walk, as in Market-1501.
"""
import numpy as np
import torch
from fastcore.script import call_parse

from reid_study.core import write_json
from reid_study.evaluation.retrieval import evaluate_retrieval
from reid_study.networks.embedder import embed_all
from reid_study.study.record import read_run
from reid_study.study.run import trained


@call_parse
def main(run: str,             # Folder of a run on the test split, beside that of its training
         data: str = "data",   # Folder that holds the datasets
         out: str = None):     # Write the figures to this JSON file
    "mAP from camera to camera on the test split."
    run = read_run(run)
    torch.set_num_threads(run.config["threads"])
    learn, _ = trained(run.config, data, run.folder.parents[1], "cpu")
    table, e = learn.dls.valid.dataset, embed_all(learn.model, learn.dls.valid)
    split, pid, cam = (table[c].to_numpy() for c in ("split", "pid", "camid"))
    cameras = np.unique(cam)
    mAP = np.array([[evaluate_retrieval(e[q], e[g], pid[q], pid[g]).mAP for b in cameras for g in [(split == "gallery") & (cam == b)]]
                    for a in cameras for q in [(split == "query") & (cam == a)]])
    within, across = mAP.diagonal().mean(), mAP[~np.eye(len(cameras), dtype=bool)].mean()
    print(np.round(mAP, 3))
    print(f"mAP within a camera {within:.3f}, across cameras {across:.3f} ({run.config['recipe']}, seed {run.config['seed']}, {run.id})")
    about = {k: run.config[k] for k in ("recipe", "seed", "dataset", "height", "width", "epochs", "steps")}
    found = {"identities": len(np.unique(pid[split == "query"])), "within": within, "across": across, "mAP": mAP.tolist()}
    if out: write_json(out, {"run": run.id} | about | found)
