"A study that is made again: an honest replicate lies in the published prediction intervals as often as they say."
import pandas as pd
import pytest

from reid_study.study.config import recipe_configs
from reid_study.study.hypotheses import hypotheses
from reid_study.study.replication import replication, replication_sentence
from reid_study.study.results import Results
from reid_study.study.simulated import simulated_run

QUESTIONS = ["q1", "q2", "q3", "q4", "q9"]


def small_study(first, seeds=5):
    "The main arm of a simulated study, with seeds of its own and the recipes that five questions read."
    asked = [h for h in hypotheses("people", {"main": []}) if h.question in QUESTIONS]
    rows = [dict(arm="main", recipe=recipe, seed=seed, change=change, run=simulated_run(config, "main"))
            for recipe in dict.fromkeys(r for h in asked for r in h.recipes)
            for seed, change, config in recipe_configs("people", recipe, range(first, first + seeds), score="test")]
    return Results(dict(study=f"from {first}", title="Simulated", dataset="people", questions=QUESTIONS), pd.DataFrame(rows), {})


@pytest.fixture(scope="module")
def studies(): return [small_study(5*i) for i in range(9)]


def test_an_honest_replicate_lies_in_the_prediction_intervals(studies):
    tables = [replication(*pair) for pair in zip(studies, studies[1:])]
    inside = pd.concat(tables).inside
    assert len(inside) == 8*16 and inside.notna().all()
    assert .9 < inside.mean() < .99      # contrasts share recipes, so this scatters more than 128 coins


def test_the_same_study_agrees_with_itself(studies):
    table = replication(studies[0], studies[0])
    assert table.inside.all() and table.agree.all() and "16 of 16 estimates lie in" in replication_sentence(table)
