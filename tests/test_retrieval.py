"The retrieval evaluation against a slow and obvious oracle, on random cases full of ties."
import itertools
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from reid_study.core import InputError
from reid_study.distances import Cosine, Euclidean
from reid_study.evaluation.retrieval import Protocol, _pairs, evaluate_retrieval
from reid_study.evaluation.ties import _count, _counts_by_row, _counts_together, _levels, _tied

settings.register_profile("here", deadline=None, max_examples=200, derandomize=True)
settings.load_profile("here")


# ---- the oracle: python loops over every arrangement of every tie group

def score(hits, max_rank):
    "Both APs, INP, first rank and CMC of one ranked list of hits."
    found, before, rectangle, trapezoid = 0, 1.0, 0.0, 0.0
    first = last = None
    for rank, hit in enumerate(hits, 1):
        found += hit
        if hit:
            rectangle += found/rank
            trapezoid += (found/rank + before)/2
            first, last = first or rank, rank
        before = found/rank
    return [rectangle/found, trapezoid/found, found/last, first, *(float(first <= k) for k in range(1, max_rank + 1))]


def arrangements(n, m):
    "Every list of n flags of which m are set."
    for at in itertools.combinations(range(n), m): yield [i in at for i in range(n)]


def oracle(case, i):
    "Expected scores of query i, or None without a match."
    kept = []
    for j, pid in enumerate(case["g_pids"]):
        if case["own"] and i == j: continue
        if pid == -1 and case["protocol"].junk_pid == -1: continue
        same = pid == case["q_pids"][i]
        if same and case["q_cams"] is not None and case["g_cams"][j] == case["q_cams"][i]: continue
        kept.append((case["d"][i, j], bool(same)))
    if not any(same for _, same in kept): return None
    groups = [[same for d, same in kept if d == level] for level in sorted({d for d, _ in kept})]
    lists = itertools.product(*(arrangements(len(g), sum(g)) for g in groups))
    return np.mean([score(sum(parts, []), case["protocol"].max_rank) for parts in lists], axis=0)


# ---- random cases

@st.composite
def cases(draw):
    own, cameras = draw(st.booleans()), draw(st.booleans())
    plain = draw(st.booleans())                        # -1 and 0 are ordinary identities
    G = draw(st.integers(1, 9))
    Q = G if own else draw(st.integers(1, 5))
    people = [-1, 0, 1, 2] if plain else [1, 2, 3]
    pids = lambda n, ids: np.array(draw(st.lists(st.sampled_from(ids), min_size=n, max_size=n)))
    cams = lambda n: np.array(draw(st.lists(st.integers(1, 3), min_size=n, max_size=n)))
    q_pids, q_cams = pids(Q, people), cams(Q) if cameras else None
    levels = draw(st.integers(1, 5))
    d = np.array(draw(st.lists(st.integers(0, levels), min_size=Q*G, max_size=Q*G))).reshape(Q, G)/4 - draw(st.sampled_from([0, 1]))
    protocol = Protocol(max_rank=draw(st.sampled_from([1, 3, 12])), ap=draw(st.sampled_from(["rectangle", "trapezoid"])),
                        **(dict(junk_pid=None, distractor_pid=None) if plain else {}))
    return dict(own=own, d=d, q_pids=q_pids, g_pids=q_pids if own else pids(G, people if plain else [-1, 0, 1, 1, 2, 3]),
                q_cams=q_cams, g_cams=q_cams if own or not cameras else cams(G), protocol=protocol, block=draw(st.integers(1, 6)))


def run(case, **changes):
    case = {**case, **changes}
    d = torch.from_numpy(np.ascontiguousarray(case["d"]))
    gallery = (None, None) if case["own"] else (case["g_pids"], case["g_cams"])
    try:
        return evaluate_retrieval(lambda start, stop: d[start:stop], None, case["q_pids"], gallery[0], case["q_cams"], gallery[1],
                                  protocol=case["protocol"], block=case["block"])
    except InputError as e:
        assert "has a match" in str(e) or "junk pid" in str(e)


def same(a, b, exact=True):
    if a is None or b is None: return a is b
    equal = np.array_equal if exact else lambda x, y, equal_nan=True: np.allclose(x, y, rtol=0, atol=1e-12, equal_nan=equal_nan)
    fields = ("AP", "INP", "rank1", "first_rank", "cmc", "matches", "mAP", "mINP")
    return all(equal(getattr(a, k), getattr(b, k), equal_nan=True) for k in fields)


@given(cases())
def test_oracle(case):
    result, expected = run(case), [oracle(case, i) for i in range(len(case["q_pids"]))]
    valid = [e for e in expected if e is not None]
    if not valid:
        assert result is None
        return
    assert result.valid.tolist() == [e is not None for e in expected] and result.dropped == len(expected) - len(valid)
    trapezoid = case["protocol"].ap == "trapezoid"
    for i in np.flatnonzero(result.valid):
        e = expected[i]
        found = [result.AP[i], result.INP[i], result.first_rank[i], result.rank1[i]]
        assert np.allclose(found, [e[int(trapezoid)], e[2], e[3], e[4]], rtol=0, atol=1e-12)
    mean = np.mean(valid, axis=0)
    assert np.allclose([result.mAP, result.mINP, *result.cmc], [mean[int(trapezoid)], mean[2], *mean[4:]], rtol=0, atol=1e-12)
    assert len(result.cmc) == case["protocol"].max_rank and (np.diff(result.cmc) >= -1e-12).all()
    assert np.isnan(result.AP[~result.valid]).all()


@given(cases())
def test_block_size_changes_nothing(case):
    assert all(same(run(case, block=b), run(case, block=100)) for b in (1, 2, 3, 5))


@pytest.mark.parametrize("block", [1, 2, 6, 7, 30])
def test_block_size_keeps_ties_of_equal_images(block):
    rng = np.random.default_rng(0)
    gallery = rng.normal(size=(40, 64)).astype(np.float32)[rng.integers(0, 40, 200)]        # many equal images
    query, pids = rng.normal(size=(13, 64)).astype(np.float32), rng.integers(1, 6, 200)
    scores = [evaluate_retrieval(query, gallery, np.arange(13) % 5 + 1, pids, block=b) for b in (13, block)]
    assert np.allclose(scores[0].AP, scores[1].AP, rtol=0, atol=1e-12)


@given(cases(), st.randoms(use_true_random=False))
def test_order_of_the_gallery_changes_nothing(case, random):
    if case["own"]: return
    order = random.sample(range(len(case["g_pids"])), len(case["g_pids"]))
    cams = None if case["g_cams"] is None else case["g_cams"][order]
    assert same(run(case), run(case, d=case["d"][:, order], g_pids=case["g_pids"][order], g_cams=cams))


@given(cases(), st.permutations([1, 2, 3]), st.permutations([1, 2, 3]))
def test_relabelling_changes_nothing(case, people, cameras):
    if case["protocol"].junk_pid is None: people = [1, 2]            # the names of ordinary people must stay ordinary
    name = {-1: -1, 0: 0, **{i + 1: 10*p for i, p in enumerate(people)}}
    rename = lambda pids: np.array([name[p] for p in pids])
    recam = lambda cams: None if cams is None else np.array([7*cameras[c - 1] for c in cams])
    renamed = {key: rename(case[key]) for key in ("q_pids", "g_pids")} | {key: recam(case[key]) for key in ("q_cams", "g_cams")}
    assert same(run(case), run(case, **renamed))


@given(cases())
def test_monotone_transforms_change_nothing(case):
    for f in (np.exp, lambda d: 3*d - 7, lambda d: d**3, lambda d: d.astype(np.float32), lambda d: np.where(d == d.max(), np.inf, d)):
        assert same(run(case), run(case, d=f(case["d"])))


@given(cases())
def test_duplicating_the_queries_changes_no_mean(case):
    if case["own"]: return
    twice = lambda x: None if x is None else np.concatenate([x, x])
    doubled = run(case, **{key: twice(case[key]) for key in ("d", "q_pids", "q_cams")})
    per_query = dict.fromkeys(("AP", "INP", "rank1", "first_rank", "matches", "query_pids"), 0)
    assert same(*(a and type(a)(**{**vars(a), **per_query}) for a in (run(case), doubled)), exact=False)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.sets(st.integers(0, 6), min_size=1), st.sampled_from([1, 300]))
def test_both_ways_of_counting_a_query(values, levels, many):
    values, levels = np.array(values*many, np.float32), np.array(sorted(levels), np.float32)
    values = values[values <= levels[-1]]
    below, upto = _count(values.copy(), levels, levels)
    assert list(below) == [(values < v).sum() for v in levels] and list(upto) == [(values <= v).sum() for v in levels]


@given(cases())
def test_counting_together_is_counting_by_row(case):
    "What a GPU does and what a CPU does, on the same numbers, of which some are infinite."
    d = np.where(case["d"] == case["d"].max(), np.inf, np.where(case["d"] == case["d"].min(), -np.inf, case["d"]))
    rows, (pairs, _) = torch.from_numpy(d), _pairs(case["q_pids"], case["g_pids"], case["q_cams"], case["g_cams"], case["own"])
    matches, ignored = pairs(0, len(rows))
    levels, number = _levels(rows, matches)
    there = np.arange(levels.shape[1]) < number[:, None]
    found = [count(rows, levels, levels, number, ignored)[:, there] for count in (_counts_by_row, _counts_together)]
    assert np.array_equal(*found)


def numbers_around(*centres, steps=40):
    "All floats that are up to `steps` of them from some numbers."
    at = [torch.tensor(centres).nextafter(torch.tensor(0.))]
    for _ in range(steps): at.append(at[-1].nextafter(torch.tensor(9.)))
    return torch.cat(at)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_squares_with_one_root_tie(dtype):
    squares = numbers_around(1e-40, 1e-9, .5, 1., 1.7, 2., 3.99).to(dtype)
    if dtype == torch.float64: squares = squares + torch.rand(squares.shape, dtype=dtype)*1e-15
    squares = torch.cat([squares, squares.new_tensor([-1e-7, -0., 0., torch.inf])])
    root = lambda x: x.clamp(min=0).sqrt()
    low, high = _tied(squares, root)
    d = root(squares)
    assert torch.equal((squares < low[:, None]), d < d[:, None]) and torch.equal(squares <= high[:, None], d <= d[:, None])


# ---- embeddings

def world(seed=0, Q=30, G=300, D=16):
    g = torch.Generator().manual_seed(seed)
    q_pids, g_pids = torch.arange(Q) % 12 + 1, torch.randint(-1, 14, (G,), generator=g)
    q_cams, g_cams = (torch.randint(1, 5, (n,), generator=g) for n in (Q, G))
    centre = torch.randn(16, D, generator=g)
    return [centre[p] + torch.randn(len(p), D, generator=g) for p in (q_pids, g_pids)] + [q_pids, g_pids, q_cams, g_cams]


@pytest.mark.parametrize("distance", [Euclidean(), Cosine(), Euclidean(normalize=False), "cosine"])
@pytest.mark.parametrize("ap", ["rectangle", "trapezoid"])
def test_embeddings_against_sorting(distance, ap):
    q, x, q_pids, g_pids, q_cams, g_cams = [t.double() if t.is_floating_point() else t for t in world()]
    result = evaluate_retrieval(q, x, q_pids, g_pids, q_cams, g_cams, distance, Protocol(ap=ap), block=7)
    d = (Cosine() if isinstance(distance, str) else distance)(q, x)
    for i in range(len(q)):
        keep = (g_pids != -1) & ~((g_pids == q_pids[i]) & (g_cams == q_cams[i]))
        expected = score((g_pids[keep] == q_pids[i])[d[i][keep].argsort()].tolist(), 50)
        found = [result.AP[i], result.INP[i], result.first_rank[i]]
        assert np.allclose(found, [expected[ap == "trapezoid"], *expected[2:4]], rtol=0, atol=1e-12)
    assert result.n_gallery == int((g_pids != -1).sum()) and result.cameras and not result.own_gallery


def by_sorting(d, q_pids, g_pids, q_cams, g_cams, own):
    "AP, INP and first rank of each query [Q, 3], expected under ties: each group's sums over its places, after a stable sort."
    found = np.full((len(d), 3), np.nan)
    for i, row in enumerate(np.asarray(d)):
        same = g_pids == q_pids[i]
        drop = (np.arange(len(row)) == i) & own if own else same & (g_cams == q_cams[i])
        order = np.flatnonzero(~drop)
        order = order[row[order].argsort(kind="stable")]
        hits, level = same[order], row[order]
        if not hits.any(): continue
        AP, r, last = 0.0, 0, None
        for start in np.flatnonzero(np.append(True, level[1:] != level[:-1])):
            n = (level == level[start]).sum()
            m = hits[start:start + n].sum()
            if m and last is None: first = start + (n + 1)/(m + 1)
            if m: last = sum(math.comb(x - 1, m - 1)/math.comb(n, m)/(start + x) for x in range(m, n + 1))
            AP += sum(m/n*(r + 1 + (x - 1)*(m - 1)/max(n - 1, 1))/(start + x) for x in range(1, n + 1))
            r += m
        found[i] = AP/r, r*last, first
    return found


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("distance", [Euclidean(), Cosine()])
@pytest.mark.parametrize("cameras, own", [(4, False), (1, False), (4, True)])
def test_duplicate_images_against_sorting(dtype, distance, cameras, own):
    "Signs: products are whole numbers, so that equal images tie in any order of summing, and any size of block gives the same bits."
    g = torch.Generator().manual_seed(cameras)
    Q, G = 40, 40 if own else 250
    x = (torch.randint(0, 2, (60, 32), generator=g)*2. - 1)[torch.randint(0, 60, (Q + G,), generator=g)].to(dtype)[:, ::2]     # strided
    pids, cams = torch.randint(1, 8, (Q + G,), generator=g).numpy(), torch.randint(1, cameras + 1, (Q + G,), generator=g).numpy()
    pids[:3] = 99, 100, 101                                         # nobody's
    q, y, ids = x[:Q], x[Q:], [pids[:Q], pids[Q:], cams[:Q], cams[Q:]]
    if own: y, ids = q, [pids[:Q], pids[:Q], None, None]
    if cameras == 1: ids[2:] = cams[:Q], cams[Q:] + 1               # the gallery is of another camera, one
    given = (q, None, pids[:Q], None) if own else (q, y, *ids)
    results = [evaluate_retrieval(*given, distance=distance, block=b) for b in (None, 1, 7, 16, 1000)]
    assert all(same(results[0], r) for r in results) and results[0].dropped >= 3
    found = np.stack([results[0].AP, results[0].INP, results[0].first_rank], 1)
    assert np.allclose(found, by_sorting(distance(q, y), *ids, own), rtol=0, atol=1e-12, equal_nan=True)


def test_ranking_by_squares_is_ranking_by_distances():
    "Distances between near-equal images, of which many have the same root: the same bits as from the distances themselves."
    g = torch.Generator().manual_seed(0)
    x = torch.ones(400, 8) + 3e-4*torch.randn(400, 8, generator=g)
    pids, distance = torch.randint(1, 20, (400,), generator=g), Euclidean()
    squares, root = distance.order(distance.prepare(x), distance.prepare(x))
    assert len(root(squares).unique()) < len(squares.unique())
    by_root = evaluate_retrieval(lambda start, stop: root(squares)[start:stop], None, pids, None)
    assert same(by_root, evaluate_retrieval(lambda start, stop: distance(x)[start:stop], None, pids, None))
    assert same(by_root, evaluate_retrieval(x, None, pids, None, block=400))


def test_a_distance_of_ones_own_is_asked():
    class Reverse(Euclidean):
        def compare(self, x, y): return 2 - super().compare(x, y)
    q, x, *ids = world()
    reverse = evaluate_retrieval(lambda start, stop: 2 - Euclidean()(q[start:stop], x), None, *ids)
    assert np.allclose(evaluate_retrieval(q, x, *ids, distance=Reverse()).AP, reverse.AP, rtol=0, atol=1e-6)


def test_what_comes_in_as_what():
    q, x, *ids = world()
    a = evaluate_retrieval(q, x, *ids)
    for b in (evaluate_retrieval(q.numpy(), x.numpy(), *(i.numpy() for i in ids)),
              evaluate_retrieval(q.requires_grad_(), x, *(i.tolist() for i in ids)),
              evaluate_retrieval(q.detach().double(), x, *(i.int() for i in ids))):
        assert np.allclose(a.AP, b.AP, atol=1e-3)
    with torch.autocast("cpu", dtype=torch.bfloat16): assert same(a, evaluate_retrieval(q, x, *ids))
    assert abs(evaluate_retrieval(q.detach().bfloat16(), x.bfloat16(), *ids).mAP - a.mAP) < .05


def test_many_matches_and_large_tie_groups():
    rng = np.random.default_rng(0)
    d, pids = rng.integers(0, 5, (4, 3000)).astype(np.float32), rng.integers(1, 3, 3000)
    r = evaluate_retrieval(lambda a, b: d[a:b], None, [1, 2, 1, 2], pids)
    orders = []
    for _ in range(200):
        order = rng.permutation(3000)
        orders.append([score((pids[order] == p)[row[order].argsort(kind="stable")].tolist(), 50)[:3] for row, p in zip(d, [1, 2, 1, 2])])
    orders = np.array(orders)
    error = orders.std(0)/math.sqrt(len(orders))
    assert (np.abs(orders.mean(0)[:, 0] - r.AP) < 5*error[:, 0] + 1e-9).all()
    assert (np.abs(orders.mean(0)[:, 2] - r.INP) < 5*error[:, 2] + 1e-9).all()


def test_blocks_are_asked_for_once_and_in_order():
    seen = []
    def blocks(start, stop):
        seen.append((start, stop))
        return torch.rand(stop - start, 20)
    evaluate_retrieval(blocks, None, [1]*10, [1]*20, block=4)
    assert seen == [(0, 4), (4, 8), (8, 10)]


def test_the_distance_is_used_in_evaluation_mode_and_left_as_it_was():
    class Watched(Euclidean):
        def compare(self, x, y):
            assert not self.training and not torch.is_grad_enabled()
            return super().compare(x, y)
    distance = Watched().train()
    q, x, *ids = world()
    evaluate_retrieval(q, x, *ids, distance=distance)
    assert distance.training


def test_result_is_json_and_a_table(tmp_path):
    r = evaluate_retrieval(*world())
    assert json.loads(json.dumps(r.as_dict(), allow_nan=False))["protocol"]["ap"] == "rectangle"
    r.table().to_parquet(tmp_path/"per_query.parquet")
    assert list(r.table()) == ["query", "pid", "AP", "INP", "rank1", "first_rank", "matches", "valid"] and len(r.table()) == 30
    with pytest.raises(AttributeError): r.mAP = 1


def test_same_camera_may_count():
    d = torch.tensor([[.1, .2, .3]])
    judge = lambda **rules: evaluate_retrieval(lambda *_: d, None, [1], [1, 2, 1], [1], [1, 1, 2], protocol=Protocol(**rules))
    assert judge().mAP == .5 and np.isclose(judge(same_camera="match").mAP, (1 + 2/3)/2)


@pytest.mark.parametrize("change, says", [
    (dict(query=torch.ones(3, 2).long()), "float"), (dict(query=torch.ones(3)), "flatten"), (dict(gallery=torch.ones(4, 5)), "width"),
    (dict(query=torch.tensor([[1., 2], [float("nan"), 0], [1, 1]])), "query embeddings .* row 1"),
    (dict(gallery=torch.full((4, 2), -float("inf"))), "gallery embeddings"),
    (dict(query_pids=[1, 2]), "3 embeddings and 2 pids"),
    (dict(gallery_pids=[1, 2]), "4 embeddings and 2 pids"),
    (dict(query_camids=[1, 1]), "one side"),
    (dict(query_camids=[1, 1], gallery_camids=[1]*4), "3 embeddings need query_camids \\[3\\]"),
    (dict(query_pids=["a", "b", "c"]), "whole numbers"),
    (dict(query_pids=[1., 2, 3]), "whole numbers"),
    (dict(query_pids=[], query=torch.ones(0, 2)), "no queries"), (dict(gallery_pids=[], gallery=torch.ones(0, 2)), "gallery is empty"),
    (dict(query_pids=[0, 1, 2]), "distractor_pid=None"),
    (dict(query_pids=[-1, 1, 2]), "junk_pid=None"),
    (dict(gallery_pids=[-1]*4), "every gallery image"),
    (dict(query_pids=[7, 8, 9]), "has a match"),
    (dict(gallery=None), "go together"),
    (dict(gallery_pids=None), "go together"),
    (dict(block=0), "block"),
    (dict(query=lambda a, b: torch.ones(b - a, 4)), "gallery=None"),
    (dict(query=lambda a, b: torch.ones(b - a, 3), gallery=None), "one column per gallery image"),
    (dict(query=lambda a, b: torch.full((b - a, 4), float("nan")), gallery=None), "query 0 to gallery image 0 is nan"),
    (dict(distance="euclid"), "unknown distance"),
])
def test_errors_name_the_remedy(change, says):
    good = dict(query=torch.rand(3, 2), gallery=torch.rand(4, 2), query_pids=[1, 2, 3], gallery_pids=[1, 2, 3, 0])
    evaluate_retrieval(**good)
    with pytest.raises(InputError, match=says): evaluate_retrieval(**{**good, **change})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    q, x, *ids = world()
    a = evaluate_retrieval(q.double(), x.double(), *ids)
    b = evaluate_retrieval(q.double().cuda(), x.double().cuda(), *(i.cuda() for i in ids))
    assert np.allclose(a.AP, b.AP) and np.allclose(a.cmc, b.cmc)
    with pytest.raises(InputError, match="move one"): evaluate_retrieval(q.cuda(), x, *ids)
