"What losses, miners and distances make of NaN, of other labels, of very long and short embeddings, and of second derivatives."
import copy
import io
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from cases import Case, check, table
from hypothesis import given, settings
from hypothesis import strategies as st
from test_losses import CLASSES, DIM, METRIC, REFERRING, VARIANTS, batch, make, seeded

from reid_study.core import InputError
from reid_study.distances import (
    DISTANCES, Euclidean, as_pids, check_embeddings, fit_kissme, fit_whitening, get_distance, pack_bits, unit)
from reid_study.losses.attributes import attribute_accuracy, attribute_counts, attribute_targets
from reid_study.losses.base import LOSSES, MetricLoss
from reid_study.losses.batch_all import quadruplet_sum, triplet_sum
from reid_study.losses.many_identities import SampledSoftmaxLoss, ShardedIdentityLoss, sharded_cross_entropy
from reid_study.losses.mining import MINERS
from reid_study.testing import check_gradient

ON_PIDS = [v for v, (name, _) in VARIANTS.items() if LOSSES[name].target == "pid"]
BAD = {"NaN": torch.nan, "infinity": torch.inf, "minus infinity": -torch.inf}


def value_of(variant, x, target, **kwargs): return seeded(make(variant), x, target, **kwargs)


# ---- NaN and infinity

@pytest.mark.parametrize("where", ["one number", "a row", "all"])
@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_not_finite_gives_no_finite_loss(variant, what, where):
    "In every row of the batch: of a pair, of a person with one image, of nobody else's interest."
    x, target = batch(variant)
    if LOSSES[VARIANTS[variant][0]].head and what == "minus infinity": pytest.skip("a class that is ruled out")
    for row in range(len(x)):
        spoilt = x.detach().clone()
        spoilt[{"one number": (row, row % x.shape[1]), "a row": row, "all": slice(None)}[where]] = BAD[what]
        if (target[row] < 0).all(): continue        # an image of which no attribute is known
        known = target.clamp(min=0) if target.ndim == 2 else target
        if target.ndim == 2: known[:, -17:] = torch.nn.functional.one_hot(torch.zeros(len(x), dtype=torch.long), 17)
        if target.ndim == 2: known[:, -9] = 1
        assert not value_of(variant, spoilt, known).isfinite(), f"row {row}"
        if where == "all": break


@pytest.mark.parametrize("variant", [v for v in REFERRING if v not in ("quadruplet", "quadruplet all")])
def test_a_reference_that_is_not_finite_gives_no_finite_loss(variant):
    x, pids = batch(variant)
    for row in range(4):
        spoilt = torch.randn(4, DIM)
        spoilt[row, 0] = torch.nan
        assert not value_of(variant, x, pids, ref_emb=spoilt, ref_labels=torch.tensor([0, 1, 2, 9])).isfinite()


def test_what_the_memory_holds_is_not_hidden():
    loss = make("memory")
    x, pids = batch("memory")
    spoilt = x.detach().clone()
    spoilt[0] = torch.nan
    loss(spoilt, pids)
    assert loss(x, pids).isnan()


@pytest.mark.parametrize("name", MINERS)
def test_a_miner_does_not_hide_nan(name):
    "Among the columns of an anchor that it may choose from, it chooses the one that is NaN."
    pids = torch.tensor([0, 0, 0, 1, 1, 1])
    for i, j in ((0, 1), (0, 4), (3, 1), (5, 3)):
        d = get_distance("euclidean")(torch.randn(6, DIM, generator=torch.Generator().manual_seed(0)))
        d[i, j] = torch.nan
        *pairs, n = seeded(MINERS[name], d, pids)
        a, p, b = pairs if len(pairs) == 3 else (*pairs, pairs[0])
        assert d[a, p].isnan().any() or d[b, n].isnan().any(), (i, j)


@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.parametrize("what", BAD)
def test_a_distance_to_what_is_not_finite_is_not_finite(name, what):
    x, y = torch.randn(3, DIM), torch.randn(4, DIM)
    x[1, 2] = BAD[what]
    distance = get_distance(name, DIM)
    d = distance(x, y)
    assert not d[1].isfinite().any() and d[[0, 2]].isfinite().all()
    assert not distance(y, x)[:, 1].isfinite().any() and not distance(x)[1].isfinite().any()


def test_sums_over_all_tuples_do_not_hide_nan():
    pids = torch.tensor([0, 0, 1, 1, 2, 2])
    for i, j in ((0, 1), (0, 0), (4, 1)):
        d = torch.rand(6, 6)
        d[i, j] = d[j, i] = torch.nan
        assert triplet_sum(d, pids)[0].isnan() and quadruplet_sum(d, pids, 0.1)[0].isnan()


# ---- very long and very short embeddings

@pytest.mark.parametrize("factor", [1e-42, 1e-38, 1e-30, 1e-25, 1e-10, 1e10, 1e20, 1e30, 1e37])
@pytest.mark.parametrize("name", DISTANCES)
def test_length_does_not_change_a_distance(name, factor):
    x = torch.randn(6, DIM, generator=torch.Generator().manual_seed(0))
    tolerance = 0.1 if factor < 1e-38 else 1e-3        # below 1e-38 a float32 has few bits
    distance = get_distance(name, DIM)
    assert torch.allclose(distance(x*factor), distance(x), atol=tolerance)
    assert torch.allclose(distance(x, x*factor), distance(x, x), atol=tolerance)


@given(st.integers(-100, 120), st.integers(0, 99))      # below, the smallest numbers lose bits
@settings(max_examples=60, deadline=None)
def test_a_power_of_two_changes_no_bit(power, seed):
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(seed)).clamp(-8, 8)
    assert torch.equal(unit(x*2.0**power), unit(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_at_the_ends_of_the_range_are_finite(dtype):
    info = torch.finfo(dtype)
    for size in (info.tiny/4, info.tiny, 1, info.max/8):
        x = (torch.tensor([[.5, -1, .25]], dtype=dtype)*size).requires_grad_()
        unit(x)[0, 0].backward()
        assert torch.isclose(unit(x).norm(), torch.ones((), dtype=dtype), atol=1e-3) and x.grad.isfinite().all()


@pytest.mark.parametrize("variant", [v for v in ON_PIDS if VARIANTS[v][0] != "identity"])
def test_length_does_not_change_a_loss_on_directions(variant):
    x, pids = batch(variant)
    for factor in (1e-25, 1e20):
        assert value_of(variant, x*factor, pids).item() == pytest.approx(value_of(variant, x, pids).item(), rel=1e-4)


# ---- labels

INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
LABELS = {**{str(dtype): lambda pids, dtype=dtype: torch.tensor(pids, dtype=dtype) for dtype in INTEGERS},
          **{f"a NumPy array, {kind}": lambda pids, kind=kind: np.array(pids, dtype=kind) for kind in ("u1", "<i2", ">i4", "u8", "i8")},
          "a list": list, "a tuple": tuple, "a list of NumPy numbers": lambda pids: [np.int16(p) for p in pids],
          "a list of tensors": lambda pids: [torch.tensor(p) for p in pids],
          "a pandas column": lambda pids: pd.Series(pids, index=range(10, 10 + len(pids))),
          "an array read backwards": lambda pids: np.array(pids[::-1])[::-1]}

@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("variant", [v for v in ON_PIDS if " " not in v])
def test_whole_numbers_of_any_kind_are_labels(variant, kind):
    x, pids = batch(variant)
    assert torch.equal(value_of(variant, x, LABELS[kind](pids.tolist())), value_of(variant, x, pids))


NO_LABELS = {"strings": list("aaabbcdd"), "floats": [0., 0, 0, 1, 1, 2, 3, 3], "NaN": [0, 0, 0, 1, 1, 2, 3, float("nan")],
             "None": [0, 0, 0, 1, 1, 2, 3, None], "truth values": [True]*8, "a float tensor": torch.zeros(8), "nothing": None,
             "a bool tensor": torch.zeros(8).bool(), "an array of floats": np.zeros(8), "an array of strings": np.array(list("aaabbcdd")),
             "a huge number": [10**30]*8, "a set": set(range(8)), "a mapping": dict.fromkeys(range(8)), "a string": "00011233",
             "a table": [[0]]*8, "two columns": torch.zeros(8, 2).long(), "too few": [0]*7, "too many": [0]*9, "a number": 3}

@pytest.mark.parametrize("kind", NO_LABELS)
@pytest.mark.parametrize("variant", [v for v in ON_PIDS if " " not in v])
def test_other_labels_are_refused(variant, kind):
    x, _ = batch(variant)
    with pytest.raises(InputError, match="pids|indices"): value_of(variant, x, NO_LABELS[kind])


@given(st.one_of(st.integers(), st.floats(), st.text(max_size=3), st.none(), st.booleans(), st.lists(st.one_of(st.integers(), st.floats(),
       st.text(max_size=2), st.booleans(), st.none()), max_size=4), st.dictionaries(st.integers(), st.integers(), max_size=3)))
@settings(max_examples=200, deadline=None)
def test_labels_are_whole_numbers_or_an_error(values):
    try: pids = as_pids(values, torch.ones(3, 2))
    except InputError: return
    assert pids.tolist() == list(values) and all(type(v) is int for v in values)


# ---- second derivatives

ONCE = ("circle", "circle_class", "triplet hamming")        # whose gradient is not the derivative of the value

def first(loss, x, pids): return torch.autograd.grad(seeded(copy.deepcopy(loss), x, pids), x, create_graph=True)[0]

def second(loss, x, pids, direction): return torch.autograd.grad((first(loss, x, pids)*direction).sum(), x)[0]


@pytest.mark.parametrize("variant", ON_PIDS)
def test_a_second_derivative_is_right_or_refused(variant):
    loss = make(variant).double()
    x, pids = batch(variant, dtype=torch.float64)
    direction = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(2))
    if variant in ONCE:
        with pytest.raises(InputError, match="second derivative"): first(loss, x, pids)
        return
    found = second(loss, x, pids, direction)
    shifted = [(x.detach() + step*direction).requires_grad_() for step in (1e-6, -1e-6)]
    high, low = (torch.autograd.grad(seeded(copy.deepcopy(loss), y, pids), y)[0] for y in shifted)
    assert torch.allclose(found, (high - low)/2e-6, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("variant", ["triplet", "triplet batch_all", "quadruplet", "supcon", "lifted", "multi_similarity"])
def test_a_gradient_penalty_counts(variant):
    "What `backward` leaves differs by the gradient of the penalty, which is not zero."
    loss = make(variant).double()
    x, pids = batch(variant, dtype=torch.float64)
    gradient = first(loss, x, pids)
    plain = gradient.detach().clone()
    (seeded(loss, x, pids) + gradient.square().sum()).backward()
    assert torch.allclose(x.grad - plain, second(loss, x, pids, 2*plain)) and (x.grad - plain).abs().max() > 1e-6


def test_a_classifier_in_shards_has_no_second_derivative():
    x, pids = batch("cosface")
    for loss in (ShardedIdentityLoss(CLASSES, DIM, shard=3), lambda x, pids: sharded_cross_entropy(x.detach(), [w], pids)):
        w = torch.randn(CLASSES, DIM, requires_grad=True)
        with pytest.raises(InputError, match="second derivative"): loss(x, pids).backward(create_graph=True)


# ---- copies

@pytest.mark.parametrize("variant", VARIANTS)
def test_a_loss_can_be_saved_and_copied(variant):
    x, target = batch(variant)
    file = io.BytesIO()
    torch.save(make(variant), file)
    file.seek(0)
    with warnings.catch_warnings(action="ignore"): saved = torch.load(file, weights_only=False)      # our own
    for twin in (saved, copy.deepcopy(make(variant))): assert torch.equal(seeded(twin, x, target), value_of(variant, x, target))


def test_gradients_are_those_of_finite_differences():
    for name in ("triplet", "lifted", "contrastive", "supcon"): check_gradient(make(name).double(), dim=DIM)


# ---- rows

X, PIDS = torch.randn(8, DIM, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 0, 0, 1, 1, 2, 3, 3])
NOT_FINITE = torch.where(torch.arange(8)[:, None] == 5, torch.nan, X)
ATTRIBUTES = torch.zeros(2, 27, dtype=torch.int8)

def coded(column, value):
    attributes = ATTRIBUTES.clone()
    attributes[1, column] = value
    return attributes

def loss(name, *args, **kwargs): return lambda _: seeded(make(name), *args, **kwargs)

CASES = [
    Case("one embedding that is NaN", loss("circle", NOT_FINITE, PIDS), gives=torch.isnan, means="the loss is NaN, and training stops"),
    Case("embeddings as a list", loss("triplet", X.tolist(), PIDS), refused=("list", "torch.as_tensor")),
    Case("embeddings as a NumPy array", loss("triplet", X.numpy(), PIDS), refused=("ndarray", "torch.as_tensor")),
    Case("embeddings that are integers", loss("triplet", X.long(), PIDS), refused=("int64", ".float()")),
    Case("embeddings of width 0", loss("triplet", X[:, :0], PIDS), refused=("[N, D]",)),
    Case("embeddings of 10²⁰", loss("triplet", X*1e20, PIDS), gives=lambda v: torch.isclose(v, make("triplet")(X, PIDS), rtol=1e-5),
         means="the loss is that of their directions"),
    Case("labels that are names", loss("triplet", X, list("aaabbcdd")), refused=("pids", "number the identities")),
    Case("labels that are floats", loss("supcon", X, PIDS.float()), refused=("pids", "float32")),
    Case("labels as a list", loss("lifted", X, PIDS.tolist()), gives=lambda v: torch.equal(v, make("lifted")(X, PIDS)),
         means="they are taken as whole numbers"),
    Case("a label less than there are embeddings", loss("triplet", X, PIDS[1:]), refused=("8 embeddings", "pids [8]")),
    Case("an identity of −100", loss("identity", X[:, :CLASSES], [-100, *PIDS[1:].tolist()]), refused=("-100", "number the training")),
    Case("an identity beyond the classes", loss("arcface", X, PIDS + 1), refused=("4", "0 to 3")),
    Case("references without labels", loss("triplet", X, PIDS, ref_emb=X), refused=("ref_emb and ref_labels",)),
    Case("an index that is no image", loss("triplet", X, PIDS, ([0], [1], [8])), refused=("indices", "0 to 7")),
    Case("a negative index", loss("contrastive", X, PIDS, ([0], [-1], [4])), refused=("indices", "0 to 7")),
    Case("triplets as lists", loss("triplet", X, PIDS, ([0], [1], [4])), gives=torch.isfinite, means="they are taken as they are"),
    Case("a gradient penalty on circle loss", lambda _: first(make("circle"), X.clone().requires_grad_(), PIDS),
         refused=("CircleLoss", "create_graph")),
    Case("a miner and labels of another length", lambda _: MINERS["batch_hard"](torch.ones(3, 3), [0, 1]),
         refused=("3 embeddings", "pids [3]")),
    Case("a miner and distances to references without labels", lambda _: MINERS["semi_hard"](torch.ones(2, 3), [0, 1]), refused="ref_pids"),
    Case("distances of integers", lambda _: triplet_sum(torch.ones(2, 2).long(), [0, 1]), refused=("int64", ".float()")),
    Case("an attribute coded −7", lambda _: attribute_targets(coded(0, -7)), refused=("-7", "-1 is unknown")),
    Case("a colour coded 3", lambda _: attribute_targets(coded(20, 3)), refused=("3", "0 or 1")),
    Case("an age coded 9", lambda _: attribute_counts(coded(0, 9)), refused=("age", "0 to 3")),
    Case("attributes that are floats", lambda _: attribute_targets(ATTRIBUTES.float()), refused=("float32", "-1")),
    Case("attributes as a list of words", lambda _: attribute_targets(["red"]), refused="whole numbers"),
    Case("whitening by labels with NaN", lambda _: fit_whitening(X, [0, 0, 0, 1, 1, 2, 3, float("nan")]), refused="whole numbers"),
    Case("KISSME on embeddings with NaN", lambda _: fit_kissme(NOT_FINITE, PIDS), refused="NaN"),
    Case("bits of infinite embeddings", lambda _: pack_bits(X/0), refused="infinite"),
    Case("embeddings of another width than the gallery's", lambda _: check_embeddings(X, X[:, 1:]), refused=("8", "7", "one network")),
    Case("logits that are NaN, for the attributes' accuracy", lambda _: attribute_accuracy(torch.full((2, 39), torch.nan), ATTRIBUTES[:2]),
         refused=("2 of 2", "NaN")),
    Case("logits of other images, for the attributes' accuracy", lambda _: attribute_accuracy(torch.ones(3, 39), ATTRIBUTES[:2]),
         refused=("3 rows", "2")),
    Case("statistics of a loss that is NaN", lambda _: make("identity").compute(X[:, :CLASSES]*torch.nan, PIDS)[1]["accuracy"],
         gives=torch.isnan, means="they are NaN"),
    Case("embeddings of 10⁻²⁵ that are not normalised", lambda _: Euclidean(normalize=False)(X[:4]*1e-25, X[4:]*1e-25)*1e25,
         gives=lambda d: torch.allclose(d, Euclidean(normalize=False)(X[:4], X[4:])), means="distances are right"),
    Case("a classifier drawn from labels beyond it", lambda _: SampledSoftmaxLoss(3, DIM)(X, PIDS), refused=("0 to 2",))]

@table(CASES)
def test_losses(case, tmp_path): check(case, tmp_path)


def test_every_metric_loss_is_here(): assert all(issubclass(LOSSES[VARIANTS[v][0]].make, MetricLoss) for v in METRIC)
