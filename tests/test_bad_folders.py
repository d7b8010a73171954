"""Folders, archives, attribute files and files of embeddings that are not what they seem: everything in them is taken or named."""
import bz2
import gzip
import io
import json
import lzma
import os
import sys
import tarfile
import warnings
import zipfile
from functools import partial

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

from cases import Case, check, table
from reid_study.cli import main
from reid_study.core import InputError
from reid_study.data.datasets import check_table
from reid_study.data.images import list_images
from reid_study.data.market1501 import ATTRIBUTES, read_attributes, read_market
from reid_study.data.others import read_cuhk03, read_msmt17
from reid_study.data.photographs import LeftOut, read_photographs, write_photographs
from reid_study.inference.export import ImageEmbedder
from reid_study.inference.folders import embed_folder, read_embeddings, write_embeddings

IMAGE = io.BytesIO()
Image.new("RGB", (4, 8), "red").save(IMAGE, "png")
IMAGE = IMAGE.getvalue()
MARKET = ["bounding_box_train/0002_c1.jpg", "bounding_box_train/0002_c2.jpg", "query/0001_c1.jpg", "bounding_box_test/0001_c2.jpg"]


def put(folder, *names, content=IMAGE):
    "Write files into a folder, which is returned."
    for name in names:
        (folder/name).parent.mkdir(parents=True, exist_ok=True)
        (folder/name).write_bytes(content)
    return folder


def link(folder, name, to):
    (folder/name).symlink_to(to)
    return folder


def pipe(folder, name):
    (folder/name).parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(folder/name)
    return folder


# folders of images
def names(folder):
    "What `list_images` takes and what it names, as text below the folder."
    files, rest = list_images(folder)
    return [str(file.relative_to(folder)) for file in files], {str(path.relative_to(folder)): why for path, why in rest.items()}


def lists(given, make, files, rest=(), means="is listed"):
    return Case(given, lambda folder: names(make(folder)), means=means,
                gives=lambda found: found[0] == files and list(found[1]) == list(rest))


BINS = ("#recycle", "@Recycle", "@Recently-Snapshot", "$RECYCLE.BIN", "lost+found", ".Trash-1000", ".Trashes", "System Volume Information")

LISTINGS = [
    lists("images in nested folders", lambda f: put(f, "b.jpg", "a/c/d.jpg"), ["a/c/d.jpg", "b.jpg"],
          means="are listed in the order of their names"),
    lists("suffixes in capitals", lambda f: put(f, "a.JPG", "b.Png"), ["a.JPG", "b.Png"], means="are listed"),
    *[lists(f"a file x{suffix}", partial(lambda f, s: put(f, "x" + s), s=suffix), ["x" + suffix])
      for suffix in (".tif", ".tiff", ".gif", ".jfif", ".bmp", ".webp", ".jpeg")],
    lists("what systems leave behind", lambda f: put(f, "a.jpg", ".ipynb_checkpoints/a.jpg", "@eaDir/a.jpg", "__MACOSX/a.jpg",
         "Thumbs.db", ".DS_Store",
          "b/.hidden.jpg"), ["a.jpg"], means="is left out"),
    lists("the recycle bins of systems and storage devices", lambda f: put(f, "a.jpg", *(f"{name}/b.jpg" for name in BINS)), ["a.jpg"],
          means="are left out"),
    lists("a text among images", lambda f: put(f, "a.jpg", "notes.txt"), ["a.jpg"], ["notes.txt"], "is named and left out"),
    lists("a file without a suffix", lambda f: put(f, "a.jpg", "b"), ["a.jpg"], ["b"], "is named and left out"),
    lists("a broken link", lambda f: link(put(f, "a.jpg"), "b.jpg", f/"nowhere"), ["a.jpg"], ["b.jpg"], "is named and left out"),
    lists("a link to itself", lambda f: link(put(f, "a.jpg"), "b.jpg", f/"b.jpg"), ["a.jpg"], ["b.jpg"], "is named and left out"),
    lists("a linked image", lambda f: link(put(f, "a.jpg"), "b.jpg", f/"a.jpg"), ["a.jpg", "b.jpg"], means="is listed like any other"),
    lists("a linked folder", lambda f: link(put(f, "in/a.jpg", "out/b.jpg")/"in", "more", f/"out"), ["a.jpg", "more/b.jpg"],
          means="is followed"),
    lists("a link to a folder that is listed already", lambda f: link(put(f, "z/a.jpg"), "a", f/"z"), ["z/a.jpg"], ["a"],
          "is named and not followed"),
    lists("a link to the folder itself", lambda f: link(put(f, "a.jpg"), "up", f), ["a.jpg"], ["up"], "is named and not followed"),
    lists("a pipe called x.jpg", lambda f: pipe(put(f, "a.jpg"), "x.jpg"), ["a.jpg"], ["x.jpg"], "is named and not opened"),
    Case("a folder that is not there", lambda f: list_images(f/"x"), refused=("x", "not a folder")),
    Case("a file for a folder", lambda f: list_images(put(f, "x.jpg")/"x.jpg"), refused=("x.jpg", "not a folder")),
    Case("a folder without images", lambda f: list_images(put(f, "x.txt")), refused=("holds no images", ".jpg")),
]


# datasets
def market(folder, *more, content=IMAGE): return put(put(folder, *MARKET), *more, content=content)


def dataset(given, make, *words): return Case(given, lambda folder: read_market(make(folder)), refused=words)


PIPED = "0000/0000_001_01_0303noon_0015_0.jpg"


def msmt17(folder):
    put(folder, "train/0000/0000_000_01_0303morning_0015_0.jpg", "test/0000/0000_000_02_0303morning_0015_0.jpg",
        "test/0000/0000_001_01_0303noon_0015_0.jpg")
    for name, line in dict(train="0000/0000_000_01_0303morning_0015_0.jpg 0", val="", query="0000/0000_000_02_0303morning_0015_0.jpg 0",
                           gallery="0000/0000_001_01_0303noon_0015_0.jpg 0").items(): (folder/f"list_{name}.txt").write_text(line + "\n")
    return folder


DATASETS = [
    Case("a dataset of images with the suffixes .bmp and .webp",
         lambda f: read_market(market(f, "query/0001_c3.bmp", "query/0001_c4.webp")),
         gives=lambda t: len(t) == 6, means="is read completely"),
    Case("a dataset with the files of systems", lambda f: read_market(market(f, "query/Thumbs.db", "query/@eaDir/0001_c1.jpg",
         "query/._0001_c1.jpg", "__MACOSX/query/x", "__MACOSX/bounding_box_train/x", "__MACOSX/bounding_box_test/x")),
         gives=lambda t: len(t) == 4, means="is read without them"),
    Case("a dataset with a recycle bin in each of its folders",
         lambda f: read_market(market(f, *(f"{place}/{name}/0001_c9.jpg" for place in ("query", "bounding_box_test") for name in BINS))),
         gives=lambda t: len(t) == 4, means="is read without them"),
    Case("a dataset that is packed one folder deeper", lambda f: read_market(market(f/"deep").parent), gives=lambda t: len(t) == 4,
         means="is found"),
    dataset("a text in a dataset", lambda f: market(f, "query/notes.txt"), "notes.txt", "remove it"),
    dataset("a broken link in a dataset", lambda f: link(market(f), "query/0001_c3.jpg", "nowhere"), "0001_c3.jpg", "broken link",
            "remove it"),
    dataset("a pipe in a dataset", lambda f: pipe(market(f), "query/0001_c3.jpg"), "0001_c3.jpg", "named pipe", "remove it"),
    dataset("a nested folder in a dataset", lambda f: market(f, "query/more/0001_c3.jpg"), "more/0001_c3.jpg", "move it"),
    dataset("a name without a person", lambda f: market(f, "query/cat.jpg"), "cat.jpg", "0002_c1"),
    dataset("a person of a hundred digits", lambda f: market(f, "query/" + "1"*100 + "_c1.jpg"), "111", "0002_c1"),
    dataset("a person below -1", lambda f: market(f, "bounding_box_test/-7_c1.jpg"), "-7_c1.jpg", "0002_c1"),
    dataset("junk among the images for training", lambda f: market(f, "bounding_box_train/-1_c1.jpg"), "-1_c1.jpg", "training",
            "remove it"),
    dataset("distractors among the images for training", lambda f: market(f, "bounding_box_train/0000_c1.jpg"), "0000_c1.jpg", "training"),
    dataset("a person of the test among those of training", lambda f: market(f, "query/0002_c3.jpg"), "in train and in query"),
    dataset("two datasets side by side", lambda f: market(market(f/"one").parent/"two").parent, "several datasets", "one, two"),
    dataset("a dataset without a folder", lambda f: put(f, *MARKET[:2]), "lacks query", "unpack"),
    dataset("a dataset with an empty folder", lambda f: put(f, *MARKET[:3]) and (f/"bounding_box_test").mkdir() or f, "bounding_box_test",
            "no images"),
    Case("a list of images that is a pipe", lambda f: (msmt17(f)/"list_val.txt").unlink() or read_msmt17(pipe(f, "list_val.txt"),
         counts=None),
         refused=("list_val.txt", "named pipe", "unpack")),
    *(Case(f"a list of images with {words}", lambda f, line=line: read_msmt17(put(msmt17(f), "list_val.txt", content=line.encode()),
           counts=None), refused=("list_val.txt, line 1", "get the list again"))
      for words, line in (("a person in Arabic digits", "0/0_0_1_x.jpg \u0661"), ("a camera in Arabic digits", "0/0_0_\u0661_x.jpg 0"),
                          ("a person of twenty digits", f"0/0_0_1_x.jpg {'1'*20}"),
                          ("a camera of 5,000 digits", f"0/0_0_{'1'*5000}_x.jpg 0"))),
    Case("a list of images that is not UTF-8", lambda f: read_msmt17(put(msmt17(f), "list_val.txt", content=b"\xff\xfe"), counts=None),
         refused=("list_val.txt", "unpack")),
    Case("a file of splits that is a pipe", lambda f: read_cuhk03(pipe(put(f, "images_detected/1_001_1_01.png"),
         "splits_new_detected.json"), counts=None),
         refused=("splits_new_detected.json", "named pipe", "again")),
    Case("a listed image that is a pipe", lambda f: (msmt17(f)/f"test/{PIPED}").unlink() or read_msmt17(pipe(f, f"test/{PIPED}"),
         counts=None),
         refused=(PIPED, "named pipe", "unpack")),
    Case("a table without cameras", lambda f: check_table(pd.DataFrame({"path": ["a"], "pid": 1, "split": "train"}), "flags"),
         refused=("flags", "column camid")),
    Case("a table with an image twice", lambda f: check_table(pd.DataFrame({"path": ["a", "a"], "pid": 1, "camid": 1, "split": "train"}),
         "flags"),
         refused=("flags", "a is in the table twice")),
    Case("a table with a split of another name", lambda f: check_table(pd.DataFrame({"path": ["a"], "pid": 1, "camid": 1,
         "split": "val"}), "flags"),
         refused=("flags", "'val'", "train, query, gallery")),
    Case("a table with people that are no whole numbers", lambda f: check_table(pd.DataFrame({"path": ["a"], "pid": np.nan, "camid": 1,
         "split": "train"}),
         "flags"), refused=("flags", "pid", "whole numbers")),
]


# attributes
def attributes(folder, train=("0002", "0007"), test=("0001",), **changes):
    def part(pids): return {"image_index": np.array(pids, object), **{name: np.full(len(pids), 2.) for name in ATTRIBUTES}}
    savemat(folder/"market_attribute.mat", {"market_attribute": {"train": part(train) | changes, "test": part(test)}})
    return folder/"market_attribute.mat"


def coded(given, value, *words, **changes):
    return Case(given, lambda folder: read_attributes(attributes(folder, **changes or {"hat": [2, value]})),
                refused=("market_attribute.mat", *words))


def own_attributes(folder): return attributes(market(folder), train=["0002"])


ATTRIBUTE_FILES = [
    Case("an attribute file with the authors' coding", lambda f: read_attributes(attributes(f, age=[1, 4], hat=[1, 2])),
         gives=lambda t: t.pid.tolist() == [2, 7, 1] and t.age.tolist() == [0, 3, 1] and t.hat.tolist() == [0, 1, 1],
              means="gives classes from 0"),
    Case("a dataset with an attribute file", lambda f: read_market(own_attributes(f).parent),
         gives=lambda t: len(t) == 4 and (t[ATTRIBUTES] == 1).all(axis=None), means="has a row for each image, with its attributes"),
    *[coded(f"the value {value} in an attribute file", value, "hat of person 7", str(value), "from 1 to 2", "get it again")
      for value in (300, -7, 0, 3, 1.5, float("nan"), float("inf"), 257, 258)],
    coded("an age of 5 in an attribute file", None, "age of person 2", "from 1 to 4", age=[5, 1]),
    coded("a text in an attribute file", None, "hat of person 2", hat=np.array(["yes", "no"], object)),
    coded("complex numbers in an attribute file", None, "hat of person 7", hat=[2, 1 + 1j]),
    coded("a person listed twice in one part of an attribute file", None, "person 2 twice", train=["0002", "0002"]),
    coded("a person listed in both parts of an attribute file", None, "person 2 twice", train=["0002", "0007"], test=["0002"]),
    coded("one person twice, spelled in two ways, in an attribute file", None, "person 2 twice", train=["0002", "2"]),
    coded("fewer values than people in an attribute file", None, "not the attribute file", hat=[2]),
    coded("half a person in an attribute file", None, "not the attribute file", train=["0002", "7.5"]),
    *(coded(f"the person {pid!r} in an attribute file", None, "not the attribute file", "get it again", train=["0002", pid])
      for pid in ("1_0", "+7", "\u0667", "1"*10)),
    coded("a person without a number in an attribute file", None, "not the attribute file", train=["0002", "cat"]),
    Case("an attribute file of another kind", lambda f: read_attributes(put(f, "market_attribute.mat")/"market_attribute.mat"),
         refused=("market_attribute.mat", "get it again")),
    Case("an attribute file that is a pipe", lambda f: read_market(pipe(market(f), "market_attribute.mat")),
         refused=("market_attribute.mat", "named pipe", "get it again")),
    Case("an attribute file that is a broken link", lambda f: read_market(link(market(f), "market_attribute.mat", "nowhere")),
         refused=("market_attribute.mat", "broken link", "get it again")),
]


# archives
def zipped(folder, members, name="m.zip", **options):
    with zipfile.ZipFile(folder/name, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in members.items(): archive.writestr(member, content)
    return folder/name


def tarred(folder, members, name="m.tar.gz", tail=b""):
    "A tar archive of members, given by their content or as a `TarInfo`, with bytes behind its end."
    with tarfile.open(fileobj=(content := io.BytesIO()), mode="w") as archive:
        for member, data in members.items():
            info = data if isinstance(data, tarfile.TarInfo) else tarfile.TarInfo(member)
            info.size = info.size or (0 if isinstance(data, tarfile.TarInfo) else len(data))
            archive.addfile(info, None if isinstance(data, tarfile.TarInfo) else io.BytesIO(data))
    pack = {"gz": gzip.compress, "bz2": bz2.compress, "xz": partial(lzma.compress, preset=0), "tar": bytes}[name.rsplit(".", 1)[1]]
    (folder/name).write_bytes(pack(content.getvalue() + tail))
    return folder/name


def special(kind, name="m/out", target="", size=0):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, size
    return info


PACKED, LARGE = {f"m/{name}": IMAGE for name in MARKET}, bytes(2**25)


def archive(given, make, *words): return Case(given, lambda folder: untouched(folder, make(folder)), refused=words)


def untouched(folder, path):
    "Read an archive, and see that it left nothing behind it when it was refused."
    try: return read_market(path)
    except InputError:
        assert [p.name for p in folder.iterdir()] == [path.name], "something was left behind"
        raise


ARCHIVES = [
    *[Case(f"a dataset as {name}", partial(lambda f, n, make: read_market(make(f, PACKED, name=n)), n=name, make=make),
           gives=lambda t: len(t) == 4, means="is unpacked and read")
      for name, make in (("m.zip", zipped), ("m.tar", tarred), ("m.tar.gz", tarred), ("m.tar.bz2", tarred), ("m.tar.xz", tarred))],
    Case("a link inside an archive to another of its images",
         lambda f: read_market(tarred(f, PACKED | {"l": special(tarfile.SYMTYPE, "m/query/0001_c3.jpg",
         "0001_c1.jpg")})), gives=lambda t: len(t) == 5, means="is unpacked as a link"),
    archive("a zip archive that unpacks to a thousand times its size", lambda f: zipped(f, PACKED | {"m/x.bmp": LARGE}), "m.zip", "16 MB",
            "authors"),
    *[archive(f"a .tar.{kind} archive that unpacks to a thousand times its size",
              partial(lambda f, name: tarred(f, PACKED | {"m/x.bmp": LARGE}, name), name=f"m.tar.{kind}"), f"m.tar.{kind}", "16 MB")
      for kind in ("gz", "bz2", "xz")],
    archive("a tar archive that is followed by a long row of zeros", lambda f: tarred(f, PACKED, tail=LARGE), "m.tar.gz", "too large"),
    archive("a tar archive of five thousand empty files", lambda f: tarred(f, PACKED | {f"m/{i}": b"" for i in range(5000)}), "m.tar.gz",
            "16 MB"),
    archive("a zip archive of five thousand empty files", lambda f: zipped(f, PACKED | {f"m/{i}": b"" for i in range(5000)}), "m.zip",
            "16 MB"),
    archive("a file in a tar archive that promises a terabyte",
            lambda f: tarred(f, PACKED | {"l": special(tarfile.REGTYPE, "m/x.jpg", size=2**40)}), "16 MB"),
    archive("a zip archive with a member outside its folder", lambda f: zipped(f, PACKED | {"../evil.txt": b""}), "evil.txt", "outside"),
    archive("a tar archive with a member outside its folder", lambda f: tarred(f, PACKED | {"../evil.txt": b""}), "evil.txt", "outside"),
    archive("a tar archive with a member that goes up and down again", lambda f: tarred(f, PACKED | {"m/x/../query/0001_c1.jpg": b"?"}),
            "0001_c1.jpg", "outside"),
    archive("a tar archive with a link to the outside", lambda f: tarred(f, PACKED | {"l": special(tarfile.SYMTYPE, target="../../etc")}),
            "m.tar.gz", "safely"),
    archive("a tar archive with a hard link to the outside", lambda f: tarred(f,
         PACKED | {"l": special(tarfile.LNKTYPE, target="/etc/passwd")}), "m.tar.gz"),
    archive("a tar archive with a pipe", lambda f: tarred(f, PACKED | {"l": special(tarfile.FIFOTYPE, "m/query/0001_c3.jpg")}),
            "m.tar.gz", "safely"),
    archive("a tar archive with a device", lambda f: tarred(f, PACKED | {"l": special(tarfile.CHRTYPE, "m/query/0001_c3.jpg")}),
            "m.tar.gz", "safely"),
    archive("a tar archive with a member twice", lambda f: tarred(f, PACKED | {"l": special(tarfile.REGTYPE, "m/query/0001_c1.jpg")}),
            "0001_c1.jpg", "twice"),
    *[archive(f"a {kind} archive with a member twice, the second time as {other}",
              partial(lambda f, make, name, o: make(f, PACKED | {o: b"another"}, name=name), make=make, name=name, o=other), "0001_c1.jpg",
              "twice", "again")
      for kind, make, name in (("zip", zipped, "m.zip"), ("tar", tarred, "m.tar.gz"))
      for other in ("m//query/0001_c1.jpg", "./m/query/0001_c1.jpg", "m/./query//0001_c1.jpg")],
    archive("a tar archive with a member twice, the second time from the root", lambda f: tarred(f,
            PACKED | {"/m/query/0001_c1.jpg": b"?"}), "0001_c1.jpg", "twice"),
    archive("a tar archive with a member that a link leads to another", lambda f: tarred(f,
            {"l": special(tarfile.SYMTYPE, "m/q", "query")} | PACKED | {"m/q/0001_c1.jpg": b"another"}), "m/q/0001_c1.jpg", "below",
            "again"),
    archive("a zip archive with a file below a file", lambda f: zipped(f, PACKED | {"m/query/0001_c1.jpg/x.jpg": IMAGE}), "x.jpg", "below"),
    Case("a tar archive that lists a folder twice", lambda f: read_market(tarred(f, {"a": special(tarfile.DIRTYPE, "m"),
         "b": special(tarfile.DIRTYPE, "./m/")} | PACKED)), gives=lambda t: len(t) == 4, means="is unpacked and read"),
    archive("a zip archive with a member without a name", lambda f: put(f, "m.zip",
            content=zipped(f, PACKED | {"Q.jpg": b""}).read_bytes().replace(b"Q.jpg", b"\0.jpg"))/"m.zip", "m.zip", "safely"),
    archive("half a zip archive", lambda f: put(f, "m.zip", content=zipped(f, PACKED).read_bytes()[:200])/"m.zip", "m.zip", "again"),
    archive("half a tar archive", lambda f: put(f, "m.tar.gz", content=tarred(f, PACKED).read_bytes()[:200])/"m.tar.gz", "m.tar.gz",
            "again"),
    archive("an archive without a byte", lambda f: put(f, "m.zip", content=b"")/"m.zip", "m.zip", "again"),
]


# embedding a folder, and files of embeddings
class Mean(torch.nn.Module):
    "A network that embeds an image as the means of its colours."
    def embed(self, x): return x.mean((2, 3))


ABOUT = {"height": 8, "width": 4, "dim": 3, "mean": [0., 0., 0.], "std": [1., 1., 1.], "distance": "euclidean", "sha256": "ab"}


def embed(folder, out=None, std=1.): return embed_folder(ImageEmbedder(Mean(), ABOUT | {"std": [std]*3}), folder, out=out)


ROWS = pd.DataFrame({"path": ["a.jpg", "b, c.jpg"], "pid": [3, 4]})
ROWS.attrs = {"folder": "/images", "embedder": "ab", "skipped": {"ü.txt": "no image"}}
VECTORS = np.array([[.1, 1e-30, -2], [3, 1/3, 1e30]], "float32")


def back(folder, name, rows=ROWS, vectors=VECTORS): return read_embeddings(write_embeddings(rows, vectors, folder/name))


def same(found): return found[0].equals(ROWS) and found[0].attrs == ROWS.attrs and np.array_equal(found[1],
     VECTORS) and found[1].dtype == "float32"


def parquet(folder, metadata='{"folder": "/images"}', **columns):
    "Write columns as a Parquet file with some metadata, and read embeddings from it."
    columns = {"path": ["a", "b"], "embedding": [[1., 2.], [3., 4.]]} | columns
    content = pa.table({name: values for name, values in columns.items() if values is not None})
    pq.write_table(content.replace_schema_metadata({"reid_study": metadata} if metadata is not None else None), folder/"x.parquet")
    return read_embeddings(folder/"x.parquet")


def edited(given, *words, **changes): return Case(f"a Parquet file with {given}", lambda f: parquet(f, **changes),
     refused=("x.parquet", *words))


def text(given, name, content, *words):
    return Case(given, lambda f: read_embeddings(put(f, name, content=content)/name), refused=(name, *words))


def npz(given, *words, **arrays):
    def call(folder):
        np.savez(folder/"x.npz", **{"path": np.array(["a", "b"]), "embedding": np.eye(2), "attrs": np.array("{}")} | arrays)
        return read_embeddings(folder/"x.npz")
    return Case(f"an npz file with {given}", call, refused=("x.npz", *words))


def bomb(folder):
    "A compressed npz file whose embeddings are a gigabyte of zeros."
    with zipfile.ZipFile(folder/"x.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("embedding.npy", "w", force_zip64=True) as member:
            for _ in range(33): member.write(LARGE)
    return folder/"x.npz"


def repeated(value, times): return pa.DictionaryArray.from_arrays(pa.array(np.zeros(times, "int8")), pa.array([value]))


EMBEDDINGS = [
    Case("a folder with damaged files among the images", lambda f: embed(put(put(f, "a.jpg", "b/c.jpg"), "cut.jpg", "notes.txt",
         content=IMAGE[:40])),
         gives=lambda found: found[0].path.tolist() == ["a.jpg", "b/c.jpg"] and list(found[0].attrs["skipped"]) == ["notes.txt", "cut.jpg"],
         means="is embedded without them, and they are named"),
    Case("a folder whose images are all damaged", lambda f: embed(put(f, "cut.jpg", content=b"?")),
         refused=("none of the 1 images", "cut.jpg", "save them again")),
    Case("a folder of a text and a damaged image", lambda f: embed(put(put(f, "a.txt"), "b.jpg", content=IMAGE[:40])),
         refused=("the first is b.jpg: cannot identify", "save them again")),
    Case("an embedder that gives NaN", lambda f: embed(put(f, "a.jpg"), std=float("nan")), refused=("a.jpg", "NaN", "export another run")),
    *[Case(f"embed into x{suffix}", partial(lambda f, s: embed(put(f/"in", "a.jpg"), f/f"x{s}") and read_embeddings(f/f"x{s}"), s=suffix),
           gives=lambda found: found[0].path.tolist() == ["a.jpg"] and found[1].shape == (1, 3), means="writes such a file")
      for suffix in (".parquet", ".csv", ".npz", ".CSV")],
    *[Case(f"embed into {name}", partial(lambda f, n: embed(f/"nowhere", f/n), n=name), refused=(name, ".csv, .npz, .parquet"))
      for name in ("x.txt", "x.xlsx", "x")],
    Case("embed into a folder", lambda f: embed(f/"nowhere", f), refused=("is a folder", "embeddings.parquet")),
    *[Case(f"embed into {words}", lambda f, make=make: embed(put(f/"in", "a.jpg"), make(f)), refused=(name, why, "another place"))
      for words, make, name, why in (("a named pipe", lambda f: pipe(f, "x.csv")/"x.csv", "x.csv", "named pipe"),
                                     ("a link to a device", lambda f: link(f, "x.npz", "/dev/null")/"x.npz", "x.npz", "is a device"),
                                     ("a folder that is a file", lambda f: put(f, "x")/"x"/"y.csv", "y.csv", "Not a directory"))],
    Case("writing embeddings to a named pipe", lambda f: write_embeddings(ROWS, VECTORS, pipe(f, "x.npz")/"x.npz"),
         refused=("x.npz", "named pipe", "another place")),
    *[Case(f"embeddings as {suffix}, written and read", partial(lambda f, s: back(f, "x" + s), s=suffix), gives=same,
           means="are the same to the bit")
      for suffix in (".parquet", ".csv", ".npz")],
    Case("a file of embeddings in a folder called pid=7", lambda f: (f/"pid=7").mkdir() or back(f/"pid=7", "x.parquet"), gives=same,
         means="is read without a column from the folder's name"),
    Case("writing embeddings that are NaN", lambda f: back(f, "x.csv", vectors=VECTORS*np.nan), refused=("a.jpg", "NaN")),
    Case("writing numbers too large for float32", lambda f: back(f, "x.csv", vectors=np.full((2, 3), 1e300)),
         refused=("a.jpg", "infinite")),
    Case("writing fewer embeddings than rows", lambda f: back(f, "x.csv", vectors=VECTORS[:1]), refused=("2 rows", "[1, 3]")),
    Case("writing an image twice", lambda f: back(f, "x.csv", pd.DataFrame({"path": ["a", "a"]})), refused=("lists a twice",)),
    Case("writing a path that is no text", lambda f: back(f, "x.csv", pd.DataFrame({"path": ["a", None]})),
         refused=("column path", "every row")),
    Case("writing a column that is called embedding", lambda f: back(f, "x.npz", ROWS.assign(embedding=1)),
         refused=("embedding", "rename")),
    Case("writing a column of lists as npz", lambda f: back(f, "x.npz", ROWS.assign(boxes=[[1], [2, 3]])), refused=("boxes", "x.npz")),
    Case("a path that is not there", lambda f: read_embeddings(f/"x.parquet"), refused=("x.parquet", "is missing", "reid-study embed")),
    Case("a pipe for a file of embeddings", lambda f: read_embeddings(pipe(f, "x.csv")/"x.csv"),
         refused=("x.csv", "named pipe", "reid-study embed")),
    *[text(f"an image called x{suffix}", "x" + suffix, IMAGE, "cannot be read as", "reid-study embed") for suffix in (".parquet", ".csv",
         ".npz")],
    edited("no column path", "column path", path=None),
    edited("no column embedding", "embedding", embedding=None),
    edited("no rows", "rows", path=pa.array([], "string"), embedding=pa.array([], pa.list_(pa.float32()))),
    edited("a path that is missing", "column path", path=["a", None]),
    edited("paths that are numbers", "column path", path=[1, 2]),
    edited("a path twice", "lists a twice", path=["a", "a"]),
    edited("an embedding that is NaN", "b is NaN", embedding=[[1., 2.], [3., float("nan")]]),
    edited("an embedding with a gap", "b is NaN", embedding=[[1., 2.], [3., None]]),
    edited("an embedding that is missing", "cannot be read", embedding=[[1., 2.], None]),
    edited("embeddings of different lengths", "cannot be read", embedding=[[1.], [3., 4.]]),
    edited("embeddings of length 0", "[2, 0]", embedding=pa.array([[], []], pa.list_(pa.float32()))),
    edited("embeddings of one number", "as many in every row", embedding=[1., 2.]),
    edited("embeddings of texts", "not a list of numbers", embedding=[["1"], ["2"]]),
    edited("embeddings of tables", "not a list of numbers", embedding=[[[1.]], [[2.]]]),
    edited("metadata that is no JSON", "cannot be read", metadata="{"),
    edited("metadata that is a list", "was edited", metadata="[1]"),
    edited("metadata with a folder that is no text", "was edited", metadata='{"folder": 7}'),
    edited("metadata nested a hundred thousand times", "cannot be read", metadata="["*100000),
    Case("a Parquet file without metadata", lambda f: parquet(f, metadata=None), gives=lambda found: found[0].attrs == {},
         means="is read, with no folder"),
    Case("embeddings of another embedder", lambda f: read_embeddings(write_embeddings(ROWS, VECTORS, f/"x.csv"),
         ImageEmbedder(Mean(), ABOUT | {"sha256": "c"})),
         refused=("x.csv", "another embedder", "again")),
    text("a CSV file without its first line", "x.csv", b"path,embedding_0\na,1\n", "cannot be read"),
    text("a CSV file with a coordinate that is no number", "x.csv", b"# {}\npath,embedding_0\na,cat\n", "cannot be read"),
    text("a CSV file with a coordinate left out", "x.csv", b"# {}\npath,embedding_0,embedding_2\na,1,2\n", "cannot be read",
         "not complete"),
    text("a CSV file with a row cut off", "x.csv", b"# {}\npath,embedding_0,embedding_1\na,1,2\nb,1\n", "b is NaN"),
    text("a CSV file that is not UTF-8", "x.csv", b"# {}\npath,embedding_0\n\xff,1\n", "cannot be read"),
    Case("an npz file that unpacks to a thousand times its size", lambda f: read_embeddings(bomb(f)),
         refused=("x.npz", "unpacks to 1,056 MB", "reid-study embed")),
    edited("two hundred million rows in a few bytes", "unpacks to", path=repeated("a", 2*10**8), embedding=None),
    Case("a Parquet file with one long text in every row", lambda f: pq.write_table(pa.table({"path": repeated("a"*2**20, 2000)}),
         f/"x.parquet", store_schema=False) or read_embeddings(f/"x.parquet"), refused=("x.parquet", "unpacks to", "reid-study embed")),
    npz("pickled objects", "cannot be read", path=np.array(["a", None], object)),
    npz("fewer paths than embeddings", "[2, 2]", path=np.array(["a"])),
    npz("embeddings of texts", "cannot be read", embedding=np.array([["x"], ["y"]])),
    npz("embeddings of complex numbers", "cannot be read", embedding=np.eye(2)*1j),
    npz("embeddings with three axes", "[2, 2, 2]", embedding=np.ones((2, 2, 2))),
]


# photographs of one's own
def sheet(given, text, *words, name="x.csv"):
    "A row of a table of photographs that is refused; a.jpg and b.jpg lie beside it."
    def read(folder):
        content = text if isinstance(text, bytes) else text.format(folder).encode()
        put(put(folder, "in/a.jpg", "in/b.jpg", "c.jpg"), f"in/{name}", content=content)
        return read_photographs(folder/"in"/name)
    return Case(given, read, refused=words)

def album(given, make, right, means, *words, **options):
    "A folder of photographs that is read, with a warning that has these words, or none."
    def read(folder):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", LeftOut)
            return read_photographs(make(folder), **options), " ".join(str(w.message) for w in caught)
    def good(found): return right(found[0]) and bool(found[1]) == bool(words) and all(word in found[1] for word in words)
    return Case(given, read, means=means, gives=good)

def splits(table): return table.split.value_counts().to_dict()

def persons(folder, *more): return put(folder, *(f"{who}/{camera}/{i}.jpg" for who in "abcd" for camera in "xy" for i in range(2)), *more)

def test_the_command_line_says_what_is_left_out(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "warnoptions", [])
    persons(tmp_path/"trip", "loose.jpg")
    assert main(["data", str(tmp_path/"trip")]) == 0
    assert "loose.jpg" in capsys.readouterr().err

PHOTOGRAPHS = [
    album("photographs of four people by two cameras", persons, lambda t: splits(t) == {"train": 8, "query": 4, "gallery": 4},
          "half of the people train, a query for each camera of the others"),
    album("photographs of which no camera is known", lambda f: put(f, *(f"{who}/{i}.jpg" for who in "abcd" for i in range(3))),
          lambda t: set(t.camid) == {1} and splits(t) == {"train": 6, "query": 2, "gallery": 4}, "any other image is a match"),
    album("one photograph of each person", lambda f: put(f, "a/x/1.jpg", "b/x/1.jpg", "c/y/1.jpg"), lambda t: set(t.split) == {"train"},
          "all train, and a warning says so", "3 of 3 people, as 'a', are seen by one camera only", "they train"),
    album("one photograph of each person and camera", lambda f: put(f, *(f"{who}/{camera}/1.jpg" for who in "ab" for camera in "xy")),
          lambda t: splits(t) == {"train": 2, "query": 1, "gallery": 1}, "the second person has a query and a match"),
    album("a person among others whom one camera saw", lambda f: persons(f, "e/x/1.jpg", "e/x/2.jpg"),
          lambda t: set(t.split[t.person == "e"]) == {"train"}, "trains, and a warning says so",
          "1 of 5 people, as 'e'", "one camera only"),
    album("photographs beside the folders of persons", lambda f: persons(f, "z.jpg", "notes.txt"), lambda t: len(t) == 16,
          "are left out, and a warning says so", "2 files or folders left out"),
    album("photographs in a person's folder beside those of cameras", lambda f: persons(f, "a/1.jpg"), lambda t: t.camid.nunique() == 3,
          "count as of one camera more, and a warning says so", "1 image without a camera"),
    album("persons and cameras with names of all kinds",
          lambda f: put(f, *(f"{who}/{camera}/1.jpg" for who in ("Zoë, B", "10", "9") for camera in ("front door", "2"))),
          lambda t: t.drop_duplicates("pid").sort_values("pid").person.tolist() == ["9", "10", "Zoë, B"],
          "are numbered, numbers before words"),
    album("names that say who it is", lambda f: put(f, *(f"{who}_c{c}.jpg" for who in (7, 12, 30) for c in (1, 2))),
          lambda t: t.pid.max() == 3 and t.camid.max() == 2, "are taken apart by a pattern", pattern=r"(?P<pid>\d+)_c(?P<camid>\d)"),
    Case("a table of photographs, written and read",
         lambda f: (t := read_photographs(persons(f/"in"), seed=1), read_photographs(write_photographs(t, f/"x.parquet"))),
         gives=lambda both: both[0].drop(columns="name").equals(both[1].drop(columns="name")),
         means="is the same, with its split"),
    Case("photographs in one folder", lambda f: read_photographs(put(f, "1.jpg", "2.jpg")), refused=("no persons", "--pattern PATTERN")),
    Case("a folder of photographs with one person", lambda f: read_photographs(put(f, "a/1.jpg", "a/2.jpg")), refused=("one person, 'a'",)),
    Case("a folder of photographs that is empty", read_photographs, refused=("holds no images",)),
    Case("a folder of photographs that is not there", lambda f: read_photographs(f/"x"), refused=("x is not a folder",)),
    *[Case(f"the pattern {pattern}", lambda f, p=pattern: read_photographs(put(f, "1_c1.jpg"), p), refused=words)
      for pattern, words in {"(?P<pid": ("no regular expression",), r"\d+": ("no named groups", "give pid"),
                             r"(?P<pid>\d)(?P<cam>c)": ("named groups cam, pid",),
                             "(?P<pid>x)": ("none of the names", "1_c1.jpg")}.items()],
    sheet("a table of photographs without persons", "path,camid\na.jpg,1\n", "no column pid", "path, camid"),
    sheet("a table of photographs with semicolons", "path;pid\na.jpg;1\n", "no column path and no column pid", "path;pid"),
    sheet("a table of photographs without rows", "path,pid\n", "no rows"),
    sheet("an empty table of photographs", "", "x.csv is damaged", "columns path and pid"),
    sheet("a table of photographs with a gap", "path,pid\na.jpg,1\nb.jpg,\n", "pid is empty in 1 row,", "row 2"),
    sheet("a table that lists a photograph twice", "path,pid\na.jpg,1\nb.jpg,2\nx/../a.jpg,2\n", "row 3 repeats 'a.jpg'"),
    sheet("a table with a photograph outside of its folder", "path,pid\na.jpg,1\n../c.jpg,2\n", "'../c.jpg' lies outside"),
    sheet("a table with absolute and relative paths", "path,pid\na.jpg,1\n{}/in/b.jpg,2\n", "mixes absolute paths", "as 'a.jpg'"),
    sheet("a table with a photograph that is not there", "path,pid\na.jpg,1\nd.jpg,2\n", "d.jpg is missing", "x.csv"),
    sheet("a table with a fourth split", "path,pid,split\na.jpg,1,val\nb.jpg,2,train\n", "split is 'val' in row 1",
          "train, query, gallery"),
    sheet("a table whose splits share a person", "path,pid,split\na.jpg,1,train\nb.jpg,1,query\n", "1 person in train and in query"),
    sheet("a table of photographs with an attribute out of range", "path,pid,hat\na.jpg,1,2\nb.jpg,2,0\n", "hat is '2' in row 1", "0 to 1"),
    sheet("a table of photographs that is not UTF-8", b"path,pid\n\xff.jpg,1\n", "x.csv is damaged"),
    sheet("a text as Parquet table of photographs", "path,pid\n", "x.parquet is damaged", name="x.parquet"),
]


@table(PHOTOGRAPHS)
def test_photographs(case, tmp_path): check(case, tmp_path)


@table(LISTINGS)
def test_listings(case, tmp_path): check(case, tmp_path)


@table(DATASETS)
def test_datasets(case, tmp_path): check(case, tmp_path)


@table(ATTRIBUTE_FILES)
def test_attributes(case, tmp_path): check(case, tmp_path)


@table(ARCHIVES)
def test_archives(case, tmp_path): check(case, tmp_path)


@table(EMBEDDINGS)
def test_embeddings(case, tmp_path): check(case, tmp_path)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    "The bytes of one file of embeddings in each way."
    folder = tmp_path_factory.mktemp("written")
    return {suffix: write_embeddings(ROWS, VECTORS, folder/f"x{suffix}").read_bytes() for suffix in (".parquet", ".csv", ".npz")}


@given(st.sampled_from([".parquet", ".csv", ".npz"]), st.lists(st.tuples(st.floats(0, .9999), st.integers(0, 255)), min_size=1,
     max_size=4), st.floats(.3, 1))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_files_of_embeddings(written, tmp_path, suffix, changes, kept):
    content = bytearray(written[suffix])
    for place, value in changes: content[int(place*len(content))] = value
    path = put(tmp_path, f"x{suffix}", content=bytes(content[:int(kept*len(content)) + 1]))/f"x{suffix}"
    try: rows, vectors = read_embeddings(path)
    except InputError as e: assert "\n" not in str(e)
    else: assert len(rows) == len(vectors) and rows.path.is_unique and np.isfinite(vectors).all()


VALUES = st.recursive(st.none() | st.booleans() | st.integers(-2**40, 2**40) | st.floats() | st.text(max_size=3),
                      lambda v: st.lists(v, max_size=3), max_leaves=6)


@given(st.sampled_from(["path", "embedding", "pid"]), st.lists(VALUES, min_size=2, max_size=2), st.none() | VALUES.map(json.dumps))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_columns_of_any_kind(tmp_path, column, values, metadata):
    try: values = pa.array(values)
    except (pa.ArrowException, TypeError, ValueError, OverflowError): return      # no column of a Parquet file
    try: rows, vectors = parquet(tmp_path, metadata, **{column: values})
    except InputError as e: assert "x.parquet" in str(e) and "\n" not in str(e)
    except pa.ArrowNotImplementedError: return
    else: assert len(rows) == len(vectors) == 2 and np.isfinite(vectors).all()


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=6), min_size=2, max_size=2,
                unique=True),
       st.sampled_from([".parquet", ".csv", ".npz"]))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_path_comes_back(tmp_path, paths, suffix):
    assert back(tmp_path, f"x{suffix}", ROWS.assign(path=paths))[0].path.tolist() == paths


@given(st.lists(st.sampled_from("ab"), min_size=1, max_size=3), st.lists(st.tuples(st.sampled_from(["a", "b", "a/c"]), st.sampled_from(
    [".", "a", "b", "a/c"])), max_size=3))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_linked_folders_end_and_list_every_image_once(tmp_path_factory, place, links):
    folder = put(tmp_path_factory.mktemp("links"), "x.jpg", "a/x.jpg", "b/x.jpg", "a/c/x.jpg")
    for i, (at, to) in enumerate(links): (folder/at/f"link {i}").symlink_to(folder/to)
    files, rest = names(folder)
    assert files == ["a/c/x.jpg", "a/x.jpg", "b/x.jpg", "x.jpg"] and len(rest) == len(links)
