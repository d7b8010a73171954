"""Do trainings give the numbers that they gave? Every recipe is trained for four steps in float64 and compared with golden.json.

After a change that is meant to change numbers, raise the version and rewrite the table:  python tests/test_golden.py
Numbers that changed while their version did not are refused.
"""
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback

from reid_study.core import InputError, digest, import_all
from reid_study.data.market1501 import ATTRIBUTES
from reid_study.distances import Euclidean
from reid_study.evaluation.retrieval import evaluate_split
from reid_study.networks.backbones import BACKBONES, backbone_version
from reid_study.networks.embedder import make_embedder
from reid_study.study.config import versions
from reid_study.training.learner import fit, make_learner
from reid_study.training.recipes import NUMERICS, RECIPES, get_recipe

TABLE = Path(__file__).with_name("golden.json")
TOLERANCE = 1e-6      # relative: rounding of another machine, with float64's sixteen digits, stays far below; a changed formula does not


def noise(shape):
    "Whole numbers from 0 to 63 that look random and are the same everywhere."
    i = np.arange(math.prod(shape), dtype=np.uint64).reshape(shape)
    return (i*np.uint64(2654435761) % np.uint64(2**32) >> np.uint64(26)).astype(int)


def people(each=2):
    """A table of 12 identities, of which 8 train, with `each` images by each of 3 cameras; and its images: a colour for each identity, a
    light for each camera, and noise."""
    rows = [(f"{pid:04}_c{cam}_{i}.jpg", pid, cam) for pid in range(1, 13) for cam in range(1, 4) for i in range(each)]
    table = pd.DataFrame(rows, columns=["path", "pid", "camid"])
    table["split"] = np.where(table.pid <= 8, "train", np.where(~table.duplicated(["pid", "camid"]), "query", "gallery"))
    table = table.assign(**{name: (table.pid + i) % 2 for i, name in enumerate(ATTRIBUTES)})
    colour = 60*table.pid.to_numpy()[:, None]*np.array([1, 2, 3]) % 130 + 20*table.camid.to_numpy()[:, None]
    return table, (colour[:, None, None] + noise((len(table), 32, 16, 3))).astype(np.uint8)


class Float64(Callback):
    "The loss as float32 for fastai's own record; what trains and what is compared here stays float64."
    def after_loss(self): self.learn.loss = self.loss.float()


def in_float64(network):
    "The network, which turns its images into float64 first."
    network.register_forward_pre_hook(lambda _, images: (images[0].double(),))
    return network


def train(recipe, sampler, table, images):
    "quantity -> its values: means of each epoch; of the trained network the mAP, the mean distance of embeddings, and checksums."
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)      # so that the initial weights are drawn in float64
    try: learn = make_learner(recipe, table, images, dim=32, p=4, k=4, steps=2, sampler=sampler, validate_every=2)
    finally: torch.set_default_dtype(torch.float32)
    in_float64(learn.model)
    learn.add_cb(Float64())
    start = flat(learn, "parameters")
    with learn.no_logging(), learn.no_bar(): history = fit(learn, 2, RECIPES[recipe].lr)
    embeddings = embed(learn)
    checks = {"mAP": evaluate_split(embeddings, learn.dls.valid.dataset).mAP, "distance": Euclidean()(embeddings).mean().item(),
              "moved": (flat(learn, "parameters") - start).norm().item(), "buffers": flat(learn, "buffers").norm().item()}
    means = history.drop(columns=["epoch", "lr", "seconds", "mAP", "rank1"]).to_dict("list")
    return means | {name: [value] for name, value in checks.items()}


def flat(learn, kind):
    "The network's and the losses' parameters or buffers as one vector."
    return torch.cat([v.detach().double().flatten() for part in (learn.model, learn.loss_func) for v in getattr(part, kind)()])


@torch.no_grad()
def embed(learn):
    "The embeddings of the validation images, in float64 (`embed_all` makes them float32)."
    learn.model.eval()
    return torch.cat([learn.model(images)["after"] for images, _ in learn.dls.valid])


def forward(backbone):
    "Norms of a backbone's map in training, and of the embeddings that its network makes in evaluation."
    torch.set_default_dtype(torch.float64)
    try: network = make_embedder(backbone, 12, seed=0)
    finally: torch.set_default_dtype(torch.float32)
    images = torch.from_numpy(noise((2, 3, 96, 48))/32 - 1)
    with torch.no_grad():
        return {"map": [network.backbone(images).norm().item()], "embeddings": [network.eval().embed(images).norm().item()]}


TRAININGS = list(dict.fromkeys((name, sampler) for name, recipe in RECIPES.items() for sampler in ("pk", recipe.native)))
import_all("reid_study.networks")


def close(a, b): return len(a) == len(b) and all(math.isclose(x, y, rel_tol=TOLERANCE, abs_tol=1e-9) for x, y in zip(a, b))


def changed(old, new): return sorted(key for key in old.keys() | new.keys() if not close(old.get(key, []), new.get(key, [])))


def versions_of(name):
    "The versions that the numbers of a training or a backbone depend on, and a digest of the recipe's own settings and rate."
    if name.startswith("backbone "): return {name: backbone_version(name.removeprefix("backbone "))}
    recipe = get_recipe(name.split(", ")[0])
    return {"numerics": NUMERICS, "recipe": digest([recipe.settings(), recipe.lr])} | versions(recipe, "small")


def compare(name, found):
    "Assert that the numbers and their versions are those of the table."
    golden = json.loads(TABLE.read_text())
    assert name in golden["numbers"], f"{name} is new; add its numbers with: python tests/test_golden.py"
    then, now = golden["versions"][name], versions_of(name)
    assert then == now, f"a version of {name} was raised ({then}, now {now}): rewrite the table with: python tests/test_golden.py"
    assert not (keys := changed(golden["numbers"][name], found)), (
        f"the numbers of {name} changed ({', '.join(keys)}): either something is broken, or raise a version ({', '.join(now)}) "
        "and rewrite the table with: python tests/test_golden.py")


@pytest.fixture(scope="module")
def data(): return people()


def test_the_table_has_what_there_is_and_nothing_else():
    there = {f"{recipe}, {sampler}" for recipe, sampler in TRAININGS} | {f"backbone {name}" for name in BACKBONES}
    assert json.loads(TABLE.read_text())["numbers"].keys() == there


@pytest.mark.parametrize("recipe, sampler", TRAININGS)
def test_recipe(recipe, sampler, data): compare(f"{recipe}, {sampler}", train(recipe, sampler, *data))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_backbone(backbone):
    try: found = forward(backbone)
    except InputError as e:
        if "not installed" not in str(e): raise
        pytest.skip(str(e))
    compare(f"backbone {backbone}", found)


def test_changed_numbers_need_another_version():
    numbers = {"triplet, pk": {"loss": [1.0]}}
    golden = json.loads(as_text(numbers))
    refuse_unversioned(golden, {"triplet, pk": {"loss": [1.0 + 1e-9]}})
    with pytest.raises(SystemExit, match="triplet, pk"): refuse_unversioned(golden, {"triplet, pk": {"loss": [1.1]}})
    golden["versions"]["triplet, pk"]["triplet"] = 0
    refuse_unversioned(golden, {"triplet, pk": {"loss": [1.1]}})


def all_numbers():
    "name of a training or backbone -> its numbers."
    data = people()
    trained = {f"{recipe}, {sampler}": train(recipe, sampler, *data) for recipe, sampler in TRAININGS}
    return trained | {f"backbone {name}": forward(name) for name in BACKBONES}


def refuse_unversioned(golden, numbers):
    "Stop if numbers changed while their versions did not."
    old = golden["numbers"]
    for name in old.keys() & numbers.keys():
        if golden["versions"][name] == versions_of(name) and changed(old[name], numbers[name]):
            raise SystemExit(f"the numbers of {name} changed: raise one of its versions ({', '.join(versions_of(name))}) first")


def as_text(numbers):
    "JSON with a line for each quantity."
    parts = [f"{json.dumps(name)}: {{\n" + ",\n".join(f" {json.dumps(key)}: {json.dumps(values)}" for key, values in own.items()) + "}"
             for name, own in numbers.items()]
    found = [f"{json.dumps(name)}: {json.dumps(versions_of(name))}" for name in numbers]
    return '{"numbers": {\n' + ",\n".join(parts) + '},\n"versions": {\n' + ",\n".join(found) + "}}\n"


if __name__ == "__main__":
    numbers = all_numbers()
    refuse_unversioned(json.loads(TABLE.read_text()), numbers)
    TABLE.write_text(as_text(numbers))
