"""What a training step costs on a GPU, and several trainings that share one.

    python benchmarks/gpu.py --data data --out results/benchmarks/gpu.json

A step is identity + triplet on one fixed batch on the device in bfloat16, channels last: forward, loss, backward, clipping, AdamW.
The contestants take turns: the network as it is, recorded as CUDA graphs, and through torch.compile, recorded or not. Then 1, 2, 4, ...
processes train side by side, each with a complete Learner: the images that all of them train in a second. With --data, runs of 60 epochs
on Market-1501 (ResNet-50, 128×64, the complete training split), each alone on the GPU: the seconds of their first epochs, or of all; the
first includes the recording.
"""
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from fastai.callback.core import Callback, CancelFitException
from fastcore.script import call_parse

from reid_study.networks.embedder import make_embedder
from reid_study.study.config import make_config
from reid_study.study.run import open_data, prepare
from reid_study.training.gpu import record_network
from reid_study.training.learner import fit, make_learner
from reid_study.training.recipes import get_recipe

from turns import in_turns, ratio

CLASSES, BATCH, DIM = 751, 64, 512


def stepper(backbone, size, steps, way):
    "(function that trains some steps, seconds until the first has run) for a way: names of what is done to the network, joined by +."
    heads, objective = get_recipe("identity+triplet").build(CLASSES, None, DIM)
    network, objective = make_embedder(backbone, DIM, heads).cuda(), objective.cuda()
    images = torch.randn(BATCH, 3, *size, device="cuda").to(memory_format=torch.channels_last)
    targets = {"pid": torch.arange(BATCH//4, device="cuda").repeat_interleave(4)}
    optimizer = torch.optim.AdamW([*network.parameters(), *objective.parameters()], 1e-4, fused=True)
    started = time.perf_counter()
    called = Wrapped(torch.compile(network)) if "compiled" in way else network
    if "recorded" in way:
        with torch.autocast("cuda", torch.bfloat16): record_network(called, images)

    def run(steps=steps):
        for _ in range(steps):
            with torch.autocast("cuda", torch.bfloat16): loss = objective({k: v.float() for k, v in called(images).items()}, targets)
            loss.backward()
            torch.nn.utils.clip_grad_norm_([*network.parameters(), *objective.parameters()], 5)
            optimizer.step()
            optimizer.zero_grad()
        return steps
    run(1)
    torch.cuda.synchronize()
    return run, time.perf_counter() - started


class Wrapped(torch.nn.Module):
    "A compiled network as a module whose forward can be recorded."
    def __init__(self, network):
        super().__init__()
        self.network = network
    def forward(self, images): return self.network(images)


def trainer(backbone, height, width, seconds):
    "Train for some seconds in this process, after everything has warmed up; print images and seconds."
    rng = np.random.default_rng(0)
    i = np.arange(4000)
    table = pd.DataFrame({"path": [f"{name}.jpg" for name in i], "pid": i//16 + 1, "camid": i % 6 + 1, "split": "train"})
    images = rng.integers(0, 256, (4000, height, width, 3), dtype=np.uint8)
    learn = make_learner("identity+triplet", table, images, backbone=backbone, dim=DIM, device="cuda", precision="bfloat16", steps=200)
    started, done = None, 0

    class Clock(Callback):
        order = 200
        def after_batch(self):
            nonlocal started, done
            if started:
                done += 1
                if time.perf_counter() > started + seconds: raise CancelFitException
            elif self.iter == 60:
                torch.cuda.synchronize()
                print("warm", flush=True)
                sys.stdin.readline()
                started = time.perf_counter()

    learn.add_cb(Clock())
    with learn.no_logging(), learn.no_bar(): fit(learn, 1000, 1e-3)
    torch.cuda.synchronize()
    print(json.dumps({"images": done*BATCH, "seconds": time.perf_counter() - started}), flush=True)


def side_by_side(backbone, height, width, seconds, n):
    "Images a second of `n` trainings together."
    here, call = str(Path(__file__).parent), f"gpu.trainer({backbone!r}, {height}, {width}, {seconds})"
    command = [sys.executable, "-W", "ignore", "-c", f"import sys; sys.path.insert(0, {here!r}); import gpu; {call}"]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(n)]
    for p in processes: assert p.stdout.readline() == "warm\n"
    for p in processes: p.stdin.write("\n"); p.stdin.flush()
    told = [json.loads(p.communicate()[0].splitlines()[-1]) for p in processes]
    return sum(t["images"]/t["seconds"] for t in told)


def alone(data, recipe, n):
    "Train the first n of 60 epochs on Market-1501: the seconds of each, and of everything after the images are decoded."
    class Stop(Callback):
        order = 200
        def after_epoch(self):
            if self.epoch + 1 == n: raise CancelFitException
    config = make_config("market1501", recipe, height=128, width=64, backbone="resnet50", dim=DIM, epochs=60, precision="bfloat16",
                         validation=0)
    open_data(config, data)     # decodes the images, the first time
    started = time.perf_counter()
    learn = prepare(config, data)
    learn.add_cb(Stop())
    with learn.no_logging(), learn.no_bar(): fit(learn, config["epochs"], config["lr"])
    torch.cuda.synchronize()
    history = learn.history.table
    return {"recipe": recipe, "seconds": time.perf_counter() - started, "epochs": history.seconds.tolist(), "loss": history.loss.tolist()}


def _write(out, table, shared, runs):
    setting = dict(device=torch.cuda.get_device_name(), torch=torch.__version__, batch=BATCH, precision="bfloat16")
    if out: Path(out).write_text(json.dumps(dict(setting=setting, table=table, shared=shared, alone=runs), indent=1) + "\n")


@call_parse
def main(
    networks: str = "resnet50 128 64,resnet50 256 128,osnet_x1_0 256 128",     # backbone, height and width
    ways: str = "as it is,recorded,compiled,compiled+recorded",     # what is done to the network
    together: str = "1,2,4,8",    # trainings side by side, of the first network
    steps: int = 30,              # of a round
    rounds: int = 4,
    seconds: float = 6.0,         # of training side by side
    data: str = None,             # folder with Market-1501, for runs that are alone
    recipes: str = "identity:60,identity+triplet:6",     # of these, so many of the 60 epochs
    out: str = None,              # write the figures to this JSON file
):
    "Measure in turns and print a table."
    torch.set_num_threads(1)
    table, shared, runs = [], [], []
    for asked in recipes.split(",") if data else ():
        recipe, epochs = asked.split(":")
        runs.append(alone(data, recipe, int(epochs)))
        took = runs[-1]["epochs"]
        print(f"{recipe}, alone: {epochs} of 60 epochs in {runs[-1]['seconds']:.1f} s, the first and second in "
              f"{', '.join(f'{s:.2f}' for s in took[:2])}, the median one in {np.median(took):.2f} s", flush=True)
        _write(out, table, shared, runs)
    for network in filter(None, networks.split(",")):
        backbone, height, width = network.split()
        made = {way: stepper(backbone, (int(height), int(width)), steps, way) for way in ways.split(",")}
        times, _ = in_turns({way: run for way, (run, _) in made.items()}, rounds, torch.cuda.synchronize)
        for way, t in times.items():
            row = dict(network=network, way=way, ms=float(np.median(t))/steps*1e3, ratio=ratio(t, times["as it is"]), first=made[way][1])
            table.append(row)
            print(f"{network:24}{way:20}{row['ms']:8.2f} ms   {row['ratio'][0]:.3f} of the network as it is; "
                  f"first step after {row['first']:.1f} s", flush=True)
        del made
        _write(out, table, shared, runs)
        torch.cuda.empty_cache()
    for n in map(int, filter(None, together.split(","))):
        backbone, height, width = networks.split(",")[0].split()
        shared.append(dict(n=n, images_per_second=side_by_side(backbone, int(height), int(width), seconds, n)))
        print(f"{n} side by side: {shared[-1]['images_per_second']:.0f} images a second", flush=True)
        _write(out, table, shared, runs)
