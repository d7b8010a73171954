"""How long the page of `reid-study serve` takes to answer a dropped picture: decoding, embedding, search, HTML, and the way there.

    python benchmarks/serving.py --out results/benchmarks/serving.json
"""
import io
import json
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from fastcore.script import call_parse
from PIL import Image

from reid_study.data.augment import MEAN, STD
from reid_study.inference.export import ImageEmbedder
from reid_study.inference.serve import Gallery, listen, make_app
from reid_study.networks.embedder import make_embedder


@call_parse
def main(out: str = None,                 # write the figures here as JSON
         gallery: int = 100_000,          # gallery images
         backbone: str = "mobilenet_v2",  # network that embeds the picture, untrained
         dim: int = 512,                  # embedding width
         pixels: int = 12_000_000,        # of the dropped photograph
         times: int = 20,                 # answers that are timed
         threads: int = 1):               # threads of torch
    "Measure over HTTP, print, and write JSON."
    torch.set_num_threads(threads)
    rng = np.random.default_rng(0)
    about = dict(height=256, width=128, dim=dim, mean=MEAN, std=STD, distance="euclidean")
    table = pd.DataFrame({"path": [f"{i % 5000 + 1:04}_c{i % 6 + 1}s1_{i:06}_00.jpg" for i in range(gallery)]})
    table.attrs["folder"] = "nowhere"
    start = time.perf_counter()
    ready = Gallery(table, rng.standard_normal((gallery, dim), np.float32))
    print(f"{gallery:,} embeddings of {dim} prepared in {time.perf_counter() - start:.1f} s")
    app = make_app(ImageEmbedder(make_embedder(backbone, dim), about), ready)
    opened, address = threading.Event(), []
    threading.Thread(target=listen, args=(app, 0, lambda url: (address.append(url), opened.set())), daemon=True).start()
    opened.wait()
    found = dict(setting=dict(gallery=gallery, backbone=backbone, dim=dim, times=times, threads=threads, torch=torch.__version__), table=[])
    for name, size in (("a crop", 128*256), (f"a photograph of {pixels/1e6:g} megapixels", pixels)):
        height = int((2*size)**.5)
        Image.fromarray(rng.integers(0, 256, (height//8, size//height//8, 3), np.uint8)).resize((size//height, height)).save(
            content := io.BytesIO(), "JPEG", quality=90)
        taken = []
        for _ in range(times + 1):
            start = time.perf_counter(), time.process_time()
            urllib.request.urlopen(urllib.request.Request(f"{address[0]}/match", data=content.getvalue())).read()
            taken.append((time.perf_counter() - start[0], time.process_time() - start[1]))
        wall, processor = (1000*np.array(t[1:]) for t in zip(*taken))
        found["table"].append(dict(name=name, ms=np.median(wall), most=wall.max(), cpu=np.median(processor)))
        print(f"{name}: {np.median(wall):.0f} ms (median of {times}), {wall.max():.0f} ms at most; "
              f"{np.median(processor):.0f} ms of a processor")
    if out: Path(out).write_text(json.dumps(found, indent=1) + "\n")
