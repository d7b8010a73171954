"What an exported embedder makes of an edited description, of damaged weights, of other images, and of other types of numbers."
import copy
import hashlib
import io
import json
import math
import socket
from functools import cache

import numpy as np
import pandas as pd
import torch
from cases import Case, check, table
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from reid_study.core import InputError
from reid_study.data.augment import MEAN, STD
from reid_study.inference.compare import compare_images
from reid_study.inference.export import ABOUT, FIELDS, WEIGHTS, ImageEmbedder, load_embedder
from reid_study.inference.serve import Gallery, listen, match_picture
from reid_study.networks.embedder import make_embedder

TENSORS = {name: value.contiguous() for name, value in make_embedder("small", 8).state_dict().items()}
CONTENT = save(TENSORS)
SEALED = {"backbone": "small", "dim": 8, "height": 32, "width": 16, "channels": "RGB", "resize": "bilinear", "mean": list(MEAN),
          "std": list(STD),
          "format": 1, "dataset": "people", "recipe": "identity", "run": "0123456789ab", "config": {}, "distance": "euclidean",
          "normalize": True,
          "embedding": "what retrieval compares"}
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 20, 3), dtype=np.uint8)
PICTURE = Image.fromarray(PIXELS)


def written(folder, about, content=CONTENT):
    "A folder of an embedder: `about` is bytes, or the fields that are other than they should be."
    if not isinstance(about, bytes): about = json.dumps(SEALED | {"sha256": hashlib.sha256(content).hexdigest()} | about).encode()
    (folder/ABOUT).write_bytes(about)
    (folder/WEIGHTS).write_bytes(content)
    return folder

def edited(**fields): return lambda folder: load_embedder(written(folder, fields))

def stored(content): return lambda folder: load_embedder(written(folder, {}, content(TENSORS) if callable(content) else content))

def embedded(folder, images, change=lambda e: e): return change(load_embedder(written(folder, {})))(images)

def given_images(images): return lambda folder: embedded(folder, images(folder) if callable(images) else images)

def compared(folder, about, image): return compare_images(load_embedder(written(folder, about)), PICTURE, image)

def in_file(folder):
    PICTURE.save(folder/"a.png")
    return folder/"a.png"

@cache
def expected():
    "The embedding of the picture [D], without the code under test."
    x = torch.tensor(np.asarray(PICTURE.resize((16, 32), Image.Resampling.BILINEAR)))/255
    x = (x - torch.tensor(MEAN))/torch.tensor(STD)
    with torch.no_grad(): return make_embedder("small", 8).eval().embed(x.permute(2, 0, 1)[None])[0]

def usual(n=1):
    "Whether embeddings are those of n times the picture."
    return lambda x: x.shape == (n, 8) and x.dtype == torch.float32 and torch.allclose(x, expected().expand(n, -1), rtol=1e-4, atol=1e-5)

def near(kind, share): return lambda x: x.dtype == kind and bool((x.float() - expected()).abs().max() < share*expected().abs().max())

def broken(embedder):
    embedder.network.neck.weight.data[0] = math.nan
    return embedder

PAIRS = {"of": "validation", "people": 2, "same": [1, 1], "different": [0, 2]}

EDITS = {"std": (0, [0, 1, 1], [1, 1], [1, 1, 1, 1], [1, None, 1], [math.nan]*3, [1e-300]*3, [-1, 1, 1], "1"),
         "mean": (None, [0]*4, ["0"]*3, [[0]]*3, [math.inf]*3),
         "dim": (-1, 0, 1.5, None, 10**12, True), "height": (0, 10**9, "32", [32]), "width": (-16, None, math.nan),
         "distance": ("euclid", "mahalanobis", None, []),
         "resize": ("lanczos", ["bilinear"], None), "backbone": ("resnet1", None, ["small"], 5), "format": (2, None, True, "1", [1]),
         "normalize": (False, 1, None),
         "channels": ("BGR", 3), "sha256": (None, 5), "recipe": (3,),
         "pairs": (None, [], {}, PAIRS | {"same": [1]}, PAIRS | {"same": [1, -1]}, PAIRS | {"different": [0, 1.5]}, PAIRS | {"people": "2"},
                   PAIRS | {"mean": 1})}

CASES = [
    *(Case(f"an embedder.json that says {value!r} for {key}", edited(**{key: value}),
          refused=(ABOUT, "finite number" if {"nan", "inf"} & set(str(value).strip("[]").split(", ")) else key))
      for key, values in EDITS.items() for value in values),
    *(Case(f"an embedder.json without {key}", lambda folder, k=key: load_embedder(written(folder, json.dumps(
        {name: value for name, value in (SEALED | {"sha256": ""}).items() if name != k}).encode())),
        refused=(ABOUT, key)) for key in FIELDS),
    Case("an embedder.json with a key that nobody reads", edited(normalise=False), refused=(ABOUT, "unknown key 'normalise'")),
    *(Case(f"an embedder.json that is {what}", lambda folder, c=content: load_embedder(written(folder, c)),
          refused=(ABOUT, "export the run again"))
      for what, content in (("empty", b""), ("a list", b"[]"), ("null", b"null"), ("cut short", b'{"format": 1'),
                            ("not Unicode", b"\xff{}"))),
    Case("a folder without an embedder", lambda folder: load_embedder(folder), refused=("no exported embedder", "reid-study export")),
    # ---- weights
    Case("weights that were cut short",
         lambda folder: load_embedder(written(folder, {"sha256": hashlib.sha256(CONTENT).hexdigest()}, CONTENT[:-9])),
         refused=(WEIGHTS, "damaged")),
    Case("a web page as weights", stored(b"<html>"), refused=(WEIGHTS, "no safetensors")),
    Case("nothing as weights", stored(b""), refused=(WEIGHTS, "no safetensors")),
    Case("weights of another width", stored(lambda t: save({k: v.contiguous() for k, v in make_embedder("small", 9).state_dict().items()})),
         refused=(WEIGHTS, "[9, 128] for [8, 128]")),
    Case("weights without those of the embedding", stored(lambda t: save({k: v for k, v in t.items() if k != "embedding.weight"})),
         refused="lacks embedding.weight"),
    Case("weights that are integers", stored(lambda t: save(t | {"embedding.weight": t["embedding.weight"].int()})),
         refused=(WEIGHTS, "int32 for torch.float32")),
    Case("weights that are NaN", stored(lambda t: save(t | {"neck.weight": t["neck.weight"]*math.nan})),
         refused=(WEIGHTS, "neck.weight", "train")),
    Case("a device that is none", lambda folder: load_embedder(written(folder, {}), "abacus"), refused=("device='abacus'", "use c")),
    Case("the device meta, which holds no numbers", lambda folder: load_embedder(written(folder, {}), "meta"),
         refused=("device='meta'", "use c")),
    # ---- images
    Case("a file", given_images(in_file), gives=usual(), means="its picture is embedded"),
    Case("a list of files", given_images(lambda folder: [in_file(folder), str(in_file(folder))]), gives=usual(2),
         means="their pictures are embedded"),
    Case("a Pillow image that is no list", given_images(PICTURE), gives=usual(), means="it is embedded"),
    Case("a list of Pillow images", given_images([PICTURE, PICTURE]), gives=usual(2), means="they are embedded"),
    Case("a Pillow image with opaque alpha", given_images(PICTURE.convert("RGBA")), gives=usual(), means="it is read as RGB"),
    Case("a Pillow image of greys", given_images(PICTURE.convert("L")), gives=lambda x: x.shape == (1, 8), means="it is read as RGB"),
    Case("a file, a Pillow image and an array in one list", given_images(lambda folder: [in_file(folder), PICTURE, PIXELS]),
         gives=usual(3), means="they are embedded"),
    Case("an array [N, h, w, 3] of bytes", given_images(np.stack([PIXELS]*2)), gives=usual(2), means="its pictures are embedded"),
    Case("an array in reverse", given_images(np.ascontiguousarray(PIXELS[::-1])[::-1]), gives=usual(), means="it is embedded"),
    Case("a tensor of one picture", given_images(torch.zeros(32, 16, 3, dtype=torch.uint8)), gives=lambda x: x.shape == (1, 8),
         means="it is embedded"),
    Case("no pictures, an empty list", given_images([]), gives=lambda x: x.shape == (0, 8), means="there are no embeddings"),
    Case("a Pillow image of 16 bits", given_images(Image.fromarray(np.ones((9, 9), np.uint16))), refused=("I;16", "8 bits")),
    Case("a Pillow image with transparent pixels", given_images(Image.new("RGBA", (9, 9))), refused=("transparent", "background")),
    Case("a picture of floats", given_images(PIXELS/255), refused=("float64", "uint8")),
    Case("a picture with the channels first", given_images(PIXELS.transpose(2, 0, 1)), refused=("[3, 40, 20]", "[height, width, 3]")),
    Case("a tensor that is normalised", given_images(torch.zeros(1, 3, 32, 16)), refused=("float32", "uint8 [N, 32, 16, 3]")),
    *(Case(f"{what} for images", given_images(value),
          refused=("images are", "files")) for what, value in (("None", None), ("a number", 3), ("a dictionary", {}), ("bytes", b"x"))),
    Case("a file that is missing", given_images(lambda folder: folder/"none.jpg"), refused="none.jpg"),
    # ---- two pictures to be compared
    Case("a text for a picture, to be compared", lambda folder: compared(folder, {}, folder/ABOUT), refused=(ABOUT, "no readable image")),
    Case("two pictures for one, to be compared", lambda folder: compared(folder, {}, [PICTURE, PICTURE]),
         refused=("second holds 2 images",)),
    Case("pictures that are compared by an embedder without pairs", lambda folder: compared(folder, {}, PICTURE),
         gives=lambda c: c.similarity > .999 and c.match is None and "not known" in str(c), means="have a similarity, of unknown meaning"),
    Case("pictures that are compared by an embedder whose pairs are all of different people",
         lambda folder: compared(folder, {"pairs": PAIRS | {"same": [0, 0]}}, PICTURE), gives=lambda c: c.known is None and c.match is None,
         means="have a similarity, of unknown meaning"),
    Case("pictures that are compared by an embedder with pairs", lambda folder: compared(folder, {"pairs": PAIRS}, PICTURE),
         gives=lambda c: c.match and c.false_matches == 0 and "shares are rough" in str(c), means="match, by shares that are called rough"),
    # ---- numbers
    Case("an embedder in half precision", lambda folder: embedded(folder, PIXELS, lambda e: e.half()), gives=near(torch.float32, .01),
         means="the network computes in float16, and the embeddings are float32"),
    Case("an embedder in bfloat16", lambda folder: embedded(folder, PIXELS, lambda e: e.bfloat16()), gives=near(torch.float32, .05),
         means="the network computes in bfloat16, and the embeddings are float32"),
    Case("an embedder in double precision", lambda folder: embedded(folder, PIXELS, lambda e: e.double()), gives=near(torch.float64, 1e-4),
         means="the embeddings are float64"),
    Case("an embedder that is told to train", lambda folder: embedded(folder, PIXELS, lambda e: copy.deepcopy(e).train().to("cpu")),
         gives=usual(),
         means="it stays in evaluation mode"),
    Case("a network that gives NaN", lambda folder: embedded(folder, PIXELS, broken), refused=("NaN", "image 0", "export the run again")),
]


@table(CASES)
def test_embedders(case, tmp_path): check(case, tmp_path)


ROWS = np.random.default_rng(1).standard_normal((5, 8), np.float32)

def gallery(folder=None, rows=ROWS):
    table = pd.DataFrame({"path": [f"{i}.jpg" for i in range(5)]})
    if folder: table.attrs["folder"] = str(folder)
    return Gallery(table, rows)

def dropped(content, rows=ROWS):
    "A picture in bytes, dropped on the page of an embedder and a gallery."
    def call(folder): return match_picture(ImageEmbedder(make_embedder("small", 8), SEALED), gallery(folder, rows), content)
    return call

def as_png(image):
    image.save(file := io.BytesIO(), "PNG")
    return file.getvalue()

def on_taken_port(folder):
    with socket.create_server(("127.0.0.1", 0)) as taken: listen(None, taken.getsockname()[1])

PNG = as_png(PICTURE)
DROPPED = [
    Case("a picture that is dropped on the page", dropped(PNG), gives=lambda html: html.count("<li") == 5, means="its nearest images"),
    Case("a web page, dropped", dropped(b"<html>"), ("the picture is no readable image", "save it again")),
    Case("nothing, dropped", dropped(b""), ("the picture is no readable image", "save it again")),
    Case("a picture that was cut short, dropped", dropped(PNG[:len(PNG)//2]), ("the picture is no readable image", "save it again")),
    Case("a picture with transparent pixels, dropped", dropped(as_png(Image.new("RGBA", (9, 9)))), ("transparent pixels", "background")),
    Case("a picture dropped on a gallery of another network", dropped(PNG, ROWS[:, :5].copy()), ("8 wide", "5", "use one network")),
    Case("a gallery to serve whose table does not say where its images are", lambda folder: gallery(), "set table.attrs['folder']"),
    Case("a gallery to serve with more rows than embeddings", lambda folder: gallery(folder, ROWS[:3]), ("5 rows", "3 embeddings", "cut")),
    Case("a port that another program has", on_taken_port, ("cannot be opened", "--port 0")),
    Case("a port of six digits", lambda folder: listen(None, 123_456), ("port=123456", "65535"))]

@table(DROPPED)
def test_dropped_pictures(case, tmp_path): check(case, tmp_path)


JSON = st.recursive(st.one_of(st.none(), st.booleans(), st.integers(-10**30, 10**30), st.floats(), st.text(max_size=5)),
                    lambda inner: st.one_of(st.lists(inner, max_size=4),
                    st.dictionaries(st.text(max_size=4), inner, max_size=3)), max_leaves=6)
FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def loads_or_is_refused(folder, about, content=CONTENT):
    try: x = load_embedder(written(folder, about, content))(PIXELS)
    except InputError as e: assert "\n" not in str(e)
    else: assert x.isfinite().all()


@FUZZ
@given(st.sampled_from(sorted(SEALED)), JSON)
def test_any_value_of_any_key_is_taken_or_refused(tmp_path, key, value): loads_or_is_refused(tmp_path, {key: value})


@FUZZ
@given(st.lists(st.tuples(st.integers(0), st.integers(0, 255)), min_size=1, max_size=4))
def test_flipped_bytes_of_the_description_are_refused(tmp_path, flips):
    text = bytearray(json.dumps(SEALED | {"sha256": hashlib.sha256(CONTENT).hexdigest()}).encode())
    for place, byte in flips: text[place % len(text)] = byte
    loads_or_is_refused(tmp_path, bytes(text))


@FUZZ
@given(st.lists(st.tuples(st.integers(0), st.integers(0, 255)), min_size=1, max_size=4), st.integers(0, len(CONTENT)))
def test_flipped_bytes_of_weights_whose_hash_fits_are_taken_or_refused(tmp_path, flips, end):
    content = bytearray(CONTENT)
    header = 8 + int.from_bytes(CONTENT[:8], "little")
    for place, byte in flips: content[place % header] = byte
    loads_or_is_refused(tmp_path, {}, bytes(content[:end] if end % 3 == 0 else content))
