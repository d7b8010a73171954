"What study files and settings are refused or mean: types, sizes, names, numbers of other libraries, weights."
import copy
import itertools
import os
import random
import time
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
import yaml
from cases import Case, check, table
from hypothesis import given, settings
from hypothesis import strategies as st

from reid_study.core import InputError
from reid_study.networks.backbones import get_backbone
from reid_study.networks.embedder import make_embedder
from reid_study.study.config import Config, make_config, recipe_configs, run_id
from reid_study.study.spec import OWN, arm_configs, read_study
from reid_study.study.tuning import suggest, tuning_config
from reid_study.study.workflow import run_study
from reid_study.study.worker import check_parameters, execute
from reid_study.training.recipes import get_recipe

STUDIES = sorted((Path(__file__).parents[1]/"studies").glob("*.yaml"))
TEMPLATES = Path(__file__).parents[1]/"nbs"/"study"
STUDY = """title: One
dataset: people
protocol: {epochs: 2}
arms:
  main: {recipes: [triplet], seeds: 2}
"""


def study(folder, text, name="study.yaml"):
    (folder/name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_study(folder/name)

def replaced(old, new): return lambda folder: study(folder, STUDY.replace(old, new))
def in_arm(more): return replaced("seeds: 2", f"seeds: 2, {more}")
def named(name): return replaced("main:", f"{name}:")
def lr_of(found): return arm_configs(found, "main", "triplet")[0][-1]["lr"]

def fifo(folder):
    os.mkfifo(folder/"study.yaml")
    return read_study(folder/"study.yaml")

def laughs(folder):
    lines = ["a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"{y}: &{y} [{', '.join(10*[f'*{x}'])}]" for x, y in itertools.pairwise("abcdefghi")]
    return study(folder, STUDY + "\n".join(lines))

def started(folder, weights="w.pth", content=b"1"):
    (folder/"w.pth").write_bytes(content)
    return make_config("people", "triplet", weights=folder/weights)

def elsewhere(folder):
    "The path in the arms of a study that is read beside its weights."
    (folder/"w.pth").write_bytes(b"1")
    before = os.getcwd()
    try:
        os.chdir(folder)
        found = study(folder, STUDY.replace("{epochs: 2}", "{weights: w.pth}"))
    finally: os.chdir(before)
    return [config["weights"] for *_, config in arm_configs(found, "main", "triplet")] == 2*[str(folder/"w.pth")]

def changed(folder):
    config = started(folder)
    (folder/"w.pth").write_bytes(b"2")
    return make_config(**config)

def strange_place(folder):
    "A job whose notebook lies, and is kept, in a folder with a name that templates and shells would read."
    (strange := folder/"a {b} #c 'd' %s $HOME ü").mkdir()
    cells = [nbformat.v4.new_code_cell("x = 1", metadata={"tags": ["parameters"]}), nbformat.v4.new_code_cell("print(x)")]
    kernel = {"name": "python3", "language": "python", "display_name": "python3"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), strange/"job.ipynb")
    execute(strange/"job.ipynb", strange/"done.ipynb", {"x": 3})
    return nbformat.read(strange/"done.ipynb", 4).cells[-1].outputs[0].text == "3\n"


EMBEDDED = Path(__file__).parents[1]/"studies"/"embedded.yaml"

CASES = [
    # files
    Case("a study file that is missing", lambda folder: read_study(folder/"none.yaml"), refused=("none.yaml", "studies/embedded.yaml")),
    Case("a folder as the study file", read_study, refused=("is a folder", "give a study file")),
    Case("a named pipe as the study file", fifo, refused=("study.yaml", "is a named pipe")),
    *(Case(f"{words} for the pages of a study", lambda folder, make=make: run_study(EMBEDDED, folder, folder/"runs", make(folder),
           device="cpu"), refused=(name, "is no folder", "another place"))
      for words, make, name in (("a device", lambda folder: "/dev/null", "/dev/null"),
                                ("a named pipe", lambda folder: os.mkfifo(folder/"x") or folder/"x", "/x "))),
    Case("an endless device as the study file", lambda folder: read_study("/dev/zero"), refused=("/dev/zero", "is a device")),
    Case("a study file of a megabyte", lambda folder: study(folder, STUDY + "#" + "x"*10**6),
         refused=("study.yaml", "100,000 that such a file may have")),
    Case("a study file that is not UTF-8", lambda folder: study(folder, "title: Größe".encode("latin-1")), refused=("save it as UTF-8",)),
    Case("a study file with a byte order mark", lambda folder: study(folder, b"\xef\xbb\xbf" + STUDY.encode()),
         gives=lambda found: found.title == "One", means="is read without it"),
    Case("a study file with null characters", lambda folder: study(folder, STUDY + "\0"), refused=("not valid YAML",)),
    Case("an empty study file", lambda folder: study(folder, ""), refused=("study.yaml", "mapping of the keys")),
    Case("a study file whose name is a dot and letters", lambda folder: study(folder, STUDY, ".yaml"),
         refused=("named after the study file",)),
    Case("aliases that unfold to a billion values", laughs, refused=("more than 20000 values", "write fewer")),
    Case("an alias inside of what it repeats", lambda folder: study(folder, STUDY + "a: &a [*a]"),
         refused=("line 6", "alias", "write it out")),
    Case("fifty lists inside each other", lambda folder: study(folder, STUDY + "a: " + "["*50 + "]"*50), refused=("write it flatter",)),
    Case("ten thousand lists inside each other", lambda folder: study(folder, STUDY + "a: " + "["*10**4), refused=("write it flatter",)),
    Case("a tag for a Python object", replaced("One", "!!python/object:os.system {}"), refused=("line 1", "tag", "leave it out")),
    Case("a key that stands twice", lambda folder: study(folder, STUDY + "title: Two"), refused=("line 6", "the key title stands twice")),
    Case("a list as a key", lambda folder: study(folder, STUDY + "? [a]\n: 1"), refused=("line 6", "no key")),
    # numbers and words
    Case("lr: 1e-3 in a study file", in_arm("changes: {lr: 1e-3}"), gives=lambda found: lr_of(found) == .001, means="is a number"),
    Case("lr: .001 in a study file", in_arm("changes: {lr: .001}"), gives=lambda found: lr_of(found) == .001, means="is a number"),
    Case("lr: '1e-3', in quotes", in_arm("changes: {lr: '1e-3'}"), refused=("arm main: changes: lr='1e-3' must be a number",)),
    Case("lr: nan", in_arm("changes: {lr: nan}"), refused=("lr='nan' must be a number",)),
    Case("lr: 1e400", in_arm("changes: {lr: 1e400}"), refused=("lr=inf must be a finite number",)),
    Case("a learning rate that lr_times makes infinite", in_arm("changes: {lr_times: 1e308}, each: [{lr: 1}, {clip: 1}]"),
         refused=("lr", "contradict")),
    Case("seeds: 0010", replaced("seeds: 2", "seeds: 0010"), gives=lambda found: found.arms["main"].seeds == 10, means="is ten"),
    Case("epochs: 4.0", replaced("epochs: 2", "epochs: 4.0"), refused=("epochs=4.0 must be a whole number",)),
    Case("pretrained: yes", in_arm("changes: {pretrained: yes}"), refused=("pretrained='yes' must be true or false",)),
    Case("pretrained: True", in_arm("changes: {backbone: resnet18, pretrained: True}"),
         gives=lambda found: found.arms["main"].changes["pretrained"] is True, means="is true"),
    Case("an arm that merges another, <<: *main", 
         lambda folder: study(folder, STUDY.replace("main:", "main: &main") + "  b: {<<: *main, seeds: 3}"),
         gives=lambda found: (found.arms["b"].seeds, found.arms["b"].recipes) == (3, ["triplet"]),
         means="has the keys of both, its own first"),
    Case("<<: 3", lambda folder: study(folder, STUDY + "  b: {<<: 3}"), refused=("not valid YAML", "merging")),
    # counts
    Case("ten million seeds", replaced("seeds: 2", "seeds: 10000000"), refused=("arm main: seeds=10000000", "less than or equal to 1000")),
    Case("fifty thousand runs in all", in_arm(f"each: [{', '.join(f'{{epochs: {n}}}' for n in range(1, 101))}], seeds_contrasted: 500"),
         refused=("50000 runs", "at most 10000")),
    Case("a million epochs", replaced("epochs: 2", "epochs: 1000000"), refused=("protocol: epochs=1000000", "10000")),
    Case("ten million trials of a tuning", lambda folder: study(folder, STUDY + "tuning: {trials: 10000000, epochs: 1, seed: 100}"),
         refused=("tuning: trials=10000000", "1000")),
    Case("a list of two thousand recipes", replaced("[triplet]", f"[{', '.join(f'r{i}' for i in range(2000))}]"),
         refused=("lists 2000", "1000")),
    Case("a number of 400 digits", replaced("epochs: 2", f"epochs: {'9'*400}"), refused=("protocol: epochs=999", "…")),
    Case("a number of 5000 digits", replaced("epochs: 2", f"epochs: {'9'*5000}"), refused=("protocol: epochs='999", "whole number")),
    Case("a learning rate of 400 digits", in_arm(f"changes: {{lr: {'9'*400}}}"), refused=("lr", "number")),
    Case("dim: 1000000000000", replaced("epochs: 2", "dim: 1000000000000"), refused=("protocol: dim=1000000000000", "16384")),
    Case("a height of a million pixels", replaced("epochs: 2", "height: 1000000"), refused=("protocol: height=1000000", "1024")),
    # names of arms
    Case("an arm named no", named("no"), gives=lambda found: list(found.arms) == ["no"], means="has this name"),
    Case("an arm named 1, without quotes", named("1"), refused=("arms: the key 1", "write it in quotes")),
    Case("an arm named '1', in quotes", named("'1'"), gives=lambda found: list(found.arms) == ["1"], means="has this name"),
    Case("an arm named null", named("null"), refused=("the key None", "write it in quotes")),
    *[Case(f"an arm named {words}", named(name), refused=("arm", "letters")) for words, name in {
        "''": "''", "a/b": "a/b", "..": "..", "by two lines": '"a\\nb"', "früh": "früh",
        "by a hundred letters": "a"*100, "a {b}": '"a {b}"'}.items()],
    # numbers of NumPy and torch
    Case("a seed of NumPy's, and a learning rate in single precision",
         lambda folder: make_config("people", "triplet", np.int64(3), {"triplet.margin": np.float32(.3)}, lr=np.float32(.01),
                                    k=np.uint8(4)),
         gives=lambda c: run_id(c) == run_id(make_config("people", "triplet", 3, {"triplet.margin": .3}, lr=.01)), means="are Python's"),
    Case("settings of torch's",
         lambda folder: make_config("people", "triplet", settings={"triplet.margin": torch.tensor(.3)}, p=torch.tensor(8)),
         gives=lambda c: (c["settings"]["triplet.margin"], c["p"]) == (.3, 8), means="are Python's"),
    Case("lr_times of NumPy's", lambda folder: recipe_configs("people", "triplet", each=[{"lr_times": np.float64(.1)}]),
         gives=lambda found: found[0][-1]["lr"] == .001, means="is Python's"),
    Case("a NumPy truth value for a number", lambda folder: make_config("people", "triplet", epochs=np.bool_(True)),
         refused=("epochs=True",)),
    Case("a list as a setting", lambda folder: make_config("people", "triplet", settings={"triplet.margin": [1]}),
         refused=("triplet.margin",)),
    Case("settings that are a number", lambda folder: make_config("people", "triplet", settings=3), refused=("settings=3", "mapping")),
    Case("a number as a recipe", lambda folder: make_config("people", 3), refused=("unknown recipe 3",)),
    Case("a list as a dataset", lambda folder: make_config(["people"], "triplet"), refused=("unknown dataset ['people']",)),
    Case("a list as a backbone", lambda folder: get_backbone(["small"]), refused=("unknown backbone ['small']",)),
    Case("a network of timm's without a name", lambda folder: get_backbone("timm/"), refused=("timm",)),
    Case("a network of timm's in a folder", lambda folder: get_backbone(f"timm/local-dir:{folder}"), refused=("timm",)),
    Case("an embedding of 10^12 coordinates", lambda folder: make_embedder(dim=10**12), refused=("dim=1000000000000", "at most 16384")),
    Case("a seed of 2^64", lambda folder: make_config("people", "triplet", 2**64), refused=("seed=18446744073709551616", "less than")),
    Case("a seed of 2^62 for a tuning", lambda folder: suggest({"lr": (.1, 1.)}, [({"lr": .5}, .1)], seed=2**62),
         gives=lambda values: .1 <= values["lr"] <= 1, means="is taken"),
    Case("a tuning of no trials", lambda folder: tuning_config("people", "triplet", 0), refused=("trials=0", "at least 1")),
    # weights
    Case("weights that are no file", lambda folder: make_config("people", "triplet", weights="none.pth"),
         refused=("weights=", "none.pth", "is missing")),
    Case("weights that are a folder", lambda folder: make_config("people", "triplet", weights=str(folder)),
         refused=("weights=", "is a folder")),
    Case("weights in a study file that are no file", replaced("epochs: 2", "weights: none.pth"),
         refused=("protocol: weights", "is missing")),
    Case("other weights under the same path", lambda folder: run_id(started(folder)) != run_id(started(folder, content=b"23")),
         gives=bool, means="make another run"),
    Case("a configuration whose weights have changed", changed, refused=("weights", "has changed", "leave weights_sum out")),
    Case("a relative path of weights in a study file", elsewhere, gives=bool, means="is absolute for its jobs"),
    # parameters of notebooks
    Case("a study notebook with a parameter that it does not have", lambda folder: check_parameters(TEMPLATES/"tune.ipynb", {"trial": 3}),
         refused=("unknown parameter of tune 'trial'", "trials")),
    Case("braces, #, quotes, %s and $HOME in the path of a job", strange_place, gives=bool, means="are only letters of the path"),
    Case("a study notebook with a parameter of another type", lambda folder: check_parameters(TEMPLATES/"data.ipynb", {"sizes": 64}),
         refused=("data: sizes=64", "[[64, 32]]")),
]

@table(CASES)
def test_study(case, tmp_path): check(case, tmp_path)


# ---- every key with every kind of value

WRONG = [None, True, -1, 0, 7, -.5, float("nan"), float("inf"), 1e300, "a word", "", "a\nb", [], [1], [[]], {}, {"a": 1},
         {"a": {"b": [None]}},
         "2026-01-02", 10**399, 2**64, "9"*5000, [{"a": 1}]]
PLACES = [("title",), ("dataset",), ("protocol",), ("tuning",), ("arms",), ("questions",), ("arms", "main"), ("new",),
          *[("tuning", key) for key in ("trials", "epochs", "seed", "split_seed", "new")],
          *[("arms", "main", key) for key in ("recipes", "seeds", "seeds_contrasted", "settings", "score", "sampler", "changes", "each",
                                              "new")],
          ("arms", "main", "recipes", 0), ("arms", "main", "each", 0),
          *[("protocol", key) for key in (*Config.model_fields, "lr_times")],
          *[("arms", "main", "changes", key) for key in ("lr", "lr_times", "weights", "backbone", "triplet.margin", "triplet.miner",
                                                         "new", "a.b")],
          *[("arms", "main", "changes", f"triplet.{key}") for key in ("weight", "lr_factor", "distance", "reduction")]]

def changed_at(place, value):
    "A sound study with another value at a place."
    content = {"title": "One", "dataset": "people", "protocol": {}, "tuning": {"trials": 1, "epochs": 1, "seed": 9}, "questions": [],
               "arms": {"main": {"recipes": ["triplet"], "seeds": 1, "settings": "tuned", "changes": {}, "each": [{}]}}}
    at = content
    for part in place[:-1]: at = at[part]
    at[place[-1]] = copy.deepcopy(value)
    return content

def read_or_refused(path):
    "Whether a study file can be read; else it is refused in a line that begins with the file."
    try: return bool(read_study(path))
    except InputError as e:
        assert str(e).startswith(str(path)) and "\n" not in str(e) and len(str(e)) < 2000 + len(str(path)), e
        return False

@pytest.mark.parametrize("place", PLACES, ids=lambda place: " ".join(map(str, place)))
def test_every_key_with_every_kind_of_value(place, tmp_path):
    for value in WRONG:
        (tmp_path/"study.yaml").write_text(yaml.safe_dump(changed_at(place, value)), "utf-8")
        read_or_refused(tmp_path/"study.yaml")

SETTINGS = {(name, setting) for name in ("triplet", "identity", "contrastive_memory", "circle", "quadruplet", "lifted", "proxy_anchor",
                                         "arcface")
            for setting in get_recipe(name).settings()}

@pytest.mark.parametrize("recipe, setting", sorted(SETTINGS), ids=str)
def test_every_setting_with_every_kind_of_value(recipe, setting):
    for value in [*WRONG, 10**12, 10**5000, np.float32(.5), np.array([1, 2]), torch.zeros(2), b"x", object(), 1j]:
        try: config = make_config("people", recipe, settings={setting: value})
        except InputError as e: assert setting in str(e) and "\n" not in str(e) and len(str(e)) < 2000
        else: assert isinstance(config["settings"][setting], str | int | float | None) and run_id(config)

VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=3),
                      lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=5)

@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from([name for name in Config.model_fields if name not in ("recipe", "dataset", "settings")]), value=VALUES)
def test_every_field_of_a_configuration_takes_its_type_or_refuses(name, value):
    try: config = make_config("people", "triplet", **{name: value})
    except InputError as e: assert "\n" not in str(e)
    else: assert make_config(**config) == config and (name in OWN or config[name] == value or name == "weights")


# ---- damaged files

PIECES = ["", "\n", ": ", "[", "{", "&a ", "*a", "- ", "!!int ", "'", "<<: ", "0", "e9", ".", "  ", "%", "|", "? ", "---\n"]

def fuzz_study(seconds, rng, folder):
    "Damage the project's study files at random for some seconds; each is read, or refused as it should be. Returns how many were tried."
    path, tried, until = Path(folder)/"fuzzed.yaml", 0, time.monotonic() + seconds
    texts = [text for p in STUDIES if len(text := p.read_bytes()) < 900 or "parts" in p.name]
    while time.monotonic() < until:
        if rng.random() < .3: text = yaml.safe_dump(changed_at(rng.choice(PLACES), rng.choice(WRONG))).encode()
        else: text = rng.choice(texts)
        text = bytearray(text)
        for _ in range(rng.randint(0, 4)):
            at = rng.randrange(len(text) + 1)
            text[at:at + rng.randint(0, 4)] = rng.choice(PIECES).encode() or rng.randbytes(1)
        path.write_bytes(text)
        read_or_refused(path)
        tried += 1
    return tried

def test_a_damaged_study_file_is_refused_in_a_line(tmp_path): assert fuzz_study(3, random.Random(0), tmp_path) > 5
