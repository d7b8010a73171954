"What retrieval, geometry, statistics, splits and indexes make of NaN, of odd arrays and labels, and of parts that do not fit."
import json
import math
import os

import numpy as np
import pandas as pd
import pytest
import torch
from cases import Case, check, table
from hypothesis import given, settings
from hypothesis import strategies as st

from reid_study.core import InputError
from reid_study.data.splits import hold_out, thin
from reid_study.distances import Euclidean
from reid_study.evaluation import coverage, shares, verdicts
from reid_study.evaluation import geometry as shape
from reid_study.evaluation import statistics as stat
from reid_study.evaluation.index import load_index, make_index, streamed
from reid_study.evaluation.inputs import as_matrix
from reid_study.evaluation.reranking import Reranked, expand_queries
from reid_study.evaluation.retrieval import Protocol, chance_mAP, evaluate_retrieval, evaluate_split
from reid_study.study.endpoints import epochs_to, validation_curve

X, PIDS, CAMS = torch.randn(24, 8, generator=torch.Generator().manual_seed(0)), [1, 1, 2, 2, 3, 3, 4, 4]*3, [1, 2, 3]*8
ARRAY, ONE_NAN = X.numpy(), torch.where(torch.arange(24)[:, None] == 5, torch.nan, X)
TABLE = pd.DataFrame(dict(path=[f"{i}.jpg" for i in range(24)], pid=PIDS, camid=CAMS, split=["query"]*8 + ["gallery"]*16))
SCORES = pd.DataFrame([dict(seed=s, pid=p, query=2*p + q, AP=((7*s + 5*p + 3*q) % 11)/10)
                       for s in range(6) for p in range(5) for q in (0, 1)])
OTHER = SCORES.assign(AP=(SCORES.AP + .1)*.9)
Y = SCORES.groupby(["seed", "pid"]).AP.mean().unstack()


def mAP(x=X, pids=PIDS, **kwargs): return evaluate_retrieval(x, None, pids, None, **kwargs).mAP

def as_usual(value): return math.isclose(value, mAP(), rel_tol=1e-6)

def changed(frame, column, value):
    frame = frame.astype({column: object})
    frame.loc[3, column] = value
    return frame.infer_objects()

def described(folder, **fields):
    "An index whose index.json says something else."
    make_index(ARRAY).save(folder/"i")
    about = json.loads((folder/"i"/"index.json").read_text())
    (folder/"i"/"index.json").write_text(json.dumps(about | fields))
    return load_index(folder/"i")


FORMS = {"a list of tensors": list(X), "a DataFrame": pd.DataFrame(ARRAY), "nested lists": X.tolist(),
         "a column of arrays": pd.Series(list(ARRAY)),
         "an array in reverse": np.ascontiguousarray(ARRAY[::-1])[::-1], "a big-endian array": ARRAY.astype(">f4"),
         "an array that is not contiguous": np.asfortranarray(ARRAY), "a tensor that needs gradients": X.clone().requires_grad_(),
         "a masked array with nothing masked": np.ma.array(ARRAY), "float64": X.double(), "embeddings of 10²⁰": X*1e20,
         "embeddings of 10⁻²⁵": X*1e-25}
NO_FORMS = {"sparse embeddings": (X.to_sparse(), "sparse"), "masked embeddings": (np.ma.array(ARRAY, mask=ARRAY > 1), "masked"),
            "rows of two lengths": ([[1., 2], [3.]]*12, "tensor or an array"),
            "embeddings as text": (ARRAY.astype(str), "tensor or an array"),
            "no embeddings at all, None": (None, "NoneType"), "complex embeddings": (X*1j, "complex"),
            "embeddings that are integers": (X.int(), ".float()"),
            "embeddings of width 0": (X[:, :0], "[N, D]"), "one NaN among the embeddings": (ONE_NAN, "row 5"),
            "infinity as an embedding": (X/0., "NaN or infinite")}
LABELS = {"uint8": np.array(PIDS, "u1"), "big-endian int32": np.array(PIDS, ">i4"), "a uint64 tensor": torch.tensor(PIDS).to(torch.uint64),
          "a pandas column of Int64": pd.Series(PIDS, dtype="Int64"), "a tuple": tuple(PIDS), "the least and the greatest of int64":
          [{1: -2**63, 2: 2**63 - 1}.get(p, p) for p in PIDS]}
NO_LABELS = {"names": list(map(str, PIDS)), "floats": [float(p) for p in PIDS], "NaN among them": [math.nan, *PIDS[1:]], "None": None,
             "yes or no": [True]*24,
             "a column of a matrix": np.array(PIDS)[:, None], "2⁶⁴ − 1, which would turn to −1": np.array([2**64 - 1]*24, "u8"),
             "a uint64 tensor of 2⁶⁴ − 1": torch.tensor([2**64 - 1]*24, dtype=torch.uint64),
             "masked ones": np.ma.array(PIDS, mask=np.array(PIDS) == 4),
             "a missing one in a pandas column": pd.Series([None, *PIDS[1:]], dtype="Int64")}

CASES = [
    *(Case(f"embeddings as {form}" if "embeddings" not in form else form, lambda _, x=x: mAP(x), gives=as_usual,
          means="the scores are the same")
      for form, x in FORMS.items()),
    *(Case(form, lambda _, x=x: mAP(x), refused=("query embeddings", word)) for form, (x, word) in NO_FORMS.items()),
    *(Case(f"pids as {form}", lambda _, p=p: mAP(pids=p), gives=as_usual,
          means="they are taken as whole numbers") for form, p in LABELS.items()),
    *(Case(f"pids that are {form}", lambda _, p=p: mAP(pids=p), refused=("query_pids", "whole numbers")) for form, p in NO_LABELS.items()),
    # ---- retrieval
    Case("two pids for a re-ranking of three queries", lambda _: evaluate_retrieval(Reranked(X[:3], X), None, [1, 2], PIDS),
         refused=("[3, 24]", "one per image")),
    Case("two pids for a streamed gallery and three queries", lambda _: evaluate_retrieval(streamed(X[:3], X), None, [1, 2], PIDS),
         refused=("[3, 24]", "2 query_pids")),
    Case("a pid less than there are embeddings", lambda _: mAP(pids=PIDS[1:]), refused=("24 embeddings", "23 pids")),
    Case("a camid less than there are queries", lambda _: mAP(query_camids=CAMS[1:], gallery_camids=CAMS),
         refused=("24 embeddings", "query_camids")),
    Case("distances that are NaN", lambda _: evaluate_retrieval(lambda a, b: torch.full((b - a, 24), torch.nan), None, PIDS, PIDS),
         refused=("query 0", "nan")),
    Case("distances as nested lists", lambda _: evaluate_retrieval(lambda a, b: Euclidean()(X[a:b], X).tolist(), None, PIDS, None).mAP,
         gives=as_usual,
         means="the scores are the same"),
    Case("distances that are infinite for the farthest images", lambda _: evaluate_retrieval(
        lambda a, b: (lambda d: torch.where(d == d.max(), torch.inf, d))(Euclidean()(X[a:b], X)), None, PIDS, None).mAP, gives=as_usual,
        means="these come last"),
    Case("complex distances", lambda _: evaluate_retrieval(lambda a, b: torch.ones(b - a, 24)*1j, None, PIDS, PIDS),
         refused=("complex", "real")),
    *(Case(f"embeddings of {words} that are not normalised", lambda _, by=by: mAP(X*by, distance=Euclidean(normalize=False)),
           gives=lambda value: math.isclose(value, mAP(X, distance=Euclidean(normalize=False)), rel_tol=1e-6), means="the same mAP")
      for words, by in (("10²⁰", 1e20), ("10⁻²⁵", 1e-25))),
    Case("embeddings so long that distances overflow", lambda _: mAP(X/X.abs().max()*3e38, distance=Euclidean(normalize=False)),
         refused=("distance of query 0", "normalise")),
    Case("a junk pid that is a text", lambda _: Protocol(junk_pid="-1"), refused=("junk_pid", "whole number")),
    Case("a CMC of 10⁹ ranks", lambda _: Protocol(max_rank=10**9), refused=("max_rank", "at most")),
    Case("rank 1.5 of a CMC", lambda _: evaluate_retrieval(X, None, PIDS, None).rank(1.5), refused=("rank=1.5", "whole")),
    Case("more embeddings than rows of their table", lambda _: evaluate_split(torch.cat([X, X]), TABLE),
         refused=("48 embeddings", "24 rows")),
    Case("a table without camids", lambda _: evaluate_split(X, TABLE[["split", "pid"]]), refused="camid"),
    Case("a table with a pid that is missing", lambda _: evaluate_split(X, changed(TABLE, "pid", math.nan)), refused="whole numbers"),
    Case("an array of embeddings and its table", lambda _: evaluate_split(ARRAY, TABLE).mAP,
         gives=lambda v: v == evaluate_split(X, TABLE).mAP, means="the scores are the same"),
    Case("matches that are NaN, for the mAP of chance", lambda _: chance_mAP([1, math.nan], 10), refused=("matches", "whole")),
    Case("no matches, for the mAP of chance", lambda _: chance_mAP([0, 0], 10), refused=("matches", "above 0")),
    Case("more matches than images, for the mAP of chance", lambda _: chance_mAP([11], 10), refused=("matches", "10 gallery images")),
    # ---- re-ranking
    Case("a list and float64 for a re-ranking", lambda _: Reranked(X[:3].tolist(), X.double(), k1=4, k2=2)(0, 3),
         gives=lambda v: v.isfinite().all(),
         means="they are taken together"),
    Case("NaN for a re-ranking", lambda _: Reranked(X, ONE_NAN), refused=("gallery", "row 5")),
    Case("a weight of NaN for a re-ranking", lambda _: Reranked(X, None, weight=math.nan), refused=("weight", "at most 1")),
    Case("queries beyond the last of a re-ranking", lambda _: Reranked(X[:3], X)(0, 4), refused=("stop=4", "queries")),
    Case("an exponent of NaN for an expansion", lambda _: expand_queries(X, None, alpha=math.nan), refused=("alpha", "at least 0")),
    # ---- geometry
    *(Case(f"NaN for {name}", lambda _, f=f: f(ONE_NAN), refused=("NaN", "row 5")) for name, f in {
        "the distances of pairs": lambda x: shape.pair_distances(x, PIDS),
        "the linear separability": lambda x: shape.linear_separability(x, PIDS),
        "the silhouette": lambda x: shape.silhouette(x, PIDS), "the alignment": lambda x: shape.alignment(x, PIDS),
        "the uniformity": shape.uniformity,
        "the hubness": shape.hubness, "points of a sphere": lambda x: shape.on_sphere(x[:, :2]),
        "a linear discriminant": lambda x: shape.linear_discriminant(x, torch.tensor(PIDS) - 1)}.items()),
    Case("embeddings that are one point, for the geometry", lambda _: shape.geometry(torch.ones(24, 8), PIDS),
         gives=lambda v: np.isfinite(list(v.values())).all() and abs(v["distance_ratio"] - 1) < 1e-6,
         means="all measures are finite, the ratio is 1"),
    Case("embeddings of 10²⁰, for the geometry", lambda _: shape.geometry(X*1e20, PIDS),
         gives=lambda v: all(math.isclose(v[k], w, rel_tol=1e-4) for k, w in shape.geometry(X, PIDS).items()),
         means="only the directions count"),
    Case("a camid less than there are embeddings, for the geometry", lambda _: shape.geometry(X, PIDS, CAMS[1:]),
         refused=("camids [24]", "[23]")),
    Case("2.5 neighbours for the hubness", lambda _: shape.hubness(X, 2.5), refused=("k=2.5", "whole")),
    Case("one point for a sphere", lambda _: shape.on_sphere([[1., 2]]), refused=("points", "different")),
    # ---- statistics
    *(Case(f"a table with {what} as {column}", lambda _, c=column, v=value: stat.paired_difference(changed(SCORES, c, v), OTHER),
          refused=("first table", column))
      for column, what, value in (("AP", "NaN", math.nan), ("AP", "infinity", math.inf), ("AP", "a word", "x"), ("seed", "nothing", None),
                                  ("pid", "nothing", None), ("query", "nothing", None))),
    Case("no table", lambda _: stat.identity_means(None), refused=("the table", "DataFrame")),
    Case("identity means of 0 queries", lambda _: stat.identity_means(Y.stack().rename("AP").reset_index().assign(queries=0)),
         refused=("queries", "0 or less")),
    Case("NaN for an interval", lambda _: stat.crossed_interval(Y.where(Y > .2)), refused=("y", "not finite")),
    Case("complex numbers for an interval", lambda _: stat.crossed_interval(Y.to_numpy() + 1j), refused=("y", "real")),
    Case("one value of 10⁷⁸ for an interval", lambda _: stat.crossed_interval([[0, 0, 0], [0, 0, 0], [0, 0, 1e78]]),
         gives=lambda i: i.low < i.estimate < i.high < math.inf, means="bounds are finite"),
    Case("values of 10²⁰⁰ for an interval", lambda _: stat.crossed_interval(Y*1e200), refused=("1e+100", "overflow")),
    Case("weights of other identities", lambda _: stat.crossed_interval(Y, pd.Series(1., range(1, 6))), refused=("weights", "same pid")),
    Case("weights in another order of the identities",
         lambda _: stat.crossed_interval(Y, pd.Series([5., 4, 3, 2, 1], [4, 3, 2, 1, 0])).estimate,
         gives=lambda v: math.isclose(v, np.average(Y.mean(), weights=[1, 2, 3, 4, 5])), means="each is that of its identity"),
    Case("constant values for an interval", lambda _: stat.crossed_interval(Y*0 + .5), gives=lambda i: i.low == i.high == .5,
         means="it has no width"),
    Case("one identity for a control", lambda _: stat.aa_control(SCORES[SCORES.pid == 0]), refused=("identities", "two")),
    Case("an interval without bounds, for a p-value", lambda _: verdicts.p_value(stat.Interval(.5, *[math.nan]*4, .95, True)),
         gives=math.isnan, means="it is NaN"),
    Case("NaN as the hypothesis of a p-value", lambda _: verdicts.p_value(stat.crossed_interval(Y), math.nan), refused=("null", "finite")),
    Case("NaN among p-values, for Holm's correction", lambda _: verdicts.holm({"a": .01, "b": math.nan}),
         refused=("p-value of b", "at least 0")),
    Case("a Series of p-values", lambda _: verdicts.holm(pd.Series([.01, .04], ["a", "b"])), gives=lambda v: v == {"a": .02, "b": .04},
         means="it is a family by name"),
    Case("differences of 10³⁰⁸ for a sign-flip test", lambda _: verdicts.sign_flip([1e308, 1e308, 1e308, -1e308]),
         gives=lambda p: p == 0.625, means="p is right"),
    Case("a gallery of copies of the query, re-ranked", lambda _: Reranked(X[:1], X[:1].expand(3, -1))(0, 1),
         gives=lambda d: d.abs().max() < 1e-6, means="all distances are 0"),
    Case("NaN for a sign-flip test", lambda _: verdicts.sign_flip([1, math.nan]), refused=("differences", "finite")),
    Case("words for a sign-flip test", lambda _: verdicts.sign_flip(["a", "b"]), refused=("differences", "real numbers")),
    Case("shares of other seeds", lambda _: shares.paired_shares(pd.Series([1, 0], [1, 2]), pd.Series([1, 0], [2, 3])),
         refused=("rows", "one order")),
    Case("NaN for a rank correlation", lambda _: shares.rank_correlation([1, 2, 3, 4, math.nan], range(5)), refused="finite score"),
    Case("the same score for all recipes", lambda _: shares.rank_correlation([1]*5, range(5)), refused="no order"),
    Case("a margin of NaN", lambda _: verdicts.equivalence(stat.crossed_interval(Y), math.nan), refused=("margin", "above 0")),
    Case("a level of NaN", lambda _: stat.crossed_interval(Y, level=math.nan), refused=("level", "0.95")),
    Case("a gap of NaN for a simulation", lambda _: coverage.simulate(gap=math.nan), refused=("gap", "finite")),
    Case("10¹² seeds for the least p", lambda _: verdicts.least_p(10**12), gives=lambda v: v == 0,
         means="it is 0 to the precision of a float"),
    Case("a height of NaN for an epoch", lambda _: epochs_to(pd.DataFrame(dict(epoch=[1], mAP=[.5])), math.nan),
         refused=("height", "finite")),
    Case("a history in which nothing was validated", lambda _: validation_curve(pd.DataFrame(dict(epoch=[1], mAP=[math.nan]))),
         refused=("mAP", "train")),
    # ---- splits
    Case("a table with a pid that is missing, to hold people out of", lambda _: hold_out(changed(TABLE, "pid", None), 1),
         refused=("1 row ", "pid")),
    Case("1.5 identities to hold out", lambda _: hold_out(TABLE, 1.5), refused=("identities=1.5", "whole")),
    Case("a seed of −1 for a split", lambda _: thin(TABLE, 1, seed=-1), refused=("seed=-1", "at least 0")),
]
LONGER = [
    Case("a list as the gallery of an index", lambda _: make_index(X.tolist()).search(X[:2], 1)[1].ravel().tolist(),
         gives=lambda v: v == [0, 1],
         means="it is taken as a matrix"),
    Case("NaN in the gallery of an index", lambda _: make_index(ONE_NAN), refused=("gallery", "row 5")),
    Case("masked embeddings for an index", lambda _: make_index(np.ma.array(ARRAY, mask=ARRAY > 1)), refused=("gallery", "masked")),
    Case("embeddings so long that an index would overflow", lambda _: make_index(X*1e20, normalize=False),
         refused=("overflow", "normalize=True")),
    Case("a named pipe as the gallery of an index", lambda folder: os.mkfifo(folder/"g.npy") or make_index(folder/"g.npy", "disk"),
         refused=("g.npy", "named pipe")),
    Case("one link for each image of an index", lambda _: make_index(X, "hnsw", links=1), refused=("links=1", "at least 2")),
    Case("an index that is sound", lambda folder: len(described(folder)), gives=lambda n: n == 24, means="it is read"),
    *(Case(f"an index.json that says {value!r} for {key}", lambda folder, k=key, v=value: described(folder, **{k: v}), refused="index.json")
      for key, value in (("kind", None), ("kind", []), ("kind", "disk"), ("kind", "hnsw"), ("width", None), ("width", -1), ("width", 9),
                         ("normalize", "no"),
                         ("normalize", False), ("settings", None), ("settings", {"nprobe": 1}), ("settings", [1]))),
]


@table(CASES)
def test_retrieval(case, tmp_path): check(case, tmp_path)


@table(LONGER)
def test_indexes(case, tmp_path):
    pytest.importorskip("faiss")
    check(case, tmp_path)


ODD = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.binary(max_size=3), st.complex_numbers())

@settings(max_examples=60, deadline=None)
@given(st.recursive(ODD, lambda inner: st.lists(inner, max_size=3), max_leaves=9))
def test_embeddings_are_a_matrix_or_refused(value):
    try: x = as_matrix(value, "some")
    except InputError as e: assert "some embeddings" in str(e) and "\n" not in str(e)
    else: assert x.ndim == 2 and x.isfinite().all()


@settings(max_examples=60, deadline=None)
@given(st.one_of(ODD, st.lists(ODD, min_size=24, max_size=24), st.lists(st.integers(), min_size=24, max_size=24)))
def test_labels_are_whole_numbers_or_refused(value):
    try: result = evaluate_retrieval(X, None, value, None)
    except InputError as e: assert "\n" not in str(e)
    else: assert result.query_pids.tolist() == list(map(int, value)) and 0 < result.mAP <= 1


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.floats(allow_subnormal=False), min_size=3, max_size=3), min_size=3, max_size=4))
def test_an_interval_is_finite_or_refused(y):
    try: i = stat.crossed_interval(y)
    except InputError as e: assert str(e).startswith("y ")
    else: assert np.isfinite([i.estimate, i.low, i.high, i.se]).all() and i.low <= i.estimate <= i.high
