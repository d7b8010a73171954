"""Embedding a folder of images, decoding included, beside torchreid's FeatureExtractor.

    python benchmarks/embedding.py --torchreid PATH --out embedding.json

Everybody gets the same files and the same network, with the same weights. torchreid's extractor is its own code, unchanged, from a
checkout of its source; only the function by which it builds a model gives it this network. It is called as its documentation shows,
with lists of paths, a batch at a time. Beside them: decoding alone, by one thread and by threads, and the network alone, which no one
can pass. The contestants take turns, round by round in one process, so each figure is a median over rounds, and each ratio a median of
the ratios within a round.
Without --images the files are drawn pedestrians of 128 × 64 pixels, in the layout and with the JPEG quality of Market-1501.
"""
import importlib
import json
import sys
import tempfile
import types
from pathlib import Path

import numpy as np
import torch
from fastcore.basics import num_cpus
from fastcore.script import call_parse

from reid_study.data.augment import MEAN, STD
from reid_study.data.images import list_images, read_image
from reid_study.data.people import make_people
from reid_study.inference.export import ImageEmbedder
from reid_study.inference.folders import decoded, embed_folder
from reid_study.networks.embedder import make_embedder

from turns import in_turns, ratio

OURS, TORCHREID = "reid_study, embed_folder", "torchreid, FeatureExtractor"
ONE, THREADS, NETWORK = "decoding alone, one thread", "decoding alone, threads", "network alone"


class Embed(torch.nn.Module):
    "An embedder's network as torchreid calls a model: normalised float images -> embeddings."
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images): return self.network.embed(images)


def extractor(path, network, size, device):
    "torchreid's FeatureExtractor, whose `build_model` gives `network`. ImportError where the checkout does not import."
    for name in ("torchreid", "torchreid.utils"):
        package = types.ModuleType(name)
        package.__path__ = [str(Path(path)/name.replace(".", "/"))]
        sys.modules[name] = package
    sys.modules["torchreid.models"] = models = types.ModuleType("torchreid.models")
    models.build_model = lambda *_, **__: Embed(network)
    utils = sys.modules["torchreid.utils"]
    for name in ("check_isfile", "load_pretrained_weights", "compute_model_complexity"):      # for files of weights and prints
        setattr(utils, name, None)
    return importlib.import_module("torchreid.utils.feature_extractor").FeatureExtractor(image_size=size, device=device, verbose=False)


def contestants(embedder, folder, files, batch, device, torchreid=None):
    "Name -> function that gives embeddings [N, D] of all files, or None."
    parts = [files[i:i + batch] for i in range(0, len(files), batch)]
    pixels = [embedder.read(part) for part in parts]

    def network():
        for x in pixels: result = embedder(x)
        result.cpu()     # waits for the device

    def one():
        for file in files: read_image(file, embedder.size)

    def threads():
        for _ in decoded(files, embedder.size, batch): pass

    result = {OURS: lambda: embed_folder(embedder, folder, batch)[1]}
    if torchreid:
        extract = extractor(torchreid, embedder.network, embedder.size, device)
        result[TORCHREID] = lambda: torch.cat([extract([str(file) for file in part]).cpu() for part in parts]).numpy()
    return result | {NETWORK: network, THREADS: threads, ONE: one}


@call_parse
def main(
    torchreid: str = None,     # checkout of torchreid
    images: str = None,        # folder of images; default: drawn people
    people: int = 200,         # drawn identities, of about 15 images each
    backbone: str = "small",   # small, resnet18, resnet50; random weights
    height: int = 64,          # pixels that the network sees
    width: int = 32,           # the same
    batch: int = 64,           # images at a time
    threads: int = 1,          # torch's threads, for everybody
    rounds: int = 7,           # turns
    device: str = "cpu",       # cpu or cuda
    out: str = None,           # write the figures to this JSON file
):
    "Measure in turns and print a table of medians and ratios."
    torch.set_num_threads(threads)
    about = dict(height=height, width=width, dim=256, mean=MEAN, std=STD, resize="bilinear", distance="euclidean", sha256="")
    embedder = ImageEmbedder(make_embedder(backbone), about).to(device)
    with tempfile.TemporaryDirectory() as tmp:
        def drawn(): return make_people(Path(tmp)/"people", n_train=people, n_test=2, n_distractors=0, n_junk=0)/"bounding_box_train"
        folder = Path(images) if images else drawn()
        files, _ = list_images(folder)
        if not torchreid: print("torchreid: left out, no path given")
        try: runs = contestants(embedder, folder, files, batch, device, torchreid)
        except ImportError as e:
            print(f"torchreid: left out, {e}")
            runs = contestants(embedder, folder, files, batch, device)
        seconds, given = in_turns(runs, rounds)
    table = []
    for name, s in seconds.items():
        middle, low, high = ratio(s, seconds[OURS])
        speed = float(len(files)/np.median(s))
        table.append(dict(name=name, seconds=float(np.median(s)), images_per_second=speed, ratio=middle, low=low, high=high))
    print(f"\n{len(files)} images, {backbone} at {height}×{width}, batches of {batch}, "
          f"{threads} threads of torch, {num_cpus()} {device}, {rounds} rounds")
    print(f"{'':30}{'seconds':>9}{'images/s':>10}{'ratio':>8}   95%")
    for r in table:
        print(f"{r['name']:30}{r['seconds']:9.3f}{r['images_per_second']:10.0f}{r['ratio']:8.2f}   {r['low']:.2f} to {r['high']:.2f}")
    apart = float(np.abs(given[OURS] - given[TORCHREID]).max()/np.abs(given[OURS]).max()) if TORCHREID in given else None
    if apart is not None:
        print(f"largest difference between {OURS} and {TORCHREID}: {apart:.1e} of the largest coordinate")
        if apart > 1e-4: raise SystemExit("they do not embed the same images in the same way")
    if out:
        setting = dict(images=len(files), backbone=backbone, height=height, width=width, batch=batch, threads=threads, cores=num_cpus(),
                       device=device, rounds=rounds, torch=torch.__version__)
        Path(out).write_text(json.dumps(dict(setting=setting, table=table, difference=apart), indent=1) + "\n")
