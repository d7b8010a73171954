"""What loading, augmentation and the learner add to the bare training step.

The bare step trains on one fixed batch. Beside it, in turn, round by round in one process: the same
step on batches from the loader (decoded store, sampler, augmentation), and the whole Learner with its
callbacks. Machines are noisy, so each figure is a median over rounds of the ratio within a round.
"""
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from fastcore.script import call_parse
from scipy.stats import bootstrap

from reid_study.data.images import image_store
from reid_study.data.people import make_people
from reid_study.data.splits import hold_out
from reid_study.runs import PROTOCOLS, read_people
from reid_study.training.learner import fit, make_learner


def rounds(learn, steps, n):
    "Seconds a step, [n, 3]: bare, with loading and augmentation, the whole Learner."
    network, objective = learn.model.train(), learn.loss_func
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, fused=True)

    def step(images, targets):
        objective(network(images), targets).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5)
        optimizer.step()
        optimizer.zero_grad()

    fixed = learn.dls.train.one_batch()
    learn.retrieval_metrics.before_validate = learn.cancel_validation
    times = []
    for i in range(n + 1):
        a = time.perf_counter()
        for _ in range(steps): step(*fixed)
        b = time.perf_counter()
        for batch in learn.dls.train: step(*batch)
        c = time.perf_counter()
        with learn.no_logging(), learn.no_bar(): fit(learn, 1, 1e-3)
        times.append((b - a, c - b, learn.history.rows[-1]["seconds"]))
    return np.array(times[1:])/steps   # the first round warms up


@call_parse
def main(n: int = 15,          # Rounds
         steps: int = 10,      # Steps a round
         threads: int = 1,     # CPU threads
         device: str = "cpu",  # cpu or cuda
         out: str = None):     # Write the figures to this JSON file
    "Loading and augmentation against the bare training step, on the protocol of the embedded dataset."
    from fastai.callback.core import CancelValidException
    torch.set_num_threads(threads)
    protocol = PROTOCOLS["people"]
    with tempfile.TemporaryDirectory() as tmp:
        make_people(Path(tmp)/"people", n_train=40, n_test=2, n_distractors=2, n_junk=2)
        table = hold_out(read_people(Path(tmp)/"people"), 8)
        images = image_store(table.path, (protocol["height"], protocol["width"]), Path(tmp)/"cache")
    learn = make_learner("identity+triplet", table, images, steps=steps, device=device,
                         **{k: protocol[k] for k in ("backbone", "dim", "p", "k", "flip", "shift", "erase")})

    def cancel(): raise CancelValidException
    learn.cancel_validation = cancel
    times = rounds(learn, steps, n)
    figures = {"threads": threads, "device": device, "batch": 64, "rounds": n, "bare_ms": float(np.median(times[:, 0])*1e3)}
    for name, column in (("loading", 1), ("learner", 2)):
        ratio = times[:, column]/times[:, 0]
        low, high = bootstrap((ratio,), np.median, random_state=0, method="percentile").confidence_interval
        figures |= {name: float(np.median(ratio)), f"{name}_low": float(low), f"{name}_high": float(high)}
    print(f"bare step on a fixed batch of 64: {figures['bare_ms']:.1f} ms ({threads} threads, {device})")
    print(f"with loading and augmentation:    {figures['loading']:.3f} times that (95% {figures['loading_low']:.3f} to {figures['loading_high']:.3f})")
    print(f"the whole Learner, an epoch:      {figures['learner']:.3f} times that (95% {figures['learner_low']:.3f} to {figures['learner_high']:.3f})")
    if out: Path(out).write_text(json.dumps(figures, indent=1) + "\n")
