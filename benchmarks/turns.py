"Contestants that take turns in one process, and the ratio of two of them: machines are noisy, and a round is short."
import contextlib
import io
import time

import numpy as np
from scipy.stats import bootstrap


def in_turns(runs, rounds, wait=lambda: None, clock=time.perf_counter):
    """Seconds {name: [rounds]} of the functions of `runs`, after a round that warms up, and what each gave last.

    `wait`: until the device has nothing to do. `clock`: `time.process_time`, of one thread, is disturbed less by other programs.

    The order goes round from turn to turn, forwards and then backwards: each finds memory and caches as another has left them.
    """
    seconds, given, names = {name: [] for name in runs}, {}, list(runs)
    for turn in range(rounds + 1):
        first = turn % len(names)
        for name in (names[first:] + names[:first])[::-1 if turn//len(names) % 2 else 1]:
            run = runs[name]
            with contextlib.redirect_stderr(io.StringIO()):     # progress bars
                wait()
                started = clock()
                given[name] = run()
                wait()
                if turn: seconds[name].append(clock() - started)
    return {name: np.array(s) for name, s in seconds.items()}, given


def ratio(seconds, to):
    "(median, low, high) of the ratio within a round, with the bootstrap's 95% interval, which is short for few rounds and a point for one."
    ratios = seconds/to
    ends = ratios[0], ratios[0]
    if np.ptp(ratios): ends = bootstrap((ratios,), np.median, random_state=0, method="percentile").confidence_interval
    return float(np.median(ratios)), *map(float, ends)
