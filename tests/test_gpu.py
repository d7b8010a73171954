"""What needs a GPU: mixed precision, resumed, with the dataset in device memory."""
import numpy as np
import pandas as pd
import pytest
import torch

from reid_study.training.learner import fit, make_learner

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_training_goes_on_from_its_checkpoint(precision, tmp_path):
    table = pd.DataFrame([(f"{p:04}_c{c}_{i}.jpg", p, c) for p in range(1, 13) for c in range(1, 4) for i in range(4)], columns=["path", "pid", "camid"])
    table["split"] = np.where(table.pid <= 8, "train", np.where(~table.duplicated(["pid", "camid"]), "query", "gallery"))
    images = np.random.default_rng(0).integers(0, 256, (len(table), 32, 16, 3), dtype=np.uint8)

    def learner(folder): return make_learner("identity+triplet", table, images, p=4, k=4, steps=5, precision=precision, device="cuda", folder=folder)

    whole, first = learner(tmp_path/"whole"), learner(tmp_path/"cut")
    with whole.no_logging(), whole.no_bar(): history = fit(whole, 4, 1e-3)

    class Stop(type(first.loss_log).__mro__[1]):
        def before_batch(self):
            if self.epoch == 2: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), first.no_logging(), first.no_bar(), first.added_cbs(Stop()): fit(first, 4, 1e-3)
    second = learner(tmp_path/"cut")
    with second.no_logging(), second.no_bar(): resumed = fit(second, 4, 1e-3)
    assert second.dls.train.images.is_cuda and len(resumed) == 4 and np.isfinite(resumed.loss).all()
    assert np.allclose(history.loss[:2], resumed.loss[:2], rtol=0.05)
