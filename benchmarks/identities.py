"""Time and memory of one training step of each loss as identities grow: identity layers, whole, sharded and sampled, and metric losses.

    python benchmarks/identities.py --out results/benchmarks/identities.json

Embeddings are synthetic. A step is forward, backward and the update of the loss's own weights. Every measurement is a fresh
process and the contestants take turns; a figure is the median over processes of the fastest step. Memory has a process of
its own, in which the allocator gives blocks above 1 MB back at once, so that it is what is in use and not what is kept.
"""
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from fastcore.script import call_parse
from torch import nn, optim

from reid_study.losses.contrastive import ContrastiveLoss
from reid_study.losses.identity import IdentityLoss
from reid_study.losses.many_identities import SampledSoftmaxLoss, ShardedIdentityLoss, step_cost
from reid_study.losses.proxy_anchor import ProxyAnchorLoss
from reid_study.losses.supcon import SupConLoss
from reid_study.losses.triplet import TripletLoss
from reid_study.networks.heads import Classifier

SHARD, SAMPLE = 8192, 2048     # classes of a shard; classes drawn beside those of the batch


class Identity(nn.Module):
    "The study's identity loss with its classifier."
    def __init__(self, classes, dim):
        super().__init__()
        self.classifier, self.loss = Classifier(dim, classes), IdentityLoss()

    def forward(self, x, pids): return self.loss(self.classifier(x), pids)


def adamw(loss): return loss, optim.AdamW(loss.parameters(), fused=True)
def sparse_adam(loss): return loss, optim.SparseAdam(loss.parameters())
def sgd(loss): return loss, optim.SGD(loss.parameters(), lr=0.1)


# name -> (family, fewest classes, function (classes, dim) -> (loss, optimiser))
CONTESTANTS = {
    "identity": ("identity", 1, lambda classes, dim: adamw(Identity(classes, dim))),
    "identity, sharded": ("identity", 1, lambda classes, dim: adamw(ShardedIdentityLoss(classes, dim, SHARD))),
    "identity, a tenth sampled": ("identity", 1, lambda classes, dim: sparse_adam(SampledSoftmaxLoss(classes, dim, classes//10))),
    "identity, 2,048 sampled": ("identity", SAMPLE + 1, lambda classes, dim: sparse_adam(SampledSoftmaxLoss(classes, dim, SAMPLE))),
    "identity, 2,048 sampled, SGD": ("identity", SAMPLE + 1, lambda classes, dim: sgd(SampledSoftmaxLoss(classes, dim, SAMPLE))),
    "proxy anchor": ("metric", 1, lambda classes, dim: adamw(ProxyAnchorLoss(classes, dim))),
    "triplet, batch-hard": ("metric", 1, lambda classes, dim: (TripletLoss(), None)),
    "supervised contrastive": ("metric", 1, lambda classes, dim: (SupConLoss(), None)),
    "contrastive": ("metric", 1, lambda classes, dim: (ContrastiveLoss(), None)),
}


def _measure(name, classes, seconds, images, dim, k, threads):
    "One contestant in this process."
    torch.set_num_threads(threads)
    make = CONTESTANTS[name][2]
    step_cost(make, 10*SAMPLE, images=images, dim=8, k=k, seconds=0)         # imports, thread pools
    return step_cost(make, classes, images=images, dim=dim, k=k, seconds=seconds)


def _fresh(name, classes, seconds, setting, exact_memory):
    "`_measure` in a fresh process."
    threads = str(setting["threads"])
    env = dict(os.environ, OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads)
    if exact_memory: env["MALLOC_MMAP_THRESHOLD_"] = str(2**20)
    code = f"import sys, json; sys.path.insert(0, {str(Path(__file__).parent)!r}); import identities as b\n" \
           f"print('\\n' + json.dumps(b._measure({name!r}, {classes}, {seconds}, **{setting!r})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    if done.returncode: raise SystemExit(f"{name}, {classes} classes: {done.stderr or 'killed, probably for memory'}")
    return json.loads(done.stdout.strip().splitlines()[-1])


@call_parse
def main(
    out: str = None,             # write the table here as JSON
    classes: str = "50,751,10000,100000,1000000,10000000",   # identities
    images: int = 64,            # images in a batch
    dim: int = 256,              # embedding width
    k: int = 4,                  # images of an identity
    threads: int = 1,            # threads for everybody
    rounds: int = 3,             # processes per time up to 100,000 identities, above it 1; the table gives medians
    gigabytes: float = 12,       # a contestant that would take more, judged by the last size, is left out
):
    "Measure in turns and print a table of medians."
    setting, table, an_identity = dict(images=images, dim=dim, k=k, threads=threads), [], {}
    for size in map(int, classes.split(",")):
        names = [n for n, (_, least, _) in CONTESTANTS.items() if size >= least and an_identity.get(n, 0)*size <= 1024*gigabytes]
        times = {n: [] for n in names}
        for _ in range(rounds if size <= 100_000 else 1):
            for n in names: times[n].append(_fresh(n, size, 0.5, setting, False))
        for n in names:
            cpus = [t["cpu"] for t in times[n]]
            r = dict(name=n, family=CONTESTANTS[n][0], classes=size, rounds=len(cpus),
                     cpu=float(np.median(cpus)), fastest=min(cpus), slowest=max(cpus),
                     seconds=float(np.median([t["seconds"] for t in times[n]])), megabytes=_fresh(n, size, 0, setting, True)["megabytes"])
            table.append(r)
            an_identity[n] = r["megabytes"]/size
            print(f"{size:9,} {n:32}{1e3*r['cpu']:10.2f} ms CPU {r['megabytes']:9.1f} MB", flush=True)
        found = dict(setting=setting | dict(shard=SHARD, torch=torch.__version__), table=table)
        if out: Path(out).write_text(json.dumps(found, indent=1) + "\n")
