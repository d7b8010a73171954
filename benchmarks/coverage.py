"""Coverage of the intervals of reid_study.evaluation.statistics, by simulation of whole studies, with Monte Carlo errors.

    python benchmarks/coverage.py --out results/benchmarks/coverage.json

Every replicate draws new seeds and new identities. A cell passes when its coverage lies between 93% and 97%, and, for one
recipe against itself on disjoint seeds, when at most 6% of the intervals exclude zero. Stress cells go beyond what the
method assumes; they are reported and judged by nobody. A cell of whole families of hypotheses passes when at most 6.5% of the
families have a wrong verdict, where Holm's correction promises 5%.

    python benchmarks/coverage.py --only families --out results/benchmarks/coverage.json     # keeps the other parts of the file
"""
import itertools
import json
import time
from pathlib import Path

import numpy as np
import scipy
from fastcore.script import call_parse
from scipy import stats

from reid_study.evaluation.coverage import BOTH_SDS, SEED_SDS, simulate, simulate_families
from reid_study.evaluation.shares import rank_correlation

KINDS = {   # what is compared
    "two recipes, paired seeds": dict(),
    "equal mAP, paired seeds": dict(gap=0.0),
    "twin recipes, paired seeds": dict(gap=0.0, identity_sd=0.0),
    "two recipes, disjoint seeds": dict(paired=False),
    "one recipe against itself": dict(gap=0.0, identity_sd=0.0, paired=False),
}
EASE = {80: -0.6, 150: 0.0, 750: 1.0}      # logits, so that the mAP is about that of the data with so many identities
STRESS = {
    "normal seeds, for comparison": dict(),
    "seeds with outliers (t, 3 df)": dict(seed_law=stats.t(3)),
    "one recipe's seeds skewed (exponential)": dict(seed_sd=(0.3, 0.03), seed_law=stats.expon()),
    "very unequal queries": dict(unequal=1.0),
    "20 identities": dict(identities=20),
    "mAP above 90%": dict(ease=3.5),
    "3 seeds": dict(seeds=3),
    "2 seeds": dict(seeds=2),
}

FAMILIES = {   # what the 30 hypotheses of a family are
    "no difference anywhere": dict(),
    "half of them real": dict(real=15, gap=0.6),
    "3% of runs fail": dict(fails=0.03),
    "half of them real, 3% of runs fail": dict(real=15, gap=0.6, fails=0.03),
    "twin recipes": dict(identity_sd=0.0),
    "seeds with outliers (t, 3 df)": dict(seed_law=stats.t(3)),
    "seeds with outliers, 3% of runs fail": dict(seed_law=stats.t(3), fails=0.03),
}


def family_cell(setting, arguments):
    "Run one cell of whole families, print it, and return its setting and its shares, rounded."
    start, found = time.perf_counter(), simulate_families(**arguments)
    numbers = "  ".join(f"{name} {found[name]:.3f}" for name in ("sign", "satterthwaite", "negligible", "tested"))
    print(f"{', '.join(map(str, setting.values())):62}{numbers}  ({time.perf_counter() - start:.0f} s)", flush=True)
    return setting | {name: None if np.isnan(value) else round(value, 4) for name, value in found.items()}


def family_cells(families):
    "All cells of whole families."
    grid = itertools.product(FAMILIES.items(), (5, 10), SEED_SDS, BOTH_SDS)
    return [family_cell(dict(kind=kind, seeds=seeds, seed_variance=seed_sd, interaction=both_sd),
                        dict(seeds=seeds, seed_sd=SEED_SDS[seed_sd], both_sd=BOTH_SDS[both_sd], families=families, rng=2000 + i) | own)
            for i, ((kind, own), seeds, seed_sd, both_sd) in enumerate(grid)]


def cell(setting, arguments):
    "Run one cell, print it, and return its setting, the truth, and the figures of each method, rounded."
    start, result = time.perf_counter(), simulate(**arguments).set_index("method")
    numbers = "  ".join(f"{method} {coverage:.3f}" for method, coverage in result.coverage.items())
    print(f"{', '.join(map(str, setting.values())):62}{numbers}  ({time.perf_counter() - start:.0f} s)", flush=True)
    return setting | dict(truth=round(result.truth.iloc[0], 4)) | result.drop(columns="truth").astype(float).round(4).to_dict("index")


def rank_cell(recipes, tau, law, replicates, rng):
    "Coverage of the interval of Kendall's tau, and of Fisher's with Fieller's variance, for scores with that tau (law 't': outliers)."
    r, half, covered, width, fieller = np.sin(np.pi/2*tau), 1.96*np.sqrt(0.437/(recipes - 4)), 0, 0.0, 0
    for _ in range(replicates):
        x, noise = rng.standard_normal((2, recipes))
        scale = 1 if law == "normal" else np.sqrt(rng.chisquare(3, recipes)/3)
        interval = rank_correlation(x/scale, (r*x + np.sqrt(1 - r*r)*noise)/scale)[1]
        covered, width = covered + (tau in interval), width + interval.high - interval.low
        fieller += abs(np.arctanh(np.clip(interval.estimate, -0.9999, 0.9999)) - np.arctanh(tau)) <= half
    c = covered/replicates
    found = dict(coverage=c, error=(c*(1 - c)/replicates)**0.5, width=width/replicates, fieller=fieller/replicates)
    return dict(recipes=recipes, tau=tau, law=law) | {name: round(value, 5) for name, value in found.items()}


def write(result, families, out):
    "Write the figures, a cell a line."
    result["setting"]["families"] = families
    lines = [f'"{name}": [\n' + ",\n".join(json.dumps(r, separators=(",", ":")) for r in result.pop(name)) + "\n]"
             for name in ("table", "stress", "ranks", "families")]
    Path(out).write_text(json.dumps(result)[:-1] + ",\n" + ",\n".join(lines) + "}\n")


@call_parse
def main(
    out: str = None,              # write the figures here as JSON
    replicates: int = 4000,       # studies a cell
    rank_replicates: int = 500,   # tables a cell of the rank correlation
    families: int = 1000,         # families a cell of whole families
    only: str = "",               # "families": only these; the other parts are those of the file `out`
):
    "Simulate the grid, say which cells miss the band, and write every cell."
    start, table = time.perf_counter(), []
    whole = family_cells(families)
    for r in whole:
        if max(r["sign"], r["negligible"]) > 0.065: print("misses:", r)
    if only == "families":
        if out: write(json.loads(Path(out).read_text()) | dict(families=whole), families, out)
        return
    grid = itertools.product(KINDS.items(), EASE, (5, 10), SEED_SDS, BOTH_SDS)
    for i, ((kind, changes), identities, seeds, seed_sd, both_sd) in enumerate(grid):
        setting = dict(kind=kind, identities=identities, seeds=seeds, seed_variance=seed_sd, interaction=both_sd)
        table.append(cell(setting, dict(seeds=seeds, identities=identities, ease=EASE[identities], seed_sd=SEED_SDS[seed_sd],
                                     both_sd=BOTH_SDS[both_sd], replicates=replicates, rng=i) | changes))
    stress = [cell(dict(stress=name), dict(identities=150, seed_sd=0.2, replicates=replicates, rng=1000 + i) | changes)
              for i, (name, changes) in enumerate(STRESS.items())]
    rng = np.random.default_rng(0)
    ranks = [rank_cell(n, tau, law, rank_replicates, rng) for law in ("normal", "t") for n in (8, 16, 32) for tau in (0.0, 0.4, 0.7, 0.85)]
    for r in ranks:
        print(f"Kendall's tau {r['tau']}, {r['recipes']} recipes, {r['law']}: coverage {r['coverage']:.3f}, Fieller's {r['fieller']:.3f}")

    summary = {}
    for kind in KINDS:
        own = [r for r in table if r["kind"] == kind]
        coverage = [r["crossed"]["coverage"] for r in own]
        summary[kind] = dict(cells=len(own), least=min(coverage), most=max(coverage))
        if not own[0]["truth"]: summary[kind] |= dict(most_false_positives=max(r["crossed"]["excludes_zero"] for r in own))
        print(f"{kind}: " + ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in summary[kind].items()))
    for r in table:
        itself = r["kind"] == "one recipe against itself"
        if not 0.93 <= r["crossed"]["coverage"] <= 0.97 or itself and r["crossed"]["excludes_zero"] > 0.06: print("misses:", r)
    seconds = time.perf_counter() - start
    print(f"{len(table)} cells of {replicates} studies in {seconds:.0f} s")
    if out:
        result = dict(setting=dict(replicates=replicates, rank_replicates=rank_replicates, numpy=np.__version__, scipy=scipy.__version__,
                                   seed_sds=SEED_SDS, both_sds=BOTH_SDS, ease=EASE, seconds=round(seconds)), summary=summary)
        write(result | dict(table=table, stress=stress, ranks=ranks, families=whole), families, out)
