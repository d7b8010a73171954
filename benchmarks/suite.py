"""How long the tests take: the whole of `make test`, and its longest chapter.

    python benchmarks/suite.py --out results/benchmarks/suite.json
"""
import json
import os
import re
import subprocess
import time
from pathlib import Path

from fastcore.script import call_parse


@call_parse
def main(out: str = None):     # write the figures here as JSON
    "Run `make test`, print what it prints, and write JSON if it passes."
    start, root = time.perf_counter(), Path(__file__).parents[1]
    done = subprocess.Popen(["make", "test"], cwd=root, stdout=subprocess.PIPE, text=True)
    lines = []
    for line in done.stdout:
        print(line, end="", flush=True)
        lines.append(line)
    if done.wait(): raise SystemExit("the tests have failed")
    chapters = {name: float(seconds) for seconds, name in re.findall(r"^ *([\d.]+) s  (\S+)\.ipynb$", "".join(lines), re.M)}
    longest = max(chapters, key=chapters.get)
    found = dict(minutes=(time.perf_counter() - start)/60, cores=os.cpu_count(), chapters=len(chapters), longest=longest,
                 longest_seconds=chapters[longest])
    print(json.dumps(found, indent=1))
    if out: Path(out).write_text(json.dumps(found, indent=1) + "\n")
