"""The seeds of a recipe, trained one after the other or stacked into one network: what five steps cost.

    python benchmarks/stacked_seeds.py --out results/benchmarks/stacked_seeds.json

A step of the recipe *identity* with the network of the default study: forward, cross-entropy, backward, gradients clipped for each seed,
AdamW. In turns, in one process: each seed's own step; `torch.func.stack_module_state` and `vmap`; one network whose convolutions have a
group for each seed. All begin from the same weights and take the same batches, and in float64 must come to the same weights
before anything is timed. Images lie ready: what loading costs is the same for all. A loss that mines cannot be stacked by `vmap`,
as it keeps a number of tuples that depends on the batch.
"""
import copy
import json
import time
from pathlib import Path

import numpy as np
import torch
from fastcore.script import call_parse
from torch import nn
from torch.func import functional_call, stack_module_state
from torch.nn import functional as F

from reid_study.networks.embedder import make_embedder
from reid_study.networks.heads import Classifier

from turns import in_turns, ratio

CLASSES, CLIP = 120, 5.0
SEPARATE = "each seed's own step"


def seeds_networks(seeds, backbone, dtype):
    heads = {"identity": lambda dim: Classifier(dim, CLASSES)}
    return [make_embedder(backbone, 256, heads, seed=s).to(dtype).train() for s in range(seeds)]


def clip(parameters):
    "Clip the gradients of stacked parameters [S, ...] to a norm of `CLIP` for each seed."
    norms = torch.stack([torch.linalg.vector_norm(p.grad.flatten(1), dim=1) for p in parameters]).norm(dim=0)
    factor = (CLIP/(norms + 1e-6)).clamp(max=1)
    for p in parameters: p.grad.mul_(factor.view(-1, *[1]*(p.ndim - 1)))


def adam(parameters): return torch.optim.AdamW(parameters, 1e-3, fused=True)


class Separate:
    "Seed after seed."
    def __init__(self, networks):
        self.networks = networks
        self.optimizers = [adam([p for p in n.parameters() if p.requires_grad]) for n in networks]

    def step(self, images, pids):
        for network, optimizer, x, y in zip(self.networks, self.optimizers, images, pids):
            F.cross_entropy(network(x)["identity"], y).backward()
            nn.utils.clip_grad_norm_(network.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad()

    def weights(self): return [dict(n.named_parameters()) for n in self.networks]


class Vmapped:
    "Stacked weights, and `vmap` over the seeds."
    def __init__(self, networks):
        self.seeds, self.one = len(networks), copy.deepcopy(networks[0]).to("meta")
        frozen = {name for name, p in networks[0].named_parameters() if not p.requires_grad}
        stacked, self.buffers = stack_module_state([copy.deepcopy(n).requires_grad_() for n in networks])
        self.stacked = {name: p.detach().requires_grad_(name not in frozen) for name, p in stacked.items()}
        self.trained = [p for p in self.stacked.values() if p.requires_grad]
        self.optimizer = adam(self.trained)

    def step(self, images, pids):
        def loss(weights, buffers, x, y): return F.cross_entropy(functional_call(self.one, (weights, buffers), (x,))["identity"], y)
        torch.vmap(loss)(self.stacked, self.buffers, images, pids).sum().backward()
        clip(self.trained)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def weights(self): return [{name: p[s] for name, p in self.stacked.items()} for s in range(self.seeds)]


class SideBySide(nn.Module):
    "Linear layers of S seeds: [B, S·in] -> [B, S·out]."
    def __init__(self, layers):
        super().__init__()
        self.weight = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]))

    def forward(self, x):
        seeds, _, width = self.weight.shape
        return torch.bmm(x.view(len(x), seeds, width).transpose(0, 1), self.weight.transpose(1, 2)).transpose(0, 1).flatten(1)


def side_by_side(layers):
    "One layer for the channels of all seeds: a convolution with groups, wider statistics, or itself where it has no weights."
    layer = copy.deepcopy(layers[0])
    if isinstance(layer, nn.Linear): return SideBySide(layers)
    if isinstance(layer, nn.Conv2d): layer.groups = len(layers)
    if isinstance(layer, nn.modules.batchnorm._BatchNorm): layer.num_features *= len(layers)
    for name, value in layer.state_dict(keep_vars=True).items():
        if not value.ndim: continue
        joined = torch.cat([getattr(one, name).detach() for one in layers])
        setattr(layer, name, nn.Parameter(joined, value.requires_grad) if isinstance(value, nn.Parameter) else joined)
    return layer


class Grouped:
    "One network with a group of channels for each seed."
    def __init__(self, networks, memory_format):
        self.seeds, self.network = len(networks), copy.deepcopy(networks[0])
        for name, module in networks[0].named_modules():
            if name and not any(True for _ in module.children()):
                self.network.set_submodule(name, side_by_side([n.get_submodule(name) for n in networks]))
        self.network.to(memory_format=memory_format)
        self.memory_format = memory_format
        self.optimizer = adam([p for p in self.network.parameters() if p.requires_grad])

    def step(self, images, pids):
        S, B = pids.shape
        x = images.transpose(0, 1).flatten(1, 2).contiguous(memory_format=self.memory_format)
        logits = self.network(x)["identity"].view(B, S, -1)
        F.cross_entropy(logits.flatten(0, 1), pids.T.flatten(), reduction="sum").div(B).backward()
        parameters = [p for p in self.network.parameters() if p.grad is not None]
        norms = torch.stack([torch.linalg.vector_norm(p.grad.reshape(S, -1), dim=1) for p in parameters]).norm(dim=0)
        for p in parameters:
            factor = (CLIP/(norms + 1e-6)).clamp(max=1).repeat_interleave(len(p)//S)
            p.grad.mul_(factor.view(-1, *[1]*(p.ndim - 1)))
        self.optimizer.step()
        self.optimizer.zero_grad()

    def weights(self):
        of = {name: p if p.ndim == 3 else p.unflatten(0, (self.seeds, -1)) for name, p in self.network.named_parameters()}
        return [{name: p[s] for name, p in of.items()} for s in range(self.seeds)]


def contestants(seeds, backbone, dtype):
    networks = lambda: seeds_networks(seeds, backbone, dtype)
    return {SEPARATE: Separate(networks()), "stacked, vmap": Vmapped(networks()),
            "one network with groups, channels last": Grouped(networks(), torch.channels_last),
            "one network with groups, channels first": Grouped(networks(), torch.contiguous_format)}


def batches(seeds, batch, height, width, dtype):
    "A batch of its own for each seed: images [S, B, 3, H, W], each channels last as the loader gives them, and identities [S, B]."
    g = torch.Generator().manual_seed(0)
    images = torch.randn(seeds, batch, height, width, 3, generator=g, dtype=dtype).permute(0, 1, 4, 2, 3)
    return images, torch.randint(CLASSES, (seeds, batch), generator=g)


def check_agreement(seeds, backbone, batch, height, width, steps=3):
    "The largest difference of any weight from its seed's own after some steps in float64; `SystemExit` above 1e-9."
    images, pids = batches(seeds, batch, height, width, torch.float64)
    made, gaps = contestants(seeds, backbone, torch.float64), {}
    for contestant in made.values():
        for _ in range(steps): contestant.step(images, pids)
    own = made[SEPARATE].weights()
    for name, contestant in made.items():
        gaps[name] = max(float((ours[w].detach() - theirs[w].detach()).abs().max())
                         for ours, theirs in zip(own, contestant.weights(), strict=True) for w in ours)
    if max(gaps.values()) > 1e-9: raise SystemExit(f"weights differ: {gaps}")
    return max(gaps.values())


@call_parse
def main(
    seeds: int = 5,          # networks
    backbone: str = "tiny",  # of the default study
    height: int = 32,        # pixels
    width: int = 16,         # the same
    batch: int = 64,         # images of a seed's step
    steps: int = 20,         # steps of a round
    rounds: int = 9,         # turns
    threads: int = 1,        # torch's; a study has one a process
    out: str = None,         # write the figures to this JSON file
):
    "Check that all come to the same weights, measure them in turns, and print a table of medians and ratios."
    torch.set_num_threads(threads)
    gap = check_agreement(seeds, backbone, batch, height, width)
    images, pids = batches(seeds, batch, height, width, torch.float32)
    def runner(contestant):
        def run():
            for _ in range(steps): contestant.step(images, pids)
        return run
    clock = time.process_time if threads == 1 else time.perf_counter
    taken, _ = in_turns({name: runner(made) for name, made in contestants(seeds, backbone, torch.float32).items()}, rounds, clock=clock)
    rows = [{"name": name, "ms": float(np.median(s)/steps*1e3), "ratio": ratio(s, taken[SEPARATE])} for name, s in taken.items()]
    print(f"{seeds} seeds of {backbone} at {height}×{width}, {batch} images each, {threads} threads, {rounds} rounds of {steps} steps; "
          f"weights agree to {gap:.0e}")
    for r in rows: print("{:42}{:9.1f} ms   {:.3f} ({:.3f} to {:.3f}) of separate steps".format(r["name"], r["ms"], *r["ratio"]))
    if out:
        setting = dict(seeds=seeds, backbone=backbone, height=height, width=width, batch=batch, steps=steps, rounds=rounds, threads=threads,
                       torch=torch.__version__)
        Path(out).write_text(json.dumps({"setting": setting, "difference": gap, "table": rows}, indent=1) + "\n")
