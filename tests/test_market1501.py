"""The real dataset, where it is there."""
from pathlib import Path

import pytest

from reid_study.data.market1501 import ATTRIBUTES, read_market1501
from reid_study.data.splits import hold_out

MARKET = Path(__file__).parents[1]/"data"/"Market-1501-v15.09.15"
pytestmark = pytest.mark.skipif(not MARKET.is_dir(), reason="Market-1501 is not under data/")


def test_the_release_is_complete():
    table = read_market1501(MARKET)
    assert (table.pid == -1).sum() == 3819 and (table.pid == 0).sum() == 2798
    assert table.camid.between(1, 6).all()
    if (MARKET/"market_attribute.mat").exists(): assert (table.loc[table.pid > 0, ATTRIBUTES] >= 0).all(axis=None)


def test_validation_identities():
    table = hold_out(read_market1501(MARKET), 150)
    parts = table.groupby("split").pid.agg(["size", "nunique"])
    assert parts.loc["query", "nunique"] == parts.loc["gallery", "nunique"] == 150 and parts.loc["train", "nunique"] == 601


def test_drawn_people_train_and_photographs_are_scored(tmp_path):
    from reid_study.data.people import few_people
    from reid_study.study.config import make_config
    from reid_study.study.record import read_run
    from reid_study.study.run import make_run
    few_people(tmp_path/"people")
    (tmp_path/MARKET.name).symlink_to(MARKET)
    config = make_config("people", "identity+attributes", score="market1501", epochs=1, steps=2, p=4, k=2, height=32, width=16)
    run = read_run(make_run(config, tmp_path, tmp_path/"runs", "cpu"), config)
    assert run.metrics["queries"] == 3368 and run.metrics["gallery"] == 19732 - 3819 and run.metrics["train_classes"] == 14
