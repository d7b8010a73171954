"""Each loss that pytorch-metric-learning (PML) also has, side by side: from embeddings to the gradient, with equal settings.

    python benchmarks/losses.py --out results/benchmarks/losses.json

Both sides are made once, with the same settings and weights, and have to give the same value and gradient before they are
timed; the notes say what had to be done for that, and where it cannot be. They take turns, ours, theirs, ours, theirs, and a
figure is the median over rounds of the ratio within a round. With one thread on a CPU, time is CPU time, which other programs
disturb less. Ours computes its statistics (active fraction, mean distances, accuracy) in every call; PML's are off, as by
default. PML enumerates pairs and triplets; a side that needs more than `--gigabytes` is recorded as "out of memory".
"""
import gc
import json
import math
import resource
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytorch_metric_learning
import torch
from fastcore.script import call_parse
from pytorch_metric_learning import losses, miners, reducers

from reid_study.losses.circle import CircleLoss
from reid_study.losses.contrastive import ContrastiveLoss
from reid_study.losses.lifted import LiftedStructureLoss
from reid_study.losses.margin_softmax import ArcFaceLoss, CosFaceLoss
from reid_study.losses.memory import CrossBatchMemory
from reid_study.losses.mining import DistanceWeighted, Miner, farthest, semi_hard
from reid_study.losses.multi_similarity import MultiSimilarityLoss
from reid_study.losses.proxy_anchor import ProxyAnchorLoss
from reid_study.losses.supcon import SupConLoss
from reid_study.losses.triplet import TripletLoss

MEMORY, TURN = 1024, 0.02     # embeddings in the memory; seconds that a side's turn lasts at least


@dataclass
class Contest:
    "Two losses, called with (embeddings, pids). `same`: how they are compared, see `agreement`. `warm`: calls of each before timing."
    ours: torch.nn.Module
    theirs: torch.nn.Module
    miner: torch.nn.Module = None
    same: str = "exactly"
    note: str = ""
    warm: int = 1

    def __post_init__(self):
        self.calls = {"ours": self.ours, "theirs": self.theirs if self.miner is None else self.mined}

    def mined(self, x, pids): return self.theirs(x, pids, self.miner(x, pids))


def contrastive():
    "PML's contrastive loss with both terms squared, as in the paper (its memory wants a loss of this very class)."
    loss = losses.ContrastiveLoss(neg_margin=1.0, reducer=reducers.MeanReducer())
    hinge = loss.get_per_pair_loss
    loss.get_per_pair_loss = lambda *args: hinge(*args).square()
    return loss


def triplet(miner, theirs, reduction="mean", margin=0.3, **more):
    reducer = reducers.MeanReducer() if reduction == "mean" else reducers.AvgNonZeroReducer()
    return Contest(TripletLoss(margin, miner=miner, reduction=reduction), losses.TripletMarginLoss(margin, reducer=reducer), theirs, **more)


def with_weights(ours, theirs):
    "Give PML's loss our weights [C, D], which it may keep as [D, C]."
    mine, other = next(ours.parameters()), next(theirs.parameters())
    other.data = (mine.data if mine.shape == other.shape else mine.data.T.contiguous()).clone()
    return Contest(ours, theirs)


PAIRS = {
    "contrastive": lambda batch, dim: Contest(
        ContrastiveLoss(1.0), contrastive(), note="PML's terms are not squared; here they are, and its reducer is the mean"),
    "triplet, batch-hard": lambda batch, dim: triplet("batch_hard", miners.BatchHardMiner()),
    "triplet, semi-hard": lambda batch, dim: triplet(
        Miner(semi_hard, farthest), miners.BatchEasyHardMiner("hard", "semihard"),
        note="for the farthest positive: PML cannot take every positive here; equal where each anchor has a negative farther than it"),
    "triplet, batch-all": lambda batch, dim: triplet(None, None, "active"),
    "triplet, distance-weighted": lambda batch, dim: triplet(
        Miner(DistanceWeighted(dim)), miners.DistanceWeightedMiner(), same="on average", margin=0.8,
        note="random draws, compared by their mean: PML draws K triplets for an anchor with K images, "
             "ours one for each of its K - 1 positive pairs"),
    "lifted structure": lambda batch, dim: Contest(LiftedStructureLoss(1.0), losses.LiftedStructureLoss(neg_margin=1.0)),
    "multi-similarity": lambda batch, dim: Contest(
        MultiSimilarityLoss(2.0, 50.0, 0.5, epsilon=None), losses.MultiSimilarityLoss(2.0, 50.0, 0.5)),
    "multi-similarity, mined": lambda batch, dim: Contest(
        MultiSimilarityLoss(2.0, 50.0, 0.5, 0.1), losses.MultiSimilarityLoss(2.0, 50.0, 0.5), miners.MultiSimilarityMiner(0.1)),
    "supervised contrastive": lambda batch, dim: Contest(SupConLoss(0.1), losses.SupConLoss(0.1)),
    "circle": lambda batch, dim: Contest(CircleLoss(0.25, 64.0), losses.CircleLoss(0.25, 64.0, reducer=reducers.MeanReducer())),
    "proxy-anchor": lambda batch, dim: with_weights(ProxyAnchorLoss(751, dim, 0.1, 32.0), losses.ProxyAnchorLoss(751, dim, 0.1, 32.0)),
    "cross-batch memory": lambda batch, dim: Contest(
        CrossBatchMemory(dim, ContrastiveLoss(1.0), size=MEMORY), losses.CrossBatchMemory(contrastive(), dim, MEMORY),
        warm=MEMORY//batch + 1, same="in value",
        note=f"compared with an empty memory, timed with {MEMORY} embeddings in it: there PML takes one mean over batch and memory, "
             "ours one for each. PML's memory holds a copy of the batch, so half of the gradient of the batch's own pairs is lost; "
             f"with {MEMORY} images in a batch it holds nothing else, and ours compares twice as many pairs")}

CLASSIFIERS = {
    f"{name}, {classes} identities": (lambda batch, dim, ours=ours, theirs=theirs, margin=margin, classes=classes:
                                      with_weights(ours(classes, dim, 0.3, 24.0), theirs(classes, dim, margin=margin, scale=24.0)))
    for name, ours, theirs, margin in (("ArcFace", ArcFaceLoss, losses.ArcFaceLoss, math.degrees(0.3)),
                                       ("CosFace", CosFaceLoss, losses.CosFaceLoss, 0.3))
    for classes in (751, 10_000)}


def embeddings(batch, k, dim, device, noise=1.3, seed=0):
    "A batch of batch/k identities with k images each: centres plus noise; with noise 1.3 about half of all triplet hinges are open."
    g = torch.Generator().manual_seed(seed)
    pids = torch.arange(batch)//k
    x = torch.randn(batch//k + 1, dim, generator=g)[pids] + noise*torch.randn(batch, dim, generator=g)
    return x.to(device).requires_grad_(), pids.to(device)


def step(call, module, x, pids):
    "One forward and backward pass: the value, with the gradient of the embeddings in x.grad and of the weights in theirs."
    x.grad = None
    module.zero_grad()
    value = call(x, pids)
    value.backward()
    return value.detach()


def agreement(contest, x, pids, draws=30):
    """The two values, {"ours": ..., "theirs": ...}; `SystemExit` where they differ.

    "exactly": equal values and gradients, up to rounding in float32. "in value": the values only. "on average": means of many
    random draws, within 5 standard errors.
    """
    values, gradients, spread = {}, {}, 0
    for side, call in contest.calls.items():
        drawn = torch.stack([step(call, getattr(contest, side), x, pids) for _ in range(draws if contest.same == "on average" else 1)])
        values[side], gradients[side] = drawn.mean().item(), x.grad
        if len(drawn) > 1: spread += drawn.var().item()/draws
    ours, theirs = values.values()
    apart = (gradients["ours"] - gradients["theirs"]).norm()/gradients["theirs"].norm()
    same = abs(ours - theirs) <= (5*spread**0.5 if contest.same == "on average" else 1e-4*abs(theirs))
    if not same or (contest.same == "exactly" and apart > 1e-2):
        raise SystemExit(f"values {ours:.7f} (ours) and {theirs:.7f} (PML) or their gradients, {apart:.1e} apart, differ")
    return values


def turn(call, module, x, pids, repeats, device):
    "Seconds a pass."
    clock = time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    if device == "cuda": torch.cuda.synchronize()
    start = clock()
    for _ in range(repeats): step(call, module, x, pids)
    if device == "cuda": torch.cuda.synchronize()
    return (clock() - start)/repeats


def lacks_memory(error): return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error)


def measure(contest, x, pids, rounds, budget, device):
    "Values, seconds of each side [rounds], and which side ran out of memory, for one loss and one batch."
    result, sides = {}, dict(contest.calls)
    def without(side, error):
        if not lacks_memory(error): raise error
        result[f"{side}_failed"] = "out of memory"
        sides.pop(side)
        gc.collect()
    try: result["values"] = agreement(contest, x, pids)
    except (RuntimeError, MemoryError) as e: without("theirs", e)         # ours is timed alone, and raises there if it was ours
    repeats = {}
    for side, call in list(sides.items()):
        for _ in range(contest.warm): step(call, getattr(contest, side), x, pids)
        repeats[side] = min(max(math.ceil(TURN/turn(call, getattr(contest, side), x, pids, 1, device)), 1), 100)
    times, ending = {side: [] for side in sides}, time.perf_counter() + budget
    while len(times["ours"]) < rounds and (not times["ours"] or time.perf_counter() < ending):
        for side, call in sides.items(): times[side].append(turn(call, getattr(contest, side), x, pids, repeats[side], device))
    return result | {"times": {side: np.array(t) for side, t in times.items()}}


def row(name, batch, contest, found):
    "What the table and the JSON file say about one loss and one batch."
    times = found.pop("times")
    r = dict(loss=name, batch=batch, rounds=len(times["ours"]), ours_ms=float(np.median(times["ours"])*1e3), note=contest.note) | found
    if "theirs" in times:
        ratio = times["theirs"]/times["ours"]
        r |= dict(theirs_ms=float(np.median(times["theirs"])*1e3), ratio=float(np.median(ratio)),
                  low=float(ratio.min()), high=float(ratio.max()))
    return r


def show(r):
    measured = f"   {r.get('theirs_failed')}"
    if "ratio" in r: measured = f"{r['theirs_ms']:10.3f}{r['ratio']:8.2f}   {r['low']:.2f} to {r['high']:.2f}"
    print(f"{r['loss']:28}{r['batch']:6}{r['ours_ms']:10.3f}{measured}", flush=True)


def summarise(rows, names):
    "Geometric mean and extremes of the ratios of some losses; None where none was timed on both sides."
    rows = [r for r in rows if r["loss"] in names and "ratio" in r]
    if not rows: return None
    least = min(rows, key=lambda r: r["ratio"])
    mean = lambda some: float(np.exp(np.mean([np.log(r["ratio"]) for r in some])))
    return dict(geometric_mean=mean(rows), cells=len(rows), least=least["ratio"], least_at=f"{least['loss']}, batch {least['batch']}",
                by_loss={name: mean(own) for name in names if (own := [r for r in rows if r["loss"] == name])})


def limit(gigabytes, device):
    "Let this process have so much memory beyond what is loaded now."
    if device == "cuda":
        share = gigabytes*2**30/torch.cuda.get_device_properties(0).total_memory
        return torch.cuda.set_per_process_memory_fraction(min(share, 1.0))
    loaded = int(Path("/proc/self/statm").read_text().split()[0])*resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (int(loaded + gigabytes*2**30),)*2)


@call_parse
def main(
    out: str = None,              # write the table here as JSON
    only: str = "",               # only losses whose name has this in it
    batches: str = "64,256,1024", # images in a batch
    k: int = 4,                   # images of an identity
    dim: int = 256,               # embedding width
    rounds: int = 15,             # rounds a cell at most
    seconds: float = 20,          # no further round of a cell begins after this time
    threads: int = 1,             # CPU threads for both
    device: str = "cpu",          # cpu or cuda
    gigabytes: float = 8,         # memory that a side may have
):
    "Check that both sides agree, measure them in turns, and print a table of medians and ratios."
    torch.set_num_threads(threads)
    limit(gigabytes, device)
    chosen, rows = {name: make for name, make in (PAIRS | CLASSIFIERS).items() if only in name}, []
    print(f"forward and backward, {dim} wide, K = {k}, {threads} threads, {device}; "
          "median milliseconds, ratio theirs/ours and its range over rounds")
    print(f"{'':28}{'batch':>6}{'ours':>10}{'PML':>10}{'ratio':>8}   range")
    for name, make in chosen.items():
        for batch in map(int, batches.split(",")):
            torch.manual_seed(0)
            contest = make(batch, dim)
            contest.ours.to(device), contest.theirs.to(device)
            x, pids = embeddings(batch, k, dim, device)
            try: rows.append(row(name, batch, contest, measure(contest, x, pids, rounds, seconds, device)))
            except SystemExit as e: raise SystemExit(f"{name}, batch {batch}: {e}") from None
            show(rows[-1])
    summary = {"pairs and triplets": summarise(rows, PAIRS), "classifiers": summarise(rows, CLASSIFIERS)}
    for family, s in summary.items():
        if not s: continue
        print(f"{family}: geometric mean of {s['cells']} ratios {s['geometric_mean']:.2f}, the least {s['least']:.2f} ({s['least_at']})")
    if out:
        setting = dict(k=k, dim=dim, rounds=rounds, seconds=seconds, threads=threads, device=device, gigabytes=gigabytes,
                       torch=torch.__version__, pytorch_metric_learning=pytorch_metric_learning.__version__)
        Path(out).write_text(json.dumps(dict(setting=setting, summary=summary, table=rows), indent=1) + "\n")
