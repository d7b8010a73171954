"""How search grows with the gallery: cells of product-quantised embeddings that stay on disk, at a million and at ten million images.

    python benchmarks/scale.py --out results/benchmarks/scale.json

Each step is a fresh process. The gallery and the index lie in a temporary folder: 4*width bytes an image, and width/8 + 8. From the two
sizes a law is fitted, from which the cost of a hundred million and of a billion images is computed and not measured.
"""
import json
import math
import tempfile
import time
from pathlib import Path

import evaluation
import gallery
import numpy as np
import torch
from fastcore.script import call_parse
from scipy.optimize import nnls

K, LISTED = 10, 100      # the nearest that count, and as many as are looked at once more


def build(folder, threads, nlist):
    "Make and save the index: seconds, seconds of the processor, peak megabytes beyond the start, bytes of its file."
    import faiss
    from reid_study.evaluation.index import make_index
    faiss.omp_set_num_threads(threads)
    torch.set_num_threads(threads)
    cost, index = evaluation.peak(lambda: make_index(Path(folder)/"gallery.npy", "ivf", nlist=nlist, store="pq"))
    index.save(Path(folder)/"index")
    return cost | dict(bytes=(Path(folder)/"index"/"index.faiss").stat().st_size)


def exact(folder, threads, few):
    "Write the rows of the exact nearest of the first queries to rows.npy, and return the seconds that they took."
    import faiss
    from reid_study.evaluation.index import make_index
    faiss.omp_set_num_threads(threads)
    torch.set_num_threads(threads)
    index = make_index(Path(folder)/"gallery.npy", "disk")
    start = time.perf_counter()
    np.save(Path(folder)/"rows.npy", index.search(np.load(Path(folder)/"query.npy")[:few], K)[1])
    return dict(seconds=time.perf_counter() - start)


def milliseconds(search, queries, rounds=3):
    "Milliseconds a query, one query after the other: the fastest round, since the first reads cells from the disk."
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        for i in range(len(queries)): search(queries[i:i + 1])
        taken.append(1000*(time.perf_counter() - start)/len(queries))
    return min(taken), taken[0]


def looked_up(x, found, rows):
    "The K nearest of the rows found, by their embeddings, which are read from the disk."
    near = rows.rows(np.sort(found))
    distances = torch.cdist(torch.nn.functional.normalize(x), torch.nn.functional.normalize(near))[0]
    return np.sort(found)[distances.topk(K, largest=False).indices.numpy()]


def search(folder, few, nprobes):
    "Search on one thread with the cells on disk: megabytes beyond the start, then for each nprobe milliseconds a query and recalls."
    import faiss
    from reid_study.evaluation.index import Rows, load_index
    faiss.omp_set_num_threads(1)
    torch.set_num_threads(1)
    folder = Path(folder)
    query, true, rows = np.load(folder/"query.npy")[:few], np.load(folder/"rows.npy"), Rows(folder/"gallery.npy")
    cost, index = evaluation.peak(lambda: load_index(folder/"index", on_disk=True))
    cells = index.index.quantizer
    found = dict(megabytes=cost["megabytes"], cells=milliseconds(lambda x: cells.search(x, 1), query)[0], table=[])
    for nprobe in nprobes:
        warm, first = milliseconds(lambda x: index.search(x, LISTED, nprobe=nprobe), query)
        listed = index.search(query, LISTED, nprobe=nprobe)[1]
        start = time.perf_counter()
        again = [looked_up(torch.from_numpy(query[i:i + 1]), listed[i], rows) for i in range(len(query))]
        more = 1000*(time.perf_counter() - start)/len(query)
        found["table"].append(dict(nprobe=nprobe, milliseconds=warm, first=first, looked_up=more,
                                   recall=gallery.recall(true, listed[:, :K]), recall_looked_up=gallery.recall(true, again)))
    return found


def law(sizes):
    """Milliseconds of a search, over those for the cells' centres, as a + b*codes, the codes being those that it compares with; and
    milliseconds a centre; seconds of the processor to build, as pq + work*(10¹² multiplications of k-means and of finding cells)."""
    points = [(s["gallery"]*r["nprobe"]/s["nlist"], r["milliseconds"] - s["search"]["cells"]) for s in sizes for r in s["search"]["table"]]
    codes, ms = map(np.array, zip(*points))
    (start, each), _ = nnls(np.stack([np.ones(len(codes)), codes], 1), ms)
    centre = np.mean([s["search"]["cells"]/s["nlist"] for s in sizes])
    work = np.array([products(s["gallery"], s["nlist"], s["width"])/1e12 for s in sizes])
    (pq, times), _ = nnls(np.stack([np.ones(len(sizes)), work], 1), np.array([s["build"]["cpu"] for s in sizes]))
    return dict(start=float(start), code=float(each), centre=float(centre), pq=float(pq), work=float(times),
                residual=float(np.abs(start + each*codes - ms).max()))


def products(images, nlist, width):
    "Multiplications to build: ten rounds of k-means over 64 images a cell, then the nearest cell of each image."
    return width*nlist*(10*64*nlist + images)


def extrapolated(law, images, width, nprobe=64):
    "What the law says of a gallery with 4√G cells."
    nlist = int(4*math.sqrt(images))
    return dict(gallery=images, nlist=nlist, nprobe=nprobe, bytes=images*(width//8 + 8),
                cpu=law["pq"] + law["work"]*products(images, nlist, width)/1e12,
                milliseconds=law["start"] + law["centre"]*nlist + law["code"]*images*nprobe/nlist)


@call_parse
def main(
    out: str = None,           # write the figures here as JSON
    galleries: str = "1000000,10000000",  # images
    width: int = 512,          # embedding width
    noise: float = 0.8,        # spread of an identity
    nlist: int = 4096,         # cells
    nprobes: str = "4,16,64,256",  # cells that a search visits
    few: int = 200,            # queries
    threads: int = 2,          # threads to build with; a search has one
    folder: str = None,        # where the galleries are written (default: a temporary folder)
):
    "Measure, print, and write JSON."
    sizes, probes = [], [int(n) for n in nprobes.split(",")]
    for images in map(int, galleries.split(",")):
        with tempfile.TemporaryDirectory(dir=folder) as place:
            gallery.write_gallery(place, few, images, width, noise)
            size = dict(gallery=images, nlist=nlist, width=width)
            for name, call in {"exact": f"exact({place!r}, {threads}, {few})", "build": f"build({place!r}, {threads}, {nlist})",
                               "search": f"search({place!r}, {few}, {probes})"}.items():
                size[name] = evaluation.fresh("scale", call, 1 if name == "search" else threads)
                if "missing" in size[name]: raise SystemExit(size[name].get("error") or size[name]["missing"])
                print(f"{images:,} {name}: {json.dumps(size[name])}", flush=True)
            sizes.append(size)
    found = dict(setting=dict(width=width, noise=noise, few=few, threads=threads, torch=torch.__version__), sizes=sizes)
    if len(sizes) > 1:
        found["law"] = law(sizes)
        found["extrapolated"] = [extrapolated(found["law"], images, width) for images in (10**8, 10**9)]
        print(json.dumps(found["law"] | dict(extrapolated=found["extrapolated"]), indent=1))
    if out: Path(out).write_text(json.dumps(found, indent=1) + "\n")
