"""Images and arrays of images that are not what they seem: each is read as it looks, or refused."""
import base64
import io
import os
import re
import struct
import warnings
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from cases import Case, check, table
from reid_study.core import InputError
from reid_study.data.images import MOST_PIXELS, image_store, open_image, read_image
from reid_study.data.loaders import check_images, make_loaders
from reid_study.inference.search import thumbnail
from reid_study.report.html import image_uri

ROOT = Path(__file__).parents[1]
RED, HALF = (250, 10, 20), np.zeros((12, 6, 3), "uint8")
HALF[:4] = RED      # the upper third is red, so that turning the image shows


def png(width, height, depth=8, kind=2, rows=b""):
    "The bytes of a PNG file; its header may promise more than its `rows` hold."
    def chunk(name, data): return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def save(folder, name, image=None, **options):
    "Write an image, or bytes, as the file `name` in a folder; returns its path."
    path = folder/name
    if isinstance(image, bytes): path.write_bytes(image)
    else: (Image.fromarray(HALF) if image is None else image).save(path, **options)
    return path


def turned(folder, name, orientation=6, **options):
    "The image of `HALF`, stored lying, with the EXIF orientation that sets it upright."
    exif, lying = Image.Exif(), {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 5: Image.Transpose.TRANSPOSE}[orientation]
    exif[0x0112] = orientation
    return save(folder, name, Image.fromarray(HALF).transpose(lying), exif=exif, **options)


def pipe(folder):
    os.mkfifo(folder/"x.jpg")
    return folder/"x.jpg"


def linked(folder, to):
    (folder/"x.jpg").symlink_to(to)
    return folder/"x.jpg"


def frames(folder, name, **options):
    "An image file with `HALF` and its negative."
    return save(folder, name, Image.fromarray(HALF), save_all=True, append_images=[Image.fromarray(255 - HALF)], **options)


def is_half(pixels): return pixels.shape == HALF.shape and np.abs(pixels.astype(int) - HALF).max() < 60 and (pixels[:3, :, 0] > 200).all()


def reads(given, make, means, gives=is_half): return Case(given, lambda folder: read_image(make(folder)), gives=gives, means=means)


def refuses(given, make, *words): return Case(given, lambda folder: read_image(make(folder)), refused=words)


UPRIGHT, EXACT = "is read upright", lambda pixels: (pixels == HALF).all()
transparent = Image.fromarray(np.dstack([HALF, np.full(HALF.shape[:2], 254, "uint8")]))

FILES = [
    reads("a PNG file of 8 bits in RGB", lambda f: save(f, "x.png"), "is read to the bit", EXACT),
    reads("a PNG file that is called x.jpg", lambda f: save(f, "x.jpg", format="PNG"), "is read as the PNG file that it is", EXACT),
    reads("a file of a name with spaces, # and {}", lambda f: save(f, "a #{1} b.png"), "is read to the bit", EXACT),
    reads("a link to an image", lambda f: linked(f, save(f, "y.png")), "is followed", EXACT),
    *[reads(f"a {name} file", partial(lambda f, n: save(f, n), n=name), "is read", EXACT) for name in ("x.bmp", "x.tif", "x.gif")],
    reads("a JPEG file called x.JFIF", lambda f: save(f, "x.JFIF", format="JPEG", quality=95, subsampling=0), "is read"),
    reads("a WebP file without loss", lambda f: save(f, "x.webp", lossless=True), "is read to the bit", EXACT),
    *[reads(f"a {kind} file whose EXIF data say how to turn it ({orientation})",
            partial(lambda f, k, o: turned(f, f"x.{k}", o, **({"quality": 95, "subsampling": 0} if k == "jpg" else {})), k=kind,
                    o=orientation),
            UPRIGHT) for kind, orientation in (("jpg", 6), ("jpg", 3), ("jpg", 5), ("png", 6), ("tif", 6))],
    reads("a grey image", lambda f: save(f, "x.png", Image.fromarray(HALF[..., 0])), "is read with three equal colours",
          lambda p: (p == HALF[..., :1]).all()),
    reads("an image of one bit", lambda f: save(f, "x.png", Image.fromarray(HALF[..., 0] > 9)), "is read as black and white",
          lambda p: (p == 255*(HALF[..., :1] > 9)).all()),
    reads("an image with a palette", lambda f: save(f, "x.png", Image.fromarray(HALF).quantize(4)), "is read with the palette's colours"),
    reads("an image with an opaque alpha channel", lambda f: save(f, "x.png", Image.fromarray(HALF).convert("RGBA")),
          "is read without it", EXACT),
    reads("a grey image with an opaque alpha channel", lambda f: save(f, "x.png", Image.fromarray(HALF[..., 0]).convert("LA")),
          "is read without it", lambda p: (p == HALF[..., :1]).all()),
    reads("a JPEG file with a second picture behind the first, as cameras write", lambda f: frames(f, "x.jpg", format="MPO", quality=95,
          subsampling=0), "is read as the first"),

    refuses("an image with transparent pixels", lambda f: save(f, "x.png", transparent), "x.png", "transparent", "background"),
    refuses("a grey image with transparent pixels", lambda f: save(f, "x.png", transparent.convert("LA")), "x.png", "transparent"),
    refuses("a palette with a transparent colour that is used",
            lambda f: save(f, "x.gif", Image.fromarray(HALF).quantize(4), transparency=0),
            "x.gif", "transparent"),
    refuses("an RGB image with a transparent colour that is used", lambda f: save(f, "x.png", transparency=RED), "x.png", "transparent"),
    refuses("an image in CMYK", lambda f: save(f, "x.jpg", Image.fromarray(HALF).convert("CMYK")), "x.jpg", "CMYK",
            "save it with 8 bits in RGB"),
    refuses("an image in Lab colours", lambda f: save(f, "x.tif", Image.fromarray(HALF).convert("LAB")), "x.tif", "LAB", "RGB"),
    refuses("an image in YCbCr", lambda f: save(f, "x.tif", Image.fromarray(HALF).convert("YCbCr")), "x.tif", "YCbCr", "RGB"),
    refuses("greys of 16 bits", lambda f: save(f, "x.png", Image.fromarray(np.full((4, 4), 1000, "uint16"))), "x.png", "I;16", "8 bits"),
    refuses("greys of 16 bits as TIFF", lambda f: save(f, "x.tif", Image.fromarray(np.full((4, 4), 1000, "uint16"))), "x.tif", "I;16",
            "8 bits"),
    refuses("colours of 16 bits", lambda f: save(f, "x.png", png(2, 2, 16, 2, (b"\0" + b"\1\x80"*6)*2)), "x.png", "16 bits a colour",
            "8 bits"),
    refuses("greys of 16 bits with an alpha channel", lambda f: save(f, "x.png", png(2, 2, 16, 4, (b"\0" + b"\1\x80"*4)*2)), "x.png",
            "16 bits"),
    refuses("greys of 32 bits", lambda f: save(f, "x.tif", Image.fromarray(np.full((4, 4), 70000, "int32"))), "x.tif", "mode I", "8 bits"),
    refuses("signed greys of 8 bits", lambda f: save(f, "x.tif", Image.fromarray(HALF[..., 0]), tiffinfo={339: 2}), "x.tif", "signed"),
    refuses("floating-point numbers", lambda f: save(f, "x.tif", Image.fromarray(np.full((4, 4), .5, "float32"))), "x.tif", "mode F",
            "8 bits"),
    *[refuses(f"an animated {kind} file", partial(lambda f, k: frames(f, f"x.{k}"), k=kind), f"x.{kind}", "2 frames",
              "save one") for kind in ("gif", "png", "webp", "tif")],

    refuses("a file that is not there", lambda f: f/"x.jpg", "x.jpg", "is missing", "leave it out"),
    refuses("a file without a byte", lambda f: save(f, "x.jpg", b""), "x.jpg", "no readable image", "save it again"),
    refuses("a page of HTML called x.jpg", lambda f: save(f, "x.jpg", b"<html>404</html>"), "x.jpg", "no readable image"),
    refuses("a PostScript program called x.jpg", lambda f: save(f, "x.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "x.jpg",
            "no readable image"),
    *[refuses(f"a file in the format {kind}, called x.jpg", partial(lambda f, k: save(f, "x.jpg", format=k), k=kind), "x.jpg",
              "no readable image") for kind in ("EPS", "PPM", "TGA", "PCX", "ICO", "PDF", "JPEG2000", "AVIF")],
    *[refuses(f"half of a file x.{kind}", partial(lambda f, k: save(f, "x." + k, save(f, "y." + k, Image.effect_noise((64, 64), 90).convert(
        "RGB")).read_bytes()[:2000]), k=kind), "x." + kind, "no readable image", "save it again")
      for kind in ("jpg", "png", "webp", "bmp", "tif", "gif")],
    refuses("a PNG file of 30,000 × 30,000 pixels", lambda f: save(f, "x.png", png(30000, 30000)), "x.png", f"{MOST_PIXELS:,} pixels",
            "shrink"),
    refuses("a PNG file of 13,000 × 13,000 pixels", lambda f: save(f, "x.png", png(13000, 13000)), "x.png", f"{MOST_PIXELS:,} pixels",
            "shrink"),
    refuses("a PNG file of 9,000 × 9,000 pixels", lambda f: save(f, "x.png", png(9000, 9000)), "x.png", f"{MOST_PIXELS:,} pixels",
            "shrink"),
    refuses("a pipe called x.jpg", pipe, "x.jpg", "named pipe"),
    refuses("a link to a device without an end", lambda f: linked(f, "/dev/zero"), "x.jpg", "is a device"),
    refuses("a link to nothing", lambda f: linked(f, f/"nowhere"), "x.jpg", "broken link"),
    refuses("a link to itself", lambda f: linked(f, f/"x.jpg"), "x.jpg", "Too many levels"),
    refuses("a folder called x.jpg", lambda f: (f/"x.jpg").mkdir() or f/"x.jpg", "x.jpg", "is a folder"),
    refuses("a name with a null character", lambda f: f/"x\0.jpg", "null"),
    Case("a size of no pixels", lambda f: read_image(save(f, "x.png"), (0, 8)), refused=("height=0", "at least 1")),
    *(Case(f"a size of {words}", lambda f, size=size: read_image(save(f, "x.png"), size), refused=("size=", why))
      for words, size, why in (("one number", 8, "(height, width)"), ("one number in brackets", (8,), "(height, width)"),
                               ("three numbers", (8, 4, 3), "(height, width)"),
                               ("a billion by a billion pixels", (10**9, 10**9), "smaller"))),
    Case("a store of decoded images of a size of one number", lambda f: image_store([save(f, "x.png")], 8, f),
         refused=("size=8", "(height, width)")),
    Case("a size in floating-point numbers", lambda f: read_image(save(f, "x.png"), (8, 4.5)), refused=("width=4.5", "whole number")),
    Case("a store of decoded images that was cut off", lambda f: cut_store(f), refused=(".npy", "damaged", "remove it")),
    Case("a store of no images", lambda f: image_store([], (8, 4), f), refused=("paths", "give")),
    Case("a pipe among the images of a store", lambda f: image_store([pipe(f)], (8, 4), f), refused=("x.jpg", "named pipe")),
    Case("a pipe in the place of a store of decoded images", lambda f: piped_store(f), refused=(".npy", "named pipe", "remove it")),
]


def cut_store(folder):
    paths = [save(folder, "x.png")]
    store = Path(image_store(paths, (8, 4), folder).filename)
    os.truncate(store, 150)
    return image_store(paths, (8, 4), folder)


def piped_store(folder):
    store = Path(image_store(paths := [save(folder, "x.png")], (8, 4), folder).filename)
    store.unlink()
    os.mkfifo(store)
    return image_store(paths, (8, 4), folder)


PIXELS = np.arange(6, dtype="uint8")[:, None, None, None] + np.zeros((6, 8, 4, 3), "uint8")
PEOPLE = pd.DataFrame({"path": [f"{i}.jpg" for i in range(6)], "pid": [3, 3, 1, 1, 2, 2], "camid": 1,
                       "split": ["train"]*4 + ["query", "gallery"]})


def rows(images=PIXELS, **changes):
    "(row, pid) of the validation images, as a batch gives them; the value of a pixel is the row."
    people = PEOPLE.assign(**changes)
    batches = list(make_loaders(people, images, [np.arange(4)]).valid)
    return [(round(float(x[0, 0, 0]*.229 + .485)*255), int(pid)) for images, targets in batches for x, pid in zip(images, targets["pid"])]


def right(found): return found == [(4, 2), (5, 2)]


def array(given, images, *words): return Case(given, lambda folder: rows(images), refused=("images must be uint8", *words))


ARRAYS = [
    Case("bytes [N, H, W, 3]", lambda f: rows(), gives=right, means="are taken"),
    Case("a tensor of bytes [N, H, W, 3]", lambda f: rows(torch.from_numpy(PIXELS)), gives=right, means="is taken, with the right labels"),
    Case("a tensor of bytes and a column image", lambda f: rows(torch.from_numpy(PIXELS[::-1].copy()), image=[5, 4, 3, 2, 1, 0]),
         gives=right,
         means="is taken, each image with its own label"),
    Case("an array that is not contiguous", lambda f: rows(np.repeat(PIXELS, 2, 0)[::2]), gives=right, means="is taken"),
    array("floats from 0 to 1", PIXELS/255, "float64", "255*images"),
    array("floats from 0 to 255", PIXELS.astype("float32"), "float32", "astype('uint8')"),
    array("a tensor of floats, channels first", torch.rand(6, 3, 8, 4), "float32 [6, 3, 8, 4]", "transpose(0, 2, 3, 1)", "255*images"),
    array("truth values", PIXELS > 2, "bool", "uint8"),
    array("integers of 64 bits", PIXELS.astype("int64"), "int64", "uint8"),
    array("bytes with a sign", PIXELS.astype("int8"), "int8"),
    array("bytes, channels first", PIXELS.transpose(0, 3, 1, 2), "[6, 3, 8, 4]", "transpose"),
    array("bytes with a fourth channel", np.repeat(PIXELS, 2, 3)[..., :4], "[6, 8, 4, 4]", "[..., :3]"),
    array("greys [N, H, W]", PIXELS[..., 0], "[6, 8, 4]", "repeat grey"),
    array("greys [N, H, W, 1]", PIXELS[..., :1], "[6, 8, 4, 1]", "repeat grey"),
    array("images without pixels", PIXELS[:, :0], "[6, 0, 4, 3]"),
    array("a list of arrays", list(PIXELS), "list", "image_store"),
    array("names of files", np.array(["0.jpg"]*6), "<U5", "image_store"),
    array("nothing", None, "NoneType", "image_store"),
    Case("fewer images than rows", lambda f: rows(PIXELS[:5]), refused=("5 images", "6 rows")),
    Case("a column image beyond the store", lambda f: rows(image=[0, 1, 2, 3, 4, 6]), refused=("column image", "6 in row 5", "below 6")),
    Case("a column image that counts from the end", lambda f: rows(image=[0, 1, 2, 3, 4, -1]), refused=("column image", "-1 in row 5")),
    Case("a column image with a gap", lambda f: rows(image=[0, 1, 2, 3, None, 5]),
         refused=("column image", "nan in row 4", "whole number")),
    Case("a column image in floats that are whole", lambda f: rows(image=[0., 1, 2, 3, 4, 5]), gives=right, means="is taken"),
    Case("a person that is missing in training", lambda f: rows(pid=[3, None, 1, 1, 2, 2]), refused=("column pid", "nan in row 1")),
    Case("people as text", lambda f: rows(pid=list("331122")), refused=("column pid", "whole number")),
    Case("half a camera", lambda f: rows(camid=1.5), refused=("column camid", "1.5 in row 0")),
]


@table(FILES)
def test_files(case, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(case, tmp_path)


@table(ARRAYS)
def test_arrays(case, tmp_path): check(case, tmp_path)


def test_every_way_of_reading_shows_the_same_picture(tmp_path):
    for path in (turned(tmp_path, "a.jpg", quality=95, subsampling=0), save(tmp_path, "b.png", Image.fromarray(HALF).quantize(4))):
        small = Image.open(io.BytesIO(base64.b64decode(image_uri(path, 12).split(",")[1])))
        seen = [ImageOps.exif_transpose(small).convert("RGB"), Image.open(io.BytesIO(thumbnail(path, 12, quality=100))), open_image(path)]
        assert all(is_half(np.asarray(image)) for image in seen)
        assert (read_image(path, (12, 6)) == image_store([path], (12, 6), tmp_path)[0]).all()
    with pytest.raises(InputError, match="w.png.*8 bits"): thumbnail(save(tmp_path, "w.png",
         Image.fromarray(np.full((4, 4), 999, "uint16"))), 12)


def test_one_module_opens_images():
    found = [path.name for path in (ROOT/"reid_study").rglob("*.py") if re.search(r"\bImage\.open\(|imread\(|decode_image\(|read_file\(",
         path.read_text())]
    assert found == ["images.py"]


def test_opening_runs_no_program(tmp_path, monkeypatch):
    for name in ("run", "Popen", "check_call", "check_output", "call"):
        monkeypatch.setattr(f"subprocess.{name}", lambda *args, **options: pytest.fail("a program was run"))
    with pytest.raises(InputError): read_image(save(tmp_path, "x.jpg", format="EPS"))


KINDS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
GOOD = {}
for kind in KINDS:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 8, 3), dtype="uint8")).save(buffer := io.BytesIO(), kind)
    GOOD[kind] = buffer.getvalue()


@given(st.sampled_from(KINDS), st.lists(st.tuples(st.floats(0, .999), st.integers(0, 255)), min_size=1, max_size=6), st.floats(.2, 1))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_files_give_pixels_or_an_input_error(tmp_path, kind, changes, kept):
    content = bytearray(GOOD[kind])
    for place, value in changes: content[int(place*len(content))] = value
    (tmp_path/"x").write_bytes(content[:int(kept*len(content))])
    try: assert read_image(tmp_path/"x", (8, 4)).shape == (8, 4, 3)
    except InputError as e: assert str(tmp_path/"x") in str(e) and "\n" not in str(e)


@given(st.sampled_from(["uint8", "int16", "float32", "bool", "complex64", "U3", "O"]), st.lists(st.integers(0, 5), max_size=5),
       st.booleans())
@settings(max_examples=200, deadline=None)
def test_arrays_are_taken_or_refused(kind, shape, tensor):
    images = np.zeros(shape, kind)
    if tensor and kind not in ("U3", "O"): images = torch.from_numpy(images)
    try: taken = check_images(images)
    except InputError: assert kind != "uint8" or len(shape) != 4 or shape[3] != 3 or not min(shape[1:])
    else: assert isinstance(taken, np.ndarray) and taken.dtype == "uint8" and taken.ndim == 4 and taken.shape[3] == 3
