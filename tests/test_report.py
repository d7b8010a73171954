"The report: numbers as computed by hand, a page without the network, refusals, people shown only when they may be."
import functools
import json
import re
import statistics

import nbformat
import numpy as np
import pandas as pd
import pytest
from fuzz import make_run_folder
from PIL import Image
from safetensors.torch import save

from reid_study.core import InputError
from reid_study.networks.embedder import make_embedder
from reid_study.report import figures
from reid_study.report.figures import overlap
from reid_study.report.html import captioned, galleries, hidden_people, to_html
from reid_study.report.pages import write_page
from reid_study.report.prose import comparison_headline, spread_sentence
from reid_study.report.tables import find_runs, results_markdown, results_table
from reid_study.study.config import make_config
from reid_study.study.hypotheses import QUESTIONS
from reid_study.study.results import read_results
from reid_study.study.run import PROJECT
from reid_study.study.simulated import simulated_study
from reid_study.study.worker import execute as run_notebook
from reid_study.study.jobs import pages

TEMPLATE = PROJECT/"nbs"/"study"/"compare.ipynb"
RECIPES = "identity", "triplet", "identity+triplet"


@functools.cache
def weights(backbone, dim):
    "The content of a file of weights that no training has changed."
    return save({name: value.contiguous() for name, value in make_embedder(backbone, dim).state_dict().items()})


def fake_run(root, recipe, seed, metrics=None, **changes):
    "The folder of a finished run, under `root`, with plausible artefacts that no training made."
    config = make_config(**dict(dataset="people", recipe=recipe, seed=seed, validation=10, epochs=5) | changes)
    rng = np.random.default_rng([seed, len(recipe)])
    protocol = dict(same_camera="junk", junk_pid=-1, distractor_pid=0, ap="rectangle", ties="expected", unmatched="dropped", max_rank=50)
    cmc = np.minimum(1, np.linspace(.5, 1, 50) + .05*rng.random()).tolist()
    about = dict(
        mAP=.4 + .2*rng.random(), mINP=.2 + .1*rng.random(), cmc=cmc, queries=40, dropped=0, gallery=90, cameras=True, chance=.05,
        distance="Euclidean(normalize=True)", protocol=protocol, train_seconds=30 + rng.random(), embedding_seconds=.4,
        train_classes=8, train_images=64, evaluation_seconds=.1, images_per_second=1500.0, parameters=10**6) | (metrics or {})
    env = dict(python="3.11.7", torch="2.14.1", cpu="Some processor", cores=4, threads=1, device="cpu", data="0"*12)
    epochs, terms = np.arange(1, config["epochs"] + 1), {}
    for term in recipe.split("+"): terms |= {term: 1/epochs, f"{term}.{'accuracy' if term == 'identity' else 'active'}": 1 - .9/epochs}
    history = pd.DataFrame(dict(epoch=epochs, lr=1e-3, loss=2/epochs, **terms, mAP=.5 - .3/epochs, rank1=.5, seconds=6.0 + seed))
    people, names = np.repeat(np.arange(1, 11), 4), [f"query/{i:04}.jpg" for i in range(8)]
    AP, mAP = rng.random(40), about["mAP"]
    AP = mAP + (AP - AP.mean())*min(mAP, 1 - mAP)
    tables = dict(
        history=history,
        per_query=pd.DataFrame(dict(query=np.arange(40), pid=people, AP=AP, d_ap=.5, d_an=1.1, valid=True)),
        pairs=pd.DataFrame(dict(distance=np.arange(.0125, 2, .025), positive=rng.integers(0, 9, 80), negative=rng.integers(0, 90, 80))),
        view=pd.DataFrame(dict(x=rng.normal(size=40), y=rng.normal(size=40), pid=people, camid=np.tile([1, 2, 3, 4], 10))),
        ranking=pd.DataFrame([(q, 1, 1, r, f"gallery/{r:04}.jpg", r % 3, 2, r % 3 == 1) for q in names for r in range(1, 11)],
                             columns="query_path query_pid query_camid rank path pid camid match".split()))
    return make_run_folder(root, config, about, tables, env, weights(config["backbone"], config["dim"]))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    for recipe in RECIPES:
        for seed in (0, 1): fake_run(root, recipe, seed)
    return root


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for part in ("query", "gallery"):
        (root/part).mkdir()
        for i in range(11): Image.new("RGB", (64, 128), (20*i, 90, 160)).save(root/part/f"{i:04}.jpg")
    return root


def execute(runs, out, **parameters):
    run_notebook(TEMPLATE, out, dict(runs=[str(runs)], **parameters))
    return out


@pytest.fixture(scope="module")
def executed(root, images, tmp_path_factory):
    return execute(root, tmp_path_factory.mktemp("report")/"compare.ipynb", data=str(images))


def test_the_template_executes_and_the_page_needs_no_network(executed, tmp_path):
    page = to_html(executed, tmp_path/"report.html").read_text()
    assert all(address.startswith(("data:", "#")) for address in re.findall(r'(?:src|href)\s*=\s*["\']?([^"\'\s>]+)', page))
    text = re.sub(r'base64,[^"]*', "", page)
    assert not re.search(r"https?:|<script|<link|<iframe|@import|url\((?!#)|mathjax|require", text, re.IGNORECASE)
    assert text.count("<h1") == 1 and "Losses compared on drawn pedestrians" in text and "skip_exec" not in text and "find_runs" not in text
    for word in ("Protocol", "Results", "CMC", "Ranked galleries", "Provenance"): assert f">{word}</h2>" in text
    for target in re.findall('href="#([^"]*)"', text): assert f'id="{target}"' in text
    assert text.count("<svg") == 7 and text.count("image/jpeg") == 6*(1 + 3*10)
    assert len(page) < 3e6


def test_the_same_artefacts_give_the_same_bytes(executed, root, images, tmp_path):
    again = execute(root, tmp_path/"again.ipynb", data=str(images))
    assert to_html(again, tmp_path/"a.html").read_bytes() == to_html(executed, tmp_path/"b.html").read_bytes()


def test_the_template_runs_with_its_parameters(executed):
    "The injected values come after the defaults, so they win."
    cells = nbformat.read(executed, 4).cells
    tags = [cell.metadata.get("tags", []) for cell in cells]
    assert tags.index(["injected-parameters"]) == tags.index(["parameters"]) + 1


def test_the_table_is_what_one_computes_by_hand(root):
    rows = [[cell.strip().replace("**", "") for cell in line.split("|")[1:-1]] for line in results_markdown(find_runs(root)).splitlines()]
    assert rows[0] == ["recipe", "family", "seeds", "mAP", "rank-1", "rank-5", "rank-10", "mINP", "training (s)"]
    assert [(r[0], r[1]) for r in rows[2:]] == [("identity", "representation"), ("triplet", "metric"), ("identity+triplet", "both")]
    read = lambda folder, name: json.loads((folder/f"{name}.json").read_text())
    for recipe, _, seeds, *cells in rows[2:]:
        folders = [f for f in (root/"run").glob("[!.]*") if read(f, "config")["recipe"] == recipe]
        assert seeds == str(len(folders))
        found, epochs = [read(f, "metrics") for f in folders], [pd.read_csv(f/"history.csv").seconds for f in folders]
        columns = [100*m["mAP"] for m in found], *([100*m["cmc"][k - 1] for m in found] for k in (1, 5, 10)), [100*m["mINP"] for m in found]
        assert cells == [*(f"{statistics.mean(c):.1f} ± {statistics.stdev(c):.1f}" for c in columns),
                         f"{statistics.median(len(s)*s.median() for s in epochs):.0f}"]


def test_the_best_of_each_score_is_bold(tmp_path):
    for recipe, mAP in zip(RECIPES, (.5, .70004, .7)): fake_run(tmp_path, recipe, 0, dict(mAP=mAP))
    runs = find_runs(tmp_path)
    assert results_markdown(runs).count("**70.0**") == 2 and "| 50.0 |" in results_markdown(runs)
    assert results_table(runs).count("<b>70.0</b>") == 2
    assert "One seed" in spread_sentence(runs) and "±" not in results_markdown(runs)
    assert "**triplet** has the highest mAP of **70.0%**; **identity+triplet** is next" in comparison_headline(runs)


def test_few_seeds_give_a_descriptive_spread(tmp_path):
    for seed in range(5): fake_run(tmp_path, "identity", seed)
    runs = find_runs(tmp_path)
    assert "descriptive" in spread_sentence(runs[:4]) and "descriptive" not in spread_sentence(runs) and "verdict" in spread_sentence(runs)


@pytest.mark.parametrize("changes, word", [
    (dict(dataset="market1501"), "dataset"), (dict(epochs=9), "epochs"), (dict(height=128), "height"),
    (dict(precision="bfloat16"), "precision")])
def test_runs_of_another_configuration_are_refused(root, tmp_path, changes, word):
    other = fake_run(tmp_path, "triplet", 2, **changes)
    with pytest.raises(InputError, match=word) as e: find_runs([root, other])
    assert other.name in str(e.value)


def test_runs_of_another_evaluation_are_refused(root, tmp_path):
    with pytest.raises(InputError, match="distance"): find_runs([root, fake_run(tmp_path, "triplet", 2, dict(distance="Cosine()"))])


def test_missing_runs_are_refused_by_name(root, tmp_path):
    with pytest.raises(InputError, match="nowhere"): find_runs([root, tmp_path/"nowhere"])
    with pytest.raises(InputError, match="no runs"): find_runs([])
    with pytest.raises(InputError, match=tmp_path.name): find_runs(tmp_path)
    with pytest.raises(InputError, match="identity with seed 2 is missing"): find_runs([root, fake_run(tmp_path, "triplet", 2)])
    folder = fake_run(tmp_path/"damaged", "triplet", 0)
    (folder/"metrics.json").unlink()
    with pytest.raises(InputError, match="metrics.json"): find_runs(tmp_path/"damaged")


def test_one_recipe_has_one_choice_of_settings(root, tmp_path):
    with pytest.raises(InputError, match="settings"): find_runs([root, fake_run(tmp_path, "triplet", 0, settings={"triplet.margin": .5})])


def test_a_run_given_twice_counts_once(root):
    assert [r.id for r in find_runs([root, *(root/"run").glob("[!.]*")])] == [r.id for r in find_runs(root)]


def test_real_people_are_shown_only_on_request(tmp_path, images):
    for recipe in RECIPES: fake_run(tmp_path, recipe, 0, dataset="market1501")
    runs = find_runs(tmp_path)
    assert "real people" in galleries(runs, images) and "<img" not in galleries(runs, images)
    assert "<img" in galleries(runs, images, True)
    parameters = next(cell.source for cell in nbformat.read(TEMPLATE, 4).cells if "parameters" in cell.metadata.get("tags", []))
    values = {}
    exec(parameters, values)
    assert values["show_people"] is None and values["data"] is None     # what the template does unless asked


def test_images_that_are_not_there_are_said_to_be_missing(root, images, tmp_path):
    runs = find_runs(root)
    assert "not given" in hidden_people(runs) and "18 of 18" in hidden_people(runs, tmp_path)
    assert "without them" in hidden_people(runs, images, False)
    assert hidden_people(runs, images) == ""


def test_right_and_wrong_differ_in_more_than_colour(root, images):
    page = galleries(find_runs(root), images)
    assert page.count("✓") == page.count("solid #1f7a4a") == page.count("right: person") == 6*3*4
    assert page.count("✗") == page.count("dashed") == page.count("wrong: person") == 6*3*6


def test_overlap():
    pairs = pd.DataFrame(dict(distance=[.1, .2, .3, .4], positive=[1, 1, 0, 0], negative=[0, 50, 25, 25]))
    assert overlap(pairs) == .5 and overlap(pairs.assign(negative=pairs.positive*7)) == 1
    assert overlap(pairs.assign(negative=[0, 0, 3, 4])) == 0


def test_names_are_escaped(tmp_path):
    output = nbformat.v4.new_output("display_data", {"text/html": "<p>1</p>"})
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1", outputs=[output])])
    nbformat.write(nb, tmp_path/"a.ipynb")
    assert "<h1>a &lt; b</h1>" in to_html(tmp_path/"a.ipynb", tmp_path/"a.html", "a < b").read_text()


@pytest.mark.parametrize("draw", [
    "score_spread", "cmc_curves", "distance_histograms", "embedding_views", "training_curves", "validation_curves"])
def test_pictures_are_the_same_bytes_for_the_same_runs(root, draw):
    one, two = (captioned(getattr(figures, draw), find_runs(root)).data for _ in range(2))
    assert one == two and f'aria-label="{figures.caption(getattr(figures, draw))[:20]}' in one


def test_every_question_has_a_page(tmp_path):
    tables = simulated_study(tmp_path/"study", seeds=3)
    made = pages(read_results(tables), tables, tmp_path)
    for page in ("index", *QUESTIONS):
        write_page(*made[page], tmp_path/f"{page}.html")
        text = (tmp_path/f"{page}.html").read_text()
        assert text.count("<h1") == 1 and ">Provenance</h2>" in text, page
