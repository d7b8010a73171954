"""What a learner makes of what it is given: tables, numbers and names that cannot train, and calls that fastai's users expect to work."""
import contextlib
import io
import os
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from cases import Case, check, table
from fastai.callback.core import Callback
from fastai.callback.progress import CSVLogger
from fastai.callback.tracker import EarlyStoppingCallback, ReduceLROnPlateau, SaveModelCallback
from hypothesis import given, settings
from hypothesis import strategies as st

from reid_study.core import InputError
from reid_study.data.samplers import make_sampler
from reid_study.distances import Euclidean
from reid_study.evaluation.retrieval import Protocol
from reid_study.evaluation.scoring import score
from reid_study.losses.mining import margin_sample
from reid_study.training.callbacks import learner_state
from reid_study.training.learner import check_trainable, fit, make_learner

ROWS = [(f"{p}_{c}_{i}.jpg", p, c, "train" if p < 7 else "gallery" if i else "query")
        for p in range(1, 10) for c in (1, 2) for i in range(3)]
PEOPLE = pd.DataFrame(ROWS, columns=["path", "pid", "camid", "split"])
IMAGES = np.random.default_rng(0).integers(0, 256, (len(PEOPLE), 32, 16, 3), dtype=np.uint8)


def learner(recipe="triplet", people=PEOPLE, images=IMAGES, **options):
    torch.manual_seed(0)
    return make_learner(recipe, people, images, **{"p": 3, "k": 2, "dim": 8, "steps": 2} | options)


def quiet(learn):
    stack = contextlib.ExitStack()
    stack.enter_context(learn.no_logging()); stack.enter_context(learn.no_bar())
    return stack


def trained(*epochs, lr=1e-3, **options):
    "A learner after fits of so many epochs."
    learn = learner(**options)
    with quiet(learn):
        for n in epochs: fit(learn, n, lr)
    return learn


def weights(learn): return [v.clone() for part in (learn.model, learn.loss_func) for v in part.state_dict().values() if torch.is_tensor(v)]
def same(one, other): return all(map(torch.equal, weights(one), weights(other)))
def numbers(learn): return learn.history.table.epoch.tolist()


class Stop(Callback):
    "Interrupts a training in the middle of an epoch, as a user does."
    order = 300
    def __init__(self, epoch): self.at = epoch
    def before_batch(self):
        if self.epoch == self.at and self.iter: raise KeyboardInterrupt


def interrupted(folder, at, *epochs, **options):
    "A learner whose last fit was interrupted in an epoch (from 0)."
    learn = learner(folder=folder, **options)
    with quiet(learn):
        for n in epochs[:-1]: fit(learn, n, 1e-3)
        with contextlib.suppress(KeyboardInterrupt), learn.added_cbs(Stop(at)): fit(learn, epochs[-1], 1e-3)
    return learn


def again(folder, *epochs, lr=1e-3, **options): return trained(*epochs, lr=lr, folder=folder, **options)


def printed(call):
    with contextlib.redirect_stdout(io.StringIO()) as out: call()
    return out.getvalue().strip().splitlines()


def with_rows(*rows, **columns): return pd.concat([PEOPLE, pd.DataFrame(rows, columns=PEOPLE.columns)], ignore_index=True).assign(**columns)
def images_of(people): return IMAGES[np.arange(len(people)) % len(IMAGES)]
def on(people, **options): return learner(people=people, images=images_of(people), **options)
def changed(**columns): return PEOPLE.assign(**columns)
def found(learn, callback, epochs=3):
    with quiet(learn), contextlib.redirect_stdout(io.StringIO()): learn.fit(epochs, 1e-3, cbs=callback)
    return learn


def spoil(part):
    def look(folder):
        learn = learner("proxy_anchor")
        with torch.no_grad(): next(getattr(learn, part).parameters()).fill_(torch.nan)
        with quiet(learn): fit(learn, 1, 1e-3)
    return look


def in_last_step(folder):
    "The gradient of the last step is NaN: no loss is computed after it."
    class Spoil(Callback):
        order = -5
        def before_step(self):
            if self.iter == 1: next(self.learn.loss_func.parameters()).grad.fill_(torch.nan)
    learn = learner("proxy_anchor", clip=1e9)
    with quiet(learn): learn.fit(1, 1e-3, cbs=Spoil())


def searched(folder):
    learn = again(folder, 1)
    files = {f: f.read_bytes() for f in folder.iterdir()}
    before, opt, drawn, rng = weights(learn), str(learner_state(learn)["optimizer"]), learn.dls.train.batches.drawn, torch.get_rng_state()
    found = learn.lr_find(num_it=20, show_plot=False)
    assert 1e-7 <= found.valley <= 10
    return (all(map(torch.equal, before, weights(learn))), opt == str(learner_state(learn)["optimizer"]),
            drawn == learn.dls.train.batches.drawn,
            rng.equal(torch.get_rng_state()), numbers(learn) == [1], files == {f: f.read_bytes() for f in folder.iterdir()})


def stopped(folder):
    learn = found(learner(folder=folder), EarlyStoppingCallback("mAP", min_delta=1, patience=1), 5)
    second = found(learner(folder=folder), EarlyStoppingCallback("mAP", min_delta=1, patience=1), 5)
    return numbers(learn) == numbers(second) == [1, 2] and same(learn, second)


def best(folder):
    kept = {}
    class Keep(Callback):
        order = 59
        def after_epoch(self): kept[self.retrieval_metrics.latest["mAP"]] = weights(self.learn)
    learn = learner("proxy_anchor")
    learn.path = folder
    found(learn, [Keep(), SaveModelCallback("mAP")])
    return all(map(torch.equal, weights(learn), kept[max(kept)]))


def reduced(folder):
    learn = found(learner(), ReduceLROnPlateau("mAP", min_delta=1, patience=1, factor=10), 3)
    return np.allclose(learn.history.table.lr, [1e-3, 1e-3, 1e-4])


def logged(folder):
    learn = learner()
    learn.path = folder
    found(learn, CSVLogger("log.csv"), 2)
    return list(pd.read_csv(folder/"log.csv")) == ["epoch", "train_loss", "mAP", "rank1", "time"]


def resumed_as_one(folder):
    interrupted(folder, 1, 2)
    return same(again(folder, 2), trained(2))


def resumed_in_place(folder):
    learn = interrupted(folder, 1, 2)
    with quiet(learn): fit(learn, 2, 1e-3)
    return same(learn, trained(2)) and numbers(learn) == [1, 2]


def second_resumed(folder):
    interrupted(folder, 1, 1, 2)
    return same(again(folder, 1, 2), trained(1, 2))


def said(folder):
    again(folder, 2)
    learn = learner(folder=folder)
    with learn.no_bar(): return printed(lambda: fit(learn, 2, 1e-3))


def shows(**options):
    def look(folder):
        learn = learner(**options)
        with learn.no_bar(): return printed(lambda: fit(learn, 3, 1e-3))
    return look


def scored(folder):
    learn, plain = learner("contrastive_memory"), learner("contrastive_memory")
    for one in (learn, plain):
        torch.manual_seed(0)
        with quiet(one):
            fit(one, 1, 1e-3)
            if one is learn: score(one)
            fit(one, 1, 1e-3)
    return same(learn, plain)


def looked(folder):
    learn = learner()
    learn.dls.show_batch(); learn.dls.train.one_batch(); learn.get_preds(0); learn.summary(); learn.validate()
    with quiet(learn): fit(learn, 1, 1e-3)
    return same(learn, trained(1))


FROM_ZERO = changed(pid=PEOPLE.pid.map({7: 0}).fillna(PEOPLE.pid).astype(int))

TABLES = [
    Case("a table without the column camid", lambda f: on(PEOPLE.drop(columns="camid")), refused=("camid", "exactly one")),
    Case("a table without the column split", lambda f: on(PEOPLE.drop(columns="split")), refused=("split", "exactly one")),
    Case("a table with two columns pid", lambda f: on(pd.concat([PEOPLE, PEOPLE[["pid"]]], axis=1)), refused=("2 columns pid", "one")),
    Case("a dictionary for the table", lambda f: learner(people={"pid": [1]}), refused=("dict", "DataFrame")),
    Case("a split called test", lambda f: on(changed(split=PEOPLE.split.replace("gallery", "test"))), refused=("'test'", "gallery")),
    Case("a split that is missing", lambda f: on(changed(split=PEOPLE.split.where(PEOPLE.pid > 1))), refused=("split", "train")),
    Case("pids that are strings", lambda f: on(changed(pid=PEOPLE.pid.astype(str))), refused=("pid", "factorize")),
    Case("pids of which one is NaN", lambda f: on(changed(pid=PEOPLE.pid.where(PEOPLE.index > 0))), refused=("pid", "1 missing")),
    Case("pids as floats", lambda f: on(changed(pid=PEOPLE.pid*1.0)), refused=("pid", "float64", "astype(int)")),
    Case("cameras as letters", lambda f: on(changed(camid="a")), refused=("camid", "factorize")),
    Case("pids of pandas' nullable integers", lambda f: on(changed(pid=PEOPLE.pid.astype("Int64"))).validate(),
         gives=lambda r: r == learner().validate(), means="are read as whole numbers"),
    Case("a table in which every row has the same index", lambda f: on(PEOPLE.set_index(np.zeros(len(PEOPLE), int))).validate(),
         gives=lambda r: r == learner().validate(), means="is read row by row"),
    Case("no image in the split train", lambda f: on(PEOPLE[PEOPLE.pid > 6]), refused=("train", "give it some")),
    Case("no query and no gallery", lambda f: on(PEOPLE[PEOPLE.pid < 7]), gives=lambda l: numbers(found(l, None, 1)) == [1],
         means="trains without validation"),
    Case("queries without a gallery", lambda f: on(PEOPLE[PEOPLE.split != "gallery"]), refused=("gallery", "add some")),
    Case("a gallery without queries", lambda f: on(PEOPLE[PEOPLE.split != "query"]), refused=("query", "add some")),
    Case("queries that the gallery shows on the same camera only", lambda f: on(changed(camid=1)), refused=("camera", "same_camera")),
    Case("the same, and a protocol in which they match", lambda f: on(changed(camid=1), protocol=Protocol(same_camera="match")).validate(),
         gives=lambda r: 0 < r[0] < 1, means="is scored"),
    Case("queries of pid 0", lambda f: on(FROM_ZERO), refused=("pid 0", "protocol=Protocol(distractor_pid=None)")),
    Case("queries of pid 0, and a protocol in which it is a person", lambda f: on(FROM_ZERO, protocol=Protocol(distractor_pid=None)),
         gives=lambda l: l.validate() == learner().validate() and score(l)[0]["mAP"] == l.validate()[0], means="are scored as any other"),
    Case("junk among the images that train", lambda f: on(with_rows(("j.jpg", -1, 1, "train"))), refused=("pid -1", "junk_pid=None")),
    Case("junk and distractors in the gallery", lambda f: on(with_rows(("j.jpg", -1, 1, "gallery"), ("d.jpg", 0, 1, "gallery"))),
         gives=lambda l: 0 < l.validate()[0] < 1, means="are nobody, and need no permission"),
    Case("a person in train and in the gallery", lambda f: on(with_rows(("x.jpg", 3, 1, "gallery"))),
         refused=("pid 3", "allow_overlap=True")),
    Case("a person in train and in query", lambda f: on(with_rows(("x.jpg", 3, 1, "query"))), refused=("pid 3", "split by identity")),
    Case("a person in train and in the gallery, and allow_overlap=True",
         lambda f: on(with_rows(("x.jpg", 3, 1, "gallery")), allow_overlap=True).validate(), gives=lambda r: 0 < r[0] < 1,
         means="is scored"),
    Case("one image less than rows", lambda f: learner(images=IMAGES[1:]), refused=("53 images", "54 rows")),
]

ARGUMENTS = [
    *(Case(f"{name}={value!r}", lambda f, name=name, value=value: learner(**{name: value}), refused=name) for name, values in {
        "seed": (-1, 2**64, 1.5, "0"), "p": (0, "4"), "k": (0, -2), "steps": (0, 1.5), "dim": (0, 10**12, 8.0),
        "clip": (0, -1, float("nan")),
        "weight_decay": (-0.1, float("inf")), "validate_every": (0, 1.5), "save_every": (-1,), "device": ("abacus", "cuda:99", "meta"),
        "settings": ("margin", 3), "protocol": ("market",), "log": ("mlflow", 3)}.items() for value in values),
    Case("more identities per batch than there are", lambda f: learner(p=7), refused=("p=7", "up to 6")),
    Case("a folder that is a file", lambda f: (f/"x").write_text("") or learner(folder=f/"x"), refused=("x", "another folder")),
    Case("bfloat16 on a CPU", lambda f: learner(precision="bfloat16"), refused=("bfloat16", "float32")),
    *(Case(f"a sampler called with pids {value!r}", lambda f, value=value: make_sampler("pk", value, 2, 2), refused="pids")
      for value in ([], ["a", "b"], [1.0, float("nan")], [[1, 2]])),
    *(Case(f"fit with lr={lr!r}", lambda f, lr=lr: fit(learner(), 1, lr), refused=("lr=", "above 0"))
      for lr in (-1, 0, float("nan"), float("inf"), "0.1", None, True)),
    *(Case(f"fit with {n!r} epochs", lambda f, n=n: fit(learner(), n, 1e-3), refused=("epochs", "whole number"))
      for n in (0, -1, 1.5, "2", None)),
    *(Case(f"learn.{method} with lr={lr!r}", lambda f, method=method, lr=lr: getattr(learner(), method)(1, lr), refused="lr=")
      for method in ("fit", "fit_one_cycle", "fit_flat_cos") for lr in (-1, 0, float("nan"), "0.1", slice(1e-3, -1))),
    *(Case(f"learn.{method} of 0 epochs", lambda f, method=method: getattr(learner(), method)(0), refused="n_epoch")
      for method in ("fit", "fit_one_cycle", "fit_flat_cos")),
    Case("lr_find from 0", lambda f: learner().lr_find(start_lr=0), refused=("start_lr", "above 0")),
    Case("lr_find downwards", lambda f: learner().lr_find(start_lr=1, end_lr=0.1), refused=("end_lr", "above 1")),
    Case("score of no queries", lambda f: score(learner(), queries=0), refused="queries=0"),
    Case("score of a learner without validation images", lambda f: score(on(PEOPLE[PEOPLE.pid < 7])),
         refused=("nothing to score", "gallery")),
]

TINY = {"backbone": "tiny", "weights": Path(__file__).parents[1]/"studies"/"weights"/"tiny.safetensors"}
OWN = {"triplet.distance": Euclidean(normalize=False), "triplet.miner": margin_sample}
OF_NUMPY = {"p": np.int64(3), "k": np.int32(2), "seed": np.int64(0), "flip": np.float64(.5), "weight_decay": np.float64(.05)}
FITS = [
    Case("fit of 2 epochs twice", lambda f: numbers(trained(2, 2)), gives=lambda n: n == [1, 2, 3, 4], means="trains 4 epochs"),
    Case("fit of 2 epochs twice with a folder", lambda f: numbers(again(f, 2, 2)) + pd.read_csv(f/"history.csv").epoch.tolist(),
         gives=lambda n: n == [1, 2, 3, 4]*2, means="trains 4 epochs, and the history has them"),
    Case("a fit that was interrupted, from its folder", resumed_as_one, gives=bool,
         means="resumes, and ends as if it had not been interrupted"),
    Case("a fit that was interrupted and is called again in place", resumed_in_place, gives=bool, means="resumes from its checkpoint"),
    Case("a second fit that was interrupted, from its folder", second_resumed, gives=bool,
         means="resumes after the first, which is not repeated"),
    Case("an interrupted fit that is called with more epochs", lambda f: interrupted(f, 1, 2) and again(f, 3),
         refused=("epochs: 2, not 3", "as before")),
    Case("an interrupted fit that is called with another rate", lambda f: interrupted(f, 1, 2) and again(f, 2, lr=1e-2),
         refused=("checkpoint.pt", "remove the file")),
    Case("a fit that is complete in its folder", said, gives=lambda lines: len(lines) == 1 and "2 of 2 epochs" in lines[0],
         means="is reported and not trained again"),
    Case("a complete fit that is followed by another", lambda f: again(f, 2) and numbers(again(f, 2, 1)), gives=lambda n: n == [1, 2, 3],
         means="trains further"),
    Case("a folder with a trained checkpoint, before any fit", lambda f: again(f, 2).validate() == learner(folder=f).validate(), gives=bool,
         means="gives the learner its trained weights"),
    Case("a distance and a miner of one's own, interrupted, from its folder",
         lambda f: interrupted(f, 1, 2, settings=OWN) and numbers(again(f, 2, settings=OWN)), gives=lambda n: n == [1, 2], means="resumes"),
    Case("weights from a `Path`, interrupted, from its folder",
         lambda f: interrupted(f, 1, 2, **TINY) and numbers(again(f, 2, **TINY)), gives=lambda n: n == [1, 2], means="resumes"),
    Case("another distance of one's own", lambda f: interrupted(f, 1, 2, settings=OWN) and learner(folder=f),
         refused=("settings", "remove it")),
    Case("arguments of NumPy's, from a folder",
         lambda f: interrupted(f, 1, 2, **OF_NUMPY) and numbers(again(f, 2, lr=np.float64(1e-3), **OF_NUMPY)), gives=lambda n: n == [1, 2],
         means="resumes"),
    Case("a checkpoint of another protocol", lambda f: again(f, 1) and learner(folder=f, protocol=Protocol(ap="trapezoid")),
         refused=("protocol", "remove it")),
    Case("a file of weights for a checkpoint", lambda f: torch.save({"w": torch.zeros(2)}, f/"checkpoint.pt") or learner(folder=f),
         refused=("its stamp is missing", "remove it")),
    Case("a folder where the checkpoint should be", lambda f: (f/"checkpoint.pt").mkdir() or learner(folder=f),
         refused=("not a file", "remove it")),
    Case("start_epoch beside a checkpoint", lambda f: learner(folder=f).fit(3, 1e-3, start_epoch=1), refused=("start_epoch", "leave")),
    Case("fit_one_cycle in place of fit", lambda f: learner("proxy_anchor"),
         gives=lambda l: quiet(l) and l.fit_one_cycle(1, 1e-3) is None and same(l, trained(1, recipe="proxy_anchor")), means="is the same"),
    Case("fine_tune", lambda f: learner("identity+triplet"), gives=lambda l: quiet(l) and l.fine_tune(1) is None and numbers(l) == [1, 2],
         means="trains the heads for one epoch, then everything"),
]

FASTAI = [
    Case("lr_find after a training with a folder", searched, gives=all,
         means="leaves weights, optimiser, stream, history and files as they were"),
    Case("lr_find with a rate that is too high from the start", lambda f: learner().lr_find(1e30, 1e31, 20), refused="smaller start_lr"),
    Case("validate", lambda f: trained(1), gives=lambda l: l.validate() == l.history.table[["mAP", "rank1"]].iloc[-1].tolist(),
         means="gives mAP and rank-1"),
    Case("validate on the training images", lambda f: learner().validate(0), refused=("query and gallery", "table")),
    Case("get_preds", lambda f: learner().get_preds(), gives=lambda p: p[0].shape == (18, 8) and p[1].tolist() == PEOPLE.pid[36:].tolist(),
         means="gives embeddings and pids of the validation images"),
    Case("get_preds of the training images", lambda f: learner().get_preds(0),
         gives=lambda p: p[1].tolist() == (PEOPLE.pid[:36] - 1).tolist(),
         means="gives all of them in order"),
    Case("get_preds with losses", lambda f: learner().get_preds(with_loss=True), refused=("with_loss", "learn.model")),
    Case("show_batch", lambda f: learner().dls.show_batch(max_n=4), gives=lambda figure: len(figure.axes) == 4,
         means="is a figure with pids"),
    Case("everything that only looks, before a training", looked, gives=bool, means="does not change the training"),
    Case("score between two fits", scored, gives=bool, means="does not change the second"),
    Case("test_dl", lambda f: learner().dls.test_dl(["a.jpg"]), refused=("embed_folder",)),
    Case("pickle", lambda f: pickle.loads(pickle.dumps(trained(1))), gives=lambda l: same(l, trained(1)), means="keeps the learner"),
    *(Case(name, lambda f, name=name: getattr(learner(), name)(), refused=(f"learn.{name}", instead)) for name, instead in {
        "export": "save_embedder", "predict": "embed_folder", "show_results": "ranking", "tta": "embed", "to_fp16": "precision",
        "to_bf16": "precision"}.items()),
    Case("load of a file that is not there", lambda f: learner().load(f/"none"), refused=("none.pth is missing", "learn.save")),
    Case("two files whose names have a dot", lambda f: [learner().save(f/name).name for name in ("m0.1", "m0.2")],
         gives=lambda names: names == ["m0.1.pth", "m0.2.pth"], means="are two files"),
    Case("save without a name", lambda f: learner().save(""), refused=("names no file", "learn.save('best')")),
    Case("load of a named pipe", lambda f: os.mkfifo(f/"x.pth") or learner().load(f/"x"), refused=("named pipe", "learn.save")),
    Case("load of other weights", lambda f: learner("proxy_anchor").save(f/"x") and learner().load(f/"x"), refused=("x.pth", "learn.save")),
    Case("EarlyStoppingCallback without a monitor", lambda f: found(learner(), EarlyStoppingCallback()),
         refused=("valid_loss", 'monitor="mAP"')),
    Case("EarlyStoppingCallback on scores that are not there in every epoch",
         lambda f: found(learner(validate_every=2), EarlyStoppingCallback("mAP")), refused="validate_every=1"),
    Case("EarlyStoppingCallback", stopped, gives=bool, means="stops, the last epoch is recorded, and a restart trains no further"),
    Case("SaveModelCallback", best, gives=bool, means="brings back the best weights, those of the loss too"),
    Case("ReduceLROnPlateau", reduced, gives=bool, means="lowers the rate, and the history shows the rate that was trained with"),
    Case("CSVLogger", logged, gives=bool, means="writes the table of the screen"),
    Case("a metric of fastai that needs a loss", lambda f: (l := learner(), setattr(l, "metrics", [lambda p, t: 0]), l.fit(1)),
         refused=("metric", "get_preds")),
    Case("recorder.plot_loss", lambda f: trained(3).recorder.plot_loss(skip_start=1), gives=lambda axes: len(axes.lines) == 1,
         means="draws the loss"),
    Case("a training without a terminal", shows(), gives=lambda lines: len(lines) == 3 and all("mAP 0." in line for line in lines),
         means="prints a line an epoch"),
    Case("a validation in every second epoch", shows(validate_every=2),
         gives=lambda lines: ["mAP" in line for line in lines] == [False, True, True],
         means="leaves the others blank"),
]

NUMBERS = [
    Case("weights of the network that are NaN", spoil("model"), refused=("not finite in epoch 1", "learning rate")),
    Case("weights of a loss that are NaN", spoil("loss_func"), refused=("not finite in epoch 1", "learning rate")),
    Case("a last step that spoils the weights of a loss", in_last_step, refused=("weight", "not finite in epoch 1")),
    Case("validation by a network whose statistics are NaN",
         lambda f: (l := learner(), l.model.neck.running_mean.fill_(torch.nan), l.validate()),
         refused=("'after'", "18 of 18", "learning rate")),
]


@table(TABLES)
def test_tables(case, tmp_path): check(case, tmp_path)


@table(ARGUMENTS)
def test_arguments(case, tmp_path): check(case, tmp_path)


@table(FITS)
def test_fits(case, tmp_path): check(case, tmp_path)


@table(FASTAI)
def test_fastai(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check(case, tmp_path)


@table(NUMBERS)
def test_numbers(case, tmp_path): check(case, tmp_path)


LEVELS = st.sampled_from([0, 1, -1, 2, "a", 1.0, None, float("nan"), True])

@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["pid", "camid", "split"]), st.lists(LEVELS, min_size=len(PEOPLE), max_size=len(PEOPLE)))
def test_any_column_is_taken_or_refused(column, values):
    with contextlib.suppress(InputError): check_trainable(PEOPLE.assign(**{column: values}))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["pk", "uniform", "pairs", "triplets", "quadruplets"]),
       st.one_of(st.integers(-3, 10), st.floats(), st.none(), st.text(max_size=2)),
       st.sampled_from(["p", "k", "steps", "seed"]))
def test_any_number_of_a_sampler_is_taken_or_refused(name, value, setting):
    with contextlib.suppress(InputError):
        sampler = make_sampler(name, PEOPLE.pid, **{"p": 2, "k": 2, setting: value})
        assert all(0 < len(batch) for batch in sampler)
