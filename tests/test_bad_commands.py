"What the command line makes of wrong arguments, other terminals, closed pipes, interruptions, and errors that nobody foresaw."
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cases import Case, check, table

from reid_study.cli import COMMANDS, main, parse_changes, told
from reid_study.core import InputError
from reid_study.data.people import few_people
from reid_study.study.ablate import ablation, parse_seeds, parse_values
from reid_study.study.config import make_config
from reid_study.study.parameters import read_parameters
from reid_study.study.spec import make_study
from reid_study.study.worker import check_parameters

RECIPE = Path(__file__).parents[1]/"nbs"/"study"/"recipe.ipynb"
TINY = "validation=4 epochs=1 steps=2 p=4 k=2 height=32 width=16".split()
ENVIRONMENT = {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    few_people(folder/"people")
    return folder

def command(*arguments, environment=(), **kwargs):
    "A process of the command line."
    return subprocess.Popen([sys.executable, "-m", "reid_study.cli", *map(str, arguments)],
                            env=os.environ | ENVIRONMENT | dict(environment), stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kwargs)

def refused(capsys, *arguments):
    "The line on which the command line refuses something, with exit code 2."
    assert main([*map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    err = err.splitlines(keepends=True)[-1]         # there may be a progress bar before
    assert err.startswith("reid-study: ") and len(err) < 800 and "Traceback" not in err + out, err
    return err


CHANGES = {"lr=.001": ("lr", .001), "lr=1e-3": ("lr", .001), "pretrained=True": ("pretrained", True),
           "pretrained=false": ("pretrained", False),
           "steps=1_000": ("steps", 1000), "weights=": ("weights", ""), "weights=a=b.pth": ("weights", "a=b.pth"),
           "backbone=no": ("backbone", "no")}

CASES = [*[Case(f"--set {text}", lambda folder, text=text: parse_changes([text])[0], gives=lambda found, pair=pair: found == dict([pair]),
                means=f"is {value!r}") for text, pair in CHANGES.items() for value in pair[1:]],
         Case("--set triplet.margin=0.5", lambda folder: parse_changes(["triplet.margin=0.5"]),
              gives=lambda found: found == ({}, {"triplet.margin": .5}), means="is a setting of the recipe"),
         *[Case(f"--set {text}", lambda folder, text=text: make_config("people", "triplet", **parse_changes([text])[0]), refused=words)
           for text, words in {"lr=nan": ("lr='nan'", "number"), "lr=1e400": ("lr=inf", "finite"), "k=4.0": ("k=4.0", "whole number"),
                               "pretrained=yes": ("pretrained='yes'", "true or false"), "seed=3": ("--set seed", "argument of its own"),
                               "epochs": ("NAME=VALUE",), "=3": ("NAME=VALUE",), "settings=3": ("--set settings", "triplet.margin=0.5"),
                               "dim=[1]": ("dim='[1]'", "whole number"), "epocs=3": ("epocs", "epochs"),
                               "ranks=two": ("ranks='two'",)}.items()],
         Case("--set lr=1 lr=2", lambda folder: parse_changes(["lr=1", "lr=2"]), refused=("--set 'lr' is given twice", "give it once"))]

@table(CASES)
def test_changes(case, tmp_path): check(case, tmp_path)


def ablated(over, seeds="0,1"): return make_study("one", ablation("triplet", parse_values(over), parse_seeds(seeds)))

ABLATIONS = [
    *[Case(f"ablate triplet --over {over}", lambda folder, over=over: ablated(over), refused=words) for over, words in {
        "triplet.margn=0.1,0.3": ("each 1: triplet.margn", "triplet.margin"), "triplet.margin=": ("triplet.margin", "empty"),
        "triplet.margin=0.1": ("one value", "two or more"), "triplet.margin=0.1,,0.3": ("empty", "commas between them"),
        "triplet.margin=small,large": ("triplet.margin", "margin='small'"), "triplet.margin=0.3,.30": (".30 stands twice", "give it once"),
        "epochs=2.5,3": ("epochs=2.5", "whole number"), "epocs=2,3": ("epocs: unknown key", "epochs"), "seed=1,2": ("seed: unknown key",),
        "dataset=people,market1501": ("dataset: unknown key",), "margin": ("SETTING=VALUE", "triplet.margin=0.1,0.3,0.5"),
        "triplet.margin=0.1,nan": ("each 2: triplet.margin", "margin='nan'")}.items()],
    *[Case(f"ablate triplet --seeds {seeds}", lambda folder, seeds=seeds: ablated("triplet.margin=0.1,0.3", seeds), refused=words)
      for seeds, words in {"0,0": ("--seeds: 0 stands twice", "give it once"), "0,two": ("--seeds='two'", "whole number"),
                           "": ("--seeds", "0,1,2"), "0,2": ("--seeds=0,2", "follow each other"),
                           "-1,0": ("--seeds=-1", "at least 0")}.items()],
    Case("ablate triplet --seeds 4,3", lambda folder: ablated("triplet.margin=0.1,0.3", "4,3"), gives=lambda study: study.first_seed == 3,
         means="are the seeds 3 and 4"),
    *[Case(f"papermill -p {name} {text}", lambda folder, name=name, text=text: read_parameters(**{name: text}), refused=(name, *words))
      for name, text, *words in (("changes", "epochs=5", "mapping or a list", '{"epochs": 5}'),
                                 ("changes", '{"epochs": 5', "not valid YAML"),
                                 ("changes", '{"epochs": 5, "epochs": 6}', "stands twice"), ("seeds", "0,1,2", "[0, 1, 2]"),
                                 ("settings", "null", "mapping or a list"), ("each", "!!python/name:os.system", "tag"))],
    Case("papermill -p seeds {}", lambda folder: check_parameters(RECIPE, {"seeds": "{}"}),
         refused=("recipe: seeds={}", "like its default"))]

@table(ABLATIONS)
def test_ablations_and_parameters(case, tmp_path): check(case, tmp_path)


LINES = {     # arguments -> words of the line
    "trian": ("unknown command 'trian'", "search, serve, study"),
    "run nothing": ("unknown recipe 'nothing'",),
    "run identity --device abacus": ("'abacus'", "use c"),
    "run identity --device meta": ("'meta'", "use c"),
    "study studies/embedded.yaml --device abacus": ("'abacus'", "choose from: cpu, cuda"),
    "study studies/embedded.yaml --device cpu:0 --profile slurm": ("'cpu:0'", "choose from: cpu, cuda"),
    "study /dev/zero": ("/dev/zero", "is a device"),
    "study studies/embedded.yaml --jobs 0": ("jobs=0", "at least 1"),
    "run identity --seed 18446744073709551616": ("seed=18446744073709551616", "less than"),
    "run identity --set dim=1000000000000": ("dim=1000000000000", "16384"),
    "run identity --set weights=none.pth": ("none.pth", "is missing"),
    "run identity --log mlflow": ("unknown log 'mlflow'", "tensorboard, wandb"),
    "ablate nothing --over lr=.1,.2": ("unknown recipe 'nothing'",),
    "ablate triplet --over lr=.1,.2 --set lr=.3": ("lr", "fixed by --set"),
    "report nowhere": ("nowhere",),
    "export nowhere out": ("nowhere",),
    "embed nowhere images --device abacus": ("'abacus'", "use c"),
    "embed nowhere images": ("nowhere", "reid-study export"),
    "compare nowhere a.jpg b.jpg": ("nowhere", "reid-study export"),
    "evaluate nowhere people": ("nowhere", "reid-study export"),
    "run identity --dataset ./nowhere": ("nowhere is not a folder",),
    "data people --pattern x": ("--pattern", "photographs of your own"),
    "data people --data /dev/null": ("/dev/null",)}

UNUSUAL = {     # what surrounds a command -> (shell line, exit code, words of its only line of errors; none: it says nothing)
    "a closed output": ('"$@" >&-', "--help", 0, ()),
    "closed errors": ('"$@" 2>&-', "run nothing", 2, ()),
    "closed streams": ('"$@" <&- >&- 2>&-', "run nothing", 2, ()),
    "an output to a full device": ('"$@" >/dev/full', "--help", 2, ("the output", "No space left on device", "free some space")),
    "a title that is not UTF-8": ('"$@" --title "$(printf "\\377")"', "search a b c", 2, ("udcff", "UTF-8"))}

@pytest.mark.parametrize("what", UNUSUAL)
def test_unusual_surroundings(what):
    line, arguments, code, words = UNUSUAL[what]
    command = ["sh", "-c", line, "sh", sys.executable, "-m", "reid_study.cli", *arguments.split()]
    done = subprocess.run(command, env=os.environ | ENVIRONMENT, cwd=Path(__file__).parents[1], capture_output=True, timeout=120)
    err = done.stderr.decode()
    assert done.returncode == code and err.count("\n") == bool(words) and all(word in err for word in words), err

UNUSUAL_HERE = {     # what surrounds a command -> (environment, arguments, words of its only line of errors)
    "RANK=0 and nothing else of torchrun's": ({"RANK": "0"}, ["run", "identity"], ("RANK is set", "WORLD_SIZE", "torchrun")),
    "RANK=1 and nothing else of torchrun's": ({"RANK": "1"}, ["run", "identity"], ("RANK is set", "WORLD_SIZE", "torchrun")),
    "RANK=1 and a command that torchrun does not start": ({"RANK": "1"}, ["report", "nowhere"], ("nowhere",)),
    "a newline in a path": ({}, ["data", "market1501", "--data", "a\nb"], ("a b/Market-1501-v15.09.15", "is not a folder")),
    "a bell in a path": ({}, ["data", "market1501", "--data", "a\ab"], ("a\\x07b/Market", "is not a folder")),
    "a device for the pages of a report": ({}, ["report", "results/embedded", "--out", "/dev/null"], ("/dev/null", "another place"))}

@pytest.mark.parametrize("what", UNUSUAL_HERE)
def test_unusual_surroundings_in_this_process(what, capsys, monkeypatch):
    environment, arguments, words = UNUSUAL_HERE[what]
    monkeypatch.chdir(Path(__file__).parents[1])
    for name, value in environment.items(): monkeypatch.setenv(name, value)
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and all(word in err for word in words), err

@pytest.mark.parametrize("line", LINES)
def test_a_wrong_argument_is_refused_in_a_line(line, capsys, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    err = refused(capsys, *line.split())
    assert all(word in err for word in LINES[line]), err

def test_torchrun_chooses_devices_itself(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    assert "--device" in refused(capsys, "run", "identity", "--device", "cpu")

def test_a_training_that_diverges_says_so_in_a_line(data, tmp_path, capsys):
    err = refused(capsys, "run", "identity", "--set", *TINY, "lr=1e30", "--data", data, "--runs", tmp_path, "--device", "cpu")
    assert all(word in err for word in ("identity", "not finite in epoch 1", "learning rate", "lower"))

def test_the_largest_seed_trains(data, tmp_path):
    assert main(["run", "triplet", "--seed", str(2**63 - 1), "--set", *TINY, f"split_seed={2**63 - 1}", "--data", str(data),
                 "--runs", str(tmp_path), "--device", "cpu"]) == 0

@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help(name, capsys):
    try: code = main([*filter(None, [name]), "--help"])
    except SystemExit as e: code = e.code
    assert code == 0 and "usage: reid-study" in capsys.readouterr().out

@pytest.mark.parametrize("arguments", ["run identity --lerning-rate 3", "run identity --seed abc", "embed", "data people --data",
                                       "ablate triplet"])
def test_what_the_parser_refuses(arguments, capsys):
    with pytest.raises(SystemExit) as ended: main(arguments.split())
    assert ended.value.code == 2 and "usage" in capsys.readouterr().err


# ---- what nobody foresaw

def broken(): raise ZeroDivisionError("one\ntwo")

def test_what_is_unforeseen_leaves_its_traceback_in_a_file(monkeypatch, capsys):
    monkeypatch.setitem(COMMANDS, "break", broken)
    assert main(["break"]) == 70
    err = capsys.readouterr().err
    file = Path(err.split("traceback is in ")[1].split(",")[0])
    assert err.count("\n") == 1 and "ZeroDivisionError" in err and "Traceback" in file.read_text("utf-8")
    assert file.parent.stat().st_mode & 0o077 == 0, "others can read it"

def test_an_error_of_a_library_is_unforeseen_and_one_of_ours_is_not():
    def caught(call):
        try: call()
        except RuntimeError as e: return told(e)[0]
    import torch
    exec("def ours(): raise RuntimeError('2 runs failed')", of_ours := {"__name__": "reid_study.study.run"})
    assert caught(lambda: torch.zeros(2) @ torch.zeros(3)) == 70 and caught(of_ours["ours"]) == 2

def test_an_error_in_a_callback_is_told_without_its_heading():
    assert told(InputError("Exception occurred in `A`:\n\n\tp=1: use more")) == (2, "p=1: use more")


# ---- terminals and signals

@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"},
                                         {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}], ids=str)
def test_a_terminal_that_knows_few_letters(environment, tmp_path):
    "A message with a path, and a report with signs that are not among its letters."
    file = tmp_path/("study.yaml" if "LC_ALL" in environment else "ü×.yaml")
    file.write_text("title: ü×\n", "utf-8")
    _, err = (process := command("study", file, environment=environment)).communicate(timeout=120)
    assert process.returncode == 2 and b"is missing" in err and err.count(b"\n") == 1
    process = with_command("print('64×32 – ü')", tmp_path, environment)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and out.startswith(b"64") and not err

def with_command(does, folder, environment=()):
    "A process of the command line that has another command, and runs it."
    (folder/"program.py").write_text(f"import time\nfrom reid_study.cli import COMMANDS, main\ndef new(): {does}\n"
                                     "COMMANDS['new'] = new\nraise SystemExit(main(['new']))\n", "utf-8")
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)      # a shell in the background has it ignored
    return subprocess.Popen([sys.executable, folder/"program.py"], env=os.environ | ENVIRONMENT | dict(environment),
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=heard)

def test_a_reader_that_has_seen_enough(data):
    "As in `reid-study data people | head -1`."
    process = command("data", "people", "--data", data)
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(120) == 141 and b"Traceback" not in err and b"Broken pipe" not in err, err

def test_interrupted_by_the_keyboard(tmp_path):
    process = with_command("print('begun', flush=True); time.sleep(60)", tmp_path)
    assert process.stdout.readline() == b"begun\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and err == b"reid-study: stopped\n"
