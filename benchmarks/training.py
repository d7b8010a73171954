"""The training step: what loading, augmentation and the learner add to the bare one, beside torchreid's own engine.

    python benchmarks/training.py --torchreid PATH --out training.json

The bare step trains on one fixed batch that lies on the device. In turn, round by round in one process: the same step on batches from
the loader (decoded store, sampler, augmentation); the whole Learner with its callbacks, an epoch without validation; and an epoch
of torchreid's engine, unchanged, from a checkout of its source, on the same files with the same network, batch, kinds of loss,
augmentation and number of torch's threads. It decodes its images each time, as it does for its users, in this process or in as many
others as there are cores. Each figure is a median over rounds of the ratio within a round: machines are noisy.
Without --torchreid it is left out. It imports only with what its own requirements name.
"""
import contextlib
import io
import json
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from fastai.callback.core import CancelValidException
from fastcore.basics import num_cpus
from fastcore.script import call_parse

from reid_study.data.images import image_store
from reid_study.data.people import make_people, read_people
from reid_study.data.splits import hold_out
from reid_study.networks.embedder import make_embedder
from reid_study.networks.heads import Classifier
from reid_study.training.learner import fit, make_learner

from turns import in_turns, ratio

BARE, LOADING, LEARNER = "bare step, one batch", "with loading and augmentation", "the whole Learner"


class Pair(torch.nn.Module):
    "An embedder with a classifier as torchreid calls a network: (logits, feature before the neck)."
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        outputs = self.network(images)
        return outputs["identity"], outputs["before"]


def engine(path, people, network, size, batch, workers, device):
    "torchreid's engine for softmax and triplet loss on a folder of drawn people. ImportError where the checkout does not import."
    sys.path.insert(0, str(path))
    try: import torchreid
    finally: sys.path.remove(str(path))
    table = read_people(people)
    def row(part): return list(zip(part.path, part.pid.factorize(sort=True)[0].tolist(), part.camid.tolist()))
    rows = {split: row(part) for split, part in table.groupby("split")}

    class Drawn(torchreid.data.datasets.ImageDataset):
        def __init__(self, root="", **settings): super().__init__(rows["train"], rows["query"], rows["gallery"], **settings)

    name = f"drawn{workers}-{id(network)}"
    torchreid.data.register_image_dataset(name, Drawn)
    on_gpu = torch.device(device).type == "cuda"
    with contextlib.redirect_stdout(io.StringIO()):
        images = torchreid.data.ImageDataManager(
            sources=name, height=size[0], width=size[1], transforms=["random_flip", "random_crop", "random_erase"], use_gpu=on_gpu,
            batch_size_train=batch, num_instances=4, train_sampler="RandomIdentitySampler", workers=workers)
    model = Pair(network).to(device)
    made = torchreid.engine.ImageTripletEngine(images, model, torchreid.optim.build_optimizer(model, optim="adam", lr=1e-3), use_gpu=on_gpu)
    made.max_epoch = 1
    return made


def contestants(learn, steps, precision):
    "Name -> function that trains some steps and returns how many."
    network, objective = learn.model.train(), learn.loss_func
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, fused=True)
    device = learn.dls.device

    def step(images, targets):
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"): loss = objective(network(images), targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5)
        optimizer.step()
        optimizer.zero_grad()

    def bare(batch=learn.dls.train.one_batch()):
        for _ in range(steps): step(*batch)
        return steps

    def loading():
        for batch in learn.dls.train: step(*batch)
        return steps

    def learner():
        with learn.no_logging(), learn.no_bar(): fit(learn, 1, 1e-3)
        network.train()      # fastai leaves it in evaluation, in which the others would go on
        return steps

    def no_validation(): raise CancelValidException
    learn.retrieval_metrics.before_validate = no_validation
    return {BARE: bare, LOADING: loading, LEARNER: learner}


def epoch(made):
    "An epoch of torchreid's engine: its number of steps."
    with contextlib.redirect_stdout(io.StringIO()): made.train()
    return made.num_batches


@call_parse
def main(
    torchreid: str = None,         # checkout of torchreid
    backbone: str = "small",       # the network of all contestants
    height: int = 64,              # pixels
    width: int = 32,               # the same
    people: int = 120,             # drawn identities, of about 15 images each
    steps: int = 200,              # steps of a round: an epoch of Market-1501 has 202
    rounds: int = 4,               # turns
    threads: int = num_cpus(),        # torch's threads, for everybody
    device: str = "cpu",           # cpu or cuda
    precision: str = "float32",    # of our own steps: float32, or bfloat16 on a GPU
    out: str = None,               # write the figures to this JSON file
):
    "Measure in turns and print a table of medians and ratios."
    warnings.filterwarnings("ignore")
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as tmp:
        folder = make_people(Path(tmp)/"people", n_train=people, n_test=4, n_distractors=2, n_junk=2)
        table = hold_out(read_people(folder), 8)
        images = image_store(table.path, (height, width), Path(tmp)/"cache")
        learn = make_learner("identity+triplet", table, images, backbone=backbone, steps=steps, device=device, precision=precision)
        runs = contestants(learn, steps, precision)
        if not torchreid: print("torchreid: left out, no path given")
        else:
            for workers in (0, num_cpus()):
                for layout in ("as built", "channels last"):
                    network = make_embedder(backbone, 256, {"identity": lambda dim: Classifier(dim, people)})
                    if layout == "as built": network = network.to(memory_format=torch.contiguous_format)
                    try: made = engine(torchreid, folder, network, (height, width), 64, workers, device)
                    except ImportError as e: print(f"torchreid: left out, {e}"); break
                    decoding = f"{workers} processes decode" if workers else "one process"
                    runs[f"torchreid, {decoding}, network {layout}"] = lambda made=made: epoch(made)
        wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
        seconds, done = in_turns(runs, rounds, wait)
        seconds = {name: s/done[name] for name, s in seconds.items()}
    rows = []
    for name, s in seconds.items():
        row = {"name": name, "ms": float(np.median(s)*1e3), "images_per_second": float(64/np.median(s))}
        for against, base in (("bare", BARE), ("learner", LEARNER)): row[against] = list(ratio(s, seconds[base]))
        rows.append(row)
    print(f"{backbone} at {height}×{width}, 64 images a step, {threads} threads, {device}, {precision}, {rounds} rounds\n"
          f"{'':58}{'ms':>8}{'images/s':>10}   to the bare step          to our Learner")
    for r in rows:
        ratios = "   ".join("{:.3f} ({:.3f} to {:.3f})".format(*r[k]) for k in ("bare", "learner"))
        print(f"{r['name']:58}{r['ms']:8.1f}{r['images_per_second']:10.0f}   {ratios}")
    if out:
        named = torch.cuda.get_device_name() if torch.device(device).type == "cuda" else device
        setting = dict(backbone=backbone, height=height, width=width, batch=64, steps=steps, rounds=rounds, threads=threads,
                       cores=num_cpus(), device=named, precision=precision, torch=torch.__version__)
        Path(out).write_text(json.dumps({"setting": setting, "table": rows}, indent=1) + "\n")
