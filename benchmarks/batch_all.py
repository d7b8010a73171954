"""Time and memory of batch-all losses, forward and backward with the distances, as the batch grows.

    python benchmarks/batch_all.py --out results/benchmarks/batch_all.json

Every measurement is a fresh process, and the contestants take turns. pytorch-metric-learning lists all triplets,
through a Boolean tensor of B³ entries up to 1,290 images and a loop over the anchors beyond. A contestant that passes the
memory limit is left out from there on, with a message.
"""
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from fastcore.script import call_parse

from reid_study.distances import Euclidean
from reid_study.losses.batch_all import quadruplet_sum, triplet_sum

DISTANCES, TRIPLETS, QUADRUPLETS, PML = "distances alone", "triplet_sum", "quadruplet_sum", "pytorch-metric-learning, all triplets"
MARGIN = 0.3


def embeddings(size, k, width, noise=1.3, seed=0):
    "A batch of size/k identities with k images each: centres plus noise; with noise 1.3 about half of all hinges are open."
    g = torch.Generator().manual_seed(seed)
    pids = torch.arange(size)//k
    x = torch.randn(size//k + 1, width, generator=g)[pids] + noise*torch.randn(size, width, generator=g)
    return x.requires_grad_(), pids


def contestant(name):
    "A function of embeddings and pids giving the mean hinge."
    if name == DISTANCES: return lambda x, pids: Euclidean()(x).mean()
    if name == PML:
        from pytorch_metric_learning import losses, reducers
        return losses.TripletMarginLoss(margin=MARGIN, reducer=reducers.MeanReducer())
    total = {TRIPLETS: triplet_sum, QUADRUPLETS: quadruplet_sum}[name]
    def run(x, pids):
        value, _, count = total(Euclidean()(x), pids, margin=MARGIN)
        return value/count
    return run


def _memory(key):
    "A memory entry of this process (VmRSS: now, VmHWM: its peak), in bytes."
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key): return int(line.split()[1])*1024


def _measure(name, size, k, width, threads, gigabytes):
    "One contestant in this process: seconds (wall and CPU) of the fastest of several passes, peak memory, the value."
    torch.set_num_threads(threads)
    resource.setrlimit(resource.RLIMIT_AS, (int(gigabytes*2**30),)*2)
    run = contestant(name)
    run(*embeddings(32, k, width)).backward()              # imports, thread pools
    x, pids = embeddings(size, k, width)
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")          # forget the peak so far
    times, cpus, ending = [], [], time.perf_counter() + 1
    while not times or (time.perf_counter() < ending and len(times) < 200):
        x.grad = None
        start, cpu = time.perf_counter(), time.process_time()
        value = run(x, pids)
        value.backward()
        times.append(time.perf_counter() - start)
        cpus.append(time.process_time() - cpu)
    return dict(seconds=min(times), cpu=min(cpus), megabytes=(_memory("VmHWM") - before)/2**20, value=value.item())


def _fresh(name, *setting):
    "`_measure` in a fresh process; None where it needs more memory than it may have."
    env = dict(os.environ, OMP_NUM_THREADS=str(setting[3]), MKL_NUM_THREADS=str(setting[3]))
    code = f"import sys, json; sys.path.insert(0, {str(Path(__file__).parent)!r}); import batch_all as b\n" \
           f"print('\\n' + json.dumps(b._measure({name!r}, *{setting!r})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    if done.returncode == 0: return json.loads(done.stdout.strip().splitlines()[-1])
    if "memory" in done.stderr.lower() or done.returncode < 0: return None
    raise SystemExit(done.stderr)


@call_parse
def main(
    out: str = None,             # write the table here as JSON
    sizes: str = "64,128,256,512,1024,2048,4096,8192",   # images in a batch
    k: int = 4,                  # images of an identity
    width: int = 512,            # embedding width
    threads: int = 1,            # threads for everybody
    rounds: int = 5,             # processes per measurement up to 2048 images, above it 1; the table gives medians
    gigabytes: float = 16,       # address space that a process may have
    peer_from: int = 1024,       # from this size on the peer runs once
):
    "Measure in turns and print a table of medians, with the slope of the CPU time between one size and the next."
    setting = dict(k=k, width=width, threads=threads, gigabytes=gigabytes, margin=MARGIN, torch=torch.__version__)
    names, table = [DISTANCES, TRIPLETS, QUADRUPLETS, PML], []
    try: import pytorch_metric_learning
    except ImportError: print(f"{names.pop()}: left out, not installed")
    for size in map(int, sizes.split(",")):
        rows = {name: [] for name in names}
        for turn in range(rounds if size <= 2048 else 1):
            for name in list(names):
                if name == PML and size >= peer_from and turn: continue
                r = _fresh(name, size, k, width, threads, gigabytes)
                if r is None:
                    print(f"{name}: left out from {size} images on, needs more than {gigabytes:g} GB")
                    names.remove(name); rows.pop(name)
                    continue
                rows[name].append(r)
        for name, rs in rows.items():
            seconds = [r["seconds"] for r in rs]
            r = dict(name=name, size=size, rounds=len(rs), seconds=float(np.median(seconds)), fastest=min(seconds), slowest=max(seconds),
                     value=rs[0]["value"], **{key: float(np.median([r[key] for r in rs])) for key in ("cpu", "megabytes")})
            last = next((t for t in table if t["name"] == name and t["size"]*2 == size), None)
            r["slope"] = float(np.log2(r["cpu"]/last["cpu"])) if last else None
            table.append(r)
            print(f"{size:6} {name:40}{1e3*r['seconds']:11.2f} ms  {1e3*r['cpu']:11.2f} ms CPU  {r['megabytes']:9.1f} MB  "
                  f"slope {r['slope'] or float('nan'):5.2f}  value {r['value']:.7f}", flush=True)
        if PML in rows and abs(rows[PML][0]["value"] - rows[TRIPLETS][0]["value"]) > 1e-5:
            raise SystemExit(f"{PML} finds another mean hinge")
        if out: Path(out).write_text(json.dumps(dict(setting=setting, table=table), indent=1) + "\n")
