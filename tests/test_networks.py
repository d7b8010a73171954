"""Networks against those that they follow, and runs that are named by the code of their backbone."""
import importlib
import importlib.util
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from reid_study import runs
from reid_study.data.people import make_people
from reid_study.inference.export import load_embedder, save_embedder
from reid_study.networks.osnet import WIDTHS, load_torchreid, osnet_features
from reid_study.networks.backbones import get_backbone
from reid_study.study.spec import jobs, manifest
from reid_study.study.run import PROTOCOLS, backbone_code, code_fingerprint, code_of, fingerprinted, make_config, make_run, read_run, run_id
from reid_study.study.workflow import Workflow, adopt
from reid_study.study.tuning import trial_config, tuning_config

SMALL = dict(validation=4, epochs=1, p=4, k=2, height=32, width=16, steps=2)


def torchreid_osnet():
    "torchreid's module of OSNet: the file of a clone that TORCHREID names, or the installed package's; else the test is skipped."
    if clone := os.environ.get("TORCHREID"):
        spec = importlib.util.spec_from_file_location("torchreid_osnet", Path(clone)/"torchreid"/"models"/"osnet.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    if importlib.util.find_spec("torchreid") is None: pytest.skip("torchreid is not installed, and TORCHREID does not name a clone of it")
    return importlib.import_module("torchreid.models.osnet" if importlib.util.find_spec("torchreid.models") else "torchreid.reid.models.osnet")


@pytest.mark.parametrize("name", WIDTHS)
def test_osnet_gives_what_torchreids_gives(name, tmp_path):
    "Random weights and statistics, saved as torchreid saves them: the same maps and the same 512 numbers."
    torch.manual_seed(0)
    theirs = getattr(torchreid_osnet(), name)(num_classes=10, pretrained=False).eval()
    for m in theirs.modules():
        if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.normal_(m.running_mean, std=.1); nn.init.uniform_(m.running_var, .5, 2); nn.init.uniform_(m.weight, .5, 1.5); nn.init.normal_(m.bias, std=.1)
    torch.save({"state_dict": {f"module.{k}": v for k, v in theirs.state_dict().items()}, "epoch": 3}, tmp_path/"theirs.pth.tar")
    backbone = load_torchreid(get_backbone(name), tmp_path/"theirs.pth.tar").eval()
    whole = osnet_features(name, tmp_path/"theirs.pth.tar").eval()
    for size in ((256, 128), (160, 64)):
        x = torch.randn(2, 3, *size)
        with torch.no_grad():
            maps = theirs(x, return_featuremaps=True)
            assert maps.abs().mean() > .01 and (backbone(x) - maps).abs().max() < 1e-5*max(1, maps.abs().max())
            features = theirs(x)
            assert features.shape == (2, 512) and (whole.embed(x) - features).abs().max() < 1e-5*max(1, features.abs().max())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_people(folder/"people", n_train=14, n_test=4, n_distractors=2, n_junk=2, progress=False)
    return folder


@pytest.fixture
def edited(monkeypatch):
    "A function that makes the code of one module another, as the walk over imports reads it."
    syntax = runs._syntax
    def edit(module):
        monkeypatch.setattr(runs, "_syntax", lambda name: "edited" if name == module else syntax(name))
        code_fingerprint.cache_clear()
    yield edit
    code_fingerprint.cache_clear()


@pytest.mark.parametrize("backbone, recipe, module, changes", [("osnet_x0_25", "triplet", "networks.osnet", {}),
                                                               ("small_pcb", "identity+triplet", "networks.parts", {"dim": 12, "height": 96, "width": 48})])
def test_a_run_with_another_network_from_end_to_end(backbone, recipe, module, changes, data, tmp_path):
    config = make_config("people", recipe, data=data, backbone=backbone, **SMALL | changes)
    assert config["backbone_code"] == code_fingerprint(module)
    run = read_run(make_run(config, data, tmp_path, "cpu"), config)
    assert run.metrics["parameters"] > sum(p.numel() for p in get_backbone(backbone).parameters()) and run.id == run_id(config)
    embedder = load_embedder(save_embedder(run.folder, tmp_path/"embedder", onnx=importlib.util.find_spec("onnxruntime") is not None))
    images = torch.randint(0, 256, (2, config["height"], config["width"], 3), dtype=torch.uint8)
    assert embedder(images).shape == (2, config["dim"])


def test_an_edit_to_a_network_renames_its_runs_and_no_others(data, edited):
    table = fingerprinted("people", data)
    def ids(): return {name: run_id(make_config("people", "triplet", table=table, backbone=name, **SMALL))
                       for name in ("small", "resnet50", "osnet_x0_25", "osnet_x1_0", "resnet50_ibn", "resnet50_pcb", "vit_small")}
    before = ids()
    assert len(set(before.values())) == len(before)
    for module, renamed in (("networks.osnet", {"osnet_x0_25", "osnet_x1_0"}), ("networks.options", {"resnet50_ibn"}), ("networks.vit", {"vit_small"}), ("networks.parts", {"resnet50_pcb"})):
        edited(module)
        assert {name for name, value in ids().items() if value != before[name]} == renamed


@pytest.mark.parametrize("backbone", ["small", "resnet18", "resnet50"])
def test_the_backbones_of_before_carry_nothing_new(data, backbone):
    config = make_config("people", "triplet", data=data, backbone=backbone, **SMALL)
    assert backbone_code(backbone) == {} and set(config) == set(PROTOCOLS["people"]) | {
        "lr", "dataset", "recipe", "seed", "settings", "data", "code", "loss_code", "split", "score_code"}


def test_no_new_network_is_in_the_code_that_all_recipes_share(edited):
    "The fingerprint of a training walks imports; what it does not reach cannot rename today's runs."
    before = code_of("triplet")
    for module in ("networks.osnet", "networks.options", "networks.parts", "networks.vit", "networks.weights", "networks.zoo"):
        edited(module)
        assert code_of("triplet") == before
    edited("networks.backbones")     # which it does reach
    assert code_of("triplet")["code"] != before["code"]


def test_a_study_with_osnet_plans_searches_and_refuses_old_results(data, tmp_path, edited):
    (tmp_path/"nets.yaml").write_text("""
title: Another network
dataset: people
protocol: {backbone: osnet_x0_25, epochs: 1, validation: 4, p: 4, k: 2, height: 32, width: 16, steps: 2}
tuning: {trials: 2, epochs: 1, seed: 9}
arms:
  main: {recipes: [triplet], seeds: 1}
  tuned: {recipes: [triplet], seeds: 1, settings: tuned}
  final: {recipes: [triplet], seeds: 1, score: test}
""")
    workflow = Workflow(tmp_path/"nets.yaml", data, tmp_path/"runs", tmp_path/"pages", "cpu", 1)
    from reid_study.core import InputError, read_json
    for file in workflow.files.glob("*.json"):
        job = read_json(file, "")
        if job["template"].endswith("run.ipynb"):
            own = job["parameters"]
            config = make_config(own["dataset"], own["recipe"], own["seed"], own["settings"], data=own["data"], **own["changes"])
            assert run_id(config) == own["expected"] and config["backbone_code"]
        if job["template"].endswith("tune.ipynb"):
            own = job["parameters"]
            config = tuning_config(own["dataset"], own["recipe"], own["trials"], own["seed"], data=own["data"], **own["changes"])
            assert run_id(config) == own["expected"] and trial_config(config, {"lr": .01})["backbone_code"]
    searched, trainings, tests = jobs(workflow.study, workflow.table, data, tmp_path/"runs")
    assert len(searched) == 1 and len(trainings) == 3 and len(tests) == 1
    make_run(trainings[0], data, tmp_path/"results", "cpu")
    adopt(tmp_path/"results", workflow)
    assert (workflow.runs/workflow.known[0]).exists()
    edited("networks.osnet")
    with pytest.raises(InputError, match="backbone_code"): adopt(tmp_path/"results", workflow)
