"""A million images on a CPU: exact evaluation with the gallery on disk, and indexes beside it.

    python benchmarks/gallery.py --out gallery.json

The gallery is written to disk block by block, and evaluated in a fresh process whose peak memory is measured beyond what it
had before. How many of the nearest an index finds depends on how well the embeddings tell people apart (`noise`).
"""
import json
import platform
import tempfile
import time
from pathlib import Path

import evaluation
import numpy as np
import torch
from fastcore.script import call_parse

EXACT = "streamed"


def write_gallery(folder, queries, gallery, width, noise, seed=0, images=20, cameras=6, block=65536):
    "Write embeddings of identities of about `images` images each: gallery.npy [G, D], block by block, query.npy, and the labels."
    people, folder = max(1, gallery//images), Path(folder)
    centre = np.random.default_rng(seed).standard_normal((people, width), np.float32)
    labels = {}
    for name, rows in (("query", queries), ("gallery", gallery)):
        rng = np.random.default_rng((seed, rows))
        labels[f"{name}_pids"] = np.arange(queries) % people + 1 if name == "query" else rng.integers(1, people + 1, gallery)
        labels[f"{name}_camids"] = rng.integers(1, cameras + 1, rows)
        x = np.lib.format.open_memmap(folder/f"{name}.npy", "w+", np.float32, (rows, width))
        for start in range(0, rows, block):
            part = centre[labels[f"{name}_pids"][start:start + block] - 1]
            x[start:start + block] = part + noise*rng.standard_normal(part.shape, np.float32)
        x.flush()
    np.savez(folder/"labels.npz", **labels)


def exact(folder, threads, block, rows):
    "The streamed evaluation, once, in this process: seconds, peak bytes beyond what was resident, metrics."
    from reid_study.evaluation.index import streamed
    from reid_study.evaluation.retrieval import evaluate_retrieval
    torch.set_num_threads(threads)
    folder, labels = Path(folder), dict(np.load(Path(folder)/"labels.npz"))
    few, pids = np.random.default_rng(0).standard_normal((400, 32), np.float32), np.arange(400) % 20 + 1
    evaluate_retrieval(streamed(few[:60], few), None, pids[:60], pids)       # imports, thread pools
    def run(): return evaluate_retrieval(streamed(folder/"query.npy", folder/"gallery.npy", block=rows), None, **labels, block=block)
    cost, result = evaluation.peak(run)
    return cost | dict(mAP=result.mAP, rank1=result.rank(1))


def indexed(folder, threads, kind, k, few):
    "One index in this process: seconds and peak bytes of building it, seconds a query, rows found for the first queries."
    import faiss
    from reid_study.evaluation.index import make_index
    faiss.omp_set_num_threads(threads)
    torch.set_num_threads(threads)
    folder = Path(folder)
    query = np.load(folder/"query.npy")[:few]
    make_index(query[:, :32], "flat").search(query[:1, :32], 1)
    cost, index = evaluation.peak(lambda: make_index(folder/"gallery.npy", kind))
    start = time.perf_counter()
    _, rows = index.search(query, k)
    seconds = time.perf_counter() - start
    np.save(folder/f"rows {kind}.npy", rows)
    return dict(build=cost, milliseconds=1000*seconds/len(query), settings=index.settings)


def recall(true, found):
    "The share of the true rows [Q, K] that a query's rows have, averaged over queries."
    return float(np.mean([np.isin(a, b).mean() for a, b in zip(true, found)]))


@call_parse
def main(
    out: str = None,         # write the tables here as JSON
    queries: int = 1000,     # query images for the large gallery
    gallery: int = 1_000_000,  # images of the large gallery
    width: int = 512,        # embedding width
    noise: float = 1.2,      # spread of an identity
    block: int = 128,        # queries at a time: 4*block*gallery bytes of distances, and as much again
    rows: int = 8192,        # gallery images at a time
    kinds: str = "flat ivf hnsw binary",  # indexes to build beside it; "" for none
    few: int = 300,          # queries that the indexes are searched for
    threads: int = 2,        # threads for everybody
    folder: str = None,      # where the large gallery is written (default: a temporary folder; 4*width*gallery bytes)
):
    "Measure, print, and write JSON."
    setting = dict(queries=queries, gallery=gallery, width=width, noise=noise, block=block, rows=rows, few=few, threads=threads,
                   torch=torch.__version__, numpy=np.__version__, python=platform.python_version())
    with tempfile.TemporaryDirectory(dir=folder) as place:
        start = time.perf_counter()
        write_gallery(place, queries, gallery, width, noise)
        print(f"{gallery:,} embeddings of {width} written in {time.perf_counter() - start:.0f} s, {4*width*gallery/2**30:.2f} GiB")
        found = {EXACT: evaluation.fresh("gallery", f"exact({place!r}, {threads}, {block}, {rows})", threads)}
        r = found[EXACT]
        if "missing" in r: raise SystemExit(r.get("error") or r["missing"])
        print(f"{EXACT}: {queries} queries in {r['seconds']:.0f} s ({1000*r['seconds']/queries:.1f} ms each), "
              f"peak {r['megabytes']/1024:.2f} GiB beyond the start, mAP {r['mAP']:.4f}, rank-1 {r['rank1']:.4f}")
        for kind in kinds.split():
            found[kind] = r = evaluation.fresh("gallery", f"indexed({place!r}, {threads}, {kind!r}, 10, {few})", threads)
            if "missing" in r: print(f"{kind}: left out, {r['missing']}"); continue
            line = f"{kind}: built in {r['build']['seconds']:.0f} s, peak {r['build']['megabytes']/1024:.2f} GiB"
            line += f", {r['milliseconds']:.2f} ms a query"
            if (true := Path(place)/"rows flat.npy").exists():
                own = np.load(Path(place)/f"rows {kind}.npy")
                r["recall@10"] = recall(np.load(true), own)
                line += f", recall@10 {r['recall@10']:.1%}"
            print(line)
    if out: Path(out).write_text(json.dumps(dict(setting=setting, large=found), indent=1) + "\n")
