"""The longest modules come first, longest first, so that at the end no worker waits long for another; and what several modules use."""
import pytest

from reid_study.data.people import few_people
from reid_study.inference.export import load_embedder, save_embedder
from reid_study.study.config import make_config
from reid_study.study.run import make_run

LONGEST = ("test_drill.py", "test_study.py", "test_pages.py", "test_market1501.py", "test_wheel.py", "test_report.py", "test_networks.py",
           "test_distributed.py", "test_bad_commands.py")
PLACE = {name: place for place, name in enumerate(LONGEST)}


def pytest_collection_modifyitems(items): items.sort(key=lambda item: PLACE.get(item.path.name, len(PLACE)))


@pytest.fixture(scope="session")
def embedder(tmp_path_factory):
    "(A folder, an embedder of a moment's training): the folder has the embedder in embedder/, and a few drawn people in data/people/."
    root = tmp_path_factory.mktemp("embedder")
    few_people(root/"data"/"people", n_train=8, n_test=5, n_distractors=4)
    config = make_config("people", "identity", validation=0, epochs=1, steps=4, p=4, k=2, height=32, width=16)
    return root, load_embedder(save_embedder(make_run(config, root/"data", root/"runs", "cpu"), root/"embedder"))
