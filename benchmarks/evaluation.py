"""Time and memory of the retrieval evaluation, from embeddings and from distances to metrics, beside other projects' compiled evaluators.

    python benchmarks/evaluation.py --torchreid PATH --fastreid PATH --out evaluation.json

Every contestant sees the same embeddings and runs in fresh processes, in turns, with the same number of threads.
A peer is a checkout of its source with its Cython evaluator built in place (`make` in its `rank_cylib` folder);
without a path, or where it does not import, it is left out with a message.
"""
import importlib
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

OURS, BLOCKS, WHOLE = "reid_study", "matrix product in blocks", "matrix product at once"


def embeddings(queries, gallery, width, noise, seed=0, people=750, cameras=6, distractors=0.18):
    "Identity centres plus noise, as default with Market-1501's proportions; a gallery share of distractors (pid 0)."
    g = torch.Generator().manual_seed(seed)
    strangers = int(gallery*distractors)
    popularity = torch.rand(people, generator=g) + 0.2
    known = torch.multinomial(popularity, gallery - strangers, True, generator=g) + 1
    g_pids = torch.cat([known, torch.zeros(strangers, dtype=torch.long)])
    q_pids = torch.arange(queries) % people + 1
    centre = torch.randn(people + 1, width, generator=g)
    q = centre[q_pids] + noise*torch.randn(queries, width, generator=g)
    x = centre[g_pids] + noise*torch.randn(gallery, width, generator=g)
    x[g_pids == 0] = (1 + noise**2)**0.5*torch.randn(strangers, width, generator=g)
    cams = [torch.randint(1, cameras + 1, (n,), generator=g) for n in (queries, gallery)]
    return [t.numpy() for t in (q, x, q_pids, g_pids, *cams)]


def _package(name, path):
    "Register a package by its folder without running its __init__, which may import much that is not needed."
    module = types.ModuleType(name)
    module.__path__ = [str(path)]
    sys.modules[name] = module


def _stub(name, *attributes):
    "Register an empty module in place of one that is imported and not used here."
    module = types.ModuleType(name)
    for a in attributes: setattr(module, a, None)
    sys.modules[name] = module


def contestant(name, path=None):
    """Two functions. One of the six arrays gives mAP, rank-1 and, where it has them, the APs of the queries. The other does so from
    the distances [Q, G], a tensor, and the labels, for the contestant's evaluator alone; None for a matrix product."""
    if name == BLOCKS:
        def run(q, g, *ids):
            for start in range(0, len(q), 256): torch.from_numpy(q[start:start + 256]) @ torch.from_numpy(g).T
        return run, None
    if name == WHOLE: return lambda q, g, *ids: torch.from_numpy(q) @ torch.from_numpy(g).T, None
    if name == OURS:
        from reid_study.evaluation.retrieval import evaluate_retrieval
        def run(*data):
            result = evaluate_retrieval(*data)
            return result.mAP, result.rank(1), result.AP[result.valid]
        return run, lambda distances, *ids: run(lambda start, stop: distances[start:stop], None, *ids)
    if name == "torchreid":
        _package("torchreid", Path(path)/"torchreid")
        _package("torchreid.metrics", Path(path)/"torchreid/metrics")
        distance, rank = (importlib.import_module(f"torchreid.metrics.{m}") for m in ("distance", "rank"))
        def measure(q, g):         # as in its engine, with normalize_feature=True
            q, g = (F.normalize(torch.from_numpy(x), p=2, dim=1) for x in (q, g))
            return distance.compute_distance_matrix(q, g, "euclidean")
        def evaluate(distances, *ids):
            cmc, mAP = rank.evaluate_rank(distances.numpy(), *ids)
            return mAP, cmc[0], None
    elif name == "fast-reid":
        for package in ("fastreid", "fastreid/utils", "fastreid/evaluation"):
            _package(package.replace("/", "."), Path(path)/package)
        _stub("faiss")
        _stub("fastreid.utils.faiss_utils", "index_init_cpu", "index_init_gpu", "search_index_pytorch", "search_raw_array_pytorch")
        distance, rank = (importlib.import_module(f"fastreid.{m}") for m in ("utils.compute_dist", "evaluation.rank"))
        def measure(q, g):      # as in its evaluator, with its default metric
            return torch.as_tensor(distance.build_dist(torch.from_numpy(q), torch.from_numpy(g), "cosine"))
        def evaluate(distances, *ids):
            cmc, AP, INP = rank.evaluate_rank(distances.numpy(), *ids)
            return np.mean(AP), cmc[0], AP
    if not rank.IS_CYTHON_AVAI: raise ImportError("its Cython evaluator is not built")
    return lambda q, g, *ids: evaluate(measure(q, g), *ids), evaluate


def _memory(key):
    "A memory entry of this process (VmRSS: now, VmHWM: its peak), in bytes."
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key): return int(line.split()[1])*1024


def _measure(name, path, folder, threads):
    "One contestant, once, in this process: seconds, peak bytes beyond the embeddings, its metrics, and the seconds of its evaluator alone."
    torch.set_num_threads(threads)
    data = [np.load(Path(folder)/f"{i}.npy") for i in range(6)]
    run, evaluate = contestant(name, path)
    few = embeddings(60, 400, 32, 1.0, people=20)
    run(*few)                                            # imports, thread pools
    cost, metrics = peak(lambda: run(*data))
    if not evaluate: return cost
    mAP, rank1, AP = metrics
    if AP is not None: np.save(Path(folder)/f"AP {name}.npy", AP)
    q, g = (F.normalize(torch.from_numpy(x), dim=1) for x in data[:2])
    distances = (q @ g.T).mul_(-2).add_(2).clamp_(min=0).sqrt_()
    alone, metrics = peak(lambda: evaluate(distances, *data[2:]))
    return cost | dict(mAP=float(mAP), rank1=float(rank1), alone=alone["seconds"], alone_mAP=float(metrics[0]))


def peak(call):
    "(what a call costs, what it returns): seconds, seconds of the processor, and the peak megabytes beyond what was resident before."
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")        # forget the peak so far
    start, cpu = time.perf_counter(), time.process_time()
    result = call()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return dict(seconds=seconds, cpu=cpu, megabytes=(_memory("VmHWM") - before)/2**20), result


def fresh(module, call, threads):
    "What a call of a benchmark's function returns, as JSON values, in a fresh process; {\"missing\": why} where it does not end well."
    env = dict(os.environ, OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads), OPENBLAS_NUM_THREADS=str(threads))
    code = f"import sys, json; sys.path.insert(0, {str(Path(__file__).parent)!r}); import {module} as b\n" \
           f"try: r = b.{call}\n" \
           f"except ImportError as x: r = dict(missing=str(x))\n" \
           f"print('\\n' + json.dumps(r))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    if done.returncode:
        told = done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}; out of memory?"]
        return dict(missing=told[-1], error=done.stderr)
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare(torchreid, fastreid, queries, gallery, width, noise, people, cameras, distractors, threads, rounds):
    "Measure the evaluators in turns, print a table of medians and ratios, and return it with its setting."
    names = {OURS: None, "torchreid": torchreid, "fast-reid": fastreid, WHOLE: None, BLOCKS: None}
    for peer, path in list(names.items()):
        if peer in ("torchreid", "fast-reid") and not path: print(f"{peer}: left out, no path given"); names.pop(peer)
    rows = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        for i, array in enumerate(embeddings(queries, gallery, width, noise, 0, people, cameras, distractors)):
            np.save(Path(folder)/f"{i}.npy", array)
        for turn in range(rounds):
            for name, path in list(names.items()):
                r = fresh("evaluation", f"_measure({name!r}, {path!r}, {folder!r}, {threads})", threads)
                if "missing" in r and name == OURS: raise SystemExit(r.get("error") or r["missing"])
                if "missing" in r: print(f"{name}: left out, {r['missing']}"); names.pop(name); rows.pop(name); continue
                rows[name].append(r)
        AP = {name: np.load(f) for name in names if (f := Path(folder)/f"AP {name}.npy").exists()}
    middle = lambda rs, key: float(np.median([r[key] for r in rs])) if key in rs[0] else None
    table = [dict(name=name, fastest=min(r["seconds"] for r in rs), slowest=max(r["seconds"] for r in rs),
                  **{key: rs[0].get(key) for key in ("mAP", "rank1")})
             | {key: middle(rs, key) for key in ("seconds", "cpu", "megabytes", "alone")} for name, rs in rows.items()]
    ours = table[0]
    print(f"\n{queries} queries, {gallery} in the gallery, {width} wide, {threads} threads, {rounds} rounds; "
          "median, fastest run, median CPU time, median of the evaluator alone, median peak memory")
    print(f"{'':26}{'median s':>9}{'ratio':>7}{'min s':>9}{'ratio':>7}{'CPU s':>8}{'ratio':>7}"
          f"{'alone s':>9}{'ratio':>7}{'MB':>8}{'ratio':>7}{'mAP':>11}{'rank-1':>11}")
    for r in table:
        for key in ("seconds", "fastest", "cpu", "alone", "megabytes"): r[f"{key}_ratio"] = None if r[key] is None else r[key]/ours[key]
        cells = [f"{r[key]:{w}.{d}f}{r[f'{key}_ratio']:7.2f}" if r[key] is not None else " "*(w + 7)
                 for key, w, d in (("seconds", 9, 3), ("fastest", 9, 3), ("cpu", 8, 2), ("alone", 9, 3), ("megabytes", 8, 0))]
        print(f"{r['name']:26}{''.join(cells)}" + ("" if r["mAP"] is None else f"{r['mAP']:11.7f}{r['rank1']:11.7f}"))
    for name, rs in rows.items():
        for mAP in {m for r in rs for m in (r.get("mAP"), r.get("alone_mAP")) if m is not None}:
            if abs(mAP - ours["mAP"]) > 1e-6: raise SystemExit(f"{name} finds another mAP, {mAP}, than {ours['mAP']}")
    agreement = {name: float(np.abs(a - AP[OURS]).max()) for name, a in AP.items() if name != OURS}
    for name, gap in agreement.items(): print(f"largest difference of a query's AP between {OURS} and {name}: {gap:.1e}")
    setting = dict(queries=queries, gallery=gallery, width=width, noise=noise, people=people, cameras=cameras, distractors=distractors,
                   threads=threads, rounds=rounds, torch=torch.__version__, numpy=np.__version__)
    return dict(setting=setting, table=table, AP_difference=agreement)


@call_parse
def main(
    torchreid: str = None,   # checkout of torchreid, its evaluator built
    fastreid: str = None,    # checkout of fast-reid, its evaluator built
    out: str = None,         # write the table here as JSON
    queries: int = 3368,     # query images
    gallery: int = 15913,    # gallery images
    width: int = 512,        # embedding width
    noise: float = 2.5,      # spread of an identity; 2.5: mAP about 0.44, 20: chance
    people: int = 750,       # identities of the queries
    cameras: int = 6,        # cameras
    distractors: float = 0.18,    # share of the gallery that is nobody's match
    threads: int = 2,        # threads for everybody
    rounds: int = 7,         # processes per contestant; the table gives medians
):
    "Measure the evaluators in turns and print a table of medians and ratios."
    found = compare(torchreid, fastreid, queries, gallery, width, noise, people, cameras, distractors, threads, rounds)
    if out: Path(out).write_text(json.dumps(found, indent=1) + "\n")
