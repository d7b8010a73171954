"""Networks against those that they follow, checkpoints of one's own, and the version of a backbone in the names of runs."""
import dataclasses
import importlib
import importlib.util
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from reid_study.core import InputError, import_all
from reid_study.data.people import few_people
from reid_study.inference.export import load_embedder, save_embedder
from reid_study.networks.backbones import BACKBONES, backbone_version, get_backbone
from reid_study.networks.osnet import WIDTHS, load_torchreid, osnet_features
from reid_study.study.config import make_config, run_id
from reid_study.study.record import read_run
from reid_study.study.run import make_run
from reid_study.study.tuning import trial_config
from reid_study.study.jobs import Workflow, planned, tunings

import_all("reid_study.networks")
SMALL = dict(validation=4, epochs=1, p=4, k=2, height=32, width=16, steps=2)


def torchreid_osnet():
    "torchreid's module of OSNet: the file of a clone that TORCHREID names, or the installed package's; else the test is skipped."
    if clone := os.environ.get("TORCHREID"):
        spec = importlib.util.spec_from_file_location("torchreid_osnet", Path(clone)/"torchreid"/"models"/"osnet.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    if importlib.util.find_spec("torchreid") is None: pytest.skip("torchreid is not installed, and TORCHREID does not name a clone of it")
    package = "torchreid" if importlib.util.find_spec("torchreid.models") else "torchreid.reid"
    return importlib.import_module(f"{package}.models.osnet")


@pytest.mark.parametrize("name", WIDTHS)
def test_osnet_gives_what_torchreids_gives(name, tmp_path):
    "Random weights and statistics, saved as torchreid saves them: the same maps and the same 512 numbers."
    torch.manual_seed(0)
    theirs = getattr(torchreid_osnet(), name)(num_classes=10, pretrained=False).eval()
    for m in theirs.modules():
        if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.normal_(m.running_mean, std=.1); nn.init.uniform_(m.running_var, .5, 2)
            nn.init.uniform_(m.weight, .5, 1.5); nn.init.normal_(m.bias, std=.1)
    torch.save({"state_dict": {f"module.{k}": v for k, v in theirs.state_dict().items()}, "epoch": 3}, tmp_path/"theirs.pth.tar")
    backbone = load_torchreid(get_backbone(name), tmp_path/"theirs.pth.tar").eval()
    extractor = osnet_features(name, tmp_path/"theirs.pth.tar").eval()
    for size in ((256, 128), (160, 64)):
        x = torch.randn(2, 3, *size)
        with torch.no_grad():
            maps = theirs(x, return_featuremaps=True)
            assert maps.abs().mean() > .01 and (backbone(x) - maps).abs().max() < 1e-5*max(1, maps.abs().max())
            features = theirs(x)
            assert features.shape == (2, 512) and (extractor.embed(x) - features).abs().max() < 1e-5*max(1, features.abs().max())


def available(name):
    "Skip the test where the backbone is timm's and timm is not installed."
    if name.startswith(("vit", "timm/")): pytest.importorskip("timm")


@pytest.mark.parametrize("name", [*BACKBONES, "timm/mobilenetv2_100"])
def test_every_backbone_starts_from_a_checkpoint_of_its_own(name, tmp_path):
    available(name)
    backbone = get_backbone(name)
    own = backbone.state_dict()
    with torch.no_grad(): assert backbone.eval()(torch.zeros(1, 3, 96, 48)).shape[:2] == (1, backbone.width_out)
    run = {f"backbone.{key}": value for key, value in own.items()} | {"embedding.weight": torch.zeros(4, 2)}     # as in a run's folder
    for weights in (own, run):
        torch.save(weights, tmp_path/"weights.pth")
        copy = get_backbone(name, weights=tmp_path/"weights.pth").state_dict()
        assert all(torch.equal(copy[key], value) for key, value in own.items())
    torch.save({"strange": torch.zeros(1)}, tmp_path/"strange.pth")
    with pytest.raises(InputError, match="strange.pth.*strange"): get_backbone(name, weights=tmp_path/"strange.pth")
    with pytest.raises(InputError, match="choose one"): get_backbone(name, pretrained=True, weights=tmp_path/"weights.pth")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    few_people(folder/"people")
    return folder


@pytest.mark.parametrize("backbone, recipe, changes", [
    ("osnet_x0_25", "triplet", {}), ("small_pcb", "identity+triplet", {"dim": 12, "height": 96, "width": 48}),
    ("timm/mobilenetv3_small_050", "triplet", {})])
def test_a_run_with_another_network_from_end_to_end(backbone, recipe, changes, data, tmp_path):
    available(backbone)
    torch.manual_seed(1)
    torch.save(get_backbone(backbone).state_dict(), tmp_path/"start.pth")
    config = make_config("people", recipe, backbone=backbone, weights=str(tmp_path/"start.pth"), **SMALL | changes)
    run = read_run(make_run(config, data, tmp_path, "cpu"), config)
    assert run.metrics["parameters"] > sum(p.numel() for p in get_backbone(backbone).parameters()) and run.id == run_id(config)
    (tmp_path/"start.pth").unlink()
    onnx = importlib.util.find_spec("onnxruntime") is not None and not backbone.startswith("timm/")
    embedder = load_embedder(save_embedder(run.folder, tmp_path/"embedder", onnx=onnx))
    images = torch.randint(0, 256, (2, config["height"], config["width"], 3), dtype=torch.uint8)
    assert embedder(images).shape == (2, config["dim"])


@pytest.fixture
def raised(monkeypatch):
    "A function that raises the version of a backbone."
    return lambda name: monkeypatch.setitem(BACKBONES, name, dataclasses.replace(BACKBONES[name], version=BACKBONES[name].version + 1))


def test_the_version_of_a_backbone_renames_its_runs_and_no_others(raised):
    def ids(): return {name: run_id(make_config("people", "triplet", backbone=name, **SMALL)) for name in [*BACKBONES, "timm/resnet18"]}
    before = ids()
    assert len(set(before.values())) == len(before)
    old = make_config("people", "triplet", backbone="osnet_x0_25", **SMALL)
    assert old["versions"]["osnet_x0_25"] == backbone_version("osnet_x0_25")
    raised("osnet_x0_25")
    assert {name for name, value in ids().items() if value != before[name]} == {"osnet_x0_25"}
    with pytest.raises(InputError, match="versions"): make_config(**old)


def test_a_study_with_osnet_plans_and_tunes_and_knows_its_version(tmp_path, raised):
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
    workflow = Workflow(tmp_path/"nets.yaml", tmp_path/"data", tmp_path/"runs", tmp_path/"pages")
    plan = dict(planned(workflow))
    assert list(plan) == ["tune-triplet", "recipe-main-triplet", "recipe-tuned-triplet", "recipe-final-triplet"]
    assert plan["recipe-tuned-triplet"] is None
    tuning = tunings(workflow.study)["triplet"]
    for config in (trial_config(tuning, {"lr": .01}), plan["recipe-main-triplet"], plan["recipe-final-triplet"]):
        assert config["backbone"] == "osnet_x0_25" and config["versions"]["osnet_x0_25"] == 1 and make_config(**config) == config
    raised("osnet_x0_25")
    renamed = dict(planned(workflow))
    assert all(run_id(renamed[job]) != run_id(config) for job, config in plan.items() if config)
