"Contestants that take turns in one process, and the ratio of two of them: machines are noisy, and a round is short."
import contextlib
import io
import random
import time

import numpy as np
from scipy.stats import bootstrap


def in_turns(runs, rounds, wait=lambda: None):
    """Seconds {name: [rounds]} of the functions of `runs`, after a round that warms up, and what each gave last. `wait`: until the device has nothing to do.

    Each round has its own random order: a contestant finds the memory as the one before left it, which can be worth some per cent.
    """
    seconds, given, rng = {name: [] for name in runs}, {}, random.Random(0)
    for turn in range(rounds + 1):
        for name, run in rng.sample(list(runs.items()), len(runs)):
            with contextlib.redirect_stderr(io.StringIO()):     # progress bars
                wait()
                started = time.perf_counter()
                given[name] = run()
                wait()
                if turn: seconds[name].append(time.perf_counter() - started)
    return {name: np.array(s) for name, s in seconds.items()}, given


def ratio(seconds, to):
    "(median, low, high) of the ratio within a round; the ends of the bootstrap's 95% interval, which is short for few rounds and a point for one."
    ratios = seconds/to
    ends = bootstrap((ratios,), np.median, random_state=0, method="percentile").confidence_interval if np.ptp(ratios) else (ratios[0], ratios[0])
    return float(np.median(ratios)), *map(float, ends)
