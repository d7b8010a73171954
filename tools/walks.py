"""Walk as four new users would, in a fresh environment and an empty folder, and write down what they typed and saw: docs/walks.md."""
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fastcore.script import call_parse

from reid_study.core import listed

ROOT = Path(__file__).resolve().parents[1]
PEOPLE = """from pathlib import Path
from reid_study.data.market1501 import parse_name
from reid_study.data.people import make_people

people = make_people("drawn", n_train=24, n_test=2, n_distractors=1, n_junk=1, progress=False)
for path in sorted((people/"bounding_box_train").glob("*.jpg")):
    person, camera = parse_name(path)
    (place := Path("photos", f"person{person:04d}", f"camera{camera}")).mkdir(parents=True, exist_ok=True)
    path.rename(place/path.name)
"""
LOSS = """import torch
from reid_study.losses import TripletLoss
from reid_study.evaluation import evaluate_retrieval

embeddings = torch.randn(64, 256, requires_grad=True)
pids = torch.arange(1, 17).repeat_interleave(4)
TripletLoss(margin=0.3)(embeddings, pids).backward()
found = embeddings.detach()
print(evaluate_retrieval(found[::2], found[1::2], pids[::2], pids[1::2]))
"""
FILES = {"people.py": PEOPLE, "loss.py": LOSS}
WALKS = {
    "An engineer lifts one loss": ("The core alone, beside torch. `loss.py` calls a loss and the evaluation, much as the README does.", [
        "pip install WHEEL",
        "python loss.py"]),
    "A student runs the study": ("From here on with the extra `study`. The published runs are taken, so that only the pages are made.", [
        "pip install 'WHEEL[study]'",
        "reid-study run triplet",
        "reid-study study studies/embedded.yaml --results published"]),
    "A practitioner brings photographs": ("`people.py` draws people where photographs would be, in `photos/PERSON/CAMERA`.", [
        "python people.py",
        "reid-study weights",
        "reid-study run identity+triplet --dataset photos --set backbone=mobilenet_v2 weights=data/weights/mobilenet_v2.safetensors",
        "reid-study export RUN embedder",
        "reid-study evaluate embedder photos",
        "reid-study search embedder photos photos"]),
    "A researcher ablates a margin": ("", [
        "reid-study ablate triplet --over triplet.margin=0.1,0.3,0.5 --seeds 0,1,2",
        "papermill TEMPLATES/recipe.ipynb out.ipynb -p recipe triplet -p changes '{\"triplet.margin\": 0.5}' -p seeds '[0, 1]' "
        "--log-level WARNING --no-progress-bar"]),
}
MOST = 24     # lines that are shown of what a command prints


def typed(line, home, names):
    "(What is shown of a command and of what it printed, what it printed). `names`: what stands for a path in the line."
    command = line
    for name, value in names.items(): command = command.replace(name, str(value))
    started, environment = time.monotonic(), os.environ | {"PATH": f"{home/'venv'/'bin'}:{os.environ['PATH']}", "PIP_QUIET": "2"}
    for name in ("PYTHONPATH", "PIP_CONSTRAINT"): environment.pop(name, None)
    done = subprocess.run(command, shell=True, cwd=home, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    seconds, lines = time.monotonic() - started, done.stdout.replace(str(home), "...").replace(str(ROOT), "CLONE").rstrip().splitlines()
    if len(lines) > MOST: lines = [*lines[:MOST//2], f"[{len(lines) - MOST} lines]", *lines[-MOST//2:]]
    shown = "\n".join([f"$ {line}", *lines, f"[{seconds:.0f} s]"])
    print(shown, flush=True)
    if done.returncode: raise SystemExit(f"{line} ended with {done.returncode}")
    return shown, done.stdout


def walk(home, python):
    "The Markdown of all walks, in an empty folder `home`, with a Python interpreter."
    subprocess.run([python, "-m", "venv", home/"venv"], check=True)
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", home/"dist", ROOT], check=True, capture_output=True)
    for name, text in FILES.items(): (home/name).write_text(text)
    wheel = next((home/"dist").glob("*.whl"))
    version = subprocess.run([home/"venv"/"bin"/"python", "-c", "import platform; print(platform.python_version())"], check=True,
                             capture_output=True, text=True).stdout.strip()
    parts, names = [], {"WHEEL": wheel, "TEMPLATES": ROOT/"nbs"/"study"}
    for title, (text, lines) in WALKS.items():
        parts.append(f"## {title}\n\n{text}".rstrip() + "\n\n```text")
        for line in lines:
            if "published" in line: (home/"published").symlink_to(ROOT/"results"/"embedded")
            shown, said = typed(line, home, names)
            if run := re.findall(r"runs/run/\w+", said): names["RUN"] = run[-1]
            parts.append(shown)
        parts.append("```\n")
    return version, "\n".join(parts)


@call_parse
def main(python: str = sys.executable,     # The Python interpreter to walk with
         also: str = "",                   # Others that walk too, with commas between them
         write: bool = False):             # Write docs/walks.md
    "Walk as four users in fresh environments without constraints; the first command that fails ends it."
    walked = []
    for one in (python, *filter(None, also.split(","))):
        with tempfile.TemporaryDirectory() as folder: walked.append(walk(Path(folder).resolve(), one))
    (version, text), *others = walked
    too = f" The walks pass with Python {listed(other for other, _ in others)} too." if others else ""
    head = f"""# Four walks

What four new users type and see: each in an empty folder and a fresh environment with the newest packages that the bounds in settings.ini
allow, without the pinned versions. `python tools/walks.py --write` made this page, with Python {version} on {os.cpu_count()} cores
({platform.machine()}, no GPU); take the seconds as an order of magnitude.{too}
"""
    if write: (ROOT/"docs"/"walks.md").write_text(f"{head}\n{text}")
