"""Time and memory of k-reciprocal re-ranking, from embeddings to final distances, beside the reference implementation on dense matrices.

    python benchmarks/reranking.py --torchreid PATH --out reranking.json

Every contestant sees the same embeddings and runs in fresh processes, in turns, with the same number of threads. The
peer is a checkout of its source, of which one file is loaded as it is; its distances between embeddings are computed as
its engine does. Without a path it is left out with a message. At the default size it needs about twelve gigabytes.

Whether both find the same is asked apart from the clock, with distances rounded from float64 and a stable sort on both
sides: in float32, two roundings of one distance may fall on either side of a list's end, and the order of equal ones is
left open by the reference. How often that moves a distance of the timed runs is reported.
"""
import contextlib
import functools
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

import numpy as np
import torch
from fastcore.script import call_parse
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent))
from evaluation import _memory, embeddings

OURS, PEER = "reid_study", "torchreid"
BLOCK = 256          # queries at a time


def _reference(path):
    "The peer's function of three distance matrices, from its one file."
    file = Path(path)/"torchreid/utils/rerank.py"
    if not file.exists(): raise ImportError(f"there is no {file}")
    spec = importlib.util.spec_from_file_location("reference", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _distances(q, g):
    "Its distances: Euclidean ones of unit vectors, squared, as its engine computes them with normalize_feature=True."
    return torch.addmm(q.square().sum(1, keepdim=True) + g.square().sum(1), q, g.T, alpha=-2).clamp_(min=0)


def contestant(name, path=None):
    "A function of the embeddings q [Q, D] and g [G, D] that gives blocks of final distances, first to last."
    if name == OURS:
        from reid_study.evaluation.reranking import Reranked
        def run(q, g, **settings):
            reranked = Reranked(q, g, **settings)
            for start in range(0, len(q), BLOCK): yield reranked(start, min(start + BLOCK, len(q))).numpy()
    else:
        module = _reference(path)
        def run(q, g, k1=20, k2=6, weight=0.3):
            q, g = (F.normalize(torch.from_numpy(x), dim=1) for x in (q, g))
            yield module.re_ranking(*(_distances(a, b).sqrt_().numpy() for a, b in ((q, g), (q, q), (g, g))), k1, k2, weight)
    return run


@contextlib.contextmanager
def _stable(module):
    "The peer's sort made stable, for the comparison: equal distances in the order of the images."
    numpy = module.np
    module.np = types.SimpleNamespace(**{name: getattr(numpy, name) for name in dir(numpy) if not name.startswith("_")}
                                      | {"argsort": functools.partial(numpy.argsort, kind="stable")})
    try: yield
    finally: module.np = numpy


def _exact(name, path, q, g, settings):
    "The contestant's final distances [Q, G] with the input in float64 and a stable sort."
    q, g = q.astype(np.float64), g.astype(np.float64)
    if name == OURS: return np.concatenate(list(contestant(OURS)(q, g, **settings)))
    from reid_study.distances import Euclidean
    module, (q, g) = _reference(path), (torch.from_numpy(x) for x in (q, g))
    with _stable(module): return module.re_ranking(*(Euclidean()(a, b).numpy() for a, b in ((q, g), (q, q), (g, g))), *settings.values())


def _measure(name, path, folder, threads, settings, exact):
    "One contestant, once, in this process: seconds, CPU time, peak bytes beyond the loaded embeddings; its distances are written."
    torch.set_num_threads(threads)
    q, g = (np.load(Path(folder)/f"{i}.npy") for i in range(2))
    if exact:
        np.save(Path(folder)/f"exact {name}.npy", _exact(name, path, q, g, settings))
        return {}
    run = contestant(name, path)
    for _ in run(*embeddings(60, 400, 32, 1.0, people=20)[:2]): pass       # imports, thread pools
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")                          # forget the peak so far
    start, cpu, total = time.perf_counter(), time.process_time(), 0.0
    for block in run(q, g, **settings): total += float(block.sum(dtype=np.float64))
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = _memory("VmHWM") - before
    np.save(Path(folder)/f"timed {name}.npy", np.concatenate(list(run(q, g, **settings))) if name == OURS else block)
    return dict(seconds=seconds, cpu=cpu, megabytes=peak/2**20, mean=total/(len(q)*len(g)))


def _fresh(name, path, folder, threads, settings, exact=False):
    "`_measure` in a fresh process."
    env = dict(os.environ, OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads), OPENBLAS_NUM_THREADS=str(threads))
    code = f"import sys, json; sys.path.insert(0, {str(Path(__file__).parent)!r}); import reranking as r\n" \
           f"print('\\n' + json.dumps(r._measure({name!r}, {path!r}, {folder!r}, {threads}, {settings!r}, {exact})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    if done.returncode: raise SystemExit(f"{name}: {done.stderr.strip() or f'ended by signal {-done.returncode}; is there enough memory?'}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _gaps(folder, kind, far=1e-5, rows=256):
    "Largest difference between the two contestants' distances, and the share that differs by more than `far`."
    a, b = (np.load(Path(folder)/f"{kind} {name}.npy", mmap_mode="r") for name in (OURS, PEER))
    gaps = [np.abs(a[s:s + rows] - b[s:s + rows]) for s in range(0, len(a), rows)]
    return float(max(gap.max() for gap in gaps)), sum(int((gap > far).sum()) for gap in gaps)/a.size


def _accuracy(folder, name, labels):
    "mAP and rank-1 of a contestant's timed distances."
    from reid_study.evaluation.retrieval import evaluate_retrieval
    distances = np.load(Path(folder)/f"timed {name}.npy", mmap_mode="r")
    result = evaluate_retrieval(lambda start, stop: np.array(distances[start:stop]), None, *labels)
    return dict(mAP=result.mAP, rank1=result.rank(1))


@call_parse
def main(
    torchreid: str = None,   # checkout of torchreid
    out: str = None,         # write the table here as JSON
    queries: int = 3368,     # query images
    gallery: int = 15913,    # gallery images
    width: int = 512,        # embedding width
    noise: float = 2.5,      # spread of an identity; 2.5: mAP about 0.44 before re-ranking
    k1: int = 20,            # neighbours in a list
    k2: int = 6,             # images that local expansion averages
    weight: float = 0.3,     # of the original distance
    threads: int = 2,        # threads for everybody
    rounds: int = 3,         # processes per contestant; the table gives medians
):
    "Measure re-ranking in turns, print medians and ratios, and stop with an error unless both find the same distances to 1e-5."
    names, settings = {OURS: None, PEER: torchreid}, dict(k1=k1, k2=k2, weight=weight)
    if not torchreid: print(f"{PEER}: left out, no path given"); names.pop(PEER)
    rows = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        data = embeddings(queries, gallery, width, noise, people=min(750, queries))
        for i in range(2): np.save(Path(folder)/f"{i}.npy", data[i])
        for _ in range(rounds):
            for name, path in names.items(): rows[name].append(_fresh(name, path, folder, threads, settings))
        table = [dict(name=name, **{key: float(np.median([r[key] for r in rs])) for key in ("seconds", "cpu", "megabytes")},
                      fastest=min(r["seconds"] for r in rs), slowest=max(r["seconds"] for r in rs), **_accuracy(folder, name, data[2:]))
                 for name, rs in rows.items()]
        agreement = {}
        if torchreid:
            for name, path in names.items(): _fresh(name, path, folder, threads, settings, exact=True)
            agreement = dict(exact_difference=_gaps(folder, "exact")[0])
            agreement["timed_difference"], agreement["timed_share_above_1e-5"] = _gaps(folder, "timed")
    ours = table[0]
    print(f"\n{queries} queries, {gallery} in the gallery, {width} wide, k1={k1}, k2={k2}, weight={weight}, "
          f"{threads} threads, {rounds} rounds; median, fastest run, median CPU time, median peak memory")
    print(f"{'':14}{'median s':>10}{'ratio':>8}{'min s':>10}{'ratio':>8}{'CPU s':>9}{'ratio':>8}"
          f"{'MB':>9}{'ratio':>8}{'mAP':>11}{'rank-1':>11}")
    for r in table:
        for key in ("seconds", "fastest", "cpu", "megabytes"): r[f"{key}_ratio"] = r[key]/ours[key]
        print(f"{r['name']:14}{r['seconds']:10.2f}{r['seconds_ratio']:8.2f}{r['fastest']:10.2f}{r['fastest_ratio']:8.2f}"
              f"{r['cpu']:9.2f}{r['cpu_ratio']:8.2f}"
              f"{r['megabytes']:9.0f}{r['megabytes_ratio']:8.2f}{r['mAP']:11.7f}{r['rank1']:11.7f}")
    if agreement:
        print(f"largest difference from {PEER}: {agreement['exact_difference']:.1e} on equal terms; "
              f"in the timed runs {agreement['timed_difference']:.1e}, "
              f"above 1e-5 in {agreement['timed_share_above_1e-5']:.1e} of all distances")
    if out:
        setting = dict(queries=queries, gallery=gallery, width=width, noise=noise, **settings, threads=threads, rounds=rounds,
                       torch=torch.__version__, numpy=np.__version__)
        Path(out).write_text(json.dumps(dict(setting=setting, table=table, agreement=agreement), indent=1) + "\n")
    if agreement and agreement["exact_difference"] > 1e-5:
        raise SystemExit(f"{PEER} finds other distances, by up to {agreement['exact_difference']:.1e}")
