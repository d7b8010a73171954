"""What needs a GPU: mixed precision, resumed, with the dataset in device memory; and training over two of them."""
import contextlib
import os

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from test_golden import people

from reid_study.training.recipes import RECIPES
from reid_study.training.learner import fit, make_learner

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def learner_of(recipe="identity+triplet", device="cuda", **settings):
    table, _ = people(each=4)
    images = np.random.default_rng(0).integers(0, 256, (len(table), 32, 16, 3), dtype=np.uint8)
    torch.manual_seed(0)
    return make_learner(recipe, table, images, p=4, k=4, steps=5, device=device, **settings)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_training_goes_on_from_its_checkpoint(precision, tmp_path):
    def learner(folder): return learner_of(precision=precision, folder=folder)

    whole, first = learner(tmp_path/"whole"), learner(tmp_path/"cut")
    with whole.no_logging(), whole.no_bar(): history = fit(whole, 4, 1e-3)

    class Stop(Callback):
        def before_batch(self):
            if self.epoch == 2: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), first.no_logging(), first.no_bar(), first.added_cbs(Stop()): fit(first, 4, 1e-3)
    second, trained = learner(tmp_path/"cut"), set()

    class Watch(Callback):
        def before_batch(self): trained.add(self.epoch)
    with second.no_logging(), second.no_bar(), second.added_cbs(Watch()): resumed = fit(second, 4, 1e-3)
    assert second.dls.train.images.is_cuda and len(resumed) == 4 and trained == {2, 3}
    assert np.allclose(history.loss, resumed.loss, rtol=0.05)


def _distance(state, other):
    "Between the weights of two states, all as one vector."
    difference = [v.double() - other[name].double() for name, v in state.items() if v.is_floating_point() and "running" not in name]
    return torch.cat([d.flatten() for d in difference]).norm()


def _state(learn):
    return {name: v.cpu() for part in (learn.model, learn.loss_func) for name, v in part.state_dict().items() if torch.is_tensor(v)}


def _trained(context, device, recipe):
    """(losses of each epoch, all weights and statistics) of a training.

    Its augmentation does nothing, since a GPU draws other numbers for parts of a batch.
    """
    torch.backends.cudnn.allow_tf32 = False
    learn = learner_of(recipe, device, flip=0., shift=0., erase=0.)
    class Watch(Callback):
        def after_batch(self): learn.was_recorded = {"forward" in vars(self.learn.model), "change" in vars(self.dls.train.transform)}
    with learn.no_logging(), learn.no_bar(), learn.added_cbs(Watch()), context(learn): losses = fit(learn, 2, 1e-4).loss.tolist()
    return losses, _state(learn), learn.was_recorded


def _rank(rank, folder, kind, recipe, shard):
    from reid_study.training.distributed import over_ranks, sharded_identity
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    if kind == "cuda": torch.cuda.set_device(rank)
    backend = "nccl" if kind == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, init_method=f"file://{folder}/meeting", rank=rank, world_size=2)

    @contextlib.contextmanager
    def context(learn):
        with over_ranks(learn), sharded_identity(learn) if shard else contextlib.nullcontext(): yield
    torch.save(_trained(context, f"cuda:{rank}" if kind == "cuda" else "cpu", recipe)[:2], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("recipe", ["identity+triplet", "contrastive_memory", "verification"])
def test_a_recorded_training_is_the_one_that_it_records(recipe):
    @contextlib.contextmanager
    def not_recorded(learn):
        with learn.removed_cbs([learn.recorded]): yield

    losses, recorded, was = _trained(contextlib.nullcontext, "cuda", recipe)
    other_losses, other, was_not = _trained(not_recorded, "cuda", recipe)
    assert was == {True} and was_not == {False}
    start = _state(learner_of(recipe))
    assert np.allclose(losses, other_losses, rtol=1e-3) and recorded.keys() == other.keys()
    # recording left the statistics as they were
    assert all(torch.equal(v, other[name]) for name, v in recorded.items() if "tracked" in name)
    assert all(torch.allclose(v, other[name], rtol=1e-2, atol=1e-3) for name, v in recorded.items() if "running" in name)
    assert _distance(recorded, other) < 0.1*_distance(other, start)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_trains_in_bfloat16(recipe):
    learn = learner_of(recipe, precision="bfloat16")
    with learn.no_logging(), learn.no_bar(): history = fit(learn, 2, 1e-3)
    assert len(history) == 2 and np.isfinite(history.loss).all() and "forward" not in vars(learn.model)
    shown = np.array(learn.recorder.losses)
    # NaN until the first has arrived
    assert len(shown) == 10 and np.isfinite(shown[np.isfinite(shown).argmax():]).all() and np.isfinite(shown[-1])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no two GPUs")
@pytest.mark.parametrize("recipe,shard", [("identity+triplet", False), ("identity+triplet", True), ("contrastive_memory", False),
                                          ("verification", False)])
def test_two_gpus_train_as_one(recipe, shard, tmp_path, kind="cuda"):
    torch.multiprocessing.spawn(_rank, (str(tmp_path), kind, recipe, shard), nprocs=2)
    (losses, state), (other_losses, other_state) = (torch.load(tmp_path/f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert losses == other_losses and state.keys() == other_state.keys()
    assert all(torch.equal(state[name], other_state[name]) for name in state)
    start, (alone_losses, alone, _) = _state(learner_of(recipe, kind)), _trained(contextlib.nullcontext, kind, recipe)
    assert np.allclose(losses, alone_losses, rtol=1e-3) and state.keys() == alone.keys()
    running = [name for name in state if "running" in name]
    assert running and all(torch.allclose(state[name], alone[name], rtol=1e-2, atol=1e-3) for name in running)
    assert _distance(state, alone) < 0.1*_distance(alone, start)
